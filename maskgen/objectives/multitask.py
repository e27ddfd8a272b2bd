"""Which task a training example is for (MAGVIT, arXiv 2212.05199, section 3.3).

Official: one task a step for the whole batch, from a list in which each task stands in proportion to its weight, permuted
once. Here an example takes its own task from its seed: a batch then mixes tasks, and what an example is depends on nothing
else. Tasks are given by their place in the list of weights, not by prompts: several may share a prompt.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskgen.noise import SeededNoise, check_seeds

_STREAM = 0x7A5C  # of the seed's noise; apart from the sampler's


def task_counts(weights: Sequence[float]) -> list[int]:
    """How often each task stands in the official list: weight x 100 / min(1, smallest weight), rounded.

    Raises:
        ValueError: no weight, or one that is not a positive number.
    """
    _check(weights)
    scale = 100 / min(1.0, *weights)
    return [round(weight * scale) for weight in weights]


def draw_tasks(weights: Sequence[float], seeds: Sequence[int]) -> Tensor:
    """A task for each example by itself, with a chance in proportion to its weight.

    Args:
        weights: of the tasks, positive.
        seeds: one integer an example, as a ``Source`` gets them.

    Returns:
        long ``[len(seeds)]``.

    Raises:
        ValueError: see ``task_counts``, or seeds out of range.
    """
    _check(weights)
    listed = check_seeds(seeds, len(seeds))
    bounds = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    numbers = SeededNoise(listed).uniform(_STREAM, 0, (len(listed),)).double() * bounds[-1]
    return torch.searchsorted(bounds, numbers, right=True).clamp(max=len(weights) - 1)


def _check(weights: Sequence[float]) -> None:
    if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"task weights: got {list(weights)}, expected at least one, all positive numbers")
