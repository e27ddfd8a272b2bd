"""Clips as training examples."""
