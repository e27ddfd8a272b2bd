"""MaskBit's transformer and decoding loop."""

from maskgen.published.maskbit.transformer import MaskBitTransformer

__all__ = ["MaskBitTransformer"]
