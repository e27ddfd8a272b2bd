"""Pictures as training examples."""
