"""Muse's transformers, token critic, training rule and decoding loop as lucidrains' muse-maskgit-pytorch has them."""

from maskgen.published.muse.transformer import MuseCritic, MuseTransformer

__all__ = ["MuseCritic", "MuseTransformer"]
