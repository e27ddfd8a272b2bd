"""Video files and tensors."""
