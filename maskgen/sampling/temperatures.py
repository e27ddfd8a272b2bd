"""Temperatures that may change over the steps of decoding, of the sampled tokens and of the ranking noise.

Written as a number, or as one word for YAML and the command line: ``linear:A,B`` and ``cosine:A,B`` go from A at the first
step to B at the last, ``constant:A`` stays.
"""

from __future__ import annotations

import math
import re

__all__ = ["Temperature", "choice_weights", "temperatures"]

Temperature = float | str

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"

_FORMS = "a finite number of 0 or more, 'constant:A', 'linear:A,B' or 'cosine:A,B' (A at the first step, B at the last)"


def temperatures(value: Temperature, steps: int, name: str = "temperature") -> list[float]:
    """The temperature of each step.

    With r = k / (steps - 1): ``linear`` A + (B - A) r, ``cosine`` B + (A - B) (1 + cos(pi r)) / 2; a single step has A.

    Args:
        value: a number for all steps, or a word as above.
        steps: how many.
        name: what a mistake is reported under.

    Raises:
        ValueError: a number that is negative or not finite, or an unknown word.
    """
    shape, first, last = _parsed(value, name)
    progress = [step / (steps - 1) if steps > 1 else 0.0 for step in range(steps)]
    if shape == "cosine":
        return [last + (first - last) * (1 + math.cos(math.pi * r)) / 2 for r in progress]
    return [first + (last - first) * r for r in progress] if first != last else [first] * steps


def choice_weights(value: Temperature, steps: int) -> list[float]:
    """The weight of the ranking noise at each step k = 0 .. steps - 1.

    Args:
        value: a number falls to zero as in official MaskGIT, value x (1 - (k + 1) / steps); a word says the weights itself,
            so ``linear:4.5,0`` begins at 4.5 where 4.5 begins at 4.5 (1 - 1 / steps).
        steps: how many.

    Raises:
        ValueError: see ``temperatures``.
    """
    numbers = temperatures(value, steps, "choice_temperature")
    if isinstance(value, str):
        return numbers
    return [value * (1 - (step + 1) / steps) for step in range(steps)]


def _parsed(value: Temperature, name: str) -> tuple[str, float, float]:
    """Shape, first and last value."""
    if isinstance(value, str):
        if match := re.fullmatch(rf"constant:{_NUMBER}", value):
            return "linear", float(match[1]), float(match[1])
        if match := re.fullmatch(rf"(linear|cosine):{_NUMBER},{_NUMBER}", value):
            return match[1], float(match[2]), float(match[3])
    elif 0 <= value < math.inf:
        return "linear", float(value), float(value)
    raise ValueError(f"{name}: got {value!r}, expected {_FORMS}")
