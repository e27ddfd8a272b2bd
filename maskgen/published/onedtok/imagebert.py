"""ImageBert, the generator of TiTok-L-32 and TiTok-B-64 (Yu et al. 2024, arXiv 2406.07550; bytedance/1d-tokenizer).

A Hugging Face BERT encoder without pooler: post-norm, LayerNorm eps 1e-12, exact GELU, learned positions, and the first row
of the token-type table added everywhere. One vocabulary holds V codes, the mask (row V, our own mask id), the classes and
last the null class; the class comes first in the sequence. The head is a plain linear layer to the V codes.

Shapes: B batch, N tokens, S = 1 + N sequence, D width, H heads, V codes, C classes.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.checkpoint import empty_shapes, renamed, settings_from
from maskgen.conditioning import Cond
from maskgen.models.attention import AttentionBackend, check_backend
from maskgen.models.base import MaskedTransformer, check_grid, init_layer
from maskgen.models.bert import BertBlock, BertConfig


@dataclass(frozen=True, kw_only=True)
class OneDTokConfig:
    """Sizes that both generators of 1d-tokenizer share.

    Attributes:
        vocab_size: V, number of codes.
        num_classes: C; one more row, the null class, is always there.
        axes: token grid, ``(N,)`` for TiTok, whose tokens have no places in the image; positions are learned.
        width: D.
        layers: number of blocks.
        heads: H, dividing D.
        mlp_width: hidden width of the feed-forward.
        dropout: on the embeddings and both branches.
        attention: back-end, see ``maskgen.models.attention``.

    Raises:
        ValueError: sizes that are not positive, or heads that do not divide the width.
    """

    vocab_size: int = 4096
    num_classes: int = 1000
    axes: tuple[int, ...] = (32,)
    width: int = 768
    layers: int = 24
    heads: int = 16
    mlp_width: int = 3072
    dropout: float = 0.1
    attention: AttentionBackend = "sdpa"

    def __post_init__(self) -> None:
        if min(self.vocab_size - 1, self.num_classes + 1, self.layers, self.heads, self.mlp_width, *self.axes) < 1:
            raise ValueError(
                f"got vocab_size {self.vocab_size}, num_classes {self.num_classes}, axes {self.axes}, layers {self.layers}, "
                f"heads {self.heads}, mlp_width {self.mlp_width}; expected vocab_size of 2 or more, num_classes of 0 or "
                "more, the others positive"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}; give the heads of the file")
        check_backend(self.attention)


@dataclass(frozen=True, kw_only=True)
class ImageBertConfig(OneDTokConfig):
    """Sizes of an ``ImageBert``; the defaults are TiTok-L-32. See ``OneDTokConfig``."""


PUBLISHED: dict[str, ImageBertConfig] = {
    "generator_titok_l32_imagenet": ImageBertConfig(axes=(32,)),
    "generator_titok_b64_imagenet": ImageBertConfig(axes=(64,)),
}
"""Full-size settings by the name of the Hugging Face repository."""


class OneDTokTransformer(MaskedTransformer):
    """Base of the generators: one codebook, and a null class among the rows of the vocabulary."""

    def __init__(self, config: OneDTokConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.num_classes = config.vocab_size, config.num_classes
        self.num_codebooks, self.null_class = 1, True


class ImageBert(OneDTokTransformer):
    """Class first, then the tokens, through a post-norm encoder; see the head of this file."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__(config)
        self.word_embedding = nn.Embedding(config.vocab_size + config.num_classes + 2, config.width)
        self.position_embedding = nn.Embedding(1 + math.prod(config.axes), config.width)
        self.type_embedding = nn.Embedding(2, config.width)  # the second row is in the files and never read
        self.embedding_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(ImageBertBlock(config) for _ in range(config.layers))
        self.lm_head = nn.Linear(config.width, config.vocab_size)
        self.apply(init_layer)

    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        """See ``MaskedTransformer``; K must be 1 and ``axes`` the trained grid.

        Raises:
            ValueError: another number of tokens or codebooks, or another grid.
        """
        ids = prefixed_rows(self.config, tokens, cond, axes)
        x = self.word_embedding(ids) + self.type_embedding.weight[0] + self.position_embedding.weight
        x = self.dropout(self.embedding_norm(x))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(x[:, 1:])[:, :, None]


class ImageBertBlock(BertBlock):
    """``BertBlock`` with the exact GELU of the Hugging Face encoder in place of the tanh form."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__(settings_from(config, BertConfig))

    def feed_forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., D]``."""
        hidden: Tensor = self.contract(F.gelu(self.expand(x)))
        return hidden


def prefixed_rows(config: OneDTokConfig, tokens: Tensor, cond: Cond, axes: Sequence[int] | None) -> Tensor:
    """Rows of the shared vocabulary: the class, or the null class, in front of the tokens.

    Args:
        config: sizes of the model.
        tokens: long ``[B, N, 1]``, V where masked: codes and mask keep their ids, for V is the mask's row.
        cond: labels, ``NO_LABEL`` for single rows without one; no labels at all means no class anywhere.
        axes: token grid of the call.

    Returns:
        long ``[B, 1 + N]``.

    Raises:
        ValueError: another number of tokens or codebooks than the positions were learned for, or another grid.
    """
    check_grid(tokens, axes, config.axes)
    cond.check_used("this model", "labels")
    classes = config.vocab_size + 1 + cond.class_ids(tokens, config.num_classes)
    return torch.cat((classes[:, None], tokens.squeeze(-1)), dim=1)


# Our name of a layer's part, or of a weight outside the layers -> the official one.
_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "expand": "intermediate.dense",
    "contract": "output.dense",
    "mlp_norm": "output.LayerNorm",
}

_OUTER = {
    "word_embedding.weight": "model.embeddings.word_embeddings.weight",
    "position_embedding.weight": "model.embeddings.position_embeddings.weight",
    "type_embedding.weight": "model.embeddings.token_type_embeddings.weight",
    "embedding_norm.weight": "model.embeddings.LayerNorm.weight",
    "embedding_norm.bias": "model.embeddings.LayerNorm.bias",
    "lm_head.weight": "model.lm_head.weight",
    "lm_head.bias": "model.lm_head.bias",
}

_IGNORED = "model.embeddings.position_ids"  # a buffer 0, 1, 2, ... that some versions of transformers store


C = TypeVar("C", bound=OneDTokConfig)


@dataclass(frozen=True, kw_only=True)
class SizesReader(Generic[C]):
    """Reads the settings that official weights were made with from their names and shapes.

    Attributes:
        config: class of the settings.
        family: named in errors.
        table: official name of the weight ``[V + C + 2, D]``.
        positions: of ``[..., 1 + N, D]``.
        head: of ``[V, D]``.
        mlp: of the first layer of a feed-forward.
        block: pattern of a block's names, its number as a group.
        block_layers: layers that a numbered block stands for.
    """

    config: type[C]
    family: str
    table: str
    positions: str
    head: str
    mlp: str
    block: str
    block_layers: int = 1

    def __call__(
        self, state: Mapping[str, Tensor], *, heads: int = 16, axes: Sequence[int] | None = None, dropout: float = 0.1
    ) -> C:
        """The settings.

        Args:
            state: official name to tensor.
            heads: H, which weights do not show; 16 in all releases.
            axes: token grid; ``(N,)`` by default.
            dropout: for further training.

        Raises:
            ValueError: naming the missing weights, or sizes that do not fit each other.
        """
        needed = (self.table, self.positions, self.head, self.mlp)
        missing = [name for name in needed if name not in state or state[name].ndim < 2]
        if missing:
            raise ValueError(
                f"these weights are no {self.family}: missing {missing}; found {len(state)} weights as "
                f"{sorted(state)[:3]}"
            )
        rows, width = state[self.table].shape
        codes, tokens = len(state[self.head]), state[self.positions].shape[-2] - 1
        grid = (tokens,) if axes is None else tuple(axes)
        if rows < codes + 2:
            raise ValueError(
                f"{self.family}: got a table of {rows} rows, expected {codes} codes + 1 mask + classes + 1 null class"
            )
        if math.prod(grid) != tokens:
            raise ValueError(
                f"{self.family}: got {tokens + 1} positions, expected 1 + the product of axes {grid}; give the grid"
            )
        blocks = {match[1] for name in state if (match := re.match(self.block, name))}
        return self.config(
            vocab_size=codes,
            num_classes=rows - codes - 2,
            axes=grid,
            width=width,
            mlp_width=len(state[self.mlp]),
            layers=self.block_layers * len(blocks),
            heads=heads,
            dropout=dropout,
        )


config_from: Final = SizesReader(
    config=ImageBertConfig,
    family="ImageBert",
    table="model.embeddings.word_embeddings.weight",
    positions="model.embeddings.position_embeddings.weight",
    head="model.lm_head.weight",
    mlp="model.encoder.layer.0.intermediate.dense.weight",
    block=r"model\.encoder\.layer\.(\d+)\.",
)


def convert(state: Mapping[str, Tensor], config: ImageBertConfig) -> dict[str, Tensor]:
    """Official weights as the state dict of ``ImageBert(config)``; tensors are shared, not copied.

    Args:
        state: official name to tensor; a stored ``position_ids`` is ignored.
        config: see ``config_from``.

    Raises:
        ValueError: naming every weight that is missing, unexpected or of another shape.
    """
    names = official_names(config.layers)
    found = {name: tensor for name, tensor in state.items() if name != _IGNORED}
    return renamed(found, empty_shapes(ImageBert, config), names.__getitem__, "ImageBert weights")


def official_names(layers: int) -> dict[str, str]:
    """Our name of every weight -> the official one."""
    names = dict(_OUTER)
    for index in range(layers):
        for ours, official in _LAYER.items():
            for kind in ("weight", "bias"):
                names[f"blocks.{index}.{ours}.{kind}"] = f"model.encoder.layer.{index}.{official}.{kind}"
    return names
