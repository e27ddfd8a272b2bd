"""Latents to codes, how evenly codes are used, and what a codebook needs in training."""
