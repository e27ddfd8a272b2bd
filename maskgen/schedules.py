"""Masking schedules: how much stays masked at a point of the decoding, or in a training example.

Every schedule maps a ratio in [0, 1] (share of the work done) to a mask ratio gamma, falling from 1 to 0; the result is
clamped to [1e-6, 1] as in official MaskGIT (Chang et al. 2022, arXiv 2202.04200, section 3.3 and appendix; arccos:
Besnier and Chen 2023, arXiv 2310.14400).

Counts are floors of float32 products, so a last bit decides a token: cos(pi/3) in float32 is a hair under 1/2, and
the official count at (k+1)/T = 2/3 is N/2 - 1. ``Schedule.at_step`` therefore rounds as the compiled official loop does
(XLA on a CPU): (k+1)/T is a product with c = float32(1/T), powers of that product are powers of its factors, and
1 - x y is a fused multiply-add, rounded once.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Curve = Callable[[Tensor, Tensor], Tensor]
"""``curve(ratio, total)`` -> gamma, float32, not yet clamped; see ``Schedule``."""


@dataclass(frozen=True)
class Schedule:
    """A masking schedule.

    Attributes:
        curve: what ``__call__`` clamps.
        compiled: what ``at_step`` clamps, of the number of the step counted from 1, float32(1 / steps) and the total; by
            default the curve at the float32 product of the first two.
    """

    curve: Curve
    compiled: Callable[[int, Tensor, Tensor], Tensor] | None = None

    def __call__(self, ratio: Tensor, total: Tensor) -> Tensor:
        """Share that is masked, float32 in [1e-6, 1].

        Args:
            ratio: share of the work done, in [0, 1].
            total: number of tokens, of the same shape or one that broadcasts.
        """
        return self.curve(ratio, total).float().clamp(1e-6, 1.0)

    def at_step(self, step: int, steps: int, total: Tensor) -> Tensor:
        """Share that stays masked after ``step`` (from 0) of ``steps``, to the last bit that of the official loop.

        Args:
            step: 0 to ``steps - 1``.
            steps: of the decoding.
            total: number of tokens ``[B]``, on the CPU: other devices round their logarithms differently.
        """
        part = torch.tensor(1.0) / steps
        if self.compiled is None:
            return self(part * (step + 1), total)
        return self.compiled(step + 1, part, total).float().clamp(1e-6, 1.0)


_POWERS = {"uniform": 1.0, "linear": 1.0, "square": 2.0, "cubic": 3.0, "sqrt": 0.5}

_NUMBER = r"[+-]?(\d+(\.\d*)?|\.\d+)"

_EXPECTED = (
    "'cosine', 'arccos', 'uniform', 'sigmoid', 'linear', 'square', 'cubic', 'sqrt', 'pow<P>' (as 'pow2.5'), "
    "'poly:<coefficients>' (as 'poly:-1,0,1'), 'log' or 'exp'"
)


def get_schedule(name: str) -> Schedule:
    """The schedule of that name.

    Args:
        name: ``cosine`` (default of the paper), ``arccos``, ``uniform`` = ``linear``, ``square``, ``cubic``, ``sqrt``,
            ``pow<P>`` (1 - r^P), ``poly:<a,b,...>`` (MAGVIT: a polynomial in r, highest power first, that should fall from
            1 to 0; ``poly:-1,0,1`` is ``square``), ``log``, ``exp``, ``sigmoid`` (open-muse: the curve from 3 to -3).

    Raises:
        ValueError: for any other name.
    """
    if name in _POWERS:
        return _power(_POWERS[name])
    if re.fullmatch(r"pow\d+(\.\d+)?", name) and float(name[3:]) > 0:
        return _power(float(name[3:]))
    if re.fullmatch(rf"poly:{_NUMBER}(,{_NUMBER})*", name):
        return _polynomial([float(number) for number in name[5:].split(",")])
    named = {
        "cosine": Schedule(_cosine),
        "arccos": Schedule(_arccos),
        "sigmoid": Schedule(_sigmoid),
        "log": Schedule(_log),
        "exp": Schedule(_exp, _exp_at),
    }
    if name not in named:
        raise ValueError(f"schedule: got {name!r}, expected {_EXPECTED}")
    return named[name]


def mask_counts(gamma: Tensor, total: Tensor, masked: Tensor) -> Tensor:
    """How many tokens are masked again after a step (official rule).

    Args:
        gamma: share that stays masked, ``[B]`` or scalar, see ``Schedule``.
        total: masked tokens of each row when decoding began, ``[B]``.
        masked: masked tokens of each row now, ``[B]``.

    Returns:
        long ``[B]``: max(1, min(masked - 1, floor(total x gamma))).
    """
    planned = torch.floor(total.float() * gamma)
    return torch.clamp(torch.minimum(masked.float() - 1, planned), min=1).long()


def _power(exponent: float) -> Schedule:
    def compiled(number: int, part: Tensor, total: Tensor) -> Tensor:
        # The compiler takes (k c)^3 as (k k k) (c c c): two rounded powers, whose product leaves 1 in one rounding.
        first, second = (
            torch.stack([factor] * int(exponent)).prod(0) for factor in (torch.tensor(float(number)), part)
        )
        return 1 - first.double() * second.double()

    def curve(ratio: Tensor, total: Tensor) -> Tensor:
        return 1 - ratio.double() ** exponent

    def rounded(ratio: Tensor, total: Tensor) -> Tensor:
        return 1 - (ratio.double() ** exponent).float()

    if exponent in (1, 2, 3):
        return Schedule(curve, compiled)
    return Schedule(rounded)


def _polynomial(coefficients: list[float]) -> Schedule:
    def polynomial(ratio: Tensor, total: Tensor) -> Tensor:
        value = torch.zeros_like(ratio, dtype=torch.float64)
        for coefficient in coefficients:
            value = value * ratio.double() + coefficient
        return value

    def compiled(number: int, part: Tensor, total: Tensor) -> Tensor:
        return polynomial(part.double() * number, total)

    return Schedule(polynomial, compiled)


def _cosine(ratio: Tensor, total: Tensor) -> Tensor:
    return torch.cos(ratio.float() * (math.pi / 2))


def _arccos(ratio: Tensor, total: Tensor) -> Tensor:
    return torch.acos(ratio.float().clamp(0, 1)) / (math.pi / 2)


def _sigmoid(ratio: Tensor, total: Tensor) -> Tensor:
    low, high = (torch.tensor(end, device=ratio.device).sigmoid() for end in (-3.0, 3.0))
    return (high - (6 * ratio.float() - 3).sigmoid()) / (high - low)


def _log2(value: Tensor) -> Tensor:
    """The official log2: a float32 logarithm times float32(1 / ln 2)."""
    return torch.log(value.float()) * (1 / math.log(2))


def _log(ratio: Tensor, total: Tensor) -> Tensor:
    # One masked token gives 0/0 at ratio 1; the official NaN there is harmless, a plain 0 is kinder.
    return torch.nan_to_num(-_log2(ratio) / _log2(total), nan=0.0)


def _exp(ratio: Tensor, total: Tensor) -> Tensor:
    return _exp_of((1 - ratio.double()).float(), total)


def _exp_at(number: int, part: Tensor, total: Tensor) -> Tensor:
    return _exp_of((1 - part.double() * number).float(), total)


def _exp_of(left: Tensor, total: Tensor) -> Tensor:
    """1 - 2^(-log2(total) left), the power as the official one: a float32 exponential."""
    return 1 - torch.exp(-_log2(total) * left * math.log(2))
