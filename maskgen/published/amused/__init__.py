"""aMUSEd's transformer and decoding loop."""

from maskgen.published.amused.transformer import UVit2D

__all__ = ["UVit2D"]
