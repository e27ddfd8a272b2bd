"""Meissonic's transformer and what its decoding adds to aMUSEd's."""

from maskgen.published.meissonic.transformer import MeissonicTransformer

__all__ = ["MeissonicTransformer"]
