"""The discriminator of MaskGIT's stage 1: StyleGAN's, with blurred downsampling and without its other tricks.

Shapes: B batch, C channels, S image side, h w feature map axes.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from maskgen.tokenizers.layers.conv2d import average_downsample, pad_same

# Width at each side for multiplier 1 (spec 6.2); the multiplier counts from side 64 up.
_WIDTHS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Settings of the discriminator; the defaults are the official ones.

    Attributes:
        image_size: side of the square images, a power of two from 4 to 1024.
        channel_multiplier: factor on the widths at sides of 64 and more.
        blur_size: taps of the binomial low-pass before each downsampling, 3 to 7 (official 4: [1, 3, 3, 1]); 0 takes
            the plain 2 x 2 average instead.
        max_width: no layer is wider; official 512, less for small demos.
    """

    image_size: int = 256
    channel_multiplier: int = 1
    blur_size: int = 4
    max_width: int = 512

    def __post_init__(self) -> None:
        if self.image_size not in _WIDTHS:
            raise ValueError(f"image_size: got {self.image_size}, expected one of {sorted(_WIDTHS)}")
        if self.blur_size != 0 and not 3 <= self.blur_size <= 7:
            raise ValueError(f"blur_size: got {self.blur_size}, expected 3 to 7 taps, or 0 for the 2 x 2 average")
        if self.channel_multiplier < 1 or self.max_width < 1:
            raise ValueError(
                f"channel_multiplier, max_width: got {self.channel_multiplier}, {self.max_width}, expected 1 or more"
            )

    def width(self, side: int) -> int:
        """Width of the features at one side.

        Args:
            side: a power of two from 4 to 1024.

        Returns:
            Channels.
        """
        factor = self.channel_multiplier if side >= 64 else 1
        return min(_WIDTHS[side] * factor, self.max_width)


class BlurPool(nn.Module):
    """Halve both axes behind a binomial low-pass (Zhang 2019), "SAME" zeros; every channel on its own.

    Args:
        size: taps; size 4 is [1, 3, 3, 1] / 8 along each axis.
    """

    kernel: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        taps = torch.tensor([float(math.comb(size - 1, i)) for i in range(size)])
        taps = taps / taps.sum()
        # A constant, not a weight: it stays out of checkpoints.
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, ceil(h / 2), ceil(w / 2)]."""
        C = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(C, -1, -1, -1)
        return F.conv2d(pad_same(x, kernel.shape[-1], stride=2), kernel, stride=2, groups=C)


class DownBlock(nn.Module):
    """Residual block that halves both axes: (skip + main) / sqrt(2).

    Args:
        in_channels: width in.
        out_channels: width out.
        blur_size: taps of the low-pass, 0 for the 2 x 2 average.
    """

    def __init__(self, in_channels: int, out_channels: int, blur_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.blur = BlurPool(blur_size) if blur_size else None

    def _halve(self, x: Tensor) -> Tensor:
        if self.blur is None:
            return average_downsample(x)
        halved: Tensor = self.blur(x)
        return halved

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, h, w] -> [B, out_channels, ceil(h / 2), ceil(w / 2)]."""
        skip: Tensor = self.shortcut(self._halve(x))
        y = self._halve(lrelu(self.conv1(x)))
        y = lrelu(self.conv2(y))
        return (skip + y) / math.sqrt(2)


class LogitNetwork(nn.Module):
    """A convolution, residual blocks, a convolution, two dense layers; leaky ReLU 0.2 throughout.

    Kernels start Xavier-uniform, biases 0. Channels come last before the dense layers: the order in which the official dense
    kernels are stored.

    Args:
        conv_in: from pixels on.
        blocks: each halves the axes.
        conv_out: keeps the width.
        width: of the last features.
        cells: how many of them the dense layers read.
        norm_out: normalises the last features.
    """

    def __init__(
        self,
        conv_in: nn.Module,
        blocks: Sequence[nn.Module],
        conv_out: nn.Module,
        *,
        width: int,
        cells: int,
        norm_out: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv_in, self.blocks, self.conv_out = conv_in, nn.ModuleList(blocks), conv_out
        self.norm_out = nn.Identity() if norm_out is None else norm_out
        self.dense1, self.dense2 = nn.Linear(cells * width, width), nn.Linear(width, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _logits(self, signal: Tensor) -> Tensor:
        """Logits [B, 1] of a signal [B, 3, ...]."""
        x = lrelu(self.conv_in(signal))
        for block in self.blocks:
            x = block(x)
        x = lrelu(self.norm_out(self.conv_out(x)))
        logits: Tensor = self.dense2(lrelu(self.dense1(rearrange(x, "b c ... -> b (... c)"))))
        return logits


class StyleGANDiscriminator(LogitNetwork):
    """Images to one logit each, large for real ones (Karras et al. 2019, as MaskGIT's stage 1 has it).

    Residual blocks down to 4 x 4. No normalisation, no minibatch statistics, no equalised learning rate.

    Args:
        config: settings.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        sides = [config.image_size]
        while sides[-1] > 4:
            sides.append(sides[-1] // 2)
        widths = [config.width(side) for side in sides]
        conv_in = nn.Conv2d(3, widths[0], kernel_size=3, padding=1)
        blocks = [DownBlock(narrow, wide, config.blur_size) for narrow, wide in itertools.pairwise(widths)]
        conv_out = nn.Conv2d(widths[-1], widths[-1], kernel_size=3, padding=1)
        super().__init__(conv_in, blocks, conv_out, width=widths[-1], cells=4 * 4)
        self.config = config

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 1] of float images [B, 3, S, S] in [0, 1].

        Raises:
            ValueError: when the images have another size.
        """
        side = self.config.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side):
            raise ValueError(
                f"images: got shape {tuple(images.shape)}, expected [B, 3, {side}, {side}]; resize, or set image_size"
            )
        return self._logits(images)


def lrelu(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 0.2."""
    return F.leaky_relu(x, negative_slope=0.2)
