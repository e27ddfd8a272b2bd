"""A lossless video tokenizer without weights: for tests, ours and our users'.

Shapes: B batch, T frames, H W pixels, t h w token grid, N = t * h * w, K = 1, V = levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor

from maskgen.tokenizers.image.toy import GreyTokenizer
from maskgen.tokenizers.settings import check_least
from maskgen.tokenizers.video.base import VideoTokenizer

__all__ = ["ToyVideoTokenizer", "ToyVideoTokenizerConfig"]


@dataclass(frozen=True, kw_only=True)
class ToyVideoTokenizerConfig:
    """Settings of the toy.

    Attributes:
        levels: number of grey levels, which is the vocabulary.
        patch: side in pixels of the square that one token paints.
        frames: frames it paints.
        first_alone: the first frame has tokens of its own, as in causal tokenizers; clips then have 1 + n * frames frames,
            and no other length is taken. False takes any length.
    """

    levels: int = 4
    patch: int = 2
    frames: int = 2
    first_alone: bool = False

    def __post_init__(self) -> None:
        check_least(self, levels=2, patch=1, frames=1)


class ToyVideoTokenizer(VideoTokenizer, GreyTokenizer):
    """One token is the grey level of one box of pixels.

    Signal: float clips [B, 3, T, H, W] in [0, 1]; sizes that the box does not divide round up, as if the border went on.
    Token i stands for the grey value i / (levels - 1). The domain on which ``decode(encode(x)) == x`` holds exactly is the
    float32 clips that ``decode`` makes: the three channels equal, every box of one value, the value on that grid. Other
    clips go to the nearest level of each box's mean.

    Args:
        config: settings; the defaults give 4 levels and boxes of 2 frames of 2 x 2 pixels.
    """

    def __init__(self, config: ToyVideoTokenizerConfig) -> None:
        super().__init__()
        self.config: ToyVideoTokenizerConfig = config

    @property
    def stride(self) -> tuple[int, ...]:
        """Frames and sides of a box."""
        return (self.config.frames, self.config.patch, self.config.patch)

    @property
    def first_alone(self) -> bool:
        """As set."""
        return self.config.first_alone

    def encode(self, signal: Tensor) -> Tensor:
        """Nearest grey level of every box; see ``Tokenizer.encode``."""
        self._check_signal(signal)
        axes, sides = self.axes(signal.shape), self.stride
        video = signal.float()
        if self.config.first_alone:
            first = video[:, :, :1].repeat_interleave(self.config.frames - 1, dim=2)
            video = torch.cat([first, video], dim=2)
        for axis, (cells, side) in enumerate(zip(axes, sides, strict=True), start=2):
            missing = cells * side - video.shape[axis]
            border = video.narrow(axis, -1, 1).repeat_interleave(missing, dim=axis)
            video = torch.cat([video, border], dim=axis)
        boxes = rearrange(video, "b c (t s) (h i) (w j) -> b c t h w s i j", **dict(zip("sij", sides, strict=True)))
        return self._levels(boxes.mean(dim=(1, 5, 6, 7)))

    def decode(self, tokens: Tensor, axes: Sequence[int]) -> Tensor:
        """Float32 clips with every box of its grey level; see ``Tokenizer.decode``."""
        self._check_tokens(tokens, axes)
        (t, h, w), (frames, side, _) = axes, self.stride
        video = repeat(
            self._grey(tokens), "b (t h w) -> b c (t s) (h i) (w j)", c=3, t=t, h=h, w=w, s=frames, i=side, j=side
        )
        return video[:, :, -self.decoded_frames(t) :].contiguous()
