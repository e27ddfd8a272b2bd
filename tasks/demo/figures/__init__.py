"""What the report pages show."""
