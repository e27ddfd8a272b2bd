"""Key map of the official MaskGIT transformer: flax names and layouts to ``BertTransformer``.

Names are "/"-joined ("TransformerLayer_0/Attention_0/self_attention/query/kernel"), with or without a leading
"params/".
Attention kernels are (in, heads, width) there and (out, in) here; the output kernel is (heads, width, out) there.

Sizes: R table rows, P positions, D width, H heads, W width of a head, M width of the feed-forward.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from einops import rearrange
from torch import Tensor

from maskgen.checkpoint import check_state
from maskgen.models.bert import BertConfig

__all__ = ["PUBLISHED", "config_from", "convert"]

PUBLISHED: dict[str, BertConfig] = {
    "maskgit-imagenet256": BertConfig(),  # 172,457,193 weights
    "maskgit-imagenet512": BertConfig(axes=(32, 32)),  # 173,047,017 weights; only the positions differ
}

_WHERE = "MaskGIT transformer"


# Official name -> our name and the sizes of the official array, one letter an axis.
_OUTER = {
    "Embed_0/word_embeddings/embedding": ("word_embedding.weight", "RD"),
    "Embed_0/position_embeddings/embedding": ("position_embedding.weight", "PD"),
    "Embed_0/embeddings_ln/scale": ("embedding_norm.weight", "D"),
    "Embed_0/embeddings_ln/bias": ("embedding_norm.bias", "D"),
    "MlmLayer_0/mlm_dense/kernel": ("head.weight", "DD"),
    "MlmLayer_0/mlm_dense/bias": ("head.bias", "D"),
    "MlmLayer_0/mlm_ln/scale": ("head_norm.weight", "D"),
    "MlmLayer_0/mlm_ln/bias": ("head_norm.bias", "D"),
    "MlmLayer_0/mlm_bias/bias": ("head_bias", "R"),
}

_LAYER = {
    "Attention_0/self_attention/query/kernel": ("query.weight", "DHW"),
    "Attention_0/self_attention/query/bias": ("query.bias", "HW"),
    "Attention_0/self_attention/key/kernel": ("key.weight", "DHW"),
    "Attention_0/self_attention/key/bias": ("key.bias", "HW"),
    "Attention_0/self_attention/value/kernel": ("value.weight", "DHW"),
    "Attention_0/self_attention/value/bias": ("value.bias", "HW"),
    "Attention_0/self_attention/out/kernel": ("out.weight", "HWD"),
    "Attention_0/self_attention/out/bias": ("out.bias", "D"),
    "Attention_0/attention_output_ln/scale": ("attention_norm.weight", "D"),
    "Attention_0/attention_output_ln/bias": ("attention_norm.bias", "D"),
    "Mlp_0/intermediate_output/kernel": ("expand.weight", "DM"),
    "Mlp_0/intermediate_output/bias": ("expand.bias", "M"),
    "Mlp_0/layer_output/kernel": ("contract.weight", "MD"),
    "Mlp_0/layer_output/bias": ("contract.bias", "D"),
    "Mlp_0/layer_output_ln/scale": ("mlp_norm.weight", "D"),
    "Mlp_0/layer_output_ln/bias": ("mlp_norm.bias", "D"),
}


# Of the letters above, one an axis, to ours.
_PATTERNS = {
    "DHW": "D H W -> (H W) D",
    "HW": "H W -> (H W)",
    "HWD": "H W D -> D (H W)",
    "DD": "D E -> E D",
    "DM": "D M -> M D",
    "MD": "M D -> D M",
}


def config_from(
    params: Mapping[str, Tensor],
    *,
    vocab_size: int = 1024,
    num_classes: int | None = None,
    axes: Sequence[int] | None = None,
) -> BertConfig:
    """Settings that official weights were made with, read from their names and shapes.

    The table holds codes, classes and the mask (R = V + classes + 1), and there is one position for the class, if there
    are classes, and one for each token; how R and the positions divide cannot be seen in the weights.

    Args:
        params: official name to array.
        vocab_size: number of codes V; 1024 in the releases.
        num_classes: number of classes; by default what remains of the table.
        axes: token grid; square by default.

    Returns:
        Settings with the default dropout, which weights do not show.

    Raises:
        ValueError: arrays missing, unexpected or of the wrong shape, or a table or positions that do not divide so.
    """
    sizes, layers = _read(params)
    rest = sizes["R"] - vocab_size - 1
    classes = rest if num_classes is None else num_classes
    if rest < 0 or classes != rest:
        raise ValueError(
            f"table: got {sizes['R']} rows, expected {vocab_size} codes + {max(classes, 0)} classes + 1 mask; "
            "give the vocab_size and num_classes of these weights"
        )
    tokens = sizes["P"] - (classes > 0)
    grid = (math.isqrt(tokens),) * 2 if axes is None else tuple(axes)
    if math.prod(grid) != tokens:
        raise ValueError(
            f"positions: got {sizes['P']}, that is {tokens} tokens, expected the product of axes {grid}; "
            "give the grid as axes"
        )
    return BertConfig(
        vocab_size=vocab_size,
        num_classes=classes,
        axes=grid,
        width=sizes["D"],
        layers=layers,
        heads=sizes["H"],
        mlp_width=sizes["M"],
    )


def convert(state: Mapping[str, Tensor], config: BertConfig) -> dict[str, Tensor]:
    """Official transformer weights as the state dict of ``BertTransformer(config)``.

    Args:
        state: official name to array.
        config: settings of the model to fill; without a null class, which the official table has no row for.

    Returns:
        State dict, complete and of the right shapes; views of the given arrays, so not contiguous.

    Raises:
        ValueError: naming every array that is missing, unexpected or of another shape, or a config with a null class.
    """
    if config.null_class:
        raise ValueError("null_class: got True, expected False; the official table has no row for it")
    arrays = _bare(state)
    names = _names(config.layers)
    sizes = {
        "R": config.vocab_size + config.num_classes + 1,
        "P": math.prod(config.axes) + (config.num_classes > 0),
        "D": config.width,
        "H": config.heads,
        "W": config.width // config.heads,
        "M": config.mlp_width,
    }
    check_state(arrays, {name: [sizes[letter] for letter in axes] for name, (_, axes) in names.items()}, _WHERE)
    return {ours: _to_torch(arrays[name], axes) for name, (ours, axes) in names.items()}


def _read(params: Mapping[str, Tensor]) -> tuple[dict[str, int], int]:
    """Sizes by letter and number of layers, or everything that is wrong at once."""
    arrays = _bare(params)
    # Counted, not the highest number: a gap shows as missing and a stray number as unexpected.
    found = {match[1] for name in arrays if (match := re.match(r"TransformerLayer_(\d+)/", name))}
    layers = max(1, len(found))
    names = _names(layers)
    present = {name: tuple(arrays[name].shape) for name in names if name in arrays}
    # The size most arrays agree on, so that one wrong array is named and not all the others.
    votes: dict[str, Counter[int]] = {letter: Counter() for letter in "RPDHWM"}
    for name, shape in present.items():
        if len(shape) == len(names[name][1]):
            for letter, size in zip(names[name][1], shape, strict=True):
                votes[letter][size] += 1
    sizes = {letter: count.most_common(1)[0][0] for letter, count in votes.items() if count}
    check_state(arrays, {name: [sizes.get(letter, 0) for letter in axes] for name, (_, axes) in names.items()}, _WHERE)
    if sizes["H"] * sizes["W"] != sizes["D"]:
        raise ValueError(f"{_WHERE}: {sizes['H']} heads of {sizes['W']}, expected a product of {sizes['D']}")
    return sizes, layers


def _names(layers: int) -> dict[str, tuple[str, str]]:
    """Official name -> our name and axes, for a model of that depth."""
    blocks = {
        f"TransformerLayer_{index}/{name}": (f"blocks.{index}.{ours}", axes)
        for index in range(layers)
        for name, (ours, axes) in _LAYER.items()
    }
    return _OUTER | blocks


def _to_torch(array: Tensor, axes: str) -> Tensor:
    """Heads folded into one axis, and dense kernels (in, out) -> (out, in); tables and vectors stay."""
    return rearrange(array, _PATTERNS[axes]) if axes in _PATTERNS else array


def _bare(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("params/"): array for name, array in params.items()}
