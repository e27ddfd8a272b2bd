"""Convolution blocks of MAGVIT's video tokenizer (Yu et al. 2023, arXiv 2212.05199), number for number the official ones.

Every block takes a kernel length in time: 3 sees neighbouring frames, 1 makes it a 2D block that is applied to each frame.

On the CPU activations travel channels last in memory ("NDHWC"): oneDNN's 3D convolutions are up to twice as fast there.

Shapes: B batch, C channels, T frames, H W pixels.
"""

import functools
from typing import Any, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from maskgen.tokenizers.layers.conv2d import Activation, activate, same_padding

Norm = Literal["group", "layer"]

Padding = Literal["zeros", "edge", "reflect", "reflect_odd", "symmetric", "symmetric_odd", "wrap"]


# Each mode as numpy's ``pad`` calls it.
_NUMPY: Final[dict[Padding, dict[str, Any]]] = {
    "zeros": {"mode": "constant"},
    "edge": {"mode": "edge"},
    "reflect": {"mode": "reflect"},
    "reflect_odd": {"mode": "reflect", "reflect_type": "odd"},
    "symmetric": {"mode": "symmetric"},
    "symmetric_odd": {"mode": "symmetric", "reflect_type": "odd"},
    "wrap": {"mode": "wrap"},
}

_EPS = 1e-6  # flax's default, not torch's 1e-5


def channels_last(x: Tensor) -> Tensor:
    """The same numbers in the memory order that convolutions are fast in: channels last on the CPU, as it is elsewhere.

    Args:
        x: [B, C, T, H, W].

    Returns:
        Same shape.
    """
    return x.contiguous(memory_format=torch.channels_last_3d) if x.device.type == "cpu" else x


def pad_axis(x: Tensor, axis: int, before: int, after: int, mode: Padding) -> Tensor:
    """Lengthen one axis as numpy's ``pad`` does, axes shorter than the padding included.

    Args:
        x: any shape.
        axis: which axis.
        before: entries in front.
        after: entries behind.
        mode: numpy's name of the mode; the "_odd" ones mirror the differences to the border, "zeros" is "constant".

    Returns:
        ``x`` with that axis longer.
    """
    if not before and not after:
        return x
    if mode == "edge":  # copies of views: quicker than the sums below
        return torch.cat([*[x.narrow(axis, 0, 1)] * before, x, *[x.narrow(axis, -1, 1)] * after], dim=axis)
    pieces = [x]
    for rows, first in zip(_padding_rows(x.shape[axis], before, after, mode), (True, False), strict=True):
        if len(rows):
            # Each new entry is a short sum of old ones: exact, whatever the order of the sum.
            weights = torch.tensor(rows, dtype=x.dtype, device=x.device)
            with torch.autocast(x.device.type, enabled=False):
                new = torch.movedim(torch.tensordot(weights, x, dims=([1], [axis])), 0, axis)
            pieces.insert(0 if first else len(pieces), new)
    return torch.cat(pieces, dim=axis)


@functools.lru_cache(maxsize=256)
def _padding_rows(
    size: int, before: int, after: int, mode: Padding
) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
    """Padding is linear: the new entries in front and behind, each as weights of the ``size`` old ones."""
    padded = np.pad(np.eye(size), ((before, after), (0, 0)), **_NUMPY[mode])
    front, back = padded[:before].tolist(), padded[before + size :].tolist()
    return tuple(map(tuple, front)), tuple(map(tuple, back))


def average_downsample3d(x: Tensor, time_stride: int = 2) -> Tensor:
    """Average over windows of 2 in both pixel axes, and in time if ``time_stride`` is 2; no window overlaps another.

    Odd lengths round up, and a window over the end averages the real cells only (TensorFlow's "SAME" average pooling).

    Args:
        x: [B, C, T, H, W].
        time_stride: 2 halves the frames, 1 leaves them.

    Returns:
        [B, C, ceil(T / time_stride), ceil(H / 2), ceil(W / 2)].
    """
    # An average over a box is one over each axis in turn; slices keep the memory order, which avg_pool3d loses.
    for axis in (2, 3, 4) if time_stride == 2 else (3, 4):
        if x.shape[axis] % 2:
            x = torch.cat([x, x.narrow(axis, -1, 1)], dim=axis)  # a pair of equal cells averages to the cell
        pairs = x.unflatten(axis, (-1, 2))
        x = 0.5 * (pairs.select(axis + 1, 0) + pairs.select(axis + 1, 1))
    return x


class Conv3D(nn.Conv3d):
    """Convolution with output ceil(size / stride), not causal: half of the padding lies in the past, half in the future.

    "zeros" is TensorFlow's "SAME" rule; every other padding puts (k - 1) // 2 entries before and k // 2 behind.

    Args:
        in_channels: width in.
        out_channels: width out.
        kernel: length of the kernel in time and its side in pixels.
        stride: step in time and in pixels.
        bias: whether it has one.
        padding: what lies beyond the borders of the clip.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        *,
        bias: bool = True,
        padding: Padding = "zeros",
    ) -> None:
        sides, steps = (kernel[0], kernel[1], kernel[1]), (stride[0], stride[1], stride[1])
        super().__init__(in_channels, out_channels, sides, stride=steps, bias=bias)
        self.border: Padding = padding
        lecun_normal(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """[B, in_channels, T, H, W] -> [B, out_channels, ceil(T / stride), ...]."""
        x, (a, b, c), kernel = input, self.stride, self.kernel_size
        if self.border != "zeros":
            for axis, side in enumerate(kernel, start=2):
                x = pad_axis(x, axis, (side - 1) // 2, side // 2, self.border)
            return F.conv3d(x, self.weight, self.bias, (a, b, c))
        pads = [same_padding(*sizes) for sizes in zip(x.shape[2:], kernel, self.stride, strict=True)]
        if all(before == after for before, after in pads):
            return F.conv3d(x, self.weight, self.bias, (a, b, c), (pads[0][0], pads[1][0], pads[2][0]))
        x = F.pad(x, (*pads[2], *pads[1], *pads[0]))
        return F.conv3d(x, self.weight, self.bias, (a, b, c))


class GroupNorm3D(nn.GroupNorm):
    """Normalise over time, pixels and the channels of a group together, not frame by frame; epsilon 1e-6.

    Args:
        channels: width.
        groups: groups, a divisor of the width; official 32.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(groups, channels, eps=_EPS)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, T, H, W] -> the same."""
        # Torch's backward is 20 times slower channels last than after a copy (2.11, CPU).
        return channels_last(super().forward(input.contiguous()))


class LayerNorm3D(nn.LayerNorm):
    """Normalise the channels of each cell alone; epsilon 1e-6.

    Args:
        channels: width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=_EPS)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, T, H, W] -> the same."""
        rows = super().forward(rearrange(input, "b c t h w -> b t h w c"))
        return rearrange(rows, "b t h w c -> b c t h w")


def norm3d(norm: Norm, channels: int, groups: int) -> GroupNorm3D | LayerNorm3D:
    """A new normalisation.

    Args:
        norm: "group" or "layer".
        channels: width.
        groups: groups of "group"; "layer" ignores them.

    Returns:
        The layer.
    """
    return GroupNorm3D(channels, groups) if norm == "group" else LayerNorm3D(channels)


class AverageDownsample3D(nn.Module):
    """Halve both pixel axes, and time if ``time_stride`` is 2, by averaging (see ``average_downsample3d``).

    Args:
        time_stride: 1 or 2.
    """

    def __init__(self, time_stride: int) -> None:
        super().__init__()
        self.time_stride = time_stride

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, ceil(T / time_stride), ceil(H / 2), ceil(W / 2)]."""
        return average_downsample3d(x, self.time_stride)


class ConvDownsample3D(nn.Module):
    """Halve both pixel axes, and time if ``time_stride`` is 2, by a 4 x 4 x 4 convolution with bias.

    Args:
        channels: width in and out.
        time_stride: 1 or 2.
        flat: kernels of one frame instead, each frame alone.
        padding: what lies beyond the borders.
    """

    def __init__(self, channels: int, time_stride: int, *, flat: bool = False, padding: Padding = "zeros") -> None:
        super().__init__()
        self.conv = Conv3D(channels, channels, (1 if flat else 4, 4), (time_stride, 2), padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, ceil(T / time_stride), ceil(H / 2), ceil(W / 2)]."""
        out: Tensor = self.conv(x)
        return out


class Upsample3D(nn.Module):
    """Double both pixel axes, and time if ``time_stride`` is 2: nearest neighbour, then a 3 x 3 x 3 convolution with bias.

    Each input cell becomes a block of equal cells, so the kernel's entries that fall on one block can be added first. What
    is left is one transposed convolution without the enlarged tensor, with 8 products a cell instead of 27 (3 times
    faster on the CPU). The numbers are the same but for rounding. Arguments are those of ``ConvDownsample3D``.
    """

    def __init__(self, channels: int, time_stride: int, *, flat: bool = False, padding: Padding = "zeros") -> None:
        super().__init__()
        self.time_stride = time_stride
        self.conv = Conv3D(channels, channels, (1 if flat else 3, 3), padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T * time_stride, 2 H, 2 W]."""
        if self.conv.border not in ("zeros", "edge"):
            out: Tensor = self.conv(repeat(x, "b c t h w -> b c (t s) (h i) (w j)", s=self.time_stride, i=2, j=2))
            return out
        kernel = rearrange(self.conv.weight.flip(2, 3, 4), "o i t h w -> i o t h w")
        strides = (self.time_stride, 2, 2)
        cut = [side // 2 for side in self.conv.kernel_size]
        if self.conv.border == "edge":  # what a cell more on each side becomes is cut off again
            for axis, cells in enumerate(tuple(cut), start=2):
                x = pad_axis(x, axis, cells, cells, "edge")
            cut = [cells * (1 + stride) for cells, stride in zip(cut, strides, strict=True)]
        for axis in (2, 3, 4) if self.time_stride == 2 else (3, 4):
            # Taps k0, k1, k2 over pairs of equal cells: k0, k0 + k1, k1 + k2, k2.
            pad = [0] * (2 * (kernel.ndim - 1 - axis))
            kernel = F.pad(kernel, (*pad, 0, 1)) + F.pad(kernel, (*pad, 1, 0))
        return F.conv_transpose3d(x, kernel, self.conv.bias, strides, cut)


class DeconvUpsample3D(nn.Module):
    """Double both pixel axes, and time if ``time_stride`` is 2, by a 4 x 4 x 4 transposed convolution with bias.

    Borders are those of flax's "SAME". Arguments are those of ``ConvDownsample3D``.
    """

    def __init__(self, channels: int, time_stride: int, *, flat: bool = False) -> None:
        super().__init__()
        length = 1 if flat else 4
        self.conv = nn.ConvTranspose3d(
            channels, channels, (length, 4, 4), stride=(time_stride, 2, 2), padding=(length // 4, 1, 1)
        )
        lecun_normal(self.conv.weight, self.conv.bias, fan_in=channels * length * 16)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T * time_stride, 2 H, 2 W]."""
        out: Tensor = self.conv(x)
        # An even kernel at stride 1 gives one frame too many; flax pads one less at the end.
        return out[:, :, : x.shape[2] * self.conv.stride[0]]


class ResBlock3D(nn.Module):
    """Norm, activation, 3 x 3 x 3 convolution, twice, plus the input; no convolution has a bias.

    Where the widths differ, a 1 x 1 x 1 convolution maps the input as it came, before the norm.

    Args:
        in_channels: width in.
        out_channels: width out.
        norm: which normalisation.
        groups: its groups; must divide both widths.
        activation: "swish" or "relu".
        flat: 1 x 3 x 3 instead, each frame alone.
        padding: what lies beyond the borders.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: Norm,
        groups: int,
        activation: Activation,
        flat: bool = False,
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        kernel = (1 if flat else 3, 3)
        self.norm1 = norm3d(norm, in_channels, groups)
        self.conv1 = Conv3D(in_channels, out_channels, kernel, bias=False, padding=padding)
        self.norm2 = norm3d(norm, out_channels, groups)
        self.conv2 = Conv3D(out_channels, out_channels, kernel, bias=False, padding=padding)
        widens = in_channels != out_channels
        self.shortcut = Conv3D(in_channels, out_channels, (1, 1), bias=False) if widens else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, T, H, W] -> [B, out_channels, T, H, W]."""
        y: Tensor = self.conv1(activate(self.norm1(x), self.activation))
        y = self.conv2(activate(self.norm2(y), self.activation))
        return y + (x if self.shortcut is None else self.shortcut(x))


def lecun_normal(kernel: Tensor, bias: Tensor | None, *, fan_in: int | None = None) -> None:
    """Start as JAX's convolutions do: a normal cut at two sigma with variance 1 / fan-in, biases 0.

    Args:
        kernel: [O, I, kt, kh, kw]; overwritten.
        bias: [O]; overwritten.
        fan_in: where it is not the size of one output's kernel.
    """
    fan_in = fan_in or kernel[0].numel()
    # 0.8796 is the deviation of a unit normal cut at two sigma; dividing keeps the variance at 1 / fan-in.
    std = fan_in**-0.5 / 0.87962566103423978
    nn.init.trunc_normal_(kernel, std=std, a=-2 * std, b=2 * std)
    if bias is not None:
        nn.init.zeros_(bias)
