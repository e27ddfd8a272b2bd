"""Key map of the official MAGVIT tokenizers (google-research/magvit): flax names and layouts to ``VQ3D`` and ``FrameVQ``.

See ``maskgen.tokenizers.published.flax_names`` for the names. Weights were never released: the sizes are the official
ones, and whoever trained with the official code can convert.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from maskgen.tokenizers.layers.conv2d import Activation
from maskgen.tokenizers.layers.conv3d import Padding
from maskgen.tokenizers.published.flax_names import bare_shapes, convert_flax, measure_flax, network_modules
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from maskgen.tokenizers.video.frames import FrameVQ
from maskgen.tokenizers.video.vq3d import VQ3D, VQ3DConfig

# 16 frames of 128 x 128 (UCF-101) or 64 x 64 pixels (BAIR) on 4 x 16 x 16 tokens; 40.6, 157.8, 36.6 and 141.9 M parameters.
PUBLISHED: dict[str, VQ3DConfig] = {
    "magvit-ucf101-b": VQ3DConfig(),
    "magvit-ucf101-l": VQ3DConfig(channels=128),
    "magvit-bair-b": VQ3DConfig(multipliers=(1, 2, 4), temporal_downsample=(True, True)),
    "magvit-bair-l": VQ3DConfig(channels=128, multipliers=(1, 2, 4), temporal_downsample=(True, True)),
}


def config_from(
    params: Mapping[str, Tensor],
    *,
    temporal_downsample: tuple[bool, ...] | int = 2,
    activation: Activation = "swish",
    groups: int = 32,
    padding: Padding = "zeros",
    normalize_latents: bool = False,
) -> VQ3DConfig:
    """Settings that official weights were made with, read from their names and shapes.

    Args:
        params: official name to array, of a 3D tokenizer or of a 2D one (whose kernels have one axis less).
        temporal_downsample: not visible in the weights: a flag for each step between levels, flags too many are ignored as
            in the official code; or how many of the first steps halve time. Ignored for a 2D tokenizer.
        activation: not visible in the weights; "swish" in the released configs.
        groups: not visible in the weights; 32 in the official code.
        padding: not visible in the weights; "zeros" in the released configs.
        normalize_latents: not visible in the weights; off in the released configs.

    Returns:
        Settings, for ``VQ3D`` or, when no step halves time because the weights are 2D, for ``FrameVQ``.

    Raises:
        ValueError: when arrays that fix a size are missing.
    """
    sizes = measure_flax(params, "MAGVIT")
    return VQ3DConfig(
        channels=sizes.channels,
        multipliers=sizes.multipliers,
        temporal_downsample=_flags(0 if sizes.flat else temporal_downsample, len(sizes.multipliers) - 1),
        encoder_blocks=sizes.encoder_blocks,
        decoder_blocks=sizes.decoder_blocks,
        quantizer=QuantizerConfig(codebook_size=sizes.codebook_size, dim=sizes.dim),
        normalize_latents=normalize_latents,
        downsample="conv" if sizes.strided else "average",
        upsample="deconv" if sizes.deconv else "nearest",
        activation=activation,
        norm="layer" if sizes.norm == "LayerNorm" else "group",
        groups=groups,
        padding=padding,
    )


def convert(state: Mapping[str, Tensor], config: VQ3DConfig) -> dict[str, Tensor]:
    """Official tokenizer weights as the state dict of ``VQ3D(config)``, or of ``FrameVQ(config)`` where they are 2D.

    See ``convert_flax``.

    Args:
        state: official name to array.
        config: settings of the model to fill.

    Raises:
        ValueError: naming every array that is missing, unexpected or of another shape.
    """
    if config.quantizer.kind != "vq":
        raise ValueError(f"config: got quantizer {config.quantizer.kind!r}, expected 'vq'")
    flat = len(bare_shapes(state).get("encoder/Conv_0/kernel", ())) == 4
    with torch.device("meta"):
        model = FrameVQ(config) if flat else VQ3D(config)
    modules = network_modules(
        len(config.multipliers) - 1,
        (config.encoder_blocks, config.decoder_blocks),
        norm="LayerNorm" if config.norm == "layer" else "GroupNorm",
        strided=config.downsample == "conv",
        deconv=config.upsample == "deconv",
    )
    return convert_flax(state, model, modules, "MAGVIT tokenizer")


def _flags(temporal: tuple[bool, ...] | int, steps: int) -> tuple[bool, ...]:
    if isinstance(temporal, int):
        return tuple(step < temporal for step in range(steps))
    return tuple(bool(flag) for flag in temporal[:steps])
