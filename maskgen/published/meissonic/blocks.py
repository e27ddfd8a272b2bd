"""Blocks of Meissonic's transformer (Bai et al. 2024, arXiv 2410.08261), after FLUX.1 by Black Forest Labs.

Double blocks keep text and picture in two streams that attend to each other; single blocks take them as one sequence, text
first. Both are modulated by one vector, made of time, pooled text and plain numbers. Sub-modules are called as in the
published files.

Shapes: B batch, L text tokens, N picture positions, S = L + N, H heads, D width, A width of a head.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.models.attention import AttentionBackend, attend
from maskgen.models.positions import apply_rotary, coordinates
from maskgen.precision import Linear, linear_gelu
from maskgen.published.amused.blocks import NORM_EPS, frequency_features

FEATURES = 256  # of the time and of each micro condition: cosines and sines
ROTARY_BASE = 10000
TIME_FACTOR = 1000

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines ``[S, A / 2]`` of every pair of components."""


def rotation(texts: int, grid: Sequence[int], widths: Sequence[int], device: torch.device | None = None) -> Rotation:
    """Rotary positions of text and picture: (0, row, column) for the picture, (0, 0, 0), so no turn, for all of the text.

    (The paper speaks of one axis; the published code has three, of which the first is 0 everywhere.)

    Args:
        texts: L.
        grid: rows and columns that the blocks see.
        widths: components of a head for each of the three axes, even.
        device: where the result lies.
    """
    rows = F.pad(coordinates(grid), (1, 0, texts, 0)).double()  # as published: float64 up to the cosine
    angles = torch.cat(
        [
            column[:, None] * ROTARY_BASE ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
            for column, width in zip(rows.unbind(1), widths, strict=True)
        ],
        dim=1,
    )
    return angles.cos().float().to(device), angles.sin().float().to(device)


def time_features(time: Tensor) -> Tensor:
    """Features ``[B, 256]`` of times ``[B]``, always in float32.

    The published code multiplies by 1000 in the type of the weights: bfloat16 makes 47104 of 47000, float16 infinity of all
    from 65520 on.
    """
    return frequency_features(TIME_FACTOR * time.float(), FEATURES)


class TwoLayers(nn.Module):
    """Linear, SiLU, Linear."""

    def __init__(self, inputs: int, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.linear_1 = Linear(inputs, width, bias=bias)
        self.linear_2 = Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs]`` -> ``[B, D]``."""
        return self.linear_2(F.silu(self.linear_1(x)))


class TimeTextEmbed(nn.Module):
    """The vector that modulates all blocks: embedded time + embedded condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TwoLayers(FEATURES, width)
        self.text_embedder = TwoLayers(width, width)

    def forward(self, time: Tensor, cond: Tensor) -> Tensor:
        """``[B]`` and ``[B, D]`` -> ``[B, D]``."""
        return self.timestep_embedder(time_features(time).to(cond.dtype)) + self.text_embedder(cond)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) (1 + scale) + shift of ``[B, S, D]`` by ``[B, D]``; the norm has no weights."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale[:, None]) + shift[:, None]


class AdaptiveNorm(nn.Module):
    """``modulated`` by the first two parts of Linear(SiLU(cond)); the others, gates first, are for the rest of a block."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = Linear(width, parts * width)

    def forward(self, x: Tensor, cond: Tensor) -> tuple[Tensor, ...]:
        """``[B, S, D]`` and ``[B, D]`` -> ``[B, S, D]`` and parts - 2 times ``[B, D]``."""
        shift, scale, *others = self.linear(F.silu(cond)).chunk(self.parts, dim=-1)
        return modulated(x, shift, scale), *others


def heads_of(
    x: Tensor, layers: Sequence[nn.Module], norms: Sequence[nn.Module], heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``[B, H, S, A]`` of ``[B, S, D]``; queries and keys are normed head by head."""
    q, k, v = (rearrange(layer(x), "B S (H A) -> B H S A", H=heads) for layer in layers)
    return norms[0](q), norms[1](k), v


def attend_turned(q: Tensor, k: Tensor, v: Tensor, turn: Rotation, backend: AttentionBackend) -> Tensor:
    """Attention of ``[B, H, S, A]`` with rotary positions -> ``[B, S, D]``."""
    # Neighbours are a pair here, (i, i + A / 2) in ``apply_rotary``; no dot product feels the order of components.
    q, k = (apply_rotary(rearrange(x, "B H S (A two) -> B H S (two A)", two=2), *turn).to(v.dtype) for x in (q, k))
    return rearrange(attend(q, k, v, backend=backend), "B H S A -> B S (H A)")


class SelfAttention(nn.Module):
    """Attention of one sequence, without a layer behind it."""

    def __init__(self, width: int, heads: int, backend: AttentionBackend) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.to_q, self.to_k, self.to_v = (Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = (nn.RMSNorm(width // heads, eps=NORM_EPS) for _ in range(2))

    def forward(self, x: Tensor, turn: Rotation) -> Tensor:
        """``[B, S, D]`` -> ``[B, S, D]``."""
        heads = heads_of(x, (self.to_q, self.to_k, self.to_v), (self.norm_q, self.norm_k), self.heads)
        return attend_turned(*heads, turn, self.backend)


class JointAttention(nn.Module):
    """One attention over text and picture, each with layers and norms of its own around it."""

    def __init__(self, width: int, heads: int, backend: AttentionBackend) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.to_q, self.to_k, self.to_v, self.to_out = (Linear(width, width) for _ in range(4))
        self.add_q_proj, self.add_k_proj, self.add_v_proj, self.to_add_out = (Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k, self.norm_added_q, self.norm_added_k = (
            nn.RMSNorm(width // heads, eps=NORM_EPS) for _ in range(4)
        )

    def forward(self, x: Tensor, text: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
        """``[B, N, D]`` and ``[B, L, D]`` -> the same."""
        picture = heads_of(x, (self.to_q, self.to_k, self.to_v), (self.norm_q, self.norm_k), self.heads)
        layers, norms = (self.add_q_proj, self.add_k_proj, self.add_v_proj), (self.norm_added_q, self.norm_added_k)
        pairs = zip(heads_of(text, layers, norms, self.heads), picture, strict=True)
        q, k, v = (torch.cat(pair, dim=2) for pair in pairs)
        of_text, of_picture = attend_turned(q, k, v, turn, self.backend).split((text.shape[1], x.shape[1]), dim=1)
        return self.to_out(of_picture), self.to_add_out(of_text)


class FeedForward(nn.Module):
    """Linear to four times the width, GELU in its tanh form, Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = Linear(width, 4 * width)
        self.out = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, D]`` -> ``[B, S, D]``."""
        return self.out(linear_gelu(self.proj, x))


class DoubleBlock(nn.Module):
    """Joint attention, then a feed-forward for text and picture apart, each behind a modulated norm and times a gate."""

    def __init__(self, width: int, heads: int, backend: AttentionBackend) -> None:
        super().__init__()
        self.norm1, self.norm1_context = AdaptiveNorm(width, 6), AdaptiveNorm(width, 6)
        self.attn = JointAttention(width, heads, backend)
        self.ff, self.ff_context = FeedForward(width), FeedForward(width)

    def forward(self, text: Tensor, x: Tensor, cond: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
        """``[B, L, D]``, ``[B, N, D]`` and ``[B, D]`` -> text and picture."""
        h, *of_picture = self.norm1(x, cond)
        h_text, *of_text = self.norm1_context(text, cond)
        attended, attended_text = self.attn(h, h_text, turn)
        return (
            self._second_half(text + of_text[0][:, None] * attended_text, self.ff_context, *of_text[1:]),
            self._second_half(x + of_picture[0][:, None] * attended, self.ff, *of_picture[1:]),
        )

    @staticmethod
    def _second_half(x: Tensor, ff: nn.Module, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        return x + gate[:, None] * ff(modulated(x, shift, scale))


class SingleBlock(nn.Module):
    """Attention and a wide layer side by side, joined by one layer, on text and picture as one sequence."""

    def __init__(self, width: int, heads: int, backend: AttentionBackend) -> None:
        super().__init__()
        self.norm = AdaptiveNorm(width, 3)
        self.attn = SelfAttention(width, heads, backend)
        self.proj_mlp = Linear(width, 4 * width)
        self.proj_out = Linear(5 * width, width)

    def forward(self, x: Tensor, cond: Tensor, turn: Rotation) -> Tensor:
        """``[B, S, D]`` and ``[B, D]`` -> ``[B, S, D]``."""
        h, gate = self.norm(x, cond)
        joined = torch.cat((self.attn(h, turn), linear_gelu(self.proj_mlp, h)), dim=-1)
        return x + gate[:, None] * self.proj_out(joined)
