"""Which tokens are masked again after a step."""
