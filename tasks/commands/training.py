"""The commands that train, by name; importing them makes every data set known by its class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import maskgen.models.modern
import maskgen.published.vampnet.transformer
import maskgen.tasks.data.audio.folders
import maskgen.tasks.data.audio.melodies
import maskgen.tasks.data.images.cifar10
import maskgen.tasks.data.images.digits
import maskgen.tasks.data.images.hub
import maskgen.tasks.data.images.shards
import maskgen.tasks.data.tokens.shards
import maskgen.tasks.data.video.folders
import maskgen.tasks.data.video.moving_digits
import maskgen.tokenizers.video.vq3d  # noqa: F401
from maskgen.tasks.commands.tokenize import tokenize_data
from maskgen.tasks.evaluation.features.train_classifier import train_classifier
from maskgen.tasks.training.codec import train_codec
from maskgen.tasks.training.critic import train_critic
from maskgen.tasks.training.image import train_tokenizer
from maskgen.tasks.training.transformer import train_transformer
from maskgen.tasks.training.video import train_video_tokenizer, train_video_transformer

__all__ = ["TRAINING"]

TRAINING: dict[str, Callable[..., Any]] = {
    "train tokenizer": train_tokenizer,
    "train codec": train_codec,
    "train classifier": train_classifier,
    "train transformer": train_transformer,
    "train critic": train_critic,
    "train video-tokenizer": train_video_tokenizer,
    "train video-transformer": train_video_transformer,
    "tokenize": tokenize_data,
}
