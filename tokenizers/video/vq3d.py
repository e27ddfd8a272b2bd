"""MAGVIT's video tokenizer: a VQGAN of 3D convolutions (Yu et al. 2023, arXiv 2212.05199).

Shapes: B batch, T frames, H W pixels, t h w token grid, N = t * h * w, D width of a code, K codebooks, V codes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.tokenizers.layers.conv2d import Activation, activate
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
from maskgen.tokenizers.quantizers.vector import Quantized, QuantizerConfig, VectorQuantizer, build_quantizer
from maskgen.tokenizers.video.base import VideoTokenizer, check_video

__all__ = ["VQ3D", "Decoder3D", "Encoder3D", "NormalizedQuantizer", "VQ3DConfig", "VQ3DOutput"]

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
        # A config read back from JSON brings lists and a dictionary.
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        object.__setattr__(self, "temporal_downsample", tuple(self.temporal_downsample))
        if isinstance(self.quantizer, Mapping):
            object.__setattr__(self, "quantizer", QuantizerConfig(**self.quantizer))
        for name, expected in _CHOICES.items():
            if getattr(self, name) not in expected:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {expected}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers: got {self.multipliers}, expected one positive number a level")
        steps = len(self.multipliers) - 1
        if len(self.temporal_downsample) != steps:
            raise ValueError(
                f"temporal_downsample: got {self.temporal_downsample}, expected {steps} flags, "
                f"one for each step between the {steps + 1} levels"
            )
        for name in ("channels", "encoder_blocks", "decoder_blocks", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if self.norm == "group" and any(width % self.groups for width in self.widths):
            raise ValueError(
                f"channels: got level widths {self.widths}, expected multiples of groups={self.groups}; "
                "choose other channels or fewer groups"
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
        for index, block in enumerate(self.blocks):
            level, inside = divmod(index, self.config.encoder_blocks)
            if inside == 0 and 0 < level < len(self.config.multipliers):
                x = self.downs[level - 1](x)
            x = block(x)
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
        for index, block in enumerate(self.blocks):
            # Stage 0 is the middle, stage 1 the deepest level; every later stage starts on a finer grid.
            stage, inside = divmod(index, self.config.decoder_blocks)
            if inside == 0 and stage > 1:
                x = self.ups[stage - 2](x)
            x = block(x)
        return activate(self.norm_out(x), self.config.activation)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, D, t, h, w] -> [B, 3, T, H, W]."""
        video: Tensor = self.conv_out(self.features(latents))
        return video


def _blocks(config: VQ3DConfig, width: int, stages: Sequence[int], per_stage: int, flat: bool) -> nn.ModuleList:
    """``per_stage`` blocks for each stage's width, in the official numbering."""
    blocks = nn.ModuleList()
    for out in stages:
        for _ in range(per_stage):
            block = ResBlock3D(
                width,
                out,
                norm=config.norm,
                groups=config.groups,
                activation=config.activation,
                flat=flat,
                padding=config.padding,
            )
            blocks.append(block)
            width = out
    return blocks


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


@dataclass(frozen=True)
class VQ3DOutput:
    """One pass for stage-1 training.

    Attributes:
        reconstruction: [B, 3, T', H', W'], not clamped; each is T, H, W where the stride divides it, else larger.
        quantized: latents, codes and losses of the quantizer.
    """

    reconstruction: Tensor
    quantized: Quantized


class VQ3D(VideoTokenizer):
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
    def vocab_size(self) -> int:
        """Codes per codebook."""
        return self.quantizer.vocab_size

    @property
    def num_codebooks(self) -> int:
        """Codes per place: 1, or the steps of a residual quantizer."""
        return self.quantizer.num_codebooks

    @property
    def stride(self) -> tuple[int, ...]:
        """Frames and pixels per token."""
        side = 2 ** (len(self.config.multipliers) - 1)
        return (2 ** sum(self.config.temporal_downsample), side, side)

    @property
    def last_layer(self) -> Tensor:
        """Kernel of the decoder's last convolution, where an adaptive GAN weight is measured."""
        return self.decoder.conv_out.weight

    def latent_frames(self, frames: int) -> int:
        """Token frames of a clip: any length is taken and rounds up.

        Args:
            frames: T.

        Returns:
            t.

        Raises:
            ValueError: for less than one frame.
        """
        if frames < 1:
            raise ValueError(f"frames: got {frames}, expected 1 or more")
        return -(-frames // self.stride[0])  # repeated ceil(x / 2) is one ceil(x / 2^n)

    def decoded_frames(self, latent_frames: int) -> int:
        """Frames that ``decode`` gives: t times the stride.

        Args:
            latent_frames: t.

        Returns:
            T of the decoded clip.

        Raises:
            ValueError: for less than one token frame.
        """
        if latent_frames < 1:
            raise ValueError(f"latent_frames: got {latent_frames}, expected 1 or more")
        return latent_frames * self.stride[0]

    def encode(self, signal: Tensor) -> Tensor:
        """Tokens of clips.

        Args:
            signal: float [B, 3, T, H, W] in [0, 1].

        Returns:
            Long [B, t * h * w, K].

        Raises:
            TypeError: when the clips are not floating point.
            ValueError: when the shape is not [B, 3, T, H, W].
        """
        check_video(signal)
        return self.quantizer.encode(self._latents(signal))

    def decode(self, tokens: Tensor, axes: Sequence[int]) -> Tensor:
        """Clips of tokens.

        Args:
            tokens: long [B, t * h * w, K], ids in [0, V).
            axes: (t, h, w).

        Returns:
            Float [B, 3, t * stride, h * stride, w * stride], nominally in [0, 1], not clamped.

        Raises:
            TypeError: when tokens are not long.
            ValueError: when shape, grid or ids do not fit.
        """
        self._check_tokens(tokens, axes)
        return self._video(self.quantizer.lookup(tokens, axes))

    def forward(self, video: Tensor) -> VQ3DOutput:
        """Reconstruct with gradients, for stage-1 training.

        Args:
            video: float [B, 3, T, H, W] in [0, 1].

        Returns:
            Reconstruction and what the quantizer made.

        Raises:
            TypeError: when the clips are not floating point.
            ValueError: when the shape is not [B, 3, T, H, W].
        """
        check_video(video)
        quantized: Quantized = self.quantizer(self._latents(video))
        return VQ3DOutput(self._video(quantized.latents), quantized)

    def _latents(self, video: Tensor) -> Tensor:
        latents: Tensor = self.encoder(video.to(self.last_layer.dtype))
        return latents

    def _video(self, latents: Tensor) -> Tensor:
        video: Tensor = self.decoder(latents.to(self.last_layer.dtype))
        return video.contiguous()
