"""What a stage trains and what it costs."""
