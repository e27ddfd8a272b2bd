"""A lossless image tokenizer without weights: for tests, ours and our users'.

Shapes: B batch, H W pixels, h w token grid, N = h * w, K = 1, V = levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.tokenizers.image.base import ImageTokenizer, check_images

__all__ = ["ToyTokenizer", "ToyTokenizerConfig"]


@dataclass(frozen=True, kw_only=True)
class ToyTokenizerConfig:
    """Settings of the toy tokenizer.

    Attributes:
        levels: number of grey levels, which is the vocabulary.
        patch: side in pixels of the square that one token paints.
    """

    levels: int = 4
    patch: int = 2

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"levels: got {self.levels}, expected 2 or more grey levels")
        if self.patch < 1:
            raise ValueError(f"patch: got {self.patch}, expected a side of 1 pixel or more")


class ToyTokenizer(ImageTokenizer):
    """One token is the grey level of one square patch.

    Signal: float images [B, 3, H, W] in [0, 1], H and W multiples of ``patch``. Token i stands for the grey value
    i / (levels - 1). The domain on which ``decode(encode(x)) == x`` holds exactly is the float32 images that ``decode``
    makes: the three channels equal, every patch of one value, the value on that grid. Other images go to the nearest
    level of each patch's mean.

    Args:
        config: settings; the defaults give 4 levels and patches of 2 x 2.
    """

    def __init__(self, config: ToyTokenizerConfig) -> None:
        super().__init__()
        self.config: ToyTokenizerConfig = config

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
        """Side of a patch, for both axes."""
        return (self.config.patch, self.config.patch)

    def axes(self, signal_shape: Sequence[int]) -> tuple[int, ...]:
        """Grid of patches (H / patch, W / patch) of images [B, 3, H, W].

        Raises:
            ValueError: when it is no image batch or the patch does not divide the size.
        """
        return self._whole_axes(signal_shape)

    def encode(self, signal: Tensor) -> Tensor:
        """Nearest grey level of every patch.

        Args:
            signal: float [B, 3, H, W] in [0, 1].

        Returns:
            Long [B, h * w, 1].

        Raises:
            TypeError: when the images are not floating point.
            ValueError: when the shape does not fit.
        """
        check_images(signal)
        h, w = self.axes(signal.shape)
        patch = self.config.patch
        patches = signal.float().reshape(len(signal), 3, h, patch, w, patch)
        level = (patches.mean(dim=(1, 3, 5)) * (self.config.levels - 1)).round().long()
        return level.clamp(0, self.config.levels - 1).reshape(len(signal), h * w, 1)

    def decode(self, tokens: Tensor, axes: Sequence[int]) -> Tensor:
        """Paint every patch with its grey level.

        Args:
            tokens: long [B, h * w, 1], ids in [0, levels).
            axes: (h, w).

        Returns:
            Float32 [B, 3, h * patch, w * patch] in [0, 1].

        Raises:
            TypeError: when tokens are not long.
            ValueError: when shape, grid or ids do not fit.
        """
        self._check_tokens(tokens, axes)
        h, w = axes
        grey = tokens.to(torch.float32).reshape(len(tokens), 1, h, w) / (self.config.levels - 1)
        grown = grey.repeat_interleave(self.config.patch, dim=2).repeat_interleave(self.config.patch, dim=3)
        return grown.repeat(1, 3, 1, 1)
