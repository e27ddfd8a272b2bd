"""What samplers refuse in common.

Shapes: B batch, N tokens, K codebooks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskgen.noise import Noise, SeededNoise, check_seeds

__all__ = ["check_sampling"]


def check_sampling(
    tokens: Tensor,
    mask: Tensor,
    steps: int,
    seeds: Sequence[int] | None,
    noise: Noise | None,
    **weights: float,
) -> Noise:
    """What the samplers of published families refuse in common; returns the source of randomness.

    Args:
        tokens: long ``[B, N, K]``.
        mask: bool ``[B, N, K]``.
        steps: number of steps.
        seeds: one integer an item, or None.
        noise: a source, or None.
        weights: numbers that must not be negative, by the names a caller knows.

    Raises:
        ValueError: shapes that do not fit, ``steps`` < 1, a negative weight, neither or both of ``seeds`` and ``noise``.
    """
    if tokens.ndim != 3 or tokens.dtype != torch.long or 0 in tokens.shape[1:]:
        raise ValueError(f"tokens: got {tokens.dtype} {tuple(tokens.shape)}, expected int64 [B, N, K], not empty")
    if mask.shape != tokens.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask: got {mask.dtype} {tuple(mask.shape)}, expected bool {tuple(tokens.shape)} as the tokens"
        )
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name}: got {weight}, expected a finite number of 0 or more")
    if (noise is None) == (seeds is None):
        raise ValueError("sample: give either seeds (one integer an item) or noise")
    return noise or SeededNoise(check_seeds(seeds or [], len(tokens)), tokens.device)
