"""maskgen: one masked-token transformer and one confidence scheduler for images, video and audio."""
