"""How evenly a codebook is used: the first thing to look at when reconstructions are poor.

Shapes: B batch, N positions, K codebooks, V codes.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class CodebookUsage:
    """How evenly codes are used.

    Attributes:
        share: part of the V codes that occur at all, in (0, 1].
        perplexity: exp of the entropy of the code frequencies, 1 (one code) to V (all alike).
    """

    share: float
    perplexity: float


def codebook_usage(codes: Tensor, vocab_size: int) -> CodebookUsage:
    """Usage of the codebook by a set of codes; with several codebooks, the mean of theirs.

    Args:
        codes: long [B, N, K], ids in [0, vocab_size).
        vocab_size: V.

    Returns:
        Share and perplexity.

    Raises:
        ValueError: for no codes, another number of axes, or ids outside the vocabulary.
    """
    if codes.ndim != 3 or codes.numel() == 0:
        raise ValueError(f"codes: got shape {tuple(codes.shape)}, expected [B, N, K], not empty")
    low, high = (int(bound) for bound in codes.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"codes: got ids from {low} to {high}, expected 0 to {vocab_size - 1}")
    flat = rearrange(codes, "b n k -> (b n) k")
    K = flat.shape[1]
    counts = torch.bincount(
        (flat + vocab_size * torch.arange(K, device=codes.device)).flatten(), minlength=K * vocab_size
    )
    frequency = rearrange(counts, "(k v) -> k v", k=K).double() / len(flat)
    entropy = torch.special.entr(frequency).sum(dim=1)
    return CodebookUsage(float((frequency > 0).double().mean()), float(entropy.exp().mean()))
