"""Open-MAGVIT2's autoregressive transformer."""
