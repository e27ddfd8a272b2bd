"""Key map of the PyTorch port of MaskGIT's tokenizer (``maskgit-vqgan-imagenet-f16-256``): its maths is our ``VQGAN``.

The network of 1d-tokenizer's ``PretrainedTokenizer`` equals Google's: convolutions without bias in the blocks, average
pooling, the shortcut on the branch, images in [0, 1], no attention. Only names differ, and they come from the file as
they are: ``encoder.down.LEVEL.block.I``, ``encoder.mid.I``, and ``decoder.up.LEVEL`` counted from the full resolution
although that level runs last. MaskBit keeps the network and changes the names, so the map takes a ``Layout``.

The official ``decode`` clamps to [0, 1]; ours does not, the ``Pipeline`` does. The official pooling drops the last row
or column of an odd size; ours averages what is there and rounds up, as Google's code does.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from maskgen.checkpoint import empty_shapes, renamed
from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig
from maskgen.tokenizers.quantizers.vector import QuantizerConfig

PUBLISHED: dict[str, VQGANConfig] = {"maskgit-vqgan-imagenet-f16-256": VQGANConfig()}
"""Published name to full-size settings (54,515,587 weights; the 2D tokenizer of 1d-tokenizer, Apache-2.0 code)."""

_EXPECTED = "names like 'encoder.down.0.{level}0.conv1.weight' and 'encoder.mid.{middle}0.conv1.weight'"


@dataclass(frozen=True)
class Layout:
    """How a group names and counts the blocks of this network.

    Attributes:
        level: what stands between the number of a level and the number of a block.
        middle: the same for the middle blocks.
        run_order: whether ``decoder.up.0`` is the level that runs first (lowest resolution) or full resolution.
    """

    level: str
    middle: str
    run_order: bool


_PORT = Layout(level="block.", middle="", run_order=False)


def config_from(state: Mapping[str, Tensor]) -> VQGANConfig:
    """Settings that weights were made with, read from their names and shapes.

    Args:
        state: official name to weight.

    Returns:
        Settings of the ``VQGAN`` to fill, with the "branch" shortcut.

    Raises:
        ValueError: when weights that fix a size are missing.
    """
    channels, multipliers, res_blocks = network_sizes(state, _PORT, "MaskGIT torch tokenizer")
    if "quantize.embedding.weight" not in state:
        raise ValueError("these are no MaskGIT torch tokenizer weights: quantize.embedding.weight is missing")
    codebook_size, dim = state["quantize.embedding.weight"].shape
    return VQGANConfig(
        channels=channels,
        multipliers=multipliers,
        res_blocks=res_blocks,
        quantizer=QuantizerConfig(codebook_size=codebook_size, dim=dim),
    )


def convert(state: Mapping[str, Tensor], config: VQGANConfig) -> dict[str, Tensor]:
    """Official weights as the state dict of ``VQGAN(config)``.

    Args:
        state: official name to weight.
        config: settings of the model to fill, usually ``config_from(state)``.

    Returns:
        State dict, complete and of the right shapes, sharing the memory of ``state``.

    Raises:
        ValueError: naming every weight that is missing, unexpected or of another shape; or settings of another network.
    """
    if (config.quantizer.kind, config.shortcut, config.downsample) != ("vq", "branch", "average"):
        raise ValueError(
            f"config: got quantizer {config.quantizer.kind!r}, shortcut {config.shortcut!r} and downsample "
            f"{config.downsample!r}, expected 'vq', 'branch' and 'average', which these weights are made for"
        )
    official = functools.partial(official_name, config=config, layout=_PORT)
    return renamed(state, empty_shapes(VQGAN, config), official, "MaskGIT torch tokenizer")


def network_sizes(state: Mapping[str, Tensor], layout: Layout, family: str) -> tuple[int, tuple[int, ...], int]:
    """Channels, multipliers and blocks a level of encoder weights.

    Args:
        state: official name to weight.
        layout: how the names are made.
        family: named in the error.

    Raises:
        ValueError: when weights that fix a size are missing.
    """
    levels = _count(state, r"encoder\.down\.(\d+)\.")
    res_blocks = _count(state, rf"encoder\.mid\.{re.escape(layout.middle)}(\d+)\.")
    needed = ["encoder.conv_in.weight"]
    needed += [f"encoder.down.{level}.{layout.level}0.conv1.weight" for level in range(levels)]
    missing = [name for name in needed if name not in state]
    if missing or not levels or not res_blocks:
        expected = _EXPECTED.format(level=layout.level, middle=layout.middle)
        raise ValueError(
            f"these are no {family} weights: {levels} levels and {res_blocks} middle blocks found, missing {missing}; "
            f"expected {expected}"
        )
    channels, *widths = (state[name].shape[0] for name in needed)
    return channels, tuple(width // channels for width in widths), res_blocks


def official_name(ours: str, config: VQGANConfig, layout: Layout) -> str:
    """The name a weight of our encoder, decoder or codebook has in official files.

    Args:
        ours: name in our state dict.
        config: settings of the network.
        layout: how official names are made.

    Returns:
        The official name.
    """
    if ours == "quantizer.codebook":
        return "quantize.embedding.weight"
    match = re.fullmatch(r"(encoder|decoder)\.(blocks|downs|ups)\.(\d+)\.(.+)", ours)
    if match is None:
        return ours
    part, kind, leaf = match[1], match[2], match[4]
    last = len(config.multipliers) - 1
    if kind != "blocks":
        run = int(match[3])
        resample = f"down.{run}.down" if kind == "downs" else f"up.{run if layout.run_order else last - run}.upsample"
        return f"{part}.{resample}_{leaf}"
    stage, inside = divmod(int(match[3]), config.res_blocks)
    if part == "encoder":  # the levels, then the middle
        prefix = f"down.{stage}.{layout.level}" if stage <= last else f"mid.{layout.middle}"
    else:  # the middle, then the levels from the lowest resolution up
        up = stage - 1 if layout.run_order else last - (stage - 1)
        prefix = f"up.{up}.{layout.level}" if stage else f"mid.{layout.middle}"
    return f"{part}.{prefix}{inside}.{leaf.replace('shortcut', 'nin_shortcut')}"


def _count(names: Iterable[str], pattern: str) -> int:
    return len({match[1] for name in names if (match := re.match(pattern, name))})
