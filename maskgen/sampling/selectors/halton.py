"""Orders of positions that spread over a grid: the points of the Halton sequence (Halton 1960), on any grid.

Besnier et al. 2025 (arXiv 2503.17076) decide tokens in this order, base 2 for rows and base 3 for columns. Here every axis
has a prime of its own, so that a line of sound and a box of video have such an order, too.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

_PRIMES = (2, 3, 5, 7, 11, 13)

_CHUNK = 1 << 20


def halton_cells(axes: Sequence[int]) -> Tensor:
    """All cells of a grid in the order in which points of the Halton sequence first fall into them.

    Exact in integers, and complete on every grid: with base p_i for axis i, a run of p_1^a_1 x p_2^a_2 x ... points falls
    once into every box of sides p_i^-a_i, and the a_i are large enough that each cell contains such a box.

    Args:
        axes: cells along each of 1 to 6 axes.

    Returns:
        long ``[N]``: row-major indices of cells, first to last, on the CPU.

    Raises:
        ValueError: no axis, more than 6, or one that is not positive.
    """
    if not 1 <= len(axes) <= len(_PRIMES) or min(axes) < 1:
        raise ValueError(f"axes: got {tuple(axes)}, expected 1 to {len(_PRIMES)} positive numbers")
    bases = _PRIMES[: len(axes)]
    points = 1
    for base, cells in zip(bases, axes, strict=True):
        points *= _period(base, cells)
    first = torch.full((torch.Size(axes).numel(),), points + 1)
    for begun in range(1, points + 1, _CHUNK):
        number = torch.arange(begun, min(begun + _CHUNK, points + 1))
        cell = torch.zeros_like(number)
        for base, cells in zip(bases, axes, strict=True):
            cell = cell * cells + _cell(number, base, cells)
        first = first.scatter_reduce(0, cell, number, "amin")
        if bool((first <= points).all()):
            break
    return first.argsort()


@lru_cache(maxsize=64)
def halton_turns(axes: tuple[int, ...], device: str) -> Tensor:
    """When each cell has its turn in ``halton_cells``, long ``[N]`` on a device; kept, so do not write into it."""
    order = halton_cells(axes)
    turns = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    return turns.to(device)


def _period(base: int, cells: int) -> int:
    """A power of the base whose intervals are fine enough that one lies wholly inside every cell."""
    power = 1
    while power < 2 * cells:
        power *= base
    return power


def _cell(points: Tensor, base: int, cells: int) -> Tensor:
    """floor(cells x v): v in [0, 1) has the digits of the point in that base, mirrored at the radix point."""
    rest, mirrored, scale = points.clone(), torch.zeros_like(points), 1
    while bool((rest > 0).any()):
        mirrored = mirrored * base + rest % base
        rest = rest // base
        scale *= base
    return mirrored * cells // scale
