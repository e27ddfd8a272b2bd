"""The ``modern`` family: our default for new training.

Pre-norm RMSNorm, QK-norm, rotary positions from per-axis coordinates (any grid, any number of axes; the same angles are
also added at the input, for rotary attention alone cannot tell places apart when all tokens are equal), gated MLP, and
adaptive norm from label and task (DiT, arXiv 2212.09748: each branch has shift, scale and gate, the gate starting at zero).

Shapes: B batch, N tokens, K codebooks, V vocabulary, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from maskgen.attention import AttentionBackend, attend, check_backend
from maskgen.conditioning import NO_LABEL, Cond
from maskgen.positions import apply_rotary, coordinates, rotary_angles
from maskgen.precision import Linear, linear_swiglu
from maskgen.transformer import MaskedTransformer, task_ids

__all__ = ["ModernBlock", "ModernConfig", "ModernTransformer"]


@dataclass(frozen=True, kw_only=True)
class ModernConfig:
    """Sizes of a ``ModernTransformer``.

    Attributes:
        vocab_size: V, codes of each codebook.
        num_codebooks: K.
        num_classes: number of classes; one more row, the null label, is always there.
        axes: token grid of training, used when a call names none.
        width: D.
        layers: number of blocks.
        heads: H; D / H must be even.
        mlp_ratio: hidden width of the gated MLP over D.
        dropout: on both branches.
        num_tasks: task ids, whose embedding is added to the label's (see ``maskgen.commit.Prompt``); 0 for a single task:
            then ``cond.task`` is refused. Where ``cond`` names no task it is task 0.
        rope_theta: base of the rotary wavelengths; about the longest axis in tokens times 10.
        attention: back-end, see ``maskgen.attention``.
    """

    vocab_size: int = 1024
    num_codebooks: int = 1
    num_classes: int = 1000
    axes: tuple[int, ...] = (16, 16)
    width: int = 768
    layers: int = 24
    heads: int = 12
    mlp_ratio: float = 8 / 3
    dropout: float = 0.0
    num_tasks: int = 0
    rope_theta: float = 100.0
    attention: AttentionBackend = "sdpa"

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 2 x heads = {2 * self.heads} (rotary pairs)")
        if self.width // (2 * self.heads) < len(self.axes):
            raise ValueError(
                f"heads of width {self.width // self.heads} have too few rotary pairs for the {len(self.axes)} axes "
                f"{self.axes}; choose fewer heads"
            )
        if self.vocab_size < 2 or self.num_codebooks < 1 or self.num_classes < 0 or min(self.axes) < 1:
            raise ValueError(
                f"got vocab_size {self.vocab_size}, num_codebooks {self.num_codebooks}, num_classes {self.num_classes}, "
                f"axes {self.axes}; expected vocab_size of 2 or more, the others positive (num_classes may be 0)"
            )
        if self.num_tasks < 0:
            raise ValueError(f"num_tasks: got {self.num_tasks}, expected 0 (a single task) or more")
        check_backend(self.attention)


class ModernTransformer(MaskedTransformer):
    """K embeddings are summed at a place; K heads predict it."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.num_codebooks = config.vocab_size, config.num_codebooks
        self.num_classes, self.null_class, self.num_tasks = config.num_classes, True, config.num_tasks
        width, rows = config.width, config.vocab_size + 1
        self.embedding = nn.Embedding(rows * config.num_codebooks, width)
        # Rotary attention over equal tokens gives equal outputs: without this, a fully hidden grid has no places
        # (measured: overfitting four 12-token grids stops at 1.7 nats instead of 0.001).
        self.position = Linear(width // config.heads, width, bias=False)
        self.label_embedding = nn.Embedding(config.num_classes + 1, width)
        self.task_embedding = nn.Embedding(config.num_tasks, width) if config.num_tasks else None
        self.blocks = nn.ModuleList(ModernBlock(config) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.final_modulation = Linear(width, 2 * width)
        self.head = Linear(width, config.num_codebooks * config.vocab_size)
        self._init()

    def forward(self, tokens: torch.Tensor, cond: Cond, axes: Sequence[int] | None = None) -> torch.Tensor:
        """See ``MaskedTransformer``; any grid with N = product of ``axes``.

        Raises:
            ValueError: N is not the product of the axes, another number of codebooks, or task ids for a model without tasks.
        """
        grid = tuple(self.config.axes if axes is None else axes)
        if tokens.ndim != 3 or tokens.shape[1] != torch.Size(grid).numel() or tokens.shape[2] != self.num_codebooks:
            raise ValueError(
                f"tokens: got {tuple(tokens.shape)}, expected [B, {torch.Size(grid).numel()}, {self.num_codebooks}] "
                f"for the grid {grid}"
            )
        offsets = torch.arange(self.num_codebooks, device=tokens.device) * (self.vocab_size + 1)
        label = self.label_embedding(self._label_rows(cond, tokens))
        task = task_ids(self, cond, tokens)
        if self.task_embedding is not None:
            label = label + self.task_embedding(task)
        label = F.silu(label)
        angles = rotary_angles(
            coordinates(grid, tokens.device), self.config.width // self.config.heads, self.config.rope_theta
        )
        x = self.embedding(tokens + offsets).sum(2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        x = x + self.position(torch.cat((cos, sin), dim=-1))
        for block in self.blocks:
            x = block(x, label, cos, sin)
        shift, scale = self.final_modulation(label)[:, None].chunk(2, dim=-1)
        logits = self.head(self.final_norm(x) * (1 + scale) + shift)
        return logits.unflatten(-1, (self.num_codebooks, self.vocab_size))

    def _label_rows(self, cond: Cond, tokens: torch.Tensor) -> torch.Tensor:
        if cond.labels is None:
            return torch.full((len(tokens),), self.num_classes, device=tokens.device)
        return torch.where(cond.labels == NO_LABEL, self.num_classes, cond.labels)

    def _init(self) -> None:
        """Normal 0.02 everywhere; modulations and the head zero, so that training starts at the identity and ln V."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            assert isinstance(block, ModernBlock)
            nn.init.zeros_(block.modulation.weight)
        nn.init.zeros_(self.final_modulation.weight)
        nn.init.zeros_(self.head.weight)


class ModernBlock(nn.Module):
    """x += gate Attention(mod RMS(x)); x += gate MLP(mod RMS(x)); the six modulations come from the label."""

    def __init__(self, config: ModernConfig) -> None:
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

    def forward(self, x: torch.Tensor, label: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """``x`` ``[B, N, D]``, ``label`` ``[B, D]``, ``cos`` and ``sin`` ``[N, D / H / 2]`` -> ``[B, N, D]``."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(label)[:, None].chunk(6, dim=-1)
        x = x + gate_a * self.dropout(self.attention(self.attention_norm(x) * (1 + scale_a) + shift_a, cos, sin))
        hidden = linear_swiglu(self.gate_and_up, self.mlp_norm(x) * (1 + scale_m) + shift_m)
        return x + gate_m * self.dropout(self.down(hidden))

    def attention(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Self-attention with normalised queries and keys, ``[B, N, D]`` -> ``[B, N, D]``."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = apply_rotary(self.query_norm(q), cos, sin), apply_rotary(self.key_norm(k), cos, sin)
        return self.out(attend(q, k, v, backend=self.backend).transpose(1, 2).flatten(2))
