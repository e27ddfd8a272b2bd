"""Sound files and tensors; loudness, onsets, spectrograms."""
