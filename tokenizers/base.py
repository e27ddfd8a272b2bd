"""The contract between signals and tokens: every tokenizer is one of these, and nothing else crosses the floor.

Shapes: B batch, N tokens (product of the token grid ``axes``), K codebooks, V vocabulary.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = ["Tokenizer", "check_image_shape", "check_images"]


class Tokenizer(nn.Module, ABC):
    """Signal to tokens and back.

    A concrete tokenizer is built as ``Class(config)`` from one frozen dataclass kept as ``config``; the dataclass
    survives ``Config(**asdict(config))`` and JSON. ``encode`` and ``decode`` do not switch gradients off: callers do.
    The layout and value range of the signal stand in the docstring of the concrete class.

    Attributes:
        modality: kind of signal: "image", "video" or "audio".
        config: the frozen dataclass it was built from.
    """

    modality: ClassVar[str]
    config: Any

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """V: ids run from 0 to V - 1."""

    @property
    @abstractmethod
    def num_codebooks(self) -> int:
        """K: tokens at each place of the grid."""

    @property
    @abstractmethod
    def stride(self) -> tuple[int, ...]:
        """Signal units a token covers, for each axis of the grid."""

    @abstractmethod
    def axes(self, signal_shape: Sequence[int]) -> tuple[int, ...]:
        """Token grid of a signal.

        Args:
            signal_shape: full shape of the signal, batch included, e.g. (B, 3, H, W).

        Returns:
            Sizes of the grid, e.g. (h, w); their product is N.

        Raises:
            ValueError: when this tokenizer cannot take such a signal.
        """

    @abstractmethod
    def encode(self, signal: Tensor) -> Tensor:
        """Turn a signal into tokens.

        Args:
            signal: floating point signal in the layout and range of the class.

        Returns:
            Long [B, N, K], ids in [0, V), the grid in raster order.

        Raises:
            TypeError: when the signal is not floating point.
            ValueError: when its shape does not fit.
        """

    @abstractmethod
    def decode(self, tokens: Tensor, axes: Sequence[int]) -> Tensor:
        """Turn tokens back into a signal.

        Args:
            tokens: long [B, N, K], ids in [0, V).
            axes: token grid, whose product is N.

        Returns:
            The signal, in the layout of the class.

        Raises:
            TypeError: when tokens are not long.
            ValueError: when shape, grid or ids do not fit.
        """

    def _check_tokens(self, tokens: Tensor, axes: Sequence[int]) -> None:
        """Refuse tokens that ``decode`` cannot look up, before a kernel does so less clearly."""
        if tokens.dtype != torch.long:
            raise TypeError(f"tokens: got {tokens.dtype}, expected torch.int64 ids; convert them with .long()")
        if len(axes) != len(self.stride) or any(size < 1 for size in axes):
            raise ValueError(f"axes: got {tuple(axes)}, expected {len(self.stride)} positive sizes")
        expected = (math.prod(axes), self.num_codebooks)
        if tokens.ndim != 3 or tuple(tokens.shape[1:]) != expected:
            raise ValueError(
                f"tokens: got shape {tuple(tokens.shape)}, expected [B, {expected[0]}, {expected[1]}] "
                f"for axes {tuple(axes)}"
            )
        if tokens.numel() == 0:
            return
        low, high = (int(bound) for bound in tokens.aminmax())
        if low < 0 or high >= self.vocab_size:
            raise ValueError(
                f"tokens: got ids from {low} to {high}, expected 0 to {self.vocab_size - 1}; "
                "the mask id and class ids must be replaced before decoding"
            )


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
