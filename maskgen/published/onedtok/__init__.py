"""Transformers and decoding loop of 1d-tokenizer: ImageBert and UViTBert on the tokens of TiTok."""

from maskgen.published.onedtok.imagebert import ImageBert
from maskgen.published.onedtok.uvitbert import UViTBert

__all__ = ["ImageBert", "UViTBert"]
