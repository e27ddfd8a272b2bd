"""Sounds as training examples."""
