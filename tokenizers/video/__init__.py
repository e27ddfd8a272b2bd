"""Tokenizers of clips."""

from maskgen.tokenizers.video.base import VideoTokenizer
from maskgen.tokenizers.video.frames import FrameVQ
from maskgen.tokenizers.video.toy import ToyVideoTokenizer
from maskgen.tokenizers.video.vq3d import VQ3D

__all__ = ["VQ3D", "FrameVQ", "ToyVideoTokenizer", "VideoTokenizer"]
