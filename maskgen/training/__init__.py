"""One training loop for every stage, on Hugging Face Accelerate."""
