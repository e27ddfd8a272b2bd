"""What training reads: folders, shards, data sets, and synthesised signals."""

from maskgen.tasks.data.audio.folders import SoundFolder
from maskgen.tasks.data.audio.melodies import Melodies
from maskgen.tasks.data.base import AudioData, ImageData, SignalData
from maskgen.tasks.data.images.cifar10 import Cifar10
from maskgen.tasks.data.images.digits import Digits
from maskgen.tasks.data.images.folders import Folder
from maskgen.tasks.data.images.hub import HubImages
from maskgen.tasks.data.images.scenes import Scenes
from maskgen.tasks.data.images.shards import ShardImages
from maskgen.tasks.data.tokens.shards import TokenShards
from maskgen.tasks.data.video.folders import VideoFolder
from maskgen.tasks.data.video.moving_digits import MovingDigits

__all__ = [
    "AudioData",
    "Cifar10",
    "Digits",
    "Folder",
    "HubImages",
    "ImageData",
    "Melodies",
    "MovingDigits",
    "Scenes",
    "ShardImages",
    "SignalData",
    "SoundFolder",
    "TokenShards",
    "VideoFolder",
]
