"""Blocks of lucidrains' Muse (muse-maskgit-pytorch 0.3.5; Muse: Chang et al. 2023, arXiv 2301.00704).

Nothing here has a bias. The published norms also hold a shift, which is a constant of zeros there and left out here.

Shapes: B batch, N positions, L context tokens, D width, H heads, E head width, M width of the feed-forward.
"""

import math

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.precision import attention

SIMILARITY_SCALE = 8
"""What cosines of queries and keys are multiplied with, whatever the head width."""


class CosineAttention(nn.Module):
    """Attention by cosine similarity, with a learned key and value that are always there, in front of the others."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner, self.heads = heads * head_width, heads
        self.norm = nn.LayerNorm(width, bias=False)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.null_kv = nn.Parameter(torch.randn(2, heads, 1, head_width))
        self.q_scale = nn.Parameter(torch.ones(head_width))
        self.k_scale = nn.Parameter(torch.ones(head_width))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, D]``.

        Args:
            x: is normalised first.
            context: ``[B, L, D]``, read as it is; normalised ``x`` itself if left out.
            mask: bool ``[B, L]``, True where ``context`` is real; a row may have none.
        """
        x = self.norm(x)
        q = rearrange(self.to_q(x), "B N (H E) -> B H N E", H=self.heads)
        pairs = rearrange(self.to_kv(x if context is None else context), "B L (T H E) -> T B H L E", T=2, H=self.heads)
        k, v = torch.cat((repeat(self.null_kv, "T H one E -> T B H one E", B=len(x)), pairs), dim=-2)
        # The fused kernel divides by sqrt(E).
        q = F.normalize(q, dim=-1) * self.q_scale * (SIMILARITY_SCALE * math.sqrt(q.shape[-1]))
        k = F.normalize(k, dim=-1) * self.k_scale
        allowed = None if mask is None else rearrange(F.pad(mask, (1, 0), value=True), "B L -> B 1 1 L")
        return self.to_out(rearrange(attention(q, k, v, mask=allowed), "B H N E -> B N (H E)"))


class GatedFeedForward(nn.Module):
    """GEGLU between two norms: GELU of the FIRST half of the wide layer times the second (aMUSEd has it the other way)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.wide = nn.Linear(width, 2 * hidden, bias=False)
        self.hidden_norm = nn.LayerNorm(hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, D]``; zeros give zeros."""
        gate, value = self.wide(self.norm(x)).chunk(2, dim=-1)
        return self.out(self.hidden_norm(F.gelu(gate) * value))


class MuseBlock(nn.Module):
    """Self-attention, attention to the context and feed-forward, each added to what came in."""

    def __init__(self, width: int, heads: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.self_attention = CosineAttention(width, heads, head_width)
        self.context_attention = CosineAttention(width, heads, head_width)
        self.feed_forward = GatedFeedForward(width, hidden)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, D]``, ``[B, L, D]`` and bool ``[B, L]`` -> ``[B, N, D]``."""
        x = x + self.self_attention(x)
        x = x + self.context_attention(x, context, mask)
        return x + self.feed_forward(x)
