"""Attention, one function with three back-ends.

Shapes: B batch, H heads, S sequence, D head width.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from maskgen.precision import attention

AttentionBackend = Literal["sdpa", "xformers", "eager"]


def check_backend(backend: str) -> None:
    """Raise at construction, not in the middle of a run, when a back-end cannot work here.

    Raises:
        ValueError: unknown name, or ``xformers`` without CUDA.
        ImportError: ``xformers`` is not installed.
    """
    if backend not in ("sdpa", "xformers", "eager"):
        raise ValueError(f"attention back-end: got {backend!r}, expected 'sdpa', 'xformers' or 'eager'")
    if backend != "xformers":
        return
    if not torch.cuda.is_available():
        raise ValueError("attention back-end 'xformers' needs a CUDA device and none was found; use 'sdpa'")
    try:
        import xformers.ops  # noqa: F401
    except ImportError:
        raise ImportError("attention back-end 'xformers' is not installed: pip install \"maskgen[xformers]\"") from None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    backend: AttentionBackend = "sdpa",
    dropout: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention, softmax(q k^T / sqrt(D)) v.

    Args:
        q: queries ``[B, H, S, D]``; k and v: ``[B, H, S', D]``.
        k: keys.
        v: values.
        backend: ``sdpa`` (torch's fused kernels), ``xformers`` (CUDA only), ``eager`` (written out, for tests).
        dropout: probability of dropping an attention weight; pass 0 outside training.
        mask: bool, to be broadcast to ``[B, H, S, S']``: True where a key may be seen, at least one for each query.
            ``xformers`` wants whole, aligned matrices for that, so torch's kernels take masked attention.

    Returns:
        ``[B, H, S, D]``.
    """
    if backend == "sdpa" or (backend == "xformers" and mask is not None):
        return attention(q, k, v, dropout=dropout, mask=mask)
    if backend == "xformers":
        check_backend(backend)
        from xformers.ops import memory_efficient_attention

        rows = (t.transpose(1, 2) for t in (q, k, v))  # xformers takes [B, S, H, D]
        attended: Tensor = memory_efficient_attention(*rows, p=dropout)
        return attended.transpose(1, 2)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = torch.softmax(scores, dim=-1)
    return F.dropout(weights, dropout, training=dropout > 0) @ v
