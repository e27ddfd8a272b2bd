"""Sound as the engine of the audio tasks reads it: sources, frames on the caller's time axis, windows of frames.

Pure geometry. Times are samples of the caller's rate, which need not be the codec's.

Shapes: C channels, S samples, T frames, W the model's context in frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from torch import Tensor

from maskgen.tasks.media.audio.files import check_waveform

__all__ = ["Grid", "Memory", "Source", "plan_gap"]


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


class Memory:
    """A waveform as a ``Source``.

    Args:
        waveform: float ``[C, S]``.
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
