"""Key map of the official MAGVIT transformer (google-research/magvit): flax names and layouts to ``BertTransformer``.

The weights were never released; this reads those of whoever trained the official code. Names are "/"-joined
("BertLayer_0/BertAttention_0/self_attention/query/kernel"), with or without a leading "params/". Official ids -1 (mask), -2
and task prompts -3 .. -7 are rows counted from the end of the table.

Sizes: R table rows, P positions, D width, H heads, W width of a head, M width of the feed-forward, S segments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from maskgen.checkpoint import check_state
from maskgen.conditioning import Cond
from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.sampling.commit import Prompt

__all__ = ["PUBLISHED", "MagvitTransformer", "config_from", "convert"]

_WHERE = "MAGVIT transformer"

_GRID = (4, 16, 16)

_BASE = BertConfig(axes=_GRID, width=768, layers=12, heads=12, mlp_width=3072, null_class=True)

_LARGE = BertConfig(axes=_GRID, width=1024, layers=24, heads=16, mlp_width=4096, null_class=True)

PUBLISHED: dict[str, BertConfig] = {
    "magvit-ucf101-b": replace(_BASE, num_classes=101),  # 87,301,991 weights
    "magvit-ucf101-l": replace(_LARGE, num_classes=101),  # 305,567,847
    "magvit-bair-fp-b": replace(_BASE, num_classes=0),  # 87,224,322
    "magvit-bair-fp-l": replace(_LARGE, num_classes=0),  # 305,464,322
    "magvit-bair-mt-b": replace(_BASE, num_classes=0, num_tasks=len(Prompt)),  # 87,236,625
    "magvit-bair-mt-l": replace(_LARGE, num_classes=0, num_tasks=len(Prompt)),  # 305,480,721
}
"""Settings of the official configurations, B and L: UCF-101 by class, BAIR frame prediction, BAIR multi-task."""


# A dense layer: official name, our name, axes of its input and output. A norm: official name, our name.
_DENSE = {
    "BertAttention_0/self_attention/query": ("query", "D", "HW"),
    "BertAttention_0/self_attention/key": ("key", "D", "HW"),
    "BertAttention_0/self_attention/value": ("value", "D", "HW"),
    "BertAttention_0/self_attention/out": ("out", "HW", "D"),
    "BertMlp_0/intermediate_output": ("expand", "D", "M"),
    "BertMlp_0/layer_output": ("contract", "M", "D"),
}

_NORMS = {"BertAttention_0/attention_output_ln": "attention_norm", "BertMlp_0/layer_output_ln": "mlp_norm"}

_TABLES = {
    "BertEmbed_0/word_embeddings/embedding": ("word_embedding.weight", "R", "D"),
    "BertEmbed_0/position_embeddings/embedding": ("position_embedding.weight", "P", "D"),
}

_SEGMENTS = "BertEmbed_0/segment_embeddings/embedding"


class MagvitTransformer(BertTransformer):
    """With MAGVIT's segment embeddings (``use_condition_segment``), which the official configurations leave off.

    Give the segments when you call it: ``lambda inputs, step: model(inputs.tokens, cond, segments=inputs.segments)`` is its
    ``logits_fn`` for ``maskgen.sampling.commit.sample_commit``.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.segment_embedding = nn.Embedding(2, config.width)
        nn.init.trunc_normal_(self.segment_embedding.weight, std=0.02, a=-0.04, b=0.04)

    def forward(
        self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None, *, segments: Tensor | None = None
    ) -> Tensor:
        """See ``BertTransformer``; ``segments``: long ``[B, N, 1]``, 1 where the condition is shown, 0 by default."""
        ids = self.table_ids(tokens, cond, axes)
        if segments is None:
            segments = torch.zeros_like(tokens)
        prefix = segments.new_zeros(len(tokens), self.prefix)
        logits = self.segment_logits(ids, torch.cat((prefix, segments.squeeze(-1)), dim=1), self.vocab_size)
        return logits[:, self.prefix :, None]

    def segment_logits(self, ids: Tensor, segments: Tensor, columns: int | None = None) -> Tensor:
        """``BertTransformer.table_logits`` with the segment of every position, long ``[B, S']``."""
        return self.head_logits(self.embed(ids) + self.segment_embedding(segments), columns)


def config_from(params: Mapping[str, Tensor], *, vocab_size: int = 1024, axes: Sequence[int] = _GRID) -> BertConfig:
    """Settings that official weights were made with, read from their names and shapes.

    One position before the grid is the class alone; two are a task prompt and the class, and then 16 rows of the table are
    special, else 1. Another row is that of "no class".

    Args:
        params: official name to array.
        vocab_size: number of codes V; 1024 officially.
        axes: token grid.

    Returns:
        Settings with the default dropout, which weights do not show, and all five tasks if there are any.

    Raises:
        ValueError: arrays missing, unexpected or of the wrong shape, or a table or positions that do not divide so.
    """
    arrays = _bare(params)
    layers = _layers(arrays)
    names = _names(layers, segments=_SEGMENTS in arrays)
    sizes: dict[str, int] = {}
    for name, (_, source, target) in names.items():
        # The first array with an axis says its size, so that a wrong one further on is named and not all the others.
        sizes = dict(zip(source + target, arrays[name].shape, strict=False)) | sizes if name in arrays else sizes
    check_state(arrays, _shapes(names, sizes), _WHERE)
    prefix = sizes["P"] - math.prod(axes)
    if prefix not in (1, 2):
        raise ValueError(
            f"positions: got {sizes['P']}, expected 1 or 2 more than the {math.prod(axes)} tokens of the grid "
            f"{tuple(axes)}; give the grid as axes"
        )
    tasks = len(Prompt) if prefix == 2 else 0
    classes = sizes["R"] - vocab_size - 1 - (16 if tasks else 1)
    if classes < 0:
        raise ValueError(
            f"table: got {sizes['R']} rows, expected {vocab_size} codes, 1 row for no class, "
            f"{16 if tasks else 1} special and the classes; give the vocab_size of these weights"
        )
    return BertConfig(
        vocab_size=vocab_size,
        num_classes=classes,
        axes=tuple(axes),
        width=sizes["D"],
        layers=layers,
        heads=sizes["H"],
        mlp_width=sizes["M"],
        null_class=True,
        num_tasks=tasks,
    )


def convert(state: Mapping[str, Tensor], config: BertConfig) -> dict[str, Tensor]:
    """Official transformer weights as the state dict of ``BertTransformer(config)``.

    With a segment table among the weights it is that of ``MagvitTransformer(config)``.

    Args:
        state: official name to array.
        config: settings of the model to fill, see ``config_from``.

    Returns:
        State dict, complete and of the right shapes; views of the given arrays, so not contiguous.

    Raises:
        ValueError: naming every array that is missing, unexpected or of another shape.
    """
    arrays = _bare(state)
    with torch.device("meta"):
        model = BertTransformer(config)
    sizes = {"R": model.word_embedding.num_embeddings, "P": model.position_embedding.num_embeddings}
    sizes |= {"D": config.width, "H": config.heads, "W": config.width // config.heads, "M": config.mlp_width, "S": 2}
    names = _names(config.layers, segments=_SEGMENTS in arrays)
    check_state(arrays, _shapes(names, sizes), _WHERE)
    return {ours: _to_torch(arrays[name], source, target) for name, (ours, source, target) in names.items()}


def _names(layers: int, *, segments: bool) -> dict[str, tuple[str, str, str]]:
    """Official name -> our name and the axes of the official array, those of the input and of the output."""
    names = dict(_TABLES)
    if segments:
        names[_SEGMENTS] = ("segment_embedding.weight", "S", "D")
    dense = {"BertMlmLayer_0/mlm_dense": ("head", "D", "D")}
    norms = {"BertEmbed_0/embeddings_ln": "embedding_norm", "BertMlmLayer_0/mlm_ln": "head_norm"}
    for index in range(layers):
        there, here = f"BertLayer_{index}", f"blocks.{index}"
        dense |= {
            f"{there}/{name}": (f"{here}.{ours}", source, target) for name, (ours, source, target) in _DENSE.items()
        }
        norms |= {f"{there}/{name}": f"{here}.{ours}" for name, ours in _NORMS.items()}
    for name, (ours, source, target) in dense.items():
        names[f"{name}/kernel"] = (f"{ours}.weight", source, target)
        names[f"{name}/bias"] = (f"{ours}.bias", "", target)
    for name, ours in norms.items():
        names[f"{name}/scale"] = (f"{ours}.weight", "", "D")
        names[f"{name}/bias"] = (f"{ours}.bias", "", "D")
    return names | {"BertMlmLayer_0/mlm_bias/bias": ("head_bias", "", "R")}


def _shapes(names: Mapping[str, tuple[str, str, str]], sizes: Mapping[str, int]) -> dict[str, list[int]]:
    return {name: [sizes.get(letter, 0) for letter in source + target] for name, (_, source, target) in names.items()}


def _to_torch(array: Tensor, source: str, target: str) -> Tensor:
    """Heads folded into one axis, and dense kernels (in, out) -> (out, in); tables and vectors stay."""
    if len(target) > 1:
        array = array.flatten(-2)
    if len(source) > 1:
        array = array.flatten(0, 1)
    return array.t() if source and source not in "RPS" else array


def _layers(arrays: Mapping[str, Tensor]) -> int:
    """Counted, not the highest number: a gap shows as missing and a stray number as unexpected."""
    return max(1, len({match[1] for name in arrays if (match := re.match(r"BertLayer_(\d+)/", name))}))


def _bare(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("params/"): array for name, array in params.items()}
