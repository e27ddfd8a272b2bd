"""The discriminators of MAGVIT's stage 1: StyleGAN's residual blocks on whole clips, or on each frame (arXiv 2212.05199).

Shapes: B batch, C channels, T frames, H W pixels, t h w axes of the last feature map.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from maskgen.tokenizers.layers.conv3d import Conv3D, Norm, average_downsample3d, channels_last, norm3d
from maskgen.tokenizers.training.discriminators.image import DownBlock, LogitNetwork, lrelu


@dataclass(frozen=True, kw_only=True)
class VideoDiscriminatorConfig:
    """Settings of a discriminator; the defaults are MAGVIT-B's for 16 frames of 128 x 128 pixels (15.3 M parameters).

    Attributes:
        kind: "clip" (official) gives one logit a clip, "frame" one logit a frame, with no view of the others.
        size: frames, height and width of the clips; the dense layer depends on them ("frame": on height and width).
        channels: width of the first convolution; official 64 (B) or 128 (L).
        multipliers: width after each block as a multiple of ``channels``; each block halves all axes it sees, rounding up.
        norm: "group", "layer" or None (official); "clip" only.
        groups: groups of "group"; must divide every width.
        blur_size: taps of the low-pass before each halving, as in StyleGAN (4: [1, 3, 3, 1]); 0 (official) averages. "frame"
            only.
    """

    kind: Literal["clip", "frame"] = "clip"
    size: tuple[int, int, int] = (16, 128, 128)
    channels: int = 64
    multipliers: tuple[int, ...] = (2, 4, 4, 4, 4)
    norm: Norm | None = None
    groups: int = 32
    blur_size: int = 0

    def __post_init__(self) -> None:
        # JSON brings lists.
        object.__setattr__(self, "size", tuple(self.size))
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        if self.kind not in ("clip", "frame"):
            raise ValueError(f"kind: got {self.kind!r}, expected 'clip' or 'frame'")
        if self.norm not in (None, "group", "layer"):
            raise ValueError(f"norm: got {self.norm!r}, expected 'group', 'layer' or None")
        if len(self.size) != 3 or min(self.size) < 1:
            raise ValueError(f"size: got {self.size}, expected frames, height and width, 1 or more each")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers: got {self.multipliers}, expected one positive number a block")
        if self.channels < 1 or self.groups < 1:
            raise ValueError(f"channels, groups: got {self.channels}, {self.groups}, expected 1 or more")
        if self.blur_size != 0 and not 3 <= self.blur_size <= 7:
            raise ValueError(f"blur_size: got {self.blur_size}, expected 3 to 7 taps, or 0 for the average")
        if self.kind == "clip" and self.blur_size:
            raise ValueError(f"blur_size: got {self.blur_size} for 'clip', expected 0; only 'frame' blurs")
        if self.kind == "frame" and self.norm is not None:
            raise ValueError(f"norm: got {self.norm!r} for 'frame', expected None; only 'clip' normalises")
        widths = (self.channels, *self.widths)
        if self.norm == "group" and any(width % self.groups for width in widths):
            raise ValueError(f"channels: got widths {widths}, expected multiples of groups={self.groups}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Width after each block."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def last_map(self) -> tuple[int, int, int]:
        """Axes (t, h, w) of the map that the dense layer reads."""
        factor = 2 ** len(self.multipliers)
        frames, height, width = self.size
        return (-(-frames // factor), -(-height // factor), -(-width // factor))


class DownBlock3D(nn.Module):
    """Residual block that halves time and both pixel axes by averaging: (skip + main) / sqrt(2).

    Args:
        in_channels: width in.
        out_channels: width out.
        norm: normalisation after each convolution but the shortcut, or None.
        groups: its groups.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norm | None, groups: int) -> None:
        super().__init__()
        self.conv1 = Conv3D(in_channels, in_channels, (3, 3))
        self.norm1 = _norm(norm, in_channels, groups)
        self.conv2 = Conv3D(in_channels, out_channels, (3, 3))
        self.norm2 = _norm(norm, out_channels, groups)
        self.shortcut = Conv3D(in_channels, out_channels, (1, 1), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, T, H, W] -> [B, out_channels, ceil(T / 2), ceil(H / 2), ceil(W / 2)]."""
        skip: Tensor = self.shortcut(average_downsample3d(x))
        y = average_downsample3d(lrelu(self.norm1(self.conv1(x))))
        y = lrelu(self.norm2(self.conv2(y)))
        return (skip + y) / math.sqrt(2)


class ClipDiscriminator(LogitNetwork):
    """Clips to one logit each, large for real ones.

    Args:
        config: settings of kind "clip".
    """

    def __init__(self, config: VideoDiscriminatorConfig) -> None:
        widths = (config.channels, *config.widths)
        conv_in = Conv3D(3, config.channels, (3, 3))
        pairs = itertools.pairwise(widths)
        blocks = [DownBlock3D(narrow, wide, config.norm, config.groups) for narrow, wide in pairs]
        conv_out = Conv3D(widths[-1], widths[-1], (3, 3))
        norm_out = _norm(config.norm, widths[-1], config.groups)
        cells = math.prod(config.last_map)
        super().__init__(conv_in, blocks, conv_out, width=widths[-1], cells=cells, norm_out=norm_out)
        self.config: VideoDiscriminatorConfig = config

    def forward(self, video: Tensor) -> Tensor:
        """Logits [B, 1] of float clips [B, 3, T, H, W] in [0, 1].

        Raises:
            ValueError: when the clips have another size than the config's.
        """
        _check_size(video, (3, *self.config.size))
        return self._logits(channels_last(video))


class FrameDiscriminator(LogitNetwork):
    """Frames to one logit each: the same network in 2D, with StyleGAN's blur where it is chosen.

    Args:
        config: settings of kind "frame"; any number of frames is taken.
    """

    def __init__(self, config: VideoDiscriminatorConfig) -> None:
        widths = (config.channels, *config.widths)
        conv_in = nn.Conv2d(3, config.channels, kernel_size=3, padding=1)
        blocks = [DownBlock(narrow, wide, config.blur_size) for narrow, wide in itertools.pairwise(widths)]
        conv_out = nn.Conv2d(widths[-1], widths[-1], kernel_size=3, padding=1)
        super().__init__(conv_in, blocks, conv_out, width=widths[-1], cells=math.prod(config.last_map[1:]))
        self.config: VideoDiscriminatorConfig = config

    def forward(self, video: Tensor) -> Tensor:
        """Logits [B, T, 1] of float clips [B, 3, T, H, W] in [0, 1].

        Raises:
            ValueError: when the frames have another size than the config's.
        """
        _check_size(video, (3, video.shape[2] if video.ndim == 5 else 1, *self.config.size[1:]))
        logits = self._logits(rearrange(video, "b c t h w -> (b t) c h w"))
        return rearrange(logits, "(b t) one -> b t one", b=len(video))


def build_video_discriminator(config: VideoDiscriminatorConfig) -> ClipDiscriminator | FrameDiscriminator:
    """The discriminator that a config describes, newly made."""
    return ClipDiscriminator(config) if config.kind == "clip" else FrameDiscriminator(config)


def _norm(norm: Norm | None, channels: int, groups: int) -> nn.Module:
    return nn.Identity() if norm is None else norm3d(norm, channels, groups)


def _check_size(video: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(video.shape[1:]) != expected:
        raise ValueError(
            f"video: got shape {tuple(video.shape)}, expected [B, {', '.join(map(str, expected))}]; "
            "resize or crop the clips, or set the discriminator's size"
        )
