"""The block of the ``modern`` family: self-attention, a look at the context where there is one, gated MLP.

Shapes: B batch, N tokens, L positions of the context, D width, H heads, d head width.
"""

from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from maskgen.models.attention import AttentionBackend, attend
from maskgen.models.partial import LayerMemory, take
from maskgen.models.positions import apply_rotary
from maskgen.precision import Linear, linear, linear_swiglu

Context = tuple[Tensor, Tensor | None]
"""Features ``[B, L, D]``, or what ``ContextAttention.ready`` makes of them, and a mask bool ``[B, L]``, True where real."""


class BlockConfig(Protocol):
    """What a block needs to know; see ``maskgen.models.modern.ModernConfig``."""

    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def heads(self) -> int: ...  # noqa: D102
    @property
    def mlp_ratio(self) -> float: ...  # noqa: D102
    @property
    def dropout(self) -> float: ...  # noqa: D102
    @property
    def attention(self) -> AttentionBackend: ...  # noqa: D102


class ContextAttention(nn.Module):
    """Cross-attention of the grid to a context, with normalised queries and keys; its output starts at zero.

    Keys and values depend on the context alone: ``ready`` makes them once a call, so that a step pays for the queries.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.backend = config.heads, config.attention
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.query = Linear(width, width, bias=False)
        self.key_value = Linear(width, 2 * width, bias=False)
        self.query_norm = nn.RMSNorm(width // config.heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(width // config.heads, eps=1e-6)
        self.out = Linear(width, width, bias=False)

    def ready(self, features: Tensor) -> Tensor:
        """Keys and values ``[B, 2, H, L, d]`` of the features ``[B, L, D]``."""
        both = rearrange(self.key_value(features), "B L (two H d) -> B two H L d", two=2, H=self.heads)
        return torch.stack((self.key_norm(both[:, 0]), both[:, 1]), dim=1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, D]``; see ``Context``."""
        features, mask = context
        k, v = (features if features.ndim == 5 else self.ready(features)).unbind(1)
        q = self.query_norm(rearrange(self.query(self.norm(x)), "B N (H d) -> B H N d", H=self.heads))
        seen = None if mask is None else mask[:, None, None]
        mixed = attend(q, k, v, backend=self.backend, mask=seen)
        return self.out(rearrange(mixed, "B H N d -> B N (H d)"))


class ModernBlock(nn.Module):
    """x += gate Attention(mod RMS(x)); x += Context(RMS(x)); x += gate MLP(mod RMS(x)).

    The six modulations come from the label.

    Args:
        config: see ``BlockConfig``.
        context: whether the block looks at a context, see ``ContextAttention``.
    """

    def __init__(self, config: BlockConfig, context: bool = False) -> None:
        super().__init__()
        width = config.width
        hidden = 8 * round(config.mlp_ratio * width / 8)
        self.heads, self.backend = config.heads, config.attention
        self.modulation = Linear(width, 6 * width)
        self.attention_norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.qkv = Linear(width, 3 * width, bias=False)
        self.query_norm = nn.RMSNorm(width // config.heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(width // config.heads, eps=1e-6)
        self.out = Linear(width, width, bias=False)
        self.gate_and_up = Linear(width, 2 * hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.context = ContextAttention(config) if context else None

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        cos: Tensor,
        sin: Tensor,
        at: Tensor | None = None,
        memory: LayerMemory | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """One block.

        Args:
            x: ``[B, N, D]``.
            modulation: ``[B, 1, 6 D]``, what ``self.modulation`` makes of the label; or the label, ``[B, D]``.
            cos: ``[N, D / H / 2]``, or ``[B, N, D / H / 2]`` where rows have positions of their own; as ``sin``.
            sin: see ``cos``.
            at: long ``[B, P]``, the positions whose result is wanted, which still see all N; all by default.
            memory: adds the keys and values of what is not in ``x``.
            context: see ``ContextAttention``.

        Returns:
            ``[B, N, D]``, or ``[B, P, D]``.
        """
        ready = modulation if modulation.ndim == 3 else self.modulation(modulation)[:, None]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = ready.chunk(6, dim=-1)
        seen = self.attention_norm(x) * (1 + scale_a) + shift_a
        rows = x if at is None else take(x, at)
        x = rows + gate_a * self.dropout(self.attention(seen, cos, sin, at, memory))
        if self.context is not None:
            assert context is not None, "the transformer refuses a missing context"
            x = x + self.dropout(self.context(x, context))
        hidden = linear_swiglu(self.gate_and_up, self.mlp_norm(x) * (1 + scale_m) + shift_m)
        return x + gate_m * self.dropout(self.down(hidden))

    def attention(
        self, x: Tensor, cos: Tensor, sin: Tensor, at: Tensor | None = None, memory: LayerMemory | None = None
    ) -> Tensor:
        """Self-attention with normalised queries and keys, ``[B, N, D]`` -> ``[B, N or P, D]``; see ``forward``."""
        width = x.shape[-1]
        if at is None:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        else:
            weight = self.qkv.weight
            k, v = linear(x, weight[width:]).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
            q = linear(take(x, at), weight[:width]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if cos.ndim == 3:
            cos, sin = cos[:, None], sin[:, None]  # a row's positions are the same for all heads
        k = apply_rotary(self.key_norm(k), cos, sin)
        if at is not None:
            cos, sin = (take(t[:, 0], at)[:, None] if t.ndim == 4 else t[at][:, None] for t in (cos, sin))
        q = apply_rotary(self.query_norm(q), cos, sin)
        if memory is not None:
            k, v = memory.merge(k, v)
        return self.out(attend(q, k, v, backend=self.backend).transpose(1, 2).flatten(2))
