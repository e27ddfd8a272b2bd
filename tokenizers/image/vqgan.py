"""MaskGIT's image tokenizer: a VQGAN of convolutions only, no attention (Chang et al. 2022).

Shapes: B batch, H W pixels, h w token grid, N = h * w, D width of a code, K codebooks.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from maskgen.tokenizers.image.base import ImageTokenizer
from maskgen.tokenizers.layers.conv2d import (
    Activation,
    AverageDownsample,
    ConvDownsample,
    ResBlock,
    Shortcut,
    Upsample,
    activate,
    group_norm,
    run_stages,
    staged_blocks,
)
from maskgen.tokenizers.quantizers.autoencoder import Autoencoder
from maskgen.tokenizers.quantizers.vector import QuantizerConfig, build_quantizer
from maskgen.tokenizers.settings import check_choice, check_least, check_levels, freeze_lists


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Settings of the image tokenizer; the defaults are the released ImageNet models (54.5 M parameters).

    Attributes:
        channels: width of the first level.
        multipliers: width of each level as a multiple of ``channels``; L levels give a stride of 2^(L-1).
        res_blocks: residual blocks per level, and in the middle.
        quantizer: settings of the quantizer.
        downsample: "average" (official) or "conv", a strided 4 x 4 convolution.
        activation: "swish" (official) or "relu".
        shortcut: "branch" for the released weights, whose width-changing blocks drop their input (see ``ResBlock``);
            choose "input", the ordinary residual, for new models.
        groups: groups of every normalisation; official 32. Must divide every level's width.
        decoder_channels: ``channels`` of the decoder, 0 for the same; Muse (arXiv 2301.00704) trains a larger one last.
        decoder_res_blocks: ``res_blocks`` of the decoder, 0 for the same.
        codes_of: fingerprint of the tokenizer whose codes these are; written where a decoder alone is trained anew.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    downsample: Literal["average", "conv"] = "average"
    activation: Activation = "swish"
    shortcut: Shortcut = "branch"
    groups: int = 32
    decoder_channels: int = field(default=0, repr=False)  # repr decides the fingerprints of weights that lack these
    decoder_res_blocks: int = field(default=0, repr=False)
    codes_of: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        freeze_lists(self)
        if isinstance(self.quantizer, Mapping):  # from JSON
            object.__setattr__(self, "quantizer", QuantizerConfig(**self.quantizer))
        check_choice(self, downsample=("average", "conv"), activation=("swish", "relu"), shortcut=("branch", "input"))
        check_least(self, res_blocks=1, decoder_channels=0, decoder_res_blocks=0)
        check_levels(self)
        if self.decoder_channels:
            check_levels(self.of_decoder)

    @property
    def of_decoder(self) -> "VQGANConfig":
        """The settings with the decoder's sizes."""
        return dataclasses.replace(
            self,
            channels=self.decoder_channels or self.channels,
            res_blocks=self.decoder_res_blocks or self.res_blocks,
            decoder_channels=0,
            decoder_res_blocks=0,
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)


class Encoder(nn.Module):
    """Images to latents. The first convolution and the residual blocks have no bias."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.conv_in = nn.Conv2d(3, config.channels, kernel_size=3, padding=1, bias=False)
        self.blocks = _blocks(config, config.channels, (*widths, widths[-1]))
        down = ConvDownsample if config.downsample == "conv" else lambda _: AverageDownsample()
        self.downs = nn.ModuleList(down(width) for width in widths[:-1])
        self.norm_out = group_norm(widths[-1], config.groups)
        self.conv_out = nn.Conv2d(widths[-1], config.quantizer.dim, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D, h, w]."""
        x: Tensor = self.conv_in(images)
        x = run_stages(x, self.blocks, self.downs, self.config.res_blocks, first=1)
        x = self.conv_out(activate(self.norm_out(x), self.config.activation))
        return x


class Decoder(nn.Module):
    """Latents to images: the encoder's levels backwards. The last layer is linear, so pixels are not bounded."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths[::-1]
        self.conv_in = nn.Conv2d(config.quantizer.dim, widths[0], kernel_size=3, padding=1)
        self.blocks = _blocks(config, widths[0], (widths[0], *widths))
        self.ups = nn.ModuleList(Upsample(width) for width in widths[:-1])
        self.norm_out = group_norm(widths[-1], config.groups)
        self.conv_out = nn.Conv2d(widths[-1], 3, kernel_size=3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, D, h, w] -> [B, 3, h * stride, w * stride]."""
        x: Tensor = self.conv_in(latents)
        # Stage 0 is the middle, stage 1 the deepest level; every later stage starts on a grid twice as fine.
        x = run_stages(x, self.blocks, self.ups, self.config.res_blocks, first=2)
        x = self.conv_out(activate(self.norm_out(x), self.config.activation))
        return x


def _blocks(config: VQGANConfig, width: int, stages: Sequence[int]) -> nn.ModuleList:
    block = functools.partial(ResBlock, groups=config.groups, activation=config.activation, shortcut=config.shortcut)
    return staged_blocks(width, stages, config.res_blocks, block)


class VQGAN(ImageTokenizer, Autoencoder):
    """Image tokenizer, exactly the official architecture under the default config.

    Signal: float images [B, 3, H, W] in [0, 1] (not -1..1). ``decode`` returns what the last convolution gives, which
    may leave [0, 1]: clamp it before saving. Sizes that the stride does not divide round up level by level, and decode
    to the larger size.

    Weights start as in the usual JAX convolutions: kernels truncated normal with variance 1 / fan-in, biases 0, norms 1
    and 0; the codebook as its quantizer says.
    """

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config: VQGANConfig = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config.of_decoder)
        self.quantizer = build_quantizer(config.quantizer)
        for module in (*self.encoder.modules(), *self.decoder.modules()):
            if isinstance(module, nn.Conv2d):
                _init_conv(module)

    @property
    def stride(self) -> tuple[int, ...]:
        """Pixels per token, for both axes."""
        side = 2 ** (len(self.config.multipliers) - 1)
        return (side, side)


def _init_conv(conv: nn.Conv2d) -> None:
    fan_in = conv.weight[0].numel()
    # 0.8796 is the deviation of a unit normal cut at two sigma; dividing keeps the variance at 1 / fan-in.
    std = fan_in**-0.5 / 0.87962566103423978
    nn.init.trunc_normal_(conv.weight, std=std, a=-2 * std, b=2 * std)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
