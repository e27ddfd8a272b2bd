"""Frame rates behind time stamps that containers round, behind pauses and last frames that are held.

Shapes: T frames.
"""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_REGULAR = 0.9  # share of frames that are as long as the usual one in a video with pauses


def find_rate(times: NDArray[np.float64], stated: list[Fraction], tick: float) -> tuple[Fraction, bool]:
    """Frames a second, and whether the spacing varies by more than a quarter of a frame.

    Args:
        times: float64 ``[T]``, seconds since the first frame, rounded to ticks.
        stated: what headers say; the first that agrees with the times is taken.
        tick: seconds of the container's clock.
    """
    if len(times) < 2:
        return (stated or [Fraction(1)])[0], False
    steps = np.diff(times)
    usual = float(np.median(steps))
    most = steps[np.abs(steps - usual) <= max(tick, usual / 4)]
    average = float(steps.mean() if len(most) < _REGULAR * len(steps) else most.mean())
    guesses = [*stated, Fraction(round(1 / average)), Fraction(round(1.001 / average) * 1000, 1001)]
    rates = [rate for rate in [*guesses, Fraction(1 / average).limit_denominator(1001)] if rate > 0]
    off = [float(np.abs(times - np.arange(len(times)) / float(rate)).max()) for rate in rates]
    for most_off in (tick + 1e-9, average / 4 + tick):
        for rate, found in zip(rates, off, strict=True):
            if found <= most_off:
                return rate, False
    off = [len(steps) * abs(average - 1 / float(rate)) for rate in rates]  # between pauses
    return next((rate for rate, found in zip(rates, off, strict=True) if found <= tick), rates[-1]), True


def total_seconds(times: NDArray[np.float64], last: float, tick: float, rate: float) -> float:
    """Seconds that frames are shown: as many as they are at an even rate, unless the last one is held.

    Args:
        times: see ``find_rate``.
        last: how long the last frame is shown; 0 if the file does not say.
        tick: seconds of the container's clock.
        rate: frames a second; 0 where they are not evenly spaced.
    """
    if rate and last <= 1 / rate + 2 * tick:
        return len(times) / rate
    return float(times[-1]) + last
