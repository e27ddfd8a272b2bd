"""Networks that tell real signals from reconstructions."""
