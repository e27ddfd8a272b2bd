"""Sampling from Open-MAGVIT2's autoregressive transformer (Luo et al. 2024, arXiv 2409.04410).

Shapes: B batch, N positions, K parts, V_k codes of part k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from maskgen.noise import SeededNoise, check_seeds
from maskgen.published.open_magvit2.transformer import KeyValueCache, PartsTransformer

__all__ = ["PUBLISHED_SAMPLING", "sample_parts"]

PUBLISHED_SAMPLING: Final[dict[str, tuple[tuple[float, float], tuple[float, float]]]] = {
    "AR_256_B": ((1.0, 1.0), (0.9, 1.0)),
    "AR_256_L": ((1.1, 1.0), (0.9, 0.9)),
    "AR_256_XL": ((1.1, 1.0), (0.75, 0.85)),
}
"""Temperatures and guidance weights that the published FIDs (3.08, 2.51, 2.33) were sampled with; no top-k, no top-p."""


@torch.no_grad()
def sample_parts(
    model: PartsTransformer,
    labels: Tensor,
    *,
    seeds: Sequence[int],
    temperatures: Sequence[float],
    guidance: Sequence[float],
) -> Tensor:
    """Sample tokens position by position and part by part, remembering keys and values.

    With a guidance weight w, logits are c + w (c - u), c with the class and u without: the official scale is 1 + w.

    Args:
        model: in evaluation mode.
        labels: long ``[B]``.
        seeds: one integer an item.
        temperatures: the logits of each part are divided by it; positive.
        guidance: weight of each part; 0 is none.

    Returns:
        Long ``[B, N, K]``.

    Raises:
        ValueError: wrong number of seeds, temperatures or weights, or values out of range.
    """
    config = model.config
    B, N, K = len(labels), math.prod(config.axes), len(config.part_bits)
    noise = SeededNoise(check_seeds(seeds, B), labels.device)
    if len(temperatures) != K or min(temperatures) <= 0 or len(guidance) != K or min(guidance) < 0:
        raise ValueError(
            f"temperatures, guidance: got {tuple(temperatures)} and {tuple(guidance)}, expected {K} positive temperatures "
            f"and {K} weights of 0 or more, one for each part"
        )
    guided = any(guidance)
    rows = torch.cat((labels, torch.full_like(labels, config.num_classes))) if guided else labels
    cache = [KeyValueCache(N) for _ in model.blocks]
    tokens = labels.new_empty((B, N, K))
    x = model.class_embedding(rows)[:, None]
    for position in range(N):
        slot, x = model.run(x, cache=cache), torch.zeros_like(x)
        slots = [KeyValueCache(K) for _ in model.part_blocks]
        for k in range(K):
            logits = model.heads[k](model.norm(model.run(slot, parts=True, cache=slots)[:, -1])).float()
            if guided:
                with_class, without = logits.chunk(2)
                logits = with_class + guidance[k] * (with_class - without)
            ids = (logits / temperatures[k] + noise.sample(position * K + k, logits.shape)).argmax(-1)
            tokens[:, position, k] = ids
            slot = model.embeddings[k](torch.cat((ids, ids)) if guided else ids)[:, None]
            x = x + slot
    return tokens
