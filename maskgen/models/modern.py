"""The ``modern`` family: our default for new training.

Pre-norm RMSNorm, QK-norm, rotary positions from per-axis coordinates (any grid, any number of axes; the same angles are
also added at the input, for rotary attention alone cannot tell positions apart when all tokens are equal), gated MLP, and
adaptive norm from label and task (DiT, arXiv 2212.09748: each branch has shift, scale and gate, the gate starting at zero).
A context, as the features of a text, is attended to in every few blocks; its pooled vector is added to the label.

Shapes: B batch, N tokens, K codebooks, V vocabulary, D width, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.conditioning import Cond
from maskgen.models.attention import AttentionBackend, check_backend
from maskgen.models.base import PartialTransformer, init_layer, task_ids
from maskgen.models.context import ContextConfig, ContextReader, PooledReader
from maskgen.models.modern_block import Context, ModernBlock
from maskgen.models.multi_axis import check_blocks
from maskgen.models.partial import FeatureMemory, Prepared, take
from maskgen.models.positions import coordinates, rotary_angles
from maskgen.precision import Linear, linear_float32


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
        multi_axis: block sides (8, 8) of multi-axis attention instead of full attention, for large grids, whose sides they
            must divide: see ``maskgen.models.multi_axis``. Muse's second stage has it.
        context: what else it is told, see ``ContextConfig``: nothing by default.
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
    multi_axis: tuple[int, ...] = ()
    context: ContextConfig = field(default_factory=ContextConfig)
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
        if self.multi_axis:
            check_blocks(self.axes, self.multi_axis, self.heads)


class ModernTransformer(PartialTransformer):
    """K embeddings are summed at a position; K heads predict it."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.num_codebooks = config.vocab_size, config.num_codebooks
        self.num_classes, self.null_class, self.num_tasks = config.num_classes, True, config.num_tasks
        self.context_width, self.pooled_width = config.context.width, config.context.pooled
        self.coarse_size = torch.Size(config.context.coarse.axes).numel() if config.context.coarse.vocab_size else 0
        width, rows = config.width, config.vocab_size + 1
        self.embedding = nn.Embedding(rows * config.num_codebooks, width)
        # Rotary attention over equal tokens gives equal outputs: without this, a fully masked grid has no positions
        # (measured: overfitting four 12-token grids stops at 1.7 nats instead of 0.001).
        self.position = Linear(width // config.heads, width, bias=False)
        self.label_embedding = nn.Embedding(config.num_classes + 1, width)
        self.task_embedding = nn.Embedding(config.num_tasks, width) if config.num_tasks else None
        told = config.context
        self.pooled = PooledReader(told.pooled, width) if told.pooled else None
        self.context = ContextReader(told, config, config.rope_theta) if told.is_sequence else None
        self.blocks = nn.ModuleList(
            ModernBlock(config, told.is_sequence and number % told.every == 0, config.multi_axis)
            for number in range(config.layers)
        )
        self.final_norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.final_modulation = Linear(width, 2 * width)
        self.head = Linear(width, config.num_codebooks * config.vocab_size)
        self._init()

    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        """See ``MaskedTransformer``; any grid with N = product of ``axes``.

        Raises:
            ValueError: N is not the product of the axes, another number of codebooks, task ids for a model without tasks, or
                a context that is missing.
        """
        # In training a block makes what it needs itself: its weights may be there only while it runs (FSDP).
        label, shared = self._given(cond, tokens, axes)
        modulations, grid = (label,) * (len(self.blocks) + 1), self._grid(axes)
        if self.context is None:
            return self.logits_at(tokens, Prepared(rows=modulations, shared=shared, grid=grid))
        features, mask = self.context(cond, label)
        near = self._near(cond, len(label), grid)
        contexts = [features for block in self.blocks if block.context is not None]
        return self.logits_at(tokens, Prepared((*modulations, *near, *contexts, *_masks(mask)), shared, grid))

    def prepare(self, cond: Cond, tokens: Tensor, axes: Sequence[int] | None = None) -> Prepared:
        """See ``PartialTransformer``: modulations of all blocks and of the head; positions and rotary angles; contexts."""
        label, shared = self._given(cond, tokens, axes)
        blocks = [block for block in self.blocks if isinstance(block, ModernBlock)]
        modulations = [block.modulation(label)[:, None] for block in blocks] + [self.final_modulation(label)[:, None]]
        if self.context is None:
            return Prepared(rows=tuple(modulations), shared=shared, grid=self._grid(axes))
        features, mask = self.context(cond, label)
        near = self._near(cond, len(label), self._grid(axes))
        contexts = [block.context.ready(features) for block in blocks if block.context is not None]
        return Prepared((*modulations, *near, *contexts, *_masks(mask)), shared, self._grid(axes))

    def _near(self, cond: Cond, rows: int, grid: Sequence[int]) -> tuple[Tensor, ...]:
        """What positions are told of the small grid of a cascade, where there is one; see ``ContextReader``."""
        assert self.context is not None
        return (self.context.at_positions(cond, rows, grid),) if self.coarse_size else ()

    def _grid(self, axes: Sequence[int] | None) -> tuple[int, ...]:
        return tuple(self.config.axes if axes is None else axes)

    def _given(
        self, cond: Cond, tokens: Tensor, axes: Sequence[int] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """What the modulations are made of, ``[B, D]``; the positions ``[N, D]`` with cos and sin of the rotary angles."""
        grid = self._grid(axes)
        if tokens.ndim != 3 or tokens.shape[1] != torch.Size(grid).numel() or tokens.shape[2] != self.num_codebooks:
            raise ValueError(
                f"tokens: got {tuple(tokens.shape)}, expected [B, {torch.Size(grid).numel()}, {self.num_codebooks}] "
                f"for the grid {grid}"
            )
        if self.config.multi_axis:
            check_blocks(grid, self.config.multi_axis, self.config.heads)
        label = self.label_embedding(cond.class_ids(tokens, self.num_classes))
        task = task_ids(self, cond, tokens)
        if self.task_embedding is not None:
            label = label + self.task_embedding(task)
        if self.pooled is not None:
            label = label + self.pooled(cond, label)
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
        count = len(self.blocks)
        modulations, final = prepared.rows[:count], prepared.rows[count]
        near, contexts = (
            prepared.rows[count + 1 :][: bool(self.coarse_size)],
            self._contexts(prepared.rows[count + 1 :]),
        )
        position, cos, sin = prepared.shared
        if memory is not None and memory.positions is not None:
            tokens = take(tokens, memory.positions)
            position, cos, sin = (tensor[memory.positions] for tensor in (position, cos, sin))
        offsets = torch.arange(self.num_codebooks, device=tokens.device) * (self.vocab_size + 1)
        x = self.embedding(tokens + offsets).sum(2) + position
        for told in near:
            x = x + (told if memory is None or memory.positions is None else take(told, memory.positions))
        if memory is None:
            x = self.trunk(x, modulations[:-1], cos, sin, contexts[:-1], prepared.grid)
        else:
            for index, block in enumerate(self.blocks[:-1]):
                held = memory.of_layer(index)
                x = block(x, modulations[index], cos, sin, None, held, contexts[index], prepared.grid)
        last = None if memory is None else memory.of_layer(count - 1)
        for block in self.blocks[-1:]:
            x = block(x, modulations[-1], cos, sin, positions, last, contexts[-1], prepared.grid)
        ready = final if final.ndim == 3 else self.final_modulation(final)[:, None]
        shift, scale = ready.chunk(2, dim=-1)
        x = self.final_norm(x) * (1 + scale) + shift
        logits = linear_float32(x, self.head.weight, self.head.bias)
        return logits.unflatten(-1, (self.num_codebooks, self.vocab_size))

    def trunk(
        self,
        x: Tensor,
        modulations: Sequence[Tensor],
        cos: Tensor,
        sin: Tensor,
        contexts: Sequence[Context | None],
        grid: Sequence[int] = (),
    ) -> Tensor:
        """All blocks but the last, ``[B, N, D]`` -> ``[B, N, D]``; arguments as of ``ModernBlock``, one of each a block."""
        for block, modulation, context in zip(self.blocks[:-1], modulations, contexts, strict=True):
            x = block(x, modulation, cos, sin, context=context, grid=grid)
        return x

    def _contexts(self, rows: Sequence[Tensor]) -> list[Context | None]:
        """What each block looks at: features of those that do, in their order, and then perhaps the mask of all."""
        looks = sum(block.context is not None for block in self.blocks)
        rows = rows[bool(self.coarse_size) :]
        features, mask = iter(rows[:looks]), rows[looks] if len(rows) > looks else None
        return [None if block.context is None else (next(features), mask) for block in self.blocks]

    def _init(self) -> None:
        """Normal 0.02 everywhere; modulations and the head zero, so that training starts at the identity and ln V."""
        self.apply(init_layer)
        if self.context is not None:
            for inner in getattr(self.context, "blocks", ()):
                nn.init.zeros_(inner.modulation.weight)
        for block in self.blocks:
            assert isinstance(block, ModernBlock)
            nn.init.zeros_(block.modulation.weight)
            if block.context is not None:
                nn.init.zeros_(block.context.out.weight)
        nn.init.zeros_(self.final_modulation.weight)
        nn.init.zeros_(self.head.weight)


def _masks(mask: Tensor | None) -> tuple[Tensor, ...]:
    return () if mask is None else (mask,)
