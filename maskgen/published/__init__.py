"""Transformers and sampling loops of other groups, a folder a family."""
