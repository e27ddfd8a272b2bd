"""Tokenizers of images."""

from maskgen.tokenizers.image.base import ImageTokenizer
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig

__all__ = ["VQGAN", "ImageTokenizer", "ToyTokenizer", "ToyTokenizerConfig", "VQGANConfig"]
