"""Published weights by name: catalogue, layouts, download, conversion."""
