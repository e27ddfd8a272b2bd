"""What both training stages need of a data set, whatever its modality.

Shapes: B batch, C channels, S samples, H W pixels.
"""

from abc import ABC, abstractmethod
from dataclasses import fields
from pathlib import Path
from typing import ClassVar, Literal

from maskgen.data import Source
from maskgen.tasks.conditions.preparation import Preparation
from maskgen.tasks.data.captions import is_captioned


class SignalData(ABC):
    """A data set: batches hold the signal under ``key`` and, where there are classes, ``labels`` long ``[B]``.

    Attributes:
        modality: "image", "video" or "audio".
        key: name of the signal in a batch.
        size: size of a training signal without batch and channels, e.g. (H, W) or (S,).
        rules: the dataclass of settings that a data set shares with its relatives and takes as further keywords.
    """

    modality: ClassVar[str]
    key: ClassVar[str]
    rules: ClassVar[type | None] = None
    size: tuple[int, ...]

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """One name a class, in the order of the labels; empty for data without classes."""

    @abstractmethod
    def train(self) -> Source:
        """Training examples, augmented by their seeds."""

    @abstractmethod
    def test(self) -> Source | None:
        """Held-out examples, never augmented; None if there are none."""

    @property
    def has_captions(self) -> bool:
        """Whether the training examples have captions, see ``maskgen.tasks.data.captions.Captioned``."""
        return is_captioned(self.train())

    @property
    def prepared(self) -> Preparation:
        """What every example is brought to, as attributes of these names say."""
        return Preparation.of({one.name: getattr(self, one.name, None) for one in fields(Preparation)})

    def log_skipped(self, path: Path) -> None:  # noqa: B027 (optional)
        """Name examples that turn out broken in this file, one JSON line each; data that skip none write none.

        All processes of a run add to the same file, and a run that goes on reads what it holds.
        """


class ImageData(SignalData):
    """A labelled image data set; batches hold ``images`` float ``[B, 3, H, W]`` in [0, 1] and ``labels`` long ``[B]``."""

    modality: ClassVar[str] = "image"
    key: ClassVar[str] = "images"
    size: tuple[int, int]


class AudioData(SignalData):
    """A data set of sounds: batches hold ``audio`` float ``[B, C, S]`` in [-1, 1].

    Attributes:
        sample_rate: samples a second.
        channels: C.
        loudness: LUFS of the examples; None where they are as loud as they were.
    """

    modality: ClassVar[str] = "audio"
    key: ClassVar[str] = "audio"
    sample_rate: int
    channels: int
    loudness: float | None = None


Modality = Literal["image", "video", "audio"]
"""What samples are."""


def modality_named(name: str) -> Modality:
    """A modality by the name that tokenizers, models and data sets give it.

    Raises:
        ValueError: there is none of that name.
    """
    known: tuple[Modality, ...] = ("image", "video", "audio")
    for modality in known:
        if modality == name:
            return modality
    raise ValueError(f"modality: got {name!r}, expected image, video or audio")
