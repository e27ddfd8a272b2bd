"""Convolution blocks of the image tokenizer, number for number those of MaskGIT's VQGAN.

Shapes: B batch, C channels, H W pixels.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["swish", "relu"]

Shortcut = Literal["branch", "input"]


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after one axis under TensorFlow's "SAME" rule (output ceil(size / stride), odd zero last).

    Args:
        size: length of the axis.
        kernel: length of the window.
        stride: step of the window.

    Returns:
        (before, after).
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return (total // 2, total - total // 2)


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zero-pad both pixel axes so that a window without padding gives the "SAME" output.

    Args:
        x: [B, C, H, W].
        kernel: side of the window.
        stride: step of the window.

    Returns:
        [B, C, H + ..., W + ...].
    """
    return F.pad(x, (*same_padding(x.shape[3], kernel, stride), *same_padding(x.shape[2], kernel, stride)))


def average_downsample(x: Tensor) -> Tensor:
    """2 x 2 average, stride 2. Odd sizes round up, and a window over the border averages the real pixels only.

    Args:
        x: [B, C, H, W].

    Returns:
        [B, C, ceil(H / 2), ceil(W / 2)].
    """
    return F.avg_pool2d(x, kernel_size=2, stride=2, ceil_mode=True, count_include_pad=False)


def upsample(x: Tensor) -> Tensor:
    """Nearest neighbour, twice the size.

    Args:
        x: [B, C, H, W].

    Returns:
        [B, C, 2H, 2W].
    """
    return F.interpolate(x, scale_factor=2, mode="nearest")


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Swish (x * sigmoid(x)) or ReLU, element by element.

    Args:
        x: any shape.
        activation: which one.

    Returns:
        Same shape.
    """
    return F.silu(x) if activation == "swish" else F.relu(x)


class AverageDownsample(nn.Module):
    """Halve both pixel axes by averaging (see ``average_downsample``)."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, ceil(H / 2), ceil(W / 2)]."""
        return average_downsample(x)


class ConvDownsample(nn.Module):
    """Halve both pixel axes by a convolution with bias, stride 2, "SAME" zeros (right and bottom on even sizes).

    Args:
        channels: width in and out.
        kernel: side of the kernel; MaskGIT's is 4, MaskBit's 3.
    """

    def __init__(self, channels: int, kernel: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=kernel, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, ceil(H / 2), ceil(W / 2)]."""
        out: Tensor = self.conv(pad_same(x, kernel=self.conv.kernel_size[0], stride=2))
        return out


class Upsample(nn.Module):
    """Double both pixel axes: nearest neighbour, then a 3 x 3 convolution with bias.

    Args:
        channels: width in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        out: Tensor = self.conv(upsample(x))
        return out


class ResBlock(nn.Module):
    """Norm, activation, 3 x 3 convolution, twice, plus a shortcut; no convolution has a bias.

    Where the widths differ there is a 1 x 1 shortcut convolution. Which tensor it reads is ``shortcut``: "input" is the
    ordinary residual, y + W(input). "branch" is what the official code does and its released weights need: y + W(y), y
    the output of the second convolution, so the block's input is dropped there.

    Args:
        in_channels: width in.
        out_channels: width out.
        groups: groups of the normalisation; must divide both widths.
        activation: "swish" or "relu".
        shortcut: "branch" or "input".
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, groups: int, activation: Activation, shortcut: Shortcut
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.shortcut_reads = shortcut
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = group_norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        reads = out_channels if shortcut == "branch" else in_channels
        widens = in_channels != out_channels
        self.shortcut = nn.Conv2d(reads, out_channels, kernel_size=1, bias=False) if widens else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H, W]."""
        y: Tensor = self.conv1(activate(self.norm1(x), self.activation))
        y = self.conv2(activate(self.norm2(y), self.activation))
        if self.shortcut is None:
            return x + y
        skip: Tensor = self.shortcut(y if self.shortcut_reads == "branch" else x)
        return skip + y


def _conv(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)


class ResidualBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), as VQGANs with attention and MAGVIT-v2 have it.

    Where the widths differ, the x that is added goes through a convolution of one cell.

    Args:
        in_channels: width in.
        out_channels: width out.
        groups: groups of the normalisations; must divide both widths.
        conv: makes a convolution that keeps sizes, from its widths and its side; without it 2D ones with biases.
    """

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, conv: Callable[[int, int, int], nn.Module] = _conv
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = conv(in_channels, out_channels, 3)
        self.norm2 = group_norm(out_channels, groups)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.nin_shortcut = conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, ...] -> [B, out_channels, ...]."""
        y: Tensor = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """Group normalisation with the official epsilon 1e-6.

    Args:
        channels: width.
        groups: groups, a divisor of the width; official 32.

    Returns:
        The layer.
    """
    return nn.GroupNorm(groups, channels, eps=1e-6)


def staged_blocks(
    width: int, stages: Sequence[int], per_stage: int, block: Callable[[int, int], nn.Module]
) -> nn.ModuleList:
    """``per_stage`` blocks for each stage's width, in the official numbering; the first of a stage changes the width.

    Args:
        width: before the first stage.
        stages: width of each stage.
        per_stage: blocks a stage.
        block: makes a block from its widths in and out.
    """
    widths = [width, *(stage for stage in stages for _ in range(per_stage))]
    return nn.ModuleList(block(before, after) for before, after in itertools.pairwise(widths))


def run_stages(x: Tensor, blocks: nn.ModuleList, resamplers: nn.ModuleList, per_stage: int, first: int) -> Tensor:
    """Blocks in a row, with a resampler before each stage from ``first`` on as far as there are resamplers.

    Args:
        x: [B, C, ...].
        blocks: of all stages.
        resamplers: ways from one level to the next.
        per_stage: blocks a stage.
        first: number of the stage that begins on another grid.

    Returns:
        [B, C', ...].
    """
    for index, block in enumerate(blocks):
        stage, inside = divmod(index, per_stage)
        if inside == 0 and 0 <= stage - first < len(resamplers):
            x = resamplers[stage - first](x)
        x = block(x)
    return x
