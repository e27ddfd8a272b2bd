"""What signals were brought to before a model was trained on them, and what it expects of signals to work on.

Ranges stand nowhere here: tokenizers take [0, 1] for pictures and clips, and about [-1, 1] for sound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

USUAL_LOUDNESS = -24.0
"""LUFS of VampNet's training data, and of ours unless told otherwise; the meaning of a model that does not say."""

_QUIETEST = -70.0  # LUFS: below, nothing counts as sound (ITU-R BS.1770-4)

Loudness = float | Literal["model"] | None
"""LUFS a sound is brought to before a codec hears it; None leaves it as it is, ``model`` is as the model was trained."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What every training example was brought to; None where it came as it was, or where there is no such thing.

    Attributes:
        size: of a signal, see ``maskgen.tasks.data.base.SignalData``.
        crop: how pictures of other sizes were cut, see ``maskgen.tasks.data.images.sources.Crop``.
        frame_rate: of clips, frames a second.
        sample_rate: of sounds, samples a second.
        channels: of sounds.
        loudness: of sounds, LUFS.
    """

    size: tuple[int, ...] = ()
    crop: str | None = None
    frame_rate: float | None = None
    sample_rate: int | None = None
    channels: int | None = None
    loudness: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))  # JSON brings a list

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Preparation:
        """What the settings of a data set say, by their names; it may have many others."""
        return cls(**{one.name: data[one.name] for one in dataclasses.fields(cls) if data.get(one.name) is not None})

    def differences(self, other: Preparation) -> str:
        """What keeps signals of one kind from being heard or seen as those of the other, in words; empty if nothing."""
        pairs = {"loudness": (self.loudness, other.loudness), "frame_rate": (self.frame_rate, other.frame_rate)}
        return ", ".join(f"{name} {one} against {two}" for name, (one, two) in pairs.items() if one != two)


def loudness_of(asked: Loudness | str, trained: Preparation | None) -> float | None:
    """LUFS that sounds are brought to for a model; None for as loud as they are.

    Args:
        asked: what a call says.
        trained: of the model; None if nobody wrote it down, and then ``USUAL_LOUDNESS`` is meant.

    Raises:
        ValueError: no number from -70 to 0.
    """
    if asked == "model":
        return USUAL_LOUDNESS if trained is None else trained.loudness
    if asked is not None and (isinstance(asked, str) or not _QUIETEST <= asked <= 0):
        raise ValueError(
            f"loudness: got {asked!r}, expected LUFS from {_QUIETEST:g} to 0 such as {USUAL_LOUDNESS}, or 'model', or None "
            "for as loud as the sound is"
        )
    return asked
