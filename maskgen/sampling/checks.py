"""What all loops refuse.

Shapes: B batch, N tokens, K codebooks.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskgen.noise import Noise, SeededNoise, check_seeds


def check_sampling(
    tokens: Tensor,
    mask: Tensor,
    steps: int,
    seeds: Sequence[int] | None,
    noise: Noise | None,
    names: str = "tokens mask",
) -> Noise:
    """Refuse inputs that do not fit each other; returns the source of randomness.

    Args:
        tokens: long ``[B, N, K]``.
        mask: bool ``[B, N, K]``.
        steps: number of steps.
        seeds: one integer an item, or None.
        noise: a source, or None.
        names: what a caller calls ``tokens`` and ``mask``.

    Raises:
        ValueError: shapes that do not fit, ``steps`` < 1, neither or both of ``seeds`` and ``noise``.
    """
    first, second = names.split()
    if tokens.ndim != 3 or tokens.dtype != torch.long or 0 in tokens.shape[1:]:
        raise ValueError(f"{first}: got {tokens.dtype} {tuple(tokens.shape)}, expected int64 [B, N, K], not empty")
    if mask.shape != tokens.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"{second}: got {mask.dtype} {tuple(mask.shape)}, expected bool {tuple(tokens.shape)} as the {first}"
        )
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    if (noise is None) == (seeds is None):
        raise ValueError("sample: give either seeds (one integer an item) or noise")
    return noise or SeededNoise(check_seeds(seeds or [], len(tokens)), tokens.device)


def check_numbers(**numbers: float) -> None:
    """Refuse numbers that are negative or not finite.

    Args:
        numbers: by the names a caller knows.

    Raises:
        ValueError: naming the first one.
    """
    for name, number in numbers.items():
        if not 0 <= number < math.inf:
            raise ValueError(f"{name}: got {number}, expected a finite number of 0 or more")


def check_logits(logits: Tensor, tokens: Tensor) -> Tensor:
    """Refuse logits that are not of all tokens; returns them in float32.

    Raises:
        ValueError: another shape than ``[B, N, K, V]``.
    """
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(
            f"logits_fn returned {tuple(logits.shape)}, expected [B, N, K, V] with [B, N, K] = {tuple(tokens.shape)}"
        )
    return logits.float()
