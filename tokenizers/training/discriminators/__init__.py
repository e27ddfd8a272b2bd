"""What judges reconstructions."""
