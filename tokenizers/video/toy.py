"""A lossless video tokenizer without weights: for tests, ours and our users'.

Shapes: B batch, T frames, H W pixels, t h w token grid, N = t * h * w, K = 1, V = levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.tokenizers.video.base import VideoTokenizer, check_video

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
        if self.levels < 2:
            raise ValueError(f"levels: got {self.levels}, expected 2 or more grey levels")
        for name in ("patch", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")


class ToyVideoTokenizer(VideoTokenizer):
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
    def vocab_size(self) -> int:
        """Number of grey levels."""
        return self.config.levels

    @property
    def num_codebooks(self) -> int:
        """Always 1."""
        return 1

    @property
    def stride(self) -> tuple[int, ...]:
        """Frames and sides of a box."""
        return (self.config.frames, self.config.patch, self.config.patch)

    def latent_frames(self, frames: int) -> int:
        """Token frames of a clip.

        Args:
            frames: T.

        Returns:
            t.

        Raises:
            ValueError: for less than one frame, or under ``first_alone`` for another length than 1 + n * frames.
        """
        if frames < 1:
            raise ValueError(f"frames: got {frames}, expected 1 or more")
        step = self.config.frames
        if not self.config.first_alone:
            return -(-frames // step)
        whole, rest = divmod(frames - 1, step)
        if rest:
            below = 1 + whole * step
            raise ValueError(
                f"frames: got {frames}, expected 1 + n * {step}; the nearest are {below} and {below + step}"
            )
        return 1 + whole

    def decoded_frames(self, latent_frames: int) -> int:
        """Frames that ``decode`` gives.

        Args:
            latent_frames: t.

        Returns:
            T of the decoded clip.

        Raises:
            ValueError: for less than one token frame.
        """
        if latent_frames < 1:
            raise ValueError(f"latent_frames: got {latent_frames}, expected 1 or more")
        extra = self.config.frames - 1 if self.config.first_alone else 0
        return latent_frames * self.config.frames - extra

    def encode(self, signal: Tensor) -> Tensor:
        """Nearest grey level of every box.

        Args:
            signal: float [B, 3, T, H, W] in [0, 1].

        Returns:
            Long [B, t * h * w, 1].

        Raises:
            TypeError: when the clips are not floating point.
            ValueError: when the shape does not fit.
        """
        check_video(signal)
        axes, sides = self.axes(signal.shape), self.stride
        video = signal.float()
        if self.config.first_alone:
            first = video[:, :, :1].repeat_interleave(self.config.frames - 1, dim=2)
            video = torch.cat([first, video], dim=2)
        for axis, (cells, side) in enumerate(zip(axes, sides, strict=True), start=2):
            missing = cells * side - video.shape[axis]
            border = video.narrow(axis, -1, 1).repeat_interleave(missing, dim=axis)
            video = torch.cat([video, border], dim=axis).unflatten(axis, (cells, side)).movedim(axis + 1, -1)
        level = (video.mean(dim=(1, 5, 6, 7)) * (self.config.levels - 1)).round().long()
        return level.clamp(0, self.config.levels - 1).flatten(1).unsqueeze(-1)

    def decode(self, tokens: Tensor, axes: Sequence[int]) -> Tensor:
        """Paint every box with its grey level.

        Args:
            tokens: long [B, t * h * w, 1], ids in [0, levels).
            axes: (t, h, w).

        Returns:
            Float32 [B, 3, T, h * patch, w * patch] in [0, 1].

        Raises:
            TypeError: when tokens are not long.
            ValueError: when shape, grid or ids do not fit.
        """
        self._check_tokens(tokens, axes)
        video = tokens.to(torch.float32).reshape(len(tokens), 1, *axes) / (self.config.levels - 1)
        for axis, side in enumerate(self.stride, start=2):
            video = video.repeat_interleave(side, dim=axis)
        return video[:, :, -self.decoded_frames(axes[0]) :].repeat(1, 3, 1, 1, 1)
