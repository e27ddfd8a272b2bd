"""Key map of the official MaskGIT tokenizer (google-research/maskgit): flax names and layouts to ``VQGAN``.

See ``maskgen.tokenizers.published.flax_names`` for the names.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig
from maskgen.tokenizers.layers.conv2d import Activation
from maskgen.tokenizers.published.flax_names import convert_flax, measure_flax, network_modules
from maskgen.tokenizers.quantizers.vector import QuantizerConfig

# The networks for 256 and 512 pixels have the same sizes and 54,515,587 weights each; only the weights differ.
PUBLISHED: dict[str, VQGANConfig] = {"maskgit-imagenet256": VQGANConfig(), "maskgit-imagenet512": VQGANConfig()}


def config_from(params: Mapping[str, Tensor], *, activation: Activation = "swish", groups: int = 32) -> VQGANConfig:
    """Settings that official weights were made with, read from their names and shapes.

    Args:
        params: official name to array.
        activation: not visible in the weights; "swish" in the releases.
        groups: not visible in the weights; 32 in the official code.

    Returns:
        Settings, with the official "branch" shortcut.

    Raises:
        ValueError: when arrays that fix a size are missing.
    """
    sizes = measure_flax(params, "MaskGIT")
    return VQGANConfig(
        channels=sizes.channels,
        multipliers=sizes.multipliers,
        res_blocks=sizes.encoder_blocks,
        quantizer=QuantizerConfig(codebook_size=sizes.codebook_size, dim=sizes.dim),
        downsample="conv" if sizes.strided else "average",
        activation=activation,
        shortcut="branch",
        groups=groups,
    )


def convert(state: Mapping[str, Tensor], config: VQGANConfig) -> dict[str, Tensor]:
    """Official tokenizer weights as the state dict of ``VQGAN(config)``; see ``convert_flax``.

    Args:
        state: official name to array.
        config: settings of the model to fill.

    Raises:
        ValueError: naming every array that is missing, unexpected or of another shape.
    """
    if config.quantizer.kind != "vq" or config.shortcut != "branch":
        raise ValueError(
            f"config: got quantizer {config.quantizer.kind!r} and shortcut {config.shortcut!r}, "
            "expected 'vq' and 'branch', which the official weights are made for"
        )
    with torch.device("meta"):
        model = VQGAN(config)
    modules = network_modules(
        len(config.multipliers) - 1, (config.res_blocks,) * 2, strided=config.downsample == "conv"
    )
    return convert_flax(state, model, modules, "MaskGIT tokenizer")
