"""MAGVIT's video tokenizer: a VQGAN of 3D convolutions (Yu et al. 2023, arXiv 2212.05199).

Shapes: B batch, T frames, H W pixels, t h w token grid, N = t * h * w, D width of a code, K codebooks, V codes.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.tokenizers.layers.conv2d import Activation, activate, run_stages, staged_blocks
from maskgen.tokenizers.layers.conv3d import (
    AverageDownsample3D,
    Conv3D,
    ConvDownsample3D,
    DeconvUpsample3D,
    Norm,
    Padding,
    ResBlock3D,
    Upsample3D,
    channels_last,
    norm3d,
)
from maskgen.tokenizers.quantizers.autoencoder import Autoencoder
from maskgen.tokenizers.quantizers.vector import QuantizerConfig, VectorQuantizer, build_quantizer
from maskgen.tokenizers.settings import check_choice, check_least, check_levels, freeze_lists
from maskgen.tokenizers.video.base import VideoTokenizer

__all__ = ["VQ3D", "Decoder3D", "Encoder3D", "NormalizedQuantizer", "VQ3DConfig"]

_CHOICES = {
    "downsample": ("average", "conv"),
    "upsample": ("nearest", "deconv"),
    "activation": ("swish", "relu"),
    "norm": ("group", "layer"),
    "padding": get_args(Padding),
}


@dataclass(frozen=True, kw_only=True)
class VQ3DConfig:
    """Settings of the video tokenizer; the defaults are MAGVIT-B for 128 x 128 pixels (40.6 M parameters, stride 4 x 8 x 8).

    Attributes:
        channels: width of the first level; official 64 (B) or 128 (L).
        multipliers: width of each level as a multiple of ``channels``; L levels shrink pixels by 2^(L-1).
        temporal_downsample: for each of the L - 1 steps between levels, whether it halves time as well.
        encoder_blocks: residual blocks per level of the encoder, and in its middle.
        decoder_blocks: the same of the decoder.
        quantizer: settings of the quantizer.
        normalize_latents: compare latents and codes by direction (see ``NormalizedQuantizer``); "vq" only.
        downsample: "average" (official) or "conv", a strided 4 x 4 x 4 convolution.
        upsample: "nearest" and a convolution (official), or "deconv", a transposed 4 x 4 x 4 convolution.
        activation: "swish" (official) or "relu".
        norm: "group" (official) or "layer".
        groups: groups of "group"; official 32. Must divide every level's width.
        padding: what convolutions see beyond the borders: "zeros" (released configs), "reflect" (the paper) or another.
    """

    channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    temporal_downsample: tuple[bool, ...] = (True, True, False)
    encoder_blocks: int = 2
    decoder_blocks: int = 2
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    normalize_latents: bool = False
    downsample: Literal["average", "conv"] = "average"
    upsample: Literal["nearest", "deconv"] = "nearest"
    activation: Activation = "swish"
    norm: Norm = "group"
    groups: int = 32
    padding: Padding = "zeros"

    def __post_init__(self) -> None:
        freeze_lists(self)
        if isinstance(self.quantizer, Mapping):  # from JSON
            object.__setattr__(self, "quantizer", QuantizerConfig(**self.quantizer))
        check_choice(self, **_CHOICES)
        check_least(self, encoder_blocks=1, decoder_blocks=1)
        check_levels(self, grouped=self.norm == "group")
        steps = len(self.multipliers) - 1
        if len(self.temporal_downsample) != steps:
            raise ValueError(
                f"temporal_downsample: got {self.temporal_downsample}, expected {steps} flags, "
                f"one for each step between the {steps + 1} levels"
            )
        if self.normalize_latents and self.quantizer.kind != "vq":
            raise ValueError(f"normalize_latents: got a {self.quantizer.kind!r} quantizer, expected 'vq'")

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def time_strides(self) -> tuple[int, ...]:
        """For each step between levels, 2 where it halves time, else 1."""
        return tuple(2 if halves else 1 for halves in self.temporal_downsample)


class Encoder3D(nn.Module):
    """Clips to latents. The first convolution and the residual blocks have no bias.

    Args:
        config: settings of the tokenizer.
        flat: kernels see one frame only.
    """

    def __init__(self, config: VQ3DConfig, *, flat: bool = False) -> None:
        super().__init__()
        self.config = config
        widths, per_level = config.widths, config.encoder_blocks
        kernel = (1 if flat else 3, 3)
        self.conv_in = Conv3D(3, config.channels, kernel, bias=False, padding=config.padding)
        self.blocks = _blocks(config, config.channels, (*widths, widths[-1]), per_level, flat)
        self.downs = nn.ModuleList(
            ConvDownsample3D(width, step, flat=flat, padding=config.padding)
            if config.downsample == "conv"
            else AverageDownsample3D(step)
            for width, step in zip(widths, config.time_strides, strict=False)
        )
        self.norm_out = norm3d(config.norm, widths[-1], config.groups)
        self.conv_out = Conv3D(widths[-1], config.quantizer.dim, (1, 1))

    def forward(self, video: Tensor) -> Tensor:
        """[B, 3, T, H, W] -> [B, D, t, h, w]."""
        x: Tensor = self.conv_in(channels_last(video))
        x = run_stages(x, self.blocks, self.downs, self.config.encoder_blocks, first=1)
        x = self.conv_out(activate(self.norm_out(x), self.config.activation))
        return x


class Decoder3D(nn.Module):
    """Latents to clips: the encoder's levels backwards. The last layer is linear, so pixels are not bounded.

    Args:
        config: settings of the tokenizer.
        flat: kernels see one frame only.
    """

    def __init__(self, config: VQ3DConfig, *, flat: bool = False) -> None:
        super().__init__()
        self.config = config
        widths, per_level = config.widths[::-1], config.decoder_blocks
        kernel = (1 if flat else 3, 3)
        self.conv_in = Conv3D(config.quantizer.dim, widths[0], kernel, padding=config.padding)
        self.blocks = _blocks(config, widths[0], (widths[0], *widths), per_level, flat)
        self.ups = nn.ModuleList(
            DeconvUpsample3D(width, step, flat=flat)
            if config.upsample == "deconv"
            else Upsample3D(width, step, flat=flat, padding=config.padding)
            for width, step in zip(widths, config.time_strides[::-1], strict=False)
        )
        self.norm_out = norm3d(config.norm, widths[-1], config.groups)
        self.conv_out = Conv3D(widths[-1], 3, kernel, padding=config.padding)

    def features(self, latents: Tensor) -> Tensor:
        """What the last convolution reads (official stage 1), where long clips are blended; ``conv_out`` is the rest.

        Args:
            latents: [B, D, t, h, w].

        Returns:
            [B, channels, T, H, W].
        """
        x: Tensor = self.conv_in(channels_last(latents))
        # Stage 0 is the middle, stage 1 the deepest level; every later stage starts on a finer grid.
        x = run_stages(x, self.blocks, self.ups, self.config.decoder_blocks, first=2)
        return activate(self.norm_out(x), self.config.activation)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, D, t, h, w] -> [B, 3, T, H, W]."""
        video: Tensor = self.conv_out(self.features(latents))
        return video


def _blocks(config: VQ3DConfig, width: int, stages: Sequence[int], per_stage: int, flat: bool) -> nn.ModuleList:
    block = functools.partial(
        ResBlock3D,
        norm=config.norm,
        groups=config.groups,
        activation=config.activation,
        flat=flat,
        padding=config.padding,
    )
    return staged_blocks(width, stages, per_stage, block)


class NormalizedQuantizer(VectorQuantizer):
    """Nearest code by direction, as the official ``latent_normalize``: vectors of codes keep the length they have.

    Latents are scaled to length 1, in the losses as well; codes are scaled in the distance only.
    """

    def _rows(self, latents: Tensor) -> Tensor:
        """[B, D, ...] -> float32 [B, N, D] of length 1."""
        return F.normalize(super()._rows(latents), dim=-1)

    def _distances(self, rows: Tensor) -> Tensor:
        """[M, D] -> squared distances [M, V] to the scaled codes."""
        codes = F.normalize(self.codebook.float(), dim=-1)
        return rows.square().sum(-1, keepdim=True) - 2 * rows @ codes.t() + codes.square().sum(-1)


class VQ3D(VideoTokenizer, Autoencoder):
    """Video tokenizer, exactly the official architecture under the default config.

    Signal: float clips [B, 3, T, H, W] in [0, 1] (not -1..1). ``decode`` returns what the last convolution gives, which may
    leave [0, 1]: clamp it before saving. It is not causal: every token sees frames before and after its own. Any T, H and
    W is taken; what the stride does not divide rounds up step by step and decodes to a longer or larger clip.

    Weights start as in the usual JAX convolutions: kernels truncated normal with variance 1 / fan-in, biases 0, norms 1
    and 0; the codebook as its quantizer says.

    Args:
        config: settings.
    """

    _flat = False

    def __init__(self, config: VQ3DConfig) -> None:
        super().__init__()
        self.config: VQ3DConfig = config
        self.encoder = Encoder3D(config, flat=self._flat)
        self.decoder = Decoder3D(config, flat=self._flat)
        by_direction = config.normalize_latents
        self.quantizer = NormalizedQuantizer(config.quantizer) if by_direction else build_quantizer(config.quantizer)

    @property
    def stride(self) -> tuple[int, ...]:
        """Frames and pixels per token."""
        side = 2 ** (len(self.config.multipliers) - 1)
        return (2 ** sum(self.config.temporal_downsample), side, side)

    def _signal(self, latents: Tensor) -> Tensor:
        return super()._signal(latents).contiguous()
