"""The VQ model of aMUSEd (Patil et al. 2024), in diffusers' layout: settings and key map.

Shapes: B batch, D width of a code, Z width of the latents, L levels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from maskgen.tokenizers.published.image.attention_vqgan import (
    AttentionVQGAN,
    NameMap,
    convert_state,
    measure,
    quantizer_config,
)
from maskgen.tokenizers.published.image.blocks import NetworkConfig
from maskgen.tokenizers.quantizers.vector import VectorQuantizer

__all__ = ["NAMES", "PUBLISHED", "AmusedVQ", "AmusedVQConfig", "config_from", "convert"]


@dataclass(frozen=True, kw_only=True)
class AmusedVQConfig:
    """Settings; the defaults are the released model, which serves 256 and 512 pixels.

    Attributes:
        widths: width of each level; L levels give a stride of 2^(L-1).
        res_blocks: residual blocks a level of the encoder; the decoder has one more.
        latent_channels: Z.
        code_dim: D.
        codebook_size: number of codes.
        middle_attention: an attention between the two middle blocks; the release has none.
        groups: groups of every normalisation; official 32.
    """

    widths: tuple[int, ...] = (128, 256, 256, 512, 768)
    res_blocks: int = 2
    latent_channels: int = 64
    code_dim: int = 64
    codebook_size: int = 8192
    middle_attention: bool = False
    groups: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON brings a list
        _ = self.network  # refuses what cannot be built

    @property
    def network(self) -> NetworkConfig:
        """The shared network in these sizes, without attention at the levels."""
        return NetworkConfig(
            stem=self.widths[0] if self.widths else 0,
            widths=self.widths,
            res_blocks=self.res_blocks,
            latent_channels=self.latent_channels,
            code_dim=self.code_dim,
            codebook_size=self.codebook_size,
            attention_levels=(),
            middle_attention=self.middle_attention,
            groups=self.groups,
        )


class AmusedVQ(AttentionVQGAN):
    """aMUSEd's tokenizer: nearest code by distance, codes as stored, convolutions only in the release.

    Signal: float images [B, 3, H, W] in [0, 1], which is also what the network was trained on; H and W multiples of the
    stride. ``decode`` is not clamped (the official pipeline clamps afterwards).

    Keep the weights in float32 or bfloat16: in float16 the activations of the released model overflow, which diffusers
    avoids by its ``force_upcast``, and here ``encode`` and ``decode`` refuse it.

    Args:
        config: settings.
    """

    def __init__(self, config: AmusedVQConfig) -> None:
        network = config.network
        super().__init__(network, VectorQuantizer(quantizer_config(network)), signed=False)
        self.config: AmusedVQConfig = config

    def encode(self, signal: Tensor) -> Tensor:
        """Tokens of images.

        Args:
            signal: float [B, 3, H, W] in [0, 1].

        Returns:
            Long [B, h * w, 1].

        Raises:
            TypeError: when the images are not floating point, or the weights are float16.
            ValueError: when the shape does not fit.
        """
        self._refuse_float16()
        return super().encode(signal)

    def decode(self, tokens: Tensor, axes: Sequence[int]) -> Tensor:
        """Images of tokens.

        Args:
            tokens: long [B, h * w, 1], ids in [0, V).
            axes: (h, w).

        Returns:
            Float [B, 3, h * stride, w * stride], nominally in [0, 1], not clamped.

        Raises:
            TypeError: when tokens are not long, or the weights are float16.
            ValueError: when shape, grid or ids do not fit.
        """
        self._refuse_float16()
        return super().decode(tokens, axes)

    def _refuse_float16(self) -> None:
        if self.decoder.conv_out.weight.dtype == torch.float16:
            raise TypeError("weights: got torch.float16, in which this model overflows; use .float() or .bfloat16()")


NAMES: Final = NameMap(
    family="aMUSEd VQ (diffusers VQModel)",
    rules=(
        (r"^(encoder\..*)\bresample\b", r"\1downsamplers.0"),
        (r"^(decoder\..*)\bresample\b", r"\1upsamplers.0"),
        (r"^(encoder|decoder)\.(down|up)\b", r"\1.\2_blocks"),
        (r"\bblock\b", "resnets"),
        (r"\bmid\b", "mid_block"),
        (r"\bblock_1\b", "resnets.0"),
        (r"\bblock_2\b", "resnets.1"),
        (r"\battn_1\.norm\b", "attn_1.group_norm"),
        (r"\battn_1\.([qkv])\b", r"attn_1.to_\1"),
        (r"\battn_1\.proj_out\b", "attn_1.to_out.0"),
        (r"\battn_1\b", "attentions.0"),
        (r"\bnin_shortcut\b", "conv_shortcut"),
        (r"\bnorm_out\b", "conv_norm_out"),
        (r"^quantizer\.codebook$", "quantize.embedding.weight"),
    ),
    run_order=True,
    linear_attention=True,
)

PUBLISHED: Final[dict[str, AmusedVQConfig]] = {"amused-vqvae": AmusedVQConfig()}


def config_from(state: Mapping[str, Tensor], *, groups: int = 32) -> AmusedVQConfig:
    """Settings that official weights were made with, read from their shapes.

    Args:
        state: official name to tensor.
        groups: not visible in the weights (``norm_num_groups`` of the official config); 32 in the release.

    Returns:
        Settings.

    Raises:
        ValueError: when weights that fix a size are missing or make no network.
    """
    network = measure(state, NAMES, groups)
    return AmusedVQConfig(
        widths=network.widths,
        res_blocks=network.res_blocks,
        latent_channels=network.latent_channels,
        code_dim=network.code_dim,
        codebook_size=network.codebook_size,
        middle_attention=network.middle_attention,
        groups=groups,
    )


def convert(state: Mapping[str, Tensor], config: AmusedVQConfig) -> dict[str, Tensor]:
    """Official weights as the state dict of ``AmusedVQ(config)``.

    Args:
        state: official name to tensor.
        config: settings of the model to fill.

    Returns:
        State dict: the given tensors themselves or views of them, in the precision they came in.

    Raises:
        ValueError: every official name that is missing, unexpected or mis-shaped.
    """
    with torch.device("meta"):
        model = AmusedVQ(config)
    return convert_state(state, model, NAMES)
