"""The contract between images and tokens: what an image tokenizer adds to ``Tokenizer``.

Shapes: B batch, H W pixels, h w token grid, N = h * w, K codebooks.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from maskgen.tokenizers.base import Tokenizer

__all__ = ["ImageTokenizer", "check_image_shape", "check_images"]


class ImageTokenizer(Tokenizer):
    """Images to tokens and back.

    Signal: float [B, 3, H, W] in [0, 1]. Tokens are long [B, h * w, K], row after row. ``decode`` gives
    [B, 3, h * stride, w * stride], nominally in [0, 1] and not clamped unless a class says so.
    """

    modality: ClassVar[str] = "image"
    is_spatial: ClassVar[bool] = True

    def axes(self, signal_shape: Sequence[int]) -> tuple[int, ...]:
        """Token grid (h, w) of images [B, 3, H, W]; sizes that the stride does not divide round up.

        Raises:
            ValueError: when it is no such batch.
        """
        check_image_shape(signal_shape)
        return tuple(-(-size // step) for size, step in zip(signal_shape[2:], self.stride, strict=True))

    def _check_signal(self, signal: Tensor) -> None:
        """Refuse images that ``encode`` cannot take."""
        check_images(signal)
        self.axes(signal.shape)

    def _whole_axes(self, signal_shape: Sequence[int]) -> tuple[int, ...]:
        """``axes`` for tokenizers that refuse sizes which the stride does not divide."""
        check_image_shape(signal_shape)
        sizes, strides = signal_shape[2:], self.stride
        if any(size % step for size, step in zip(sizes, strides, strict=True)):
            raise ValueError(
                f"images: got size {sizes[0]} x {sizes[1]}, expected multiples of {strides[0]}; crop or pad the images"
            )
        return tuple(size // step for size, step in zip(sizes, strides, strict=True))


def check_image_shape(shape: Sequence[int]) -> None:
    """Refuse a shape that is not a batch of RGB images.

    Args:
        shape: full shape to look at.

    Raises:
        ValueError: unless it is (B, 3, H, W) with H and W at least 1.
    """
    if len(shape) != 4 or shape[1] != 3 or shape[2] < 1 or shape[3] < 1:
        raise ValueError(f"images: got shape {tuple(shape)}, expected [B, 3, H, W]: a batch axis first, then channels")


def check_images(images: Tensor) -> None:
    """Refuse anything but a floating point batch of RGB images.

    Args:
        images: tensor to look at.

    Raises:
        TypeError: when it is not floating point.
        ValueError: when its shape is not [B, 3, H, W].
    """
    if not images.is_floating_point():
        raise TypeError(f"images: got {images.dtype}, expected floating point values in [0, 1]; divide uint8 by 255")
    check_image_shape(images.shape)
