"""Spans of neighbouring tokens as what is masked again (MAGNeT).

Shapes: B batch, M tokens of a row, S spans.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from maskgen.sampling.selectors.base import Selection, Selector


def span_selector(length: int, *, overlap: bool = False, best: bool = True) -> Selector:
    """A selector that masks whole spans of neighbouring tokens: log p of a span + weight x Gumbel.

    Neighbouring tokens of one codebook share much of the sound they stand for, so one whose neighbours are visible gives
    itself away. MAGNeT (Ziv et al. 2024, arXiv 2401.04577) therefore ranks and masks spans of three frames, without noise.
    Here as there the least confident spans are masked: as many as fit into the count, at least one. Where some tokens of a
    span were visible the others alone count, and alone are masked again. Each row is one line of tokens: meant for one
    codebook.

    Args:
        length: tokens of a span; a row shorter than that is one span, and the last of spans side by side may be shorter.
        overlap: a span begins at every token (MAGNeT's ``stride1``) instead of the spans standing side by side
            (``nonoverlap``); the count then holds for the tokens that are masked together.
        best: a span counts as confident as its most confident token (``max``); else as the mean of log p over its tokens,
            which ranks as their product does (``prod``; ``stride1`` has no other).

    Raises:
        ValueError: ``length`` < 1.
    """
    if length < 1:
        raise ValueError(f"span: got a length of {length}, expected at least 1")

    def remask(seen: Selection) -> Tensor:
        mask, tokens = seen.mask, seen.mask.shape[1]
        width = min(length, tokens)
        step = 1 if overlap else width
        pad = (0, -(tokens - width) % step)
        masked = F.pad(mask, pad).unfold(1, width, step)
        scores = F.pad(seen.log_probs, pad).unfold(1, width, step)
        if best:
            score = scores.masked_fill(~masked, -torch.inf).amax(-1)
        else:
            score = scores.masked_fill(~masked, 0.0).sum(-1) / masked.sum(-1).clamp(min=1)
        noise = seen.weight * seen.noise[:, ::step][:, : score.shape[1]]
        score = (score + noise).masked_fill(~masked.any(-1), torch.inf)
        return mask & _in_first_spans(score, mask, seen.counts, width, step)

    return Selector(remask=remask)


def _in_first_spans(score: Tensor, mask: Tensor, counts: Tensor, width: int, step: int) -> Tensor:
    """Tokens under the spans of lowest score ``[B, S]``, as many spans as hold ``counts`` masked tokens; bool ``[B, M]``."""
    rows, spans = score.shape
    turn = score.argsort(dim=1, stable=True).argsort(dim=1)
    covered = torch.arange(0, spans * step, step, device=mask.device)[:, None] + torch.arange(width, device=mask.device)
    first = torch.full((rows, (spans - 1) * step + width), spans, device=mask.device).scatter_reduce(
        1, covered.flatten().expand(rows, -1), turn.repeat_interleave(width, dim=1), "amin"
    )[:, : mask.shape[1]]
    total = torch.zeros_like(turn).scatter_add(1, first, mask.long()).cumsum(1)
    return first < (total <= counts[:, None]).sum(1, keepdim=True).clamp(min=1)
