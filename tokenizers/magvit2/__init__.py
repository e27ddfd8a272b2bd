"""MAGVIT-v2 as Open-MAGVIT2 has it, for images and clips."""

from maskgen.tokenizers.magvit2.tokenizer import Magvit2Image, Magvit2Video

__all__ = ["Magvit2Image", "Magvit2Video"]
