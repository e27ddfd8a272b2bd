"""What the catalogue says of each model."""
