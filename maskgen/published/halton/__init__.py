"""Halton-MaskGIT's transformer and decoding loop."""

from maskgen.published.halton.transformer import HaltonTransformer

__all__ = ["HaltonTransformer"]
