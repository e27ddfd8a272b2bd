"""What a grid is told by sequences beside it: the features of a text, the tokens of a smaller grid.

The smaller grid is the first stage of a cascade (Muse, arXiv 2301.00704, section 2.5: own embedding, layers of
self-attention, then both sequences one after the other).

Shapes: B batch, L text tokens, M tokens of the smaller grid, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.conditioning import Cond
from maskgen.models.modern_block import BlockConfig, Context, ModernBlock
from maskgen.models.positions import coordinates, rotary_angles
from maskgen.precision import Linear


@dataclass(frozen=True, kw_only=True)
class CoarseConfig:
    """The smaller grid.

    Attributes:
        vocab_size: codes of its tokenizer; 0 for none. An id more stands for a token that is not known.
        axes: its usual shape.
        layers: of self-attention over it.
    """

    vocab_size: int = 0
    axes: tuple[int, ...] = ()
    layers: int = 4

    def __post_init__(self) -> None:
        if self.vocab_size and (self.vocab_size < 2 or not self.axes or min(self.axes) < 1 or self.layers < 0):
            raise ValueError(
                f"context.coarse: got vocab_size {self.vocab_size}, axes {self.axes}, layers {self.layers}; expected 2 or "
                "more codes, positive axes and 0 or more layers"
            )


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """What a ``ModernTransformer`` is told besides label and task.

    Attributes:
        width: of ``Cond.context``, for instance of a text encoder's features; 0 for none.
        pooled: width of ``Cond.pooled``, which is added to the label's embedding; 0 for none.
        every: blocks 0, ``every``, 2 ``every``... look at the context. A look costs about a sixth of a block.
        coarse: see ``CoarseConfig``.
    """

    width: int = 0
    pooled: int = 0
    every: int = 4
    coarse: CoarseConfig = field(default_factory=CoarseConfig)

    def __post_init__(self) -> None:
        if min(self.width, self.pooled) < 0 or self.every < 1:
            raise ValueError(
                f"context: got width {self.width}, pooled {self.pooled}, every {self.every}; expected widths of 0 or more "
                "and every of 1 or more"
            )

    @property
    def is_sequence(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self.width or self.coarse.vocab_size)


class ContextReader(nn.Module):
    """Makes one sequence of width D of what ``Cond`` holds.

    Args:
        config: see ``ContextConfig``.
        block: sizes of the layers over the smaller grid.
        rope_theta: of their rotary positions.
    """

    def __init__(self, config: ContextConfig, block: BlockConfig, rope_theta: float) -> None:
        super().__init__()
        self.config, self.head, self.rope_theta = config, block.width // block.heads, rope_theta
        if config.width:
            self.text = Linear(config.width, block.width)
            self.text_norm = nn.RMSNorm(block.width, eps=1e-6)
        if config.coarse.vocab_size:
            self.embedding = nn.Embedding(config.coarse.vocab_size + 1, block.width)
            self.position = Linear(self.head, block.width, bias=False)
            self.blocks = nn.ModuleList(ModernBlock(block) for _ in range(config.coarse.layers))
            self.coarse_norm = nn.RMSNorm(block.width, eps=1e-6)
            # Which small token lies over which position takes attention alone thousands of steps to find out.
            self.near = nn.Embedding(config.coarse.vocab_size + 1, block.width)

    def forward(self, cond: Cond, label: Tensor) -> Context:
        """The sequence and its mask.

        Args:
            cond: ``context`` and ``coarse``, as the config says.
            label: ``[B, D]``, what modulates the layers over the smaller grid.

        Raises:
            ValueError: a part that is missing or of another shape.
        """
        parts, masks = [], []
        if self.config.width:
            features = _given(cond.context, "context", (len(label), None, self.config.width), "the features of a text")
            parts.append(self.text_norm(self.text(features.to(label.dtype))))
            masks.append(cond.context_mask)
        if self.config.coarse.vocab_size:
            parts.append(self._coarse(cond, label))
            masks.append(None)
        if all(mask is None for mask in masks):
            return torch.cat(parts, dim=1), None
        real = [
            torch.ones(part.shape[:2], dtype=torch.bool, device=part.device) if mask is None else mask
            for part, mask in zip(parts, masks, strict=True)
        ]
        return torch.cat(parts, dim=1), torch.cat(real, dim=1)

    def at_positions(self, cond: Cond, rows: int, grid: Sequence[int]) -> Tensor:
        """What each position of the grid is told of the small token that lies over it, ``[B, N, D]``; see ``forward``."""
        index = nearest(grid, self.config.coarse.axes, self.near.weight.device)
        told: Tensor = self.near(self._tokens(cond, rows)[:, index, 0])
        return told

    def _tokens(self, cond: Cond, rows: int) -> Tensor:
        axes = self.config.coarse.axes
        return _given(cond.coarse, "coarse", (rows, torch.Size(axes).numel(), 1), f"tokens of the grid {axes}")

    def _coarse(self, cond: Cond, label: Tensor) -> Tensor:
        axes, tokens = self.config.coarse.axes, self._tokens(cond, len(label))
        angles = rotary_angles(coordinates(axes, tokens.device), self.head, self.rope_theta)
        cos, sin = angles.cos().to(label.dtype), angles.sin().to(label.dtype)
        x = self.embedding(tokens[..., 0]) + self.position(torch.cat((cos, sin), dim=-1))
        for block in self.blocks:
            x = block(x, label, cos, sin)
        normed: Tensor = self.coarse_norm(x)
        return normed


class PooledReader(nn.Module):
    """What is added to the label's embedding of ``Cond.pooled``: Linear, SiLU, Linear."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.wide, self.out = Linear(inputs, width), Linear(width, width)

    def forward(self, cond: Cond, label: Tensor) -> Tensor:
        """``[B, D]``, the shape of ``label``.

        Raises:
            ValueError: no pooled vector, or one of another shape.
        """
        given = _given(cond.pooled, "pooled", (len(label), self.inputs), "the pooled vector of a text")
        added: Tensor = self.out(F.silu(self.wide(given.to(label.dtype))))
        return added


def nearest(grid: Sequence[int], small: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Which cell of a small grid lies over each position of a grid, long ``[N]``; both have the same number of axes."""
    index = torch.zeros(1, dtype=torch.long, device=device)
    for size, cells in zip(grid, small, strict=True):
        along = torch.arange(size, device=device) * cells // size
        index = (index[:, None] * cells + along).flatten()
    return index


def _given(value: Tensor | None, name: str, shape: Sequence[int | None], what: str) -> Tensor:
    """A field of ``Cond`` that a model cannot do without."""
    if value is None:
        remedy = "" if name == "coarse" else "; without a text give those of the empty one"
        raise ValueError(f"cond.{name}: got none, but this model needs {what}{remedy}")
    fits = value.ndim == len(shape) and all(want in (None, got) for got, want in zip(value.shape, shape, strict=True))
    if not fits:
        wanted = tuple("any" if size is None else size for size in shape)
        raise ValueError(f"cond.{name}: got {tuple(value.shape)}, expected {wanted}: {what}")
    return value
