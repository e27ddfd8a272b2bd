"""Sound as the engine of the audio tasks reads it: sources, and frames on the caller's time axis.

Times are samples of the caller's rate, which need not be the codec's.

Shapes: C channels, S samples, T frames, W the model's context in frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskgen.tasks.media.audio.files import SoundFile, check_waveform

__all__ = ["Grid", "MemorySound", "Sound", "Source", "Turned", "open_sound", "plan_gap"]

Sound = Tensor | NDArray[Any] | str | Path
"""What people hold: float ``[C, S]``, mono or stereo, about [-1, 1], as a tensor or an array; or the path of a file."""


class Source(Protocol):
    """Sound that can be read in parts, such as ``maskgen.tasks.media.audio.files.SoundFile``."""

    @property
    def sample_rate(self) -> int:
        """Samples a second."""
        ...

    @property
    def channels(self) -> int:
        """C."""
        ...

    @property
    def frames(self) -> int:
        """S, samples of each channel."""
        ...

    def read(self, start: int, count: int) -> Tensor:
        """Float ``[C, count]``, samples ``start`` to ``start + count``."""
        ...


class MemorySound:
    """A waveform as a ``Source``.

    Args:
        waveform: float ``[C, S]``, mono or stereo, about [-1, 1].
        sample_rate: samples a second.

    Raises:
        TypeError, ValueError: see ``maskgen.tasks.media.audio.files.check_waveform``.
    """

    def __init__(self, waveform: Tensor, sample_rate: int) -> None:
        check_waveform(waveform, sample_rate)
        self.sample_rate = sample_rate
        self.channels, self.frames = waveform.shape
        self._waveform = waveform

    def read(self, start: int, count: int) -> Tensor:
        """Float ``[C, count]``, a view."""
        return self._waveform[:, start : start + count]

    def close(self) -> None:
        """Nothing is to be closed."""


class Turned:
    """A sound played in a circle, from another place on.

    Args:
        sound: the sound.
        by: samples by which it comes later: sample ``by`` is the sound's first.
    """

    def __init__(self, sound: Source, by: int) -> None:
        self.sample_rate, self.channels, self.frames = sound.sample_rate, sound.channels, sound.frames
        self._sound, self._by = sound, by

    def read(self, start: int, count: int) -> Tensor:
        """Float ``[C, count]``."""
        first = (start - self._by) % self.frames
        ahead = min(count, self.frames - first)
        part = self._sound.read(first, ahead)
        return part if ahead == count else torch.cat((part, self._sound.read(0, count - ahead)), dim=-1)


def open_sound(sound: Sound, sample_rate: int | None) -> MemorySound | SoundFile:
    """What people hold as a ``Source``.

    Raises:
        TypeError: a sound in memory that is not floating point, or comes without its sample rate.
        ValueError: no sound that the audio tasks work on, or a sample rate for a file.
        FileNotFoundError: no such file.
    """
    if isinstance(sound, str | Path):
        if sample_rate is not None:
            raise ValueError(f"sample_rate: got {sample_rate} for {sound}, expected none: a file says its own")
        with SoundFile(sound) as file:  # opened again by the first read
            if file.channels > 2:
                raise ValueError(f"{sound}: got {file.channels} channels, expected 1 or 2; downmix the file first")
        return file
    if sample_rate is None:
        raise TypeError("sample_rate: got none, expected samples a second; only files say their own")
    return MemorySound(torch.tensor(sound) if isinstance(sound, np.ndarray) else sound, sample_rate)


@dataclass(frozen=True)
class Grid:
    """Where frames lie on the caller's time axis.

    Attributes:
        origin: sample at which frame 0 begins.
        hop: samples of the caller's rate a frame covers, exactly; a whole number only if the rates allow it.
    """

    origin: int
    hop: Fraction

    def sample(self, frame: int) -> int:
        """Sample at which a frame begins, rounded to the nearest: never more than half a sample off."""
        return self.origin + math.floor(frame * self.hop + Fraction(1, 2))


def plan_gap(
    gap: tuple[int, int], length: int, hop: Fraction, window: int, context: int | None = None
) -> tuple[Grid, int, int, int]:
    """Lay the frame grid so that a gap begins with a frame, and choose how much of the surroundings the model hears.

    A gap that leaves at least a quarter of the window for its surroundings is filled in one window: the rest of the window
    is shared evenly between both sides, or goes to the side that has more sound. A longer one gets half a window of
    surroundings on each side, and is filled window by window from the left.

    Args:
        gap: first sample and one past the last; may reach beyond the end.
        length: samples of the source.
        hop: samples a frame covers.
        window: W.
        context: most frames of surroundings on each side; None for as many as fit.

    Returns:
        The grid, and the numbers of frames before, in and after the gap. The gap has at least one; its last frame may
        reach over its end.
    """
    start, stop = gap
    inside = math.ceil((stop - start) / hop)
    rest = (length - start) / hop - inside
    most = window if context is None else context
    left, right = min(math.floor(start / hop), most), min(max(math.ceil(rest), 0), most)
    free = window - inside
    if 4 * free >= window:
        half = free // 2
        left = min(left, max(half, free - right))
        right = min(right, free - left)
    else:
        left, right = min(left, window // 2), min(right, window // 2)
    return Grid(start - math.floor(left * hop + Fraction(1, 2)), hop), left, inside, right
