"""Selectors: which of the freshly drawn tokens are hidden again.

Every selector has one signature, so the sampler's loop does not change with the order. Shapes: B batch, M = N x K places.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

__all__ = [
    "Selector",
    "get_selector",
    "hide_least_confident",
    "select_confidence",
    "select_random",
    "span_selector",
]

Selector = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""``select(log_probs, mask, counts, noise, temperature) -> mask``: log-probability of each drawn token ``[B, M]``, places
that were hidden ``[B, M]``, how many to hide again ``[B]``, Gumbel noise ``[B, M]``, its weight at this step."""


def get_selector(name: str) -> Selector:
    """The selector of that name.

    Args:
        name: ``confidence`` (MaskGIT), ``random``, or spans of L places (MAGNeT, see ``span_selector``): ``span<L>`` as
            ``span3``, ``span<L>-prod`` or ``span<L>-stride1``.

    Raises:
        ValueError: for any other name.
    """
    named = {"confidence": select_confidence, "random": select_random}
    if name in named:
        return named[name]
    if (span := re.fullmatch(r"span([1-9]\d*)(-prod|-stride1)?", name)) is None:
        raise ValueError(
            f"selector: got {name!r}, expected one of {sorted(named)}, or spans as 'span3', 'span3-prod' or 'span3-stride1'"
        )
    return span_selector(int(span[1]), overlap=span[2] == "-stride1", best=span[2] is None)


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


def span_selector(length: int, *, overlap: bool = False, best: bool = True) -> Selector:
    """A selector that hides whole spans of neighbouring places: log p of a span + temperature x Gumbel.

    Neighbouring tokens of one codebook share much of the sound they stand for, so a place whose neighbours are known gives
    itself away. MAGNeT (Ziv et al. 2024, arXiv 2401.04577) therefore ranks and hides spans of three frames, without noise.
    Here as there the least confident spans are hidden: as many as fit into the count, at least one. Where some places of a
    span were known the others alone count, and alone are hidden again. Each row is one line of places: meant for one
    codebook.

    Args:
        length: places of a span; a row shorter than that is one span, and the last of spans side by side may be shorter.
        overlap: a span begins at every place (MAGNeT's ``stride1``) instead of the spans standing side by side
            (``nonoverlap``); the count then holds for the places that are hidden together.
        best: a span counts as confident as its most confident place (``max``); else as the mean of log p over its places,
            which ranks as their product does (``prod``; ``stride1`` has no other).

    Raises:
        ValueError: ``length`` < 1.
    """
    if length < 1:
        raise ValueError(f"span: got a length of {length}, expected at least 1")

    def select(
        log_probs: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor, noise: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        places = mask.shape[1]
        width = min(length, places)
        step = 1 if overlap else width
        pad = (0, -(places - width) % step)
        hidden = torch.nn.functional.pad(mask, pad).unfold(1, width, step)
        scores = torch.nn.functional.pad(log_probs, pad).unfold(1, width, step)
        if best:
            score = scores.masked_fill(~hidden, -torch.inf).amax(-1)
        else:
            score = scores.masked_fill(~hidden, 0.0).sum(-1) / hidden.sum(-1).clamp(min=1)
        score = (score + temperature * noise[:, ::step][:, : score.shape[1]]).masked_fill(~hidden.any(-1), torch.inf)
        return mask & _in_first_spans(score, mask, counts, width, step)

    return select


def _in_first_spans(
    score: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor, width: int, step: int
) -> torch.Tensor:
    """Places under the spans of lowest score ``[B, S]``, as many spans as hold ``counts`` hidden places; bool ``[B, M]``."""
    rows, spans = score.shape
    turn = score.argsort(dim=1, stable=True).argsort(dim=1)
    covered = torch.arange(0, spans * step, step, device=mask.device)[:, None] + torch.arange(width, device=mask.device)
    first = torch.full((rows, (spans - 1) * step + width), spans, device=mask.device).scatter_reduce(
        1, covered.flatten().expand(rows, -1), turn.repeat_interleave(width, dim=1), "amin"
    )[:, : mask.shape[1]]
    total = torch.zeros_like(turn).scatter_add(1, first, mask.long()).cumsum(1)
    return first < (total <= counts[:, None]).sum(1, keepdim=True).clamp(min=1)


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
