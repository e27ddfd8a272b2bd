"""Sizes of VampNet's transformer, its block and its relative positions.

Shapes: B batch, T frames, K codebooks, V codes, L width of a code, D width, H heads, P = K - conditioning codebooks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from maskgen.precision import Linear, attention, linear_gelu

__all__ = ["BUCKETS", "VampNetBlock", "VampNetConfig", "relative_buckets"]

BUCKETS = 32
"""Rows of the table of relative positions."""

_FARTHEST = 128


@dataclass(frozen=True, kw_only=True)
class VampNetConfig:
    """Sizes of a ``VampNetTransformer``; the defaults are the published coarse model.

    Attributes:
        vocab_size: V, codes of each codebook; the mask id.
        num_codebooks: K, conditioning codebooks included.
        conditioning_codebooks: the first so many codebooks are read and never predicted; 0 for a coarse model.
        code_width: L, width of the codec's vectors.
        axes: frames of a training excerpt; any other number works too, for positions are relative.
        width: D.
        layers: number of blocks.
        heads: H, dividing D.
        dropout: on attention weights, inside the feed-forward and on both branches.

    Raises:
        ValueError: sizes that are not positive, that leave no codebook to predict, or heads that do not divide the width.
    """

    vocab_size: int = 1024
    num_codebooks: int = 4
    conditioning_codebooks: int = 0
    code_width: int = 8
    axes: tuple[int, ...] = (575,)
    width: int = 1280
    layers: int = 20
    heads: int = 20
    dropout: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(self.axes))  # JSON brings a list
        if min(self.vocab_size - 1, self.code_width, self.width, self.layers, self.heads, *self.axes) < 1:
            raise ValueError(
                f"got vocab_size {self.vocab_size}, code_width {self.code_width}, width {self.width}, layers {self.layers}, "
                f"heads {self.heads}, axes {self.axes}; expected vocab_size of 2 or more and the others positive"
            )
        if len(self.axes) != 1:
            raise ValueError(f"axes: got {self.axes}, expected one number of frames")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if not 0 <= self.conditioning_codebooks < self.num_codebooks:
            raise ValueError(
                f"conditioning_codebooks: got {self.conditioning_codebooks} of {self.num_codebooks} codebooks, expected 0 "
                "or more and fewer than all"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {self.dropout}, expected 0 <= dropout < 1")

    @property
    def predicted_codebooks(self) -> int:
        """P."""
        return self.num_codebooks - self.conditioning_codebooks


class VampNetBlock(nn.Module):
    """x += Attention(RMS(x)); x += FeedForward(RMS(x)), no biases; the feed-forward is gated by tanh GELU (GEGLU).

    Args:
        width: D.
        heads: H, dividing D.
        dropout: on attention weights, inside the feed-forward and on both branches.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout_p = heads, dropout
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.query, self.key, self.value, self.out = (Linear(width, width, bias=False) for _ in range(4))
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        # The official layer is one product of both halves, of which the second is gated.
        self.expand, self.gate = (Linear(width, 2 * width, bias=False) for _ in range(2))
        self.contract = Linear(2 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """``x`` ``[B, T, D]``, ``bias`` ``[1, H, T, T]`` -> ``[B, T, D]``."""
        x = x + self.dropout(self.attention(self.attention_norm(x), bias))
        y = self.mlp_norm(x)
        return x + self.dropout(self.contract(self.dropout(self.expand(y) * linear_gelu(self.gate, y))))

    def attention(self, x: Tensor, bias: Tensor) -> Tensor:
        """Multi-head self-attention with its output projection, ``[B, T, D]`` -> ``[B, T, D]``."""
        rows = (layer(x) for layer in (self.query, self.key, self.value))
        q, k, v = (rearrange(row, "B T (H D) -> B H T D", H=self.heads) for row in rows)
        dropout = self.dropout_p if self.training else 0.0
        # Not ``maskgen.models.attention.attend``: a bias is what torch's kernels take as ``attn_mask`` and not every
        # back-end can.
        attended = attention(q, k, v, mask=bias.to(q.dtype), dropout=dropout)
        return self.out(rearrange(attended, "B H T D -> B T (H D)"))


def relative_buckets(offsets: Tensor) -> Tensor:
    """T5's buckets of distances (Raffel et al. 2020, arXiv 1910.10683, section 2.1), with the settings of VampNet.

    Half of the 32 buckets are for keys after the query. Of the 16 of one side, 8 are for one distance each, the others
    widen by equal factors up to 128; everything farther shares the last one.

    Args:
        offsets: long, position of the key minus position of the query.

    Returns:
        long of the same shape, 0 to 31.
    """
    side, exact = BUCKETS // 2, BUCKETS // 4
    distance = offsets.abs()
    # In float32, cut off towards zero, as the original: at the edges a last bit decides.
    factor = torch.log(distance.clamp(min=1).float() / exact) / math.log(_FARTHEST / exact)
    far = (exact + (factor * (side - exact)).long()).clamp(max=side - 1)
    return torch.where(distance < exact, distance, far) + side * (offsets > 0)
