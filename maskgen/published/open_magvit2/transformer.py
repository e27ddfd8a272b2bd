"""Open-MAGVIT2's autoregressive transformer over ids in parts (Luo et al. 2024, arXiv 2409.04410), number for number.

Not a masked model: it is here to be compared with, and decides one position after the other in raster order.

1. The sequence is the class, then the tokens, each the sum of its parts' embeddings; causal blocks make a context of each.
2. A second, small causal stack runs within each position: over its context, then the parts sampled so far.
3. Slot k of it predicts part k; the next position follows.

Positions are rotary: half of each head's pairs are turned by the row, half by the column. The class has no position: its
query and key are zero. So are those of slot 0 in the second stack; slot k is turned as position k - 1 of the grid.

Shapes: B batch, N positions, K parts, S = sequence, D width, H heads, V_k = 2^bits of part k.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.checkpoint import empty_shapes, renamed
from maskgen.precision import attention

_EPS = 1e-5

_BASE = 10_000.0

_HEAD_WIDTH = 64  # of every release


@dataclass(frozen=True, kw_only=True)
class PartsTransformerConfig:
    """Sizes of a ``PartsTransformer``; the defaults are "B" at 256 pixels.

    Attributes:
        part_bits: bits of each of the K parts, the low bits of an id first; official (6, 12).
        num_classes: number of classes; one more row, the null class, is always there.
        axes: token grid (h, w).
        width: D.
        layers: blocks over positions.
        part_layers: blocks within a position.
        heads: H.
        mlp_width: hidden width of the gated feed-forward (8 / 3 of the width, rounded up to a multiple of 256, officially).
        dropout: in training, of embeddings and of what the blocks add; official 0.1.
    """

    part_bits: tuple[int, ...] = (6, 12)
    num_classes: int = 1000
    axes: tuple[int, ...] = (16, 16)
    width: int = 1024
    layers: int = 24
    part_layers: int = 2
    heads: int = 16
    mlp_width: int = 2816
    dropout: float = 0.1

    def __post_init__(self) -> None:
        # A config read back from JSON brings lists.
        object.__setattr__(self, "part_bits", tuple(self.part_bits))
        object.__setattr__(self, "axes", tuple(self.axes))
        sizes = (self.num_classes, self.width, self.layers, self.part_layers, self.heads, self.mlp_width)
        if min(*sizes, *self.axes, *self.part_bits, len(self.part_bits)) < 1 or sum(self.part_bits) > 62:
            raise ValueError(
                f"got part_bits {self.part_bits}, num_classes {self.num_classes}, axes {self.axes}, width {self.width}, "
                f"layers {self.layers}, part_layers {self.part_layers}, heads {self.heads}, mlp_width {self.mlp_width}; "
                "expected positive sizes and 62 bits or less"
            )
        if len(self.axes) != 2 or math.prod(self.axes) < len(self.part_bits):
            raise ValueError(
                f"axes: got {self.axes}, expected (h, w) of no fewer positions than parts ({len(self.part_bits)})"
            )
        if self.width % (4 * self.heads):
            raise ValueError(
                f"heads: got {self.heads} for width {self.width}, expected heads of a multiple of 4: pairs for the row and "
                "pairs for the column"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {self.dropout}, expected 0 <= dropout < 1")


class PartsTransformer(nn.Module):
    """See the head of this file. Matrices and embeddings start N(0, 0.02), heads at zero: the uniform model.

    Args:
        config: sizes.
    """

    rotary: Tensor

    def __init__(self, config: PartsTransformerConfig) -> None:
        super().__init__()
        self.config = config
        sizes, width = [2**bits for bits in config.part_bits], config.width
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)
        self.embeddings = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.part_blocks = nn.ModuleList(_Block(config) for _ in range(config.part_layers))
        self.norm = nn.RMSNorm(width, eps=_EPS)
        self.heads = nn.ModuleList(nn.Linear(width, size, bias=False) for size in sizes)
        self.register_buffer("rotary", _rotary(config.axes, width // config.heads), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for head in self.heads:
            assert isinstance(head, nn.Linear)
            nn.init.zeros_(head.weight)

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Logits of every part of every position, given the positions before it and the parts before it (teacher forcing).

        Args:
            tokens: long ``[B, N, K]``, part k in [0, V_k), all positions of the grid in raster order.
            labels: long ``[B]``; the number of classes means "no class". In training the caller drops 10 % of them.

        Returns:
            K times ``[B, N, V_k]``.

        Raises:
            ValueError: other numbers of positions or parts.
        """
        expected = (math.prod(self.config.axes), len(self.config.part_bits))
        if tokens.ndim != 3 or tuple(tokens.shape[1:]) != expected:
            raise ValueError(f"tokens: got shape {tuple(tokens.shape)}, expected [B, {expected[0]}, {expected[1]}]")
        embedded = [table(part) for table, part in zip(self.embeddings, tokens.unbind(-1), strict=True)]
        sequence = torch.cat((self.class_embedding(labels)[:, None], torch.stack(embedded).sum(0)[:, :-1]), dim=1)
        context = self.run(F.dropout(sequence, self.config.dropout, self.training))
        slots = rearrange([context, *embedded[:-1]], "K B N D -> (B N) K D")
        slots = rearrange(self.norm(self.run(slots, parts=True)), "(B N) K D -> B N K D", B=len(tokens))
        return tuple(head(slots[:, :, k]) for k, head in enumerate(self.heads))

    def losses(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Cross-entropy in nats of each part, the mean over positions; training minimises their sum.

        Args:
            tokens: long ``[B, N, K]``.
            labels: long ``[B]``.

        Returns:
            K scalars.
        """
        logits = self(tokens, labels)
        return tuple(
            F.cross_entropy(part.flatten(end_dim=1), target.flatten())
            for part, target in zip(logits, tokens.unbind(-1), strict=True)
        )

    def run(self, x: Tensor, *, parts: bool = False, cache: Sequence[KeyValueCache] | None = None) -> Tensor:
        """One of the two stacks, without the last norm.

        Args:
            x: ``[B, S, D]``, the positions that follow those in the cache.
            parts: the stack within a position instead of the one over positions.
            cache: what each block has seen so far; it is added to.

        Returns:
            ``[B, S, D]``.
        """
        start = cache[0].used if cache else 0
        rotary = self.rotary[start : start + x.shape[1]]
        for index, block in enumerate(self.part_blocks if parts else self.blocks):
            x = block(x, rotary, cache[index] if cache else None)
        return x

    def whole_ids(self, tokens: Tensor) -> Tensor:
        """Ids in one piece.

        Args:
            tokens: long ``[B, N, K]``.

        Returns:
            Long ``[B, N]``: part k shifted by the bits of the parts before it.
        """
        ids, shift = torch.zeros_like(tokens[..., 0]), 0
        for part, bits in zip(tokens.unbind(-1), self.config.part_bits, strict=True):
            ids, shift = ids + (part << shift), shift + bits
        return ids


class KeyValueCache:
    """Keys and values of the positions a block has seen.

    Args:
        length: most positions there will be.
    """

    def __init__(self, length: int) -> None:
        self.length, self.used = length, 0
        self._pairs: Tensor | None = None  # [2, B, H, length, D / H]

    def add(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append ``[B, H, S, D / H]`` and return all of them."""
        if self._pairs is None:
            B, H, _, width = keys.shape
            self._pairs = keys.new_empty((2, B, H, self.length, width))
        stop = self.used + keys.shape[2]
        self._pairs[0, :, :, self.used : stop], self._pairs[1, :, :, self.used : stop] = keys, values
        self.used = stop
        return self._pairs[0, :, :, :stop], self._pairs[1, :, :, :stop]


class _Block(nn.Module):
    """x += attention(RMS(x)); x += w2(SiLU(w1 RMS(x)) w3 RMS(x)). No biases."""

    def __init__(self, config: PartsTransformerConfig) -> None:
        super().__init__()
        width, self.head_count, self.dropout = config.width, config.heads, config.dropout
        self.attention_norm = nn.RMSNorm(width, eps=_EPS)
        self.wqkv = nn.Linear(width, 3 * width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, eps=_EPS)
        self.w1, self.w3 = (nn.Linear(width, config.mlp_width, bias=False) for _ in range(2))
        self.w2 = nn.Linear(config.mlp_width, width, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, cache: KeyValueCache | None) -> Tensor:
        """``[B, S, D]`` -> ``[B, S, D]``; with a cache that holds something, S must be 1."""
        rows = self.wqkv(self.attention_norm(x)).chunk(3, dim=-1)
        q, k, v = (rearrange(row, "B S (H D) -> B H S D", H=self.head_count) for row in rows)
        q, k = _turn(q, rotary), _turn(k, rotary)
        if cache is not None:
            k, v = cache.add(k, v)
        assert q.shape[2] in (1, k.shape[2])
        mixed = attention(q, k, v, causal=q.shape[2] > 1)
        x = x + F.dropout(self.wo(rearrange(mixed, "B H S D -> B S (H D)")), self.dropout, self.training)
        y = self.ffn_norm(x)
        return x + F.dropout(self.w2(F.silu(self.w1(y)) * self.w3(y)), self.dropout, self.training)


def _rotary(axes: Sequence[int], head_width: int) -> Tensor:
    """``[1 + h w, head_width / 2, 2]``: cosines and sines of each position; zeros for the class before them."""
    half = head_width // 2
    rates = _BASE ** -(torch.arange(0, half, 2).float() / half)
    row, column = (torch.arange(size)[:, None] * rates for size in axes)  # [h, half / 2], [w, half / 2]
    h, w = axes
    rows, columns = repeat(row, "h a -> (h w) a", w=w), repeat(column, "w a -> (h w) a", h=h)
    angles = torch.cat((rows, columns), dim=-1)
    table = torch.stack((angles.cos(), angles.sin()), dim=-1)
    return torch.cat((torch.zeros_like(table[:1]), table))


def _turn(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn neighbouring pairs of ``[B, H, S, 2 n]`` by ``[S, n, 2]``."""
    even, odd = rearrange(x.float(), "B H S (n two) -> two B H S n", two=2)
    cos, sin = rotary.unbind(-1)
    turned = [even * cos - odd * sin, odd * cos + even * sin]
    return rearrange(turned, "two B H S n -> B H S (n two)").to(x.dtype)


_PREFIX = "transformer."

_OTHERS = ("first_stage_model.", "cond_stage_model.")

PUBLISHED: Final[dict[str, PartsTransformerConfig]] = {
    "AR_256_B": PartsTransformerConfig(),
    "AR_256_L": PartsTransformerConfig(width=1280, layers=36, part_layers=3, heads=20, mlp_width=3584),
    "AR_256_XL": PartsTransformerConfig(width=1536, layers=48, part_layers=4, heads=24, mlp_width=4096),
}
"""File name of the release to sizes; ids are those of ``imagenet_256_L`` with its raw (not averaged) weights."""


def config_from(
    state: Mapping[str, Tensor], *, heads: int | None = None, axes: Sequence[int] = (16, 16)
) -> PartsTransformerConfig:
    """Settings that official weights were made with, read from their names and shapes.

    Args:
        state: official name to tensor (the file's "state_dict").
        heads: H, which weights do not show; by default heads of 64, as in every release.
        axes: token grid, which weights do not show either.

    Raises:
        ValueError: the weights that tell the sizes are missing, or sizes that do not fit each other.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in _bare(state).items()}
    needed = ("pre_emb.weight", "post_emb.weight", "class_emb.embedding_table.weight")
    first = "spatial_blocks.0.feed_forward.w1.weight"
    missing = [name for name in (*needed, first) if name not in shapes]
    if missing:
        raise ValueError(
            f"these weights are no Open-MAGVIT2 transformer: missing {missing}; found {len(state)} as {sorted(state)[:3]}"
        )
    (low, width), (high, _), (classes, _) = (shapes[name] for name in needed)

    def count(stack: str) -> int:
        return len({match[1] for name in shapes if (match := re.match(rf"{stack}\.(\d+)\.", name))})

    return PartsTransformerConfig(
        part_bits=(low.bit_length() - 1, high.bit_length() - 1),
        num_classes=classes - 1,
        axes=tuple(axes),
        width=width,
        layers=count("spatial_blocks"),
        part_layers=count("factorized_blocks"),
        heads=max(1, width // _HEAD_WIDTH) if heads is None else heads,
        mlp_width=shapes[first][0],
    )


def convert(state: Mapping[str, Tensor], config: PartsTransformerConfig) -> dict[str, Tensor]:
    """Official weights as the state dict of ``PartsTransformer(config)``; tensors are shared, not copied.

    Args:
        state: official name to tensor, with or without "transformer." before each; the tokenizer beside them is dropped.
        config: see ``config_from``.

    Raises:
        ValueError: naming every weight that is missing, unexpected or of another shape.
    """
    shapes = empty_shapes(PartsTransformer, config)
    return renamed(_bare(state), shapes, _official, "Open-MAGVIT2 transformer weights")


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(_OTHERS)}
    return {name.removeprefix(_PREFIX): tensor for name, tensor in kept.items()}


def _official(name: str) -> str:
    """Official name of one of our weights."""
    for pattern, replacement in (
        (r"^class_embedding\.", "class_emb.embedding_table."),
        (r"^embeddings\.0\.", "pre_emb."),
        (r"^embeddings\.1\.", "post_emb."),
        (r"^heads\.", "head."),
        (r"^part_blocks\.", "factorized_blocks."),
        (r"^blocks\.", "spatial_blocks."),
        (r"\.(wqkv|wo)\.", r".attention.\1."),
        (r"\.(w1|w2|w3)\.", r".feed_forward.\1."),
    ):
        name = re.sub(pattern, replacement, name)
    return name
