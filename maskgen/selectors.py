"""Selectors: which of the freshly drawn tokens are hidden again.

Every selector has one signature, so the sampler's loop does not change with the order. Shapes: B batch, M = N x K places.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["Selector", "get_selector", "hide_least_confident", "select_confidence", "select_random"]

Selector = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""``select(log_probs, mask, counts, noise, temperature) -> mask``: log-probability of each drawn token ``[B, M]``, places
that were hidden ``[B, M]``, how many to hide again ``[B]``, Gumbel noise ``[B, M]``, its weight at this step."""


def get_selector(name: str) -> Selector:
    """The selector of that name: ``confidence`` (MaskGIT) or ``random``.

    Raises:
        ValueError: for any other name.
    """
    named = {"confidence": select_confidence, "random": select_random}
    if name not in named:
        raise ValueError(f"selector: got {name!r}, expected one of {sorted(named)}")
    return named[name]


def select_confidence(
    log_probs: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor, noise: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Hide the least confident: log p + temperature x Gumbel (official MaskGIT, mask_by_random_topk)."""
    return hide_least_confident(log_probs + temperature * noise, mask, counts)


def select_random(
    log_probs: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor, noise: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Hide at random, whatever the model thinks: the baseline every order is measured against."""
    return hide_least_confident(noise, mask, counts)


def hide_least_confident(confidence: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Hide the ``counts`` lowest of the places that were hidden.

    The cut is strict, as in the official code: places that tie with the cut-off are kept, so ties hide fewer.

    Args:
        confidence: ``[B, M]``; what stands at known places is ignored.
        mask: bool ``[B, M]``, True where a token was to be decided. Known places are never hidden.
        counts: long ``[B]``.

    Returns:
        bool ``[B, M]``, the new mask.
    """
    ranked = confidence.masked_fill(~mask, torch.inf)
    cut = ranked.sort(dim=-1).values.gather(-1, counts.clamp(max=ranked.shape[-1] - 1)[:, None])
    return ranked < cut
