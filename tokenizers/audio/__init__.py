"""Codecs: tokenizers of sound."""

from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.audio.codec import AudioCodec, AudioCodecConfig
from maskgen.tokenizers.audio.toy import ToyAudioTokenizer

__all__ = ["AudioCodec", "AudioCodecConfig", "AudioTokenizer", "ToyAudioTokenizer"]
