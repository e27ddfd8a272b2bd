"""The ``modern`` family: our default for new training.

Pre-norm RMSNorm, QK-norm, rotary positions from per-axis coordinates (any grid, any number of axes; the same angles are
also added at the input, for rotary attention alone cannot tell positions apart when all tokens are equal), gated MLP, and
adaptive norm from label and task (DiT, arXiv 2212.09748: each branch has shift, scale and gate, the gate starting at zero).

Shapes: B batch, N tokens, K codebooks, V vocabulary, D width, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.conditioning import Cond
from maskgen.models.attention import AttentionBackend, attend, check_backend
from maskgen.models.base import PartialTransformer, init_layer, task_ids
from maskgen.models.partial import FeatureMemory, LayerMemory, Prepared, take
from maskgen.models.positions import apply_rotary, coordinates, rotary_angles
from maskgen.precision import Linear, linear, linear_float32, linear_swiglu


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
        num_tasks: task ids, whose embedding is added to the label's (see ``maskgen.sampling.commit.Prompt``); 0 for a
            single task: then ``cond.task`` is refused. Where ``cond`` names no task it is task 0.
        rope_theta: base of the rotary wavelengths; about the longest axis in tokens times 10.
        attention: back-end, see ``maskgen.models.attention``.
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
        if self.vocab_size < 2 or self.num_classes < 0 or min(*self.axes, self.num_codebooks, self.layers) < 1:
            raise ValueError(
                f"got vocab_size {self.vocab_size}, num_codebooks {self.num_codebooks}, num_classes {self.num_classes}, "
                f"axes {self.axes}, layers {self.layers}; expected vocab_size of 2 or more, the others positive "
                "(num_classes may be 0)"
            )
        if self.num_tasks < 0:
            raise ValueError(f"num_tasks: got {self.num_tasks}, expected 0 (a single task) or more")
        check_backend(self.attention)


class ModernTransformer(PartialTransformer):
    """K embeddings are summed at a position; K heads predict it."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.num_codebooks = config.vocab_size, config.num_codebooks
        self.num_classes, self.null_class, self.num_tasks = config.num_classes, True, config.num_tasks
        width, rows = config.width, config.vocab_size + 1
        self.embedding = nn.Embedding(rows * config.num_codebooks, width)
        # Rotary attention over equal tokens gives equal outputs: without this, a fully masked grid has no positions
        # (measured: overfitting four 12-token grids stops at 1.7 nats instead of 0.001).
        self.position = Linear(width // config.heads, width, bias=False)
        self.label_embedding = nn.Embedding(config.num_classes + 1, width)
        self.task_embedding = nn.Embedding(config.num_tasks, width) if config.num_tasks else None
        self.blocks = nn.ModuleList(ModernBlock(config) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.final_modulation = Linear(width, 2 * width)
        self.head = Linear(width, config.num_codebooks * config.vocab_size)
        self._init()

    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        """See ``MaskedTransformer``; any grid with N = product of ``axes``.

        Raises:
            ValueError: N is not the product of the axes, another number of codebooks, or task ids for a model without tasks.
        """
        # In training a block makes its modulation itself: its weights may be there only while it runs (FSDP).
        label, shared = self._given(cond, tokens, axes)
        return self.logits_at(tokens, Prepared(rows=(label,) * (len(self.blocks) + 1), shared=shared))

    def prepare(self, cond: Cond, tokens: Tensor, axes: Sequence[int] | None = None) -> Prepared:
        """See ``PartialTransformer``: the modulations of all blocks and of the head; positions and rotary angles."""
        label, shared = self._given(cond, tokens, axes)
        modulations = []
        for block in self.blocks:
            assert isinstance(block, ModernBlock)
            modulations.append(block.modulation(label)[:, None])
        return Prepared(rows=(*modulations, self.final_modulation(label)[:, None]), shared=shared)

    def _given(
        self, cond: Cond, tokens: Tensor, axes: Sequence[int] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """What the modulations are made of, ``[B, D]``; the positions ``[N, D]`` with cos and sin of the rotary angles."""
        grid = tuple(self.config.axes if axes is None else axes)
        if tokens.ndim != 3 or tokens.shape[1] != torch.Size(grid).numel() or tokens.shape[2] != self.num_codebooks:
            raise ValueError(
                f"tokens: got {tuple(tokens.shape)}, expected [B, {torch.Size(grid).numel()}, {self.num_codebooks}] "
                f"for the grid {grid}"
            )
        label = self.label_embedding(cond.class_ids(tokens, self.num_classes))
        task = task_ids(self, cond, tokens)
        if self.task_embedding is not None:
            label = label + self.task_embedding(task)
        label = F.silu(label)
        angles = rotary_angles(
            coordinates(grid, tokens.device), self.config.width // self.config.heads, self.config.rope_theta
        )
        cos, sin = angles.cos().to(label.dtype), angles.sin().to(label.dtype)
        return label, (self.position(torch.cat((cos, sin), dim=-1)), cos, sin)

    def logits_at(
        self, tokens: Tensor, prepared: Prepared, positions: Tensor | None = None, memory: FeatureMemory | None = None
    ) -> Tensor:
        """See ``PartialTransformer``."""
        *modulations, final = prepared.rows
        position, cos, sin = prepared.shared
        if memory is not None and memory.positions is not None:
            tokens = take(tokens, memory.positions)
            position, cos, sin = (tensor[memory.positions] for tensor in (position, cos, sin))
        offsets = torch.arange(self.num_codebooks, device=tokens.device) * (self.vocab_size + 1)
        x = self.embedding(tokens + offsets).sum(2) + position
        if memory is None:
            x = self.trunk(x, modulations[:-1], cos, sin)
        else:
            for index, block in enumerate(self.blocks[:-1]):
                x = block(x, modulations[index], cos, sin, memory=memory.of_layer(index))
        last = None if memory is None else memory.of_layer(len(self.blocks) - 1)
        for block in self.blocks[-1:]:
            x = block(x, modulations[-1], cos, sin, positions, last)
        ready = final if final.ndim == 3 else self.final_modulation(final)[:, None]
        shift, scale = ready.chunk(2, dim=-1)
        x = self.final_norm(x) * (1 + scale) + shift
        logits = linear_float32(x, self.head.weight, self.head.bias)
        return logits.unflatten(-1, (self.num_codebooks, self.vocab_size))

    def trunk(self, x: Tensor, modulations: Sequence[Tensor], cos: Tensor, sin: Tensor) -> Tensor:
        """All blocks but the last, ``[B, N, D]`` -> ``[B, N, D]``; arguments as of ``ModernBlock``, one modulation each."""
        for block, modulation in zip(self.blocks[:-1], modulations, strict=True):
            x = block(x, modulation, cos, sin)
        return x

    def _init(self) -> None:
        """Normal 0.02 everywhere; modulations and the head zero, so that training starts at the identity and ln V."""
        self.apply(init_layer)
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

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        cos: Tensor,
        sin: Tensor,
        at: Tensor | None = None,
        memory: LayerMemory | None = None,
    ) -> Tensor:
        """One block.

        Args:
            x: ``[B, N, D]``.
            modulation: ``[B, 1, 6 D]``, what ``self.modulation`` makes of the label; or the label, ``[B, D]``.
            cos: ``[N, D / H / 2]``, or ``[B, N, D / H / 2]`` where rows have positions of their own; as ``sin``.
            sin: see ``cos``.
            at: long ``[B, P]``, the positions whose result is wanted, which still see all N; all by default.
            memory: adds the keys and values of what is not in ``x``.

        Returns:
            ``[B, N, D]``, or ``[B, P, D]``.
        """
        ready = modulation if modulation.ndim == 3 else self.modulation(modulation)[:, None]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = ready.chunk(6, dim=-1)
        seen = self.attention_norm(x) * (1 + scale_a) + shift_a
        rows = x if at is None else take(x, at)
        x = rows + gate_a * self.dropout(self.attention(seen, cos, sin, at, memory))
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
