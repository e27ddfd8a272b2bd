"""The least confident tokens of each row, by the two rules of official code: ties with the cut are kept, or masked too.

Shapes: B batch, M tokens of a row.
"""

import torch
from torch import Tensor


def mask_least_confident(confidence: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
    """Mask the ``counts`` lowest of the masked tokens again, strictly below the cut (official MaskGIT): ties mask fewer.

    Args:
        confidence: ``[B, M]``; what stands at visible tokens is ignored.
        mask: bool ``[B, M]``, the tokens that may be masked.
        counts: long ``[B]``.

    Returns:
        bool ``[B, M]``, the new mask.
    """
    ranked = confidence.masked_fill(~mask, torch.inf)
    cut = ranked.sort(dim=-1).values.gather(-1, counts.clamp(max=ranked.shape[-1] - 1)[:, None])
    return ranked < cut


def mask_lowest(scores: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
    """Mask the ``counts`` lowest of the masked tokens again, and what ties with the last of them (official MAGVIT).

    Args:
        scores: ``[B, ...]``; what stands at visible tokens is ignored.
        mask: bool ``[B, ...]``, the tokens that may be masked.
        counts: long ``[B]``, at least 1; no more than there are.

    Returns:
        bool ``[B, ...]``, the new mask.
    """
    ranked = scores.masked_fill(~mask, torch.inf).flatten(1)
    cut = ranked.sort(dim=-1).values.gather(-1, counts[:, None] - 1)
    return (ranked <= cut).view_as(mask) & mask
