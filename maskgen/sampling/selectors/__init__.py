"""Which tokens are hidden again after a step."""
