"""CompVis VQGAN of taming-transformers (Esser et al. 2021): settings and key map of the f16 ImageNet weights.

Weights are a Lightning file: the names below under "state_dict", beside the discriminator's and the perceptual loss's,
which are dropped. Files made with ``remap`` (code ids renumbered) are refused.

Shapes: D width of a code, Z width of the latents, L levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from maskgen.tokenizers.published.image.attention_vqgan import (
    AttentionVQGAN,
    NameMap,
    convert_state,
    measure,
    multiples,
    quantizer_config,
)
from maskgen.tokenizers.published.image.blocks import NetworkConfig
from maskgen.tokenizers.quantizers.vector import VectorQuantizer

__all__ = ["NAMES", "PUBLISHED", "TamingConfig", "TamingVQGAN", "config_from", "convert"]


@dataclass(frozen=True, kw_only=True)
class TamingConfig:
    """Settings; the defaults are those of the f16 ImageNet weights with 1024 codes.

    Attributes:
        channels: width after the first convolution.
        multipliers: width of each level as a multiple of ``channels``; L levels give a stride of 2^(L-1).
        res_blocks: residual blocks a level of the encoder; the decoder has one more.
        latent_channels: Z.
        code_dim: D.
        codebook_size: number of codes.
        attention_levels: levels with attentions, 0 being the full resolution. The official settings name resolutions
            instead (16 of a nominal 256), and place them once: other image sizes have them at the same levels.
        groups: groups of every normalisation; official 32.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    latent_channels: int = 256
    code_dim: int = 256
    codebook_size: int = 1024
    attention_levels: tuple[int, ...] = (4,)
    groups: int = 32

    def __post_init__(self) -> None:
        # A config read back from JSON brings lists.
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        object.__setattr__(self, "attention_levels", tuple(self.attention_levels))
        _ = self.network  # refuses what cannot be built

    @property
    def network(self) -> NetworkConfig:
        """The shared network in these sizes."""
        return NetworkConfig(
            stem=self.channels,
            widths=tuple(self.channels * multiplier for multiplier in self.multipliers),
            res_blocks=self.res_blocks,
            latent_channels=self.latent_channels,
            code_dim=self.code_dim,
            codebook_size=self.codebook_size,
            attention_levels=self.attention_levels,
            middle_attention=True,
            groups=self.groups,
        )


class TamingVQGAN(AttentionVQGAN):
    """The VQGAN of taming-transformers: nearest code by squared distance, codes as stored.

    Signal: float images [B, 3, H, W] in [0, 1], H and W multiples of the stride. The network itself was trained on
    -1..1 (byte / 127.5 - 1): ``encode`` and ``decode`` rescale. ``decode`` is not clamped.

    Args:
        config: settings.
    """

    def __init__(self, config: TamingConfig) -> None:
        network = config.network
        super().__init__(network, VectorQuantizer(quantizer_config(network)), signed=True)
        self.config: TamingConfig = config


# Our names follow this family's, but for the codebook and the way to the next level.
NAMES: Final = NameMap(
    family="CompVis VQGAN",
    rules=(
        (r"^(encoder\..*)\bresample\b", r"\1downsample"),
        (r"^(decoder\..*)\bresample\b", r"\1upsample"),
        (r"^quantizer\.codebook$", "quantize.embedding.weight"),
    ),
    run_order=False,
    ignored=("loss.",),
)

PUBLISHED: Final[dict[str, TamingConfig]] = {
    "vqgan-imagenet-f16-1024": TamingConfig(codebook_size=1024),
    "vqgan-imagenet-f16-16384": TamingConfig(codebook_size=16384),
}


def config_from(state: Mapping[str, Tensor], *, groups: int = 32) -> TamingConfig:
    """Settings that official weights were made with, read from their shapes.

    Args:
        state: official name to tensor (the file's "state_dict").
        groups: not visible in the weights; 32 in the official code.

    Returns:
        Settings.

    Raises:
        ValueError: when weights that fix a size are missing or make no network.
    """
    network = measure(state, NAMES, groups)
    return TamingConfig(
        channels=network.stem,
        multipliers=multiples(network),
        res_blocks=network.res_blocks,
        latent_channels=network.latent_channels,
        code_dim=network.code_dim,
        codebook_size=network.codebook_size,
        attention_levels=network.attention_levels,
        groups=groups,
    )


def convert(state: Mapping[str, Tensor], config: TamingConfig) -> dict[str, Tensor]:
    """Official weights as the state dict of ``TamingVQGAN(config)``; ``loss.*`` is dropped.

    Args:
        state: official name to tensor (the file's "state_dict").
        config: settings of the model to fill.

    Returns:
        State dict: the given tensors themselves, in the precision they came in.

    Raises:
        ValueError: every official name that is missing, unexpected or mis-shaped.
    """
    with torch.device("meta"):
        model = TamingVQGAN(config)
    return convert_state(state, model, NAMES)
