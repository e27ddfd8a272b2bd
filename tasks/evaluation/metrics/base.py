"""What every measure gives back: a number, how sure it is, and how many samples it rests on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_CONFIDENCE = 0.95

_PART = 1 << 22  # resampled values held at a time


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of a report.

    Attributes:
        value: the number.
        count: samples it rests on.
        low: lower end of its interval; None if it has none.
        high: upper end.
        interval: how the interval was made.
        note: settings that the number depends on.
        left_out: further samples of which the number is not defined; None for none.
    """

    value: float
    count: int
    low: float | None = None
    high: float | None = None
    interval: str = ""
    note: str = ""
    left_out: int | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.5g}" if self.count else "not defined"
        return f"{self.value:.5g} ({self.low:.4g} to {self.high:.4g})"


def bootstrap(values: ArrayLike, *, draws: int = 1000, seed: int = 0, note: str = "") -> Metric:
    """Mean of values, one a sample, with its 95 % percentile interval under resampling (Efron 1979).

    Args:
        values: ``[M]``, one number a sample.
        draws: how often M of the M samples are drawn with replacement.
        seed: of the draws.
        note: see ``Metric``.

    Raises:
        ValueError: no values, or fewer than one draw.
    """
    each = np.asarray(values, dtype=np.float64)
    if each.ndim != 1 or not len(each) or draws < 1:
        raise ValueError(f"bootstrap: got values of shape {each.shape}, {draws} draws; expected [M] and at least one")
    generator = np.random.default_rng(seed)
    means: list[Any] = []
    rows = max(1, _PART // len(each))
    for first in range(0, draws, rows):
        chosen = generator.integers(len(each), size=(min(rows, draws - first), len(each)))
        means.append(each[chosen].mean(1))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Metric(
        value=float(each.mean()),
        count=len(each),
        low=float(low),
        high=float(high),
        interval=f"95 % of {draws} bootstrap draws of the samples",
        note=note,
    )
