"""ImageBert, the generator of TiTok-L-32 and TiTok-B-64 (Yu et al. 2024, arXiv 2406.07550; bytedance/1d-tokenizer).

A Hugging Face BERT encoder without pooler: post-norm, LayerNorm eps 1e-12, exact GELU, learned positions, and the first row
of the token-type table added everywhere. One vocabulary holds V codes, the mask (row V, our own mask id), the classes and
last the null class; the class comes first in the sequence. The head is a plain linear layer to the V codes.

Shapes: B batch, N tokens, S = 1 + N sequence, D width, H heads, V codes, C classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.checkpoint import check_state
from maskgen.conditioning import NO_LABEL, Cond
from maskgen.models.attention import AttentionBackend, check_backend
from maskgen.models.base import MaskedTransformer
from maskgen.models.bert import BertBlock, BertConfig

__all__ = [
    "PUBLISHED",
    "ImageBert",
    "ImageBertBlock",
    "ImageBertConfig",
    "OneDTokConfig",
    "config_from",
    "convert",
    "onedtok_config",
    "prefixed_rows",
]


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


class ImageBert(MaskedTransformer):
    """Class first, then the tokens, through a post-norm encoder; see the head of this file."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.num_classes = config.vocab_size, config.num_classes
        self.num_codebooks, self.null_class = 1, True
        self.word_embedding = nn.Embedding(config.vocab_size + config.num_classes + 2, config.width)
        self.position_embedding = nn.Embedding(1 + math.prod(config.axes), config.width)
        self.type_embedding = nn.Embedding(2, config.width)  # the second row is in the files and never read
        self.embedding_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(ImageBertBlock(config) for _ in range(config.layers))
        self.lm_head = nn.Linear(config.width, config.vocab_size)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

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
        sizes = BertConfig(
            width=config.width,
            heads=config.heads,
            mlp_width=config.mlp_width,
            dropout=config.dropout,
            attention=config.attention,
        )
        super().__init__(sizes)

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
    expected = math.prod(config.axes)
    if tokens.shape[1:] != (expected, 1) or (axes is not None and tuple(axes) != tuple(config.axes)):
        raise ValueError(
            f"tokens: got {tuple(tokens.shape)} on a grid {axes}, expected [B, {expected}, 1] on {config.axes}; this "
            "family has learned positions and one codebook"
        )
    cond.check_used("this model", "labels")
    labels = torch.full((len(tokens),), NO_LABEL, device=tokens.device) if cond.labels is None else cond.labels
    labels = torch.where(labels == NO_LABEL, config.num_classes, labels)
    return torch.cat((config.vocab_size + 1 + labels[:, None], tokens.squeeze(-1)), dim=1)


# Official name of a layer's part -> ours.
_LAYER = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "expand",
    "output.dense": "contract",
    "output.LayerNorm": "mlp_norm",
}

_OUTER = {
    "model.embeddings.word_embeddings.weight": "word_embedding.weight",
    "model.embeddings.position_embeddings.weight": "position_embedding.weight",
    "model.embeddings.token_type_embeddings.weight": "type_embedding.weight",
    "model.embeddings.LayerNorm.weight": "embedding_norm.weight",
    "model.embeddings.LayerNorm.bias": "embedding_norm.bias",
    "model.lm_head.weight": "lm_head.weight",
    "model.lm_head.bias": "lm_head.bias",
}

_IGNORED = "model.embeddings.position_ids"  # a buffer 0, 1, 2, ... that some versions of transformers store


def config_from(
    state: Mapping[str, Tensor], *, heads: int = 16, axes: Sequence[int] | None = None, dropout: float = 0.1
) -> ImageBertConfig:
    """Settings that official weights were made with, read from their names and shapes.

    Args:
        state: official name to tensor.
        heads: H, which weights do not show; 16 in all releases.
        axes: token grid; ``(N,)`` by default.
        dropout: for further training.

    Raises:
        ValueError: the weights that tell the sizes are missing, or the sizes do not fit each other.
    """
    needed = {
        "table": "model.embeddings.word_embeddings.weight",
        "positions": "model.embeddings.position_embeddings.weight",
        "head": "model.lm_head.weight",
        "mlp": "model.encoder.layer.0.intermediate.dense.weight",
    }
    layers = {match[1] for name in state if (match := re.match(r"model\.encoder\.layer\.(\d+)\.", name))}
    values = onedtok_config(state, needed, "ImageBert", axes)
    return ImageBertConfig(**values, layers=len(layers), heads=heads, dropout=dropout)


def onedtok_config(
    state: Mapping[str, Tensor], needed: Mapping[str, str], family: str, axes: Sequence[int] | None
) -> dict[str, Any]:
    """The settings that the shapes of four weights tell: vocab_size, num_classes, axes, width and mlp_width.

    Args:
        state: official name to tensor.
        needed: official names of the ``table`` ``[V + C + 2, D]``, the ``positions`` ``[..., 1 + N, D]``, the ``head``
            ``[V, D]`` and the first layer of an ``mlp``.
        family: named in errors.
        axes: token grid; ``(N,)`` by default.

    Raises:
        ValueError: naming the missing weights, or sizes that do not fit each other.
    """
    missing = [name for name in needed.values() if name not in state or state[name].ndim < 2]
    if missing:
        raise ValueError(
            f"these weights are no {family}: missing {missing}; found {len(state)} weights as {sorted(state)[:3]}"
        )
    rows, width = state[needed["table"]].shape
    codes, tokens = len(state[needed["head"]]), state[needed["positions"]].shape[-2] - 1
    grid = (tokens,) if axes is None else tuple(axes)
    if rows < codes + 2:
        raise ValueError(
            f"{family}: got a table of {rows} rows, expected {codes} codes + 1 mask + classes + 1 null class"
        )
    if math.prod(grid) != tokens:
        raise ValueError(
            f"{family}: got {tokens + 1} positions, expected 1 + the product of axes {grid}; give the grid"
        )
    return {
        "vocab_size": codes,
        "num_classes": rows - codes - 2,
        "axes": grid,
        "width": width,
        "mlp_width": len(state[needed["mlp"]]),
    }


def convert(state: Mapping[str, Tensor], config: ImageBertConfig) -> dict[str, Tensor]:
    """Official weights as the state dict of ``ImageBert(config)``; tensors are shared, not copied.

    Args:
        state: official name to tensor; a stored ``position_ids`` is ignored.
        config: see ``config_from``.

    Raises:
        ValueError: naming every weight that is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ImageBert(config).state_dict().items()}
    names = dict(_OUTER)
    for index in range(config.layers):
        for official, ours in _LAYER.items():
            for kind in ("weight", "bias"):
                names[f"model.encoder.layer.{index}.{official}.{kind}"] = f"blocks.{index}.{ours}.{kind}"
    found = {name: tensor for name, tensor in state.items() if name != _IGNORED}
    check_state(found, {official: shapes[ours] for official, ours in names.items()}, "ImageBert weights")
    return {ours: found[official] for official, ours in names.items()}
