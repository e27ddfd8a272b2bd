"""Published tokenizers of images."""

from maskgen.tokenizers.published.image.amused import AmusedVQ
from maskgen.tokenizers.published.image.ibq import IBQTokenizer
from maskgen.tokenizers.published.image.llamagen import LlamaGenVQ
from maskgen.tokenizers.published.image.maskbit import MaskBitTokenizer
from maskgen.tokenizers.published.image.muse import MuseVQGAN
from maskgen.tokenizers.published.image.taming import TamingVQGAN

__all__ = ["AmusedVQ", "IBQTokenizer", "LlamaGenVQ", "MaskBitTokenizer", "MuseVQGAN", "TamingVQGAN"]
