"""The contract between video and tokens: what a video tokenizer adds to ``Tokenizer``.

Shapes: B batch, T frames, H W pixels, t h w token grid, N = t x h x w, K codebooks, V codes.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from maskgen.tokenizers.base import Tokenizer

__all__ = ["VideoTokenizer", "check_video", "check_video_shape"]


class VideoTokenizer(Tokenizer):
    """Video to tokens and back.

    Signal: float [B, 3, T, H, W] in [0, 1]. Tokens are long [B, N, K] on the grid (t, h, w), t outermost. ``stride`` is
    (frames, pixels, pixels) a token; a tokenizer whose first frame has tokens of its own still names the frames of the
    others.
    """

    modality: ClassVar[str] = "video"
    is_spatial: ClassVar[bool] = True

    @property
    def first_alone(self) -> bool:
        """Whether the first frame has tokens of its own, as in causal tokenizers: clips have 1 + stride * n frames then."""
        return False

    def latent_frames(self, frames: int) -> int:
        """Token frames t of a clip of T frames: T / stride rounded up, or 1 + (T - 1) / stride where the first is alone.

        Raises:
            ValueError: when it cannot take clips of that length; the message names the nearest lengths it can.
        """
        step = self.stride[0]
        if not self.first_alone:
            if frames < 1:
                raise ValueError(f"frames: got {frames}, expected 1 or more")
            return -(-frames // step)
        whole, rest = divmod(max(frames - 1, 0), step)
        if rest or frames < 1:
            below = 1 + whole * step
            raise ValueError(
                f"frames: got {frames}, expected 1 + {step}n of them; the nearest are {below} and {below + step}: cut or "
                "pad the clip"
            )
        return 1 + whole

    def decoded_frames(self, latent_frames: int) -> int:
        """Frames that ``decode`` gives for t: T or more of any clip that became t, so crop to a T that you know.

        Raises:
            ValueError: for less than one token frame.
        """
        if latent_frames < 1:
            raise ValueError(f"latent_frames: got {latent_frames}, expected 1 or more")
        return latent_frames * self.stride[0] - (self.stride[0] - 1 if self.first_alone else 0)

    def axes(self, signal_shape: Sequence[int]) -> tuple[int, ...]:
        """Token grid (t, h, w) of a signal [B, 3, T, H, W]; sizes that the stride does not divide round up.

        Raises:
            ValueError: when it is no such batch, or a clip of a length that this tokenizer cannot take.
        """
        check_video_shape(signal_shape)
        _, height, width = self.stride
        return (self.latent_frames(signal_shape[2]), -(-signal_shape[3] // height), -(-signal_shape[4] // width))

    def _check_signal(self, signal: Tensor) -> None:
        """Refuse clips that ``encode`` cannot take."""
        check_video(signal)
        self.axes(signal.shape)


def check_video_shape(shape: Sequence[int]) -> None:
    """Refuse a shape that is not a batch of RGB clips.

    Args:
        shape: full shape to look at.

    Raises:
        ValueError: unless it is (B, 3, T, H, W) with T, H and W at least 1.
    """
    if len(shape) != 5 or shape[1] != 3 or min(shape[2:]) < 1:
        raise ValueError(
            f"video: got shape {tuple(shape)}, expected [B, 3, T, H, W]: a batch axis first, then channels, then frames"
        )


def check_video(video: Tensor) -> None:
    """Refuse anything but a floating point batch of RGB clips.

    Args:
        video: tensor to look at.

    Raises:
        TypeError: when it is not floating point.
        ValueError: when its shape is not [B, 3, T, H, W].
    """
    if not video.is_floating_point():
        raise TypeError(f"video: got {video.dtype}, expected floating point values in [0, 1]; divide uint8 by 255")
    check_video_shape(video.shape)
