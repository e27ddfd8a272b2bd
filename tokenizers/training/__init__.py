"""Stage 1: train a tokenizer to reconstruct."""
