"""Tokenizers of other groups."""
