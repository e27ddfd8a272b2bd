"""Masking schedules: how much stays masked at a point of the decoding, or in a training example.

Every schedule maps a ratio in [0, 1] (share of the work done) to a mask ratio gamma, falling from 1 to 0; the result is
clamped to [1e-6, 1] as in official MaskGIT (Chang et al. 2022, arXiv 2202.04200, section 3.3 and appendix; arccos:
Besnier and Chen 2023, arXiv 2310.14400).

Counts are floors of float32 products, so a last bit decides a token: cos(pi/3) in float32 is a hair under 1/2, and
the official count at (k+1)/T = 2/3 is N/2 - 1. Hence cosine is computed in float32; the polynomial ones take the ratio
in float64 and round once, which is what the compiled official loop does (fused multiply-add on a float32 1/T).
"""

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

Schedule = Callable[[Tensor, Tensor], Tensor]
"""``schedule(ratio, total)``: ratio in [0, 1], total = number of tokens (same shape or broadcastable) -> float32 gamma."""

_POWERS = {"uniform": 1.0, "linear": 1.0, "square": 2.0, "cubic": 3.0, "sqrt": 0.5}

_NUMBER = r"[+-]?(\d+(\.\d*)?|\.\d+)"

_EXPECTED = (
    "'cosine', 'arccos', 'uniform', 'linear', 'square', 'cubic', 'sqrt', 'pow<P>' (as 'pow2.5'), "
    "'poly:<coefficients>' (as 'poly:-1,0,1'), 'log' or 'exp'"
)


def get_schedule(name: str) -> Schedule:
    """The schedule of that name.

    Args:
        name: ``cosine`` (default of the paper), ``arccos``, ``uniform`` = ``linear``, ``square``, ``cubic``, ``sqrt``,
            ``pow<P>`` (1 - r^P), ``poly:<a,b,...>`` (MAGVIT: a polynomial in r, highest power first, that should fall from
            1 to 0; ``poly:-1,0,1`` is ``square``), ``log``, ``exp``.

    Raises:
        ValueError: for any other name.
    """
    if name in _POWERS:
        return _clamped(_power(_POWERS[name]))
    if re.fullmatch(r"pow\d+(\.\d+)?", name) and float(name[3:]) > 0:
        return _clamped(_power(float(name[3:])))
    if re.fullmatch(rf"poly:{_NUMBER}(,{_NUMBER})*", name):
        return _clamped(_polynomial([float(number) for number in name[5:].split(",")]))
    named = {"cosine": _cosine, "arccos": _arccos, "log": _log, "exp": _exp}
    if name not in named:
        raise ValueError(f"schedule: got {name!r}, expected {_EXPECTED}")
    return _clamped(named[name])


def step_ratio(step: int, steps: int) -> Tensor:
    """Share of the work done after ``step`` (from 0) of ``steps``: float64 holding (step + 1) x float32(1 / steps)."""
    return (torch.tensor(1.0) / steps).double() * (step + 1)


def mask_counts(schedule: Schedule, ratio: Tensor, total: Tensor, masked: Tensor) -> Tensor:
    """How many tokens are masked again after a step (official rule).

    Args:
        schedule: see ``get_schedule``.
        ratio: share of the work done, scalar.
        total: masked tokens of each row when decoding began, ``[B]``.
        masked: masked tokens of each row now, ``[B]``.

    Returns:
        long ``[B]``: max(1, min(masked - 1, floor(total x gamma))).
    """
    gamma = schedule(ratio.to(total.device), total)
    planned = torch.floor(total.float() * gamma)
    return torch.clamp(torch.minimum(masked.float() - 1, planned), min=1).long()


def _clamped(schedule: Schedule) -> Schedule:
    def clamped(ratio: Tensor, total: Tensor) -> Tensor:
        return schedule(ratio, total).float().clamp(1e-6, 1.0)

    return clamped


def _power(exponent: float) -> Schedule:
    return lambda ratio, total: (1 - ratio.double() ** exponent).float()


def _polynomial(coefficients: list[float]) -> Schedule:
    def polynomial(ratio: Tensor, total: Tensor) -> Tensor:
        value = torch.zeros_like(ratio, dtype=torch.float64)
        for coefficient in coefficients:
            value = value * ratio.double() + coefficient
        return value.float()

    return polynomial


def _cosine(ratio: Tensor, total: Tensor) -> Tensor:
    return torch.cos(ratio.float() * (math.pi / 2))


def _arccos(ratio: Tensor, total: Tensor) -> Tensor:
    return torch.acos(ratio.float().clamp(0, 1)) / (math.pi / 2)


def _log(ratio: Tensor, total: Tensor) -> Tensor:
    # One masked token gives 0/0 at ratio 1; the official NaN there is harmless, a plain 0 is kinder.
    return torch.nan_to_num(-torch.log2(ratio.float()) / torch.log2(total.float()), nan=0.0)


def _exp(ratio: Tensor, total: Tensor) -> Tensor:
    return 1 - torch.exp2(-torch.log2(total.float()) * (1 - ratio.double()).float())
