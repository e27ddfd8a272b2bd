"""Published tokenizers of clips."""
