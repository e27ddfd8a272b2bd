"""Published codecs."""

from maskgen.tokenizers.published.audio.dac import DACTokenizer
from maskgen.tokenizers.published.audio.encodec import EncodecTokenizer
from maskgen.tokenizers.published.audio.encodec_package import EncodecPackageTokenizer
from maskgen.tokenizers.published.audio.lac import LACTokenizer

__all__ = ["DACTokenizer", "EncodecPackageTokenizer", "EncodecTokenizer", "LACTokenizer"]
