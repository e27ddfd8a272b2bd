"""LlamaGen's VQ-16 and VQ-8 (Sun et al. 2024), the tokenizers of Halton-MaskGIT: settings and key map.

Weights stand under "model" in the official files.

Shapes: B batch, h w token grid, N = h * w, D width of a code, Z width of the latents, V codes, L levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
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

__all__ = ["NAMES", "PUBLISHED", "DirectionQuantizer", "LlamaGenConfig", "LlamaGenVQ", "config_from", "convert"]


@dataclass(frozen=True, kw_only=True)
class LlamaGenConfig:
    """Settings; the defaults are VQ-16.

    Attributes:
        channels: width after the first convolution.
        multipliers: width of each level as a multiple of ``channels``; L levels give a stride of 2^(L-1).
        res_blocks: residual blocks a level of the encoder; the decoder has one more.
        latent_channels: Z.
        code_dim: D; official 8.
        codebook_size: V.
        groups: groups of every normalisation; official 32.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    latent_channels: int = 256
    code_dim: int = 8
    codebook_size: int = 16384
    groups: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))  # JSON brings a list
        _ = self.network  # refuses what cannot be built

    @property
    def network(self) -> NetworkConfig:
        """The shared network in these sizes, with attention at the lowest resolution only."""
        return NetworkConfig(
            stem=self.channels,
            widths=tuple(self.channels * multiplier for multiplier in self.multipliers),
            res_blocks=self.res_blocks,
            latent_channels=self.latent_channels,
            code_dim=self.code_dim,
            codebook_size=self.codebook_size,
            attention_levels=(len(self.multipliers) - 1,) if self.multipliers else (),
            middle_attention=True,
            groups=self.groups,
        )


class DirectionQuantizer(VectorQuantizer):
    """Nearest code by direction: latents and stored rows are scaled to length 1, and so is what the look-up returns.

    The stored rows need not have length 1.
    """

    def _rows(self, latents: Tensor) -> Tensor:
        """[B, D, ...] -> float32 [B, N, D] of length 1."""
        return F.normalize(super()._rows(latents), dim=-1)

    def _distances(self, rows: Tensor) -> Tensor:
        """[M, D] -> squared distances [M, V] to the scaled codes."""
        codes = self._directions()
        return rows.square().sum(-1, keepdim=True) - 2 * rows @ codes.t() + codes.square().sum(-1)

    def _vectors(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[..., 0], self._directions())

    def _directions(self) -> Tensor:
        """The codebook [V, D], every row scaled to length 1."""
        return F.normalize(self.codebook.float(), dim=-1)


class LlamaGenVQ(AttentionVQGAN):
    """LlamaGen's tokenizer: nearest code by direction, attention at the lowest resolution whatever the image size.

    Signal: float images [B, 3, H, W] in [0, 1], H and W multiples of the stride. The network itself was trained on
    -1..1: ``encode`` and ``decode`` rescale. ``decode`` is not clamped (the official samplers clamp afterwards).

    Args:
        config: settings.
    """

    def __init__(self, config: LlamaGenConfig) -> None:
        network = config.network
        super().__init__(network, DirectionQuantizer(quantizer_config(network)), signed=True)
        self.config: LlamaGenConfig = config


NAMES: Final = NameMap(
    family="LlamaGen VQ",
    rules=(
        (r"^(encoder\..*)\bresample\b", r"\1downsample"),
        (r"^(decoder\..*)\bresample\b", r"\1upsample"),
        (r"^(encoder|decoder)\.(down|up)\b", r"\1.conv_blocks"),
        (r"\bblock\b", "res"),
        (r"\bmid\.block_1\b", "mid.0"),
        (r"\bmid\.attn_1\b", "mid.1"),
        (r"\bmid\.block_2\b", "mid.2"),
        (r"^quantizer\.codebook$", "quantize.embedding.weight"),
    ),
    run_order=True,
    ignored=("quantize.codebook_used",),  # a training statistic
)

PUBLISHED: Final[dict[str, LlamaGenConfig]] = {
    "llamagen-vq-ds16": LlamaGenConfig(multipliers=(1, 1, 2, 2, 4)),
    "llamagen-vq-ds8": LlamaGenConfig(multipliers=(1, 2, 2, 4)),
}


def config_from(state: Mapping[str, Tensor], *, groups: int = 32) -> LlamaGenConfig:
    """Settings that official weights were made with, read from their shapes.

    Args:
        state: official name to tensor (the file's "model").
        groups: not visible in the weights; 32 in the official code.

    Returns:
        Settings.

    Raises:
        ValueError: when weights that fix a size are missing or make no network.
    """
    network = measure(state, NAMES, groups)
    return LlamaGenConfig(
        channels=network.stem,
        multipliers=multiples(network),
        res_blocks=network.res_blocks,
        latent_channels=network.latent_channels,
        code_dim=network.code_dim,
        codebook_size=network.codebook_size,
        groups=groups,
    )


def convert(state: Mapping[str, Tensor], config: LlamaGenConfig) -> dict[str, Tensor]:
    """Official weights as the state dict of ``LlamaGenVQ(config)``; ``quantize.codebook_used`` is dropped.

    Args:
        state: official name to tensor (the file's "model").
        config: settings of the model to fill.

    Returns:
        State dict: the given tensors themselves, in the precision they came in.

    Raises:
        ValueError: every official name that is missing, unexpected or mis-shaped.
    """
    with torch.device("meta"):
        model = LlamaGenVQ(config)
    return convert_state(state, model, NAMES)
