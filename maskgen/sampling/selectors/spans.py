"""Spans of neighbouring places as what is hidden again (MAGNeT).

Shapes: B batch, M places of a row, S spans.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from maskgen.sampling.selectors.base import Selection, Selector

__all__ = ["span_selector"]


def span_selector(length: int, *, overlap: bool = False, best: bool = True) -> Selector:
    """A selector that hides whole spans of neighbouring places: log p of a span + weight x Gumbel.

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

    def hide(seen: Selection) -> torch.Tensor:
        mask, places = seen.mask, seen.mask.shape[1]
        width = min(length, places)
        step = 1 if overlap else width
        pad = (0, -(places - width) % step)
        hidden = F.pad(mask, pad).unfold(1, width, step)
        scores = F.pad(seen.log_probs, pad).unfold(1, width, step)
        if best:
            score = scores.masked_fill(~hidden, -torch.inf).amax(-1)
        else:
            score = scores.masked_fill(~hidden, 0.0).sum(-1) / hidden.sum(-1).clamp(min=1)
        noise = seen.weight * seen.noise[:, ::step][:, : score.shape[1]]
        score = (score + noise).masked_fill(~hidden.any(-1), torch.inf)
        return mask & _in_first_spans(score, mask, seen.counts, width, step)

    return Selector(hide=hide)


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
