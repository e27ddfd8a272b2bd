"""Blocks and the two halves of Open-MAGVIT2's networks (Luo et al. 2024, arXiv 2409.04410), number for number.

One network for images and clips: strides with two numbers build it from plain convolutions, strides with three from causal
ones. Level 0 is the full resolution at both ends. Only the convolutions are causal: every normalisation takes its
statistics over all frames, so any frame moves all latents a little, and a frame alone has other latents than in a clip.

Shapes: B batch, C channels, T frames, H W pixels, d bits of a code, t h w token grid, L levels. ``...`` is (H, W) or
(T, H, W).
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from maskgen.tokenizers.layers.conv2d import ResidualBlock, group_norm

_EPS = 1e-6  # before the root of the adaptive scale


@dataclass(frozen=True, kw_only=True)
class Magvit2Network:
    """What the settings of both tokenizers come down to.

    Attributes:
        channels: width after the first convolution.
        multipliers: width of each level as a multiple of ``channels``, full resolution first.
        res_blocks: residual blocks a level, and in the middle.
        bits: d, channels between encoder and decoder.
        strides: of the way from each level to the next, (rows, columns) or (frames, rows, columns); one fewer than levels.
        groups: groups of every normalisation; must divide every width.
    """

    channels: int
    multipliers: tuple[int, ...]
    res_blocks: int
    bits: int
    strides: tuple[tuple[int, ...], ...]
    groups: int

    def __post_init__(self) -> None:
        sizes = (self.channels, self.res_blocks, self.groups, self.bits, *self.multipliers)
        if len(self.multipliers) < 2 or min(sizes) < 1:
            raise ValueError(
                f"channels, res_blocks, groups, bits, multipliers: got {sizes[:4]} and {self.multipliers}, expected 1 or "
                "more of each, and multipliers of two or more levels"
            )
        if len(self.strides) != len(self.multipliers) - 1 or len({len(stride) for stride in self.strides}) > 1:
            raise ValueError(
                f"strides: got {self.strides}, expected {len(self.multipliers) - 1} of them, one fewer than multipliers"
            )
        if any(step not in (1, 2) for stride in self.strides for step in stride):
            raise ValueError(f"strides: got {self.strides}, expected steps of 1 or 2 along each axis")
        uneven = [width for width in (self.channels, *self.widths) if width % self.groups]
        if uneven:
            raise ValueError(
                f"channels: got widths {(self.channels, *self.widths)}, expected multiples of groups={self.groups}; choose "
                "other channels or fewer groups"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def stride(self) -> tuple[int, ...]:
        """Signal units a token covers along each axis."""
        return tuple(math.prod(steps) for steps in zip(*self.strides, strict=True))

    @property
    def causal(self) -> bool:
        """Whether the convolutions have a time axis."""
        return len(self.stride) == 3


class CausalConv3d(nn.Conv3d):
    """3D convolution that sees no later frame: all zeros of the time axis stand in front, k // 2 on either side in space.

    Along time ceil(T / stride) frames come out, so that of 1 + 2n frames a stride of 2 makes 1 + n.

    Args:
        in_channels: width in.
        out_channels: width out.
        kernel_size: odd side of the window along all three axes.
        stride: steps along (frames, rows, columns).
        bias: whether there is one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        bias: bool = True,
    ) -> None:
        side = kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=(0, side, side), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, T, H, W] -> [B, out_channels, T', H', W'], each axis ceil(size / stride)."""
        return super().forward(F.pad(x, (0, 0, 0, 0, self.kernel_size[0] - 1, 0)))


def _conv(
    network: Magvit2Network,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    *,
    stride: Sequence[int] = (),
    bias: bool = True,
) -> nn.Conv2d | nn.Conv3d:
    """A convolution that keeps sizes (strides apart), in 2D with zeros on all four sides."""
    if network.causal:
        frames, rows, columns = stride or (1, 1, 1)
        return CausalConv3d(in_channels, out_channels, kernel_size, stride=(frames, rows, columns), bias=bias)
    rows, columns = stride or (1, 1)
    return nn.Conv2d(in_channels, out_channels, kernel_size, (rows, columns), padding=kernel_size // 2, bias=bias)


class AdaptiveGroupNorm(nn.Module):
    """Group normalisation whose scale and bias come from the codes: s * norm(x) + b, per channel.

    s is a linear map of the codes' deviation (unbiased variance) and b one of their mean, both over all positions. For a
    code of one position the original divides by zero; here its deviation is 0.

    Args:
        channels: C.
        bits: d.
        groups: groups of the normalisation.
    """

    def __init__(self, channels: int, bits: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.gamma = nn.Linear(bits, channels)
        self.beta = nn.Linear(bits, channels)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """[B, C, ...] and codes [B, d, ...], on a grid of their own -> [B, C, ...]."""
        rows = rearrange(codes, "b d ... -> b d (...)")
        variance = rows.var(2) if rows.shape[2] > 1 else torch.zeros_like(rows[:, :, 0])
        scale: Tensor = self.gamma((variance + _EPS).sqrt())
        bias: Tensor = self.beta(rows.mean(2))
        shape = (*scale.shape, *[1] * (x.ndim - 2))
        return scale.view(shape) * F.group_norm(x, self.groups, eps=1e-6) + bias.view(shape)


def depth_to_space(x: Tensor, block: Sequence[int]) -> Tensor:
    """Spread channels over a block of pixels: the block's index is the slow part of the channel, unlike ``PixelShuffle``.

    Args:
        x: [B, prod(block) * C, ...].
        block: how often each of the trailing axes grows.

    Returns:
        [B, C, ...], each axis times its step.
    """
    if len(block) == 2:
        return rearrange(x, "b (i j c) h w -> b c (h i) (w j)", i=block[0], j=block[1])
    return rearrange(x, "b (s i j c) t h w -> b c (t s) (h i) (w j)", s=block[0], i=block[1], j=block[2])


class SpaceToDepthUpsample(nn.Module):
    """Grow each axis by a step of 1 or 2: a convolution to as many channels as the block has pixels, then spread them.

    Where time grows, the second frame is dropped: t frames become 2t - 1, and one frame stays one.

    Args:
        channels: width in and out.
        block: steps along the axes.
        network: sizes.
    """

    def __init__(self, channels: int, block: Sequence[int], network: Magvit2Network) -> None:
        super().__init__()
        self.block = tuple(block)
        self.conv1 = _conv(network, channels, channels * math.prod(block))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> [B, C, ...]."""
        y = depth_to_space(self.conv1(x), self.block)
        if len(self.block) == 3 and self.block[0] == 2:
            y = torch.cat((y[:, :, :1], y[:, :, 2:]), dim=2)
        return y


class Level(nn.Module):
    """Residual blocks at one resolution, and the way to the next one.

    Args:
        in_channels: width in.
        out_channels: width out.
        network: sizes.
        downsample: what follows in the encoder; None at its end, and in the decoder.
        upsample: what follows in the decoder; None at its end, and in the encoder.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        network: Magvit2Network,
        *,
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.block = _blocks(in_channels, out_channels, network)
        self.downsample, self.upsample = downsample, upsample

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, ...] -> [B, out_channels, ...], sizes as the resampling makes them."""
        for block in self.block:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return x if self.upsample is None else self.upsample(x)


class Encoder(nn.Module):
    """Pixels in -1..1 to latents, whose signs are the bits of the codes."""

    def __init__(self, network: Magvit2Network) -> None:
        super().__init__()
        widths = network.widths
        before = (network.channels, *widths[:-1])
        downs = [
            _conv(network, width, width, stride=stride)
            for width, stride in zip(widths[:-1], network.strides, strict=True)
        ]
        self.conv_in = _conv(network, 3, network.channels, bias=False)
        self.down = nn.ModuleList(
            Level(wide, width, network, downsample=down)
            for wide, width, down in zip(before, widths, (*downs, None), strict=True)
        )
        self.mid_block = _blocks(widths[-1], widths[-1], network)
        self.norm_out = group_norm(widths[-1], network.groups)
        self.conv_out = _conv(network, widths[-1], network.bits, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, ...] -> [B, d, ...], each axis ceil(size / stride)."""
        x: Tensor = self.conv_in(pixels)
        for part in (*self.down, *self.mid_block):
            x = part(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return x


class Decoder(nn.Module):
    """Codes to pixels, nominally in -1..1. The last layer is linear, so pixels are not bounded.

    Every level begins with an adaptive normalisation by the very codes.
    """

    def __init__(self, network: Magvit2Network) -> None:
        super().__init__()
        widths = network.widths
        before = (*widths[1:], widths[-1])
        ups = [
            SpaceToDepthUpsample(width, stride, network)
            for width, stride in zip(widths[1:], network.strides, strict=True)
        ]
        self.conv_in = _conv(network, network.bits, widths[-1])
        self.mid_block = _blocks(widths[-1], widths[-1], network)
        self.adaptive = nn.ModuleList(AdaptiveGroupNorm(wide, network.bits, network.groups) for wide in before)
        self.up = nn.ModuleList(
            Level(wide, width, network, upsample=up)
            for wide, width, up in zip(before, widths, (None, *ups), strict=True)
        )
        self.norm_out = group_norm(widths[0], network.groups)
        self.conv_out = _conv(network, widths[0], 3)

    def forward(self, codes: Tensor) -> Tensor:
        """[B, d, h, w] -> [B, 3, h * stride, w * stride]; of t frames 1 + stride * (t - 1) come back."""
        x: Tensor = self.conv_in(codes)
        for block in self.mid_block:
            x = block(x)
        for norm, level in zip(reversed(self.adaptive), reversed(self.up), strict=True):  # level 0 runs last
            x = level(norm(x, codes))
        x = self.conv_out(F.silu(self.norm_out(x)))
        return x


def _blocks(in_channels: int, out_channels: int, network: Magvit2Network) -> nn.ModuleList:
    """``res_blocks`` residual blocks, the first of which changes the width."""
    widths = [in_channels, *[out_channels] * (network.res_blocks - 1)]
    conv = functools.partial(_conv, network, bias=False)
    return nn.ModuleList(ResidualBlock(width, out_channels, network.groups, conv) for width in widths)
