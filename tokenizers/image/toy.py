"""A lossless image tokenizer without weights: for tests, ours and our users'.

Shapes: B batch, H W pixels, h w token grid, N = h * w, K = 1, V = levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.image.base import ImageTokenizer
from maskgen.tokenizers.settings import check_least

__all__ = ["GreyTokenizer", "ToyTokenizer", "ToyTokenizerConfig"]


@dataclass(frozen=True, kw_only=True)
class ToyTokenizerConfig:
    """Settings of the toy.

    Attributes:
        levels: number of grey levels, which is the vocabulary.
        patch: side in pixels of the square that one token paints.
    """

    levels: int = 4
    patch: int = 2

    def __post_init__(self) -> None:
        check_least(self, levels=2, patch=1)


class GreyTokenizer(Tokenizer):
    """Base of the toys of pixels: one token is the grey level of one box, i standing for the value i / (levels - 1).

    Its config has ``levels``.
    """

    config: Any

    @property
    def vocab_size(self) -> int:
        """Number of grey levels."""
        return int(self.config.levels)

    @property
    def num_codebooks(self) -> int:
        """Always 1."""
        return 1

    def _levels(self, means: Tensor) -> Tensor:
        """Tokens [B, N, 1] of the mean value of each box, [B, ...]: the nearest level."""
        level = (means * (self.vocab_size - 1)).round().long().clamp(0, self.vocab_size - 1)
        return rearrange(level, "b ... -> b (...) 1")

    def _grey(self, tokens: Tensor) -> Tensor:
        """Float32 [B, N] in [0, 1] of tokens [B, N, 1]."""
        return tokens[..., 0].to(torch.float32) / (self.vocab_size - 1)


class ToyTokenizer(ImageTokenizer, GreyTokenizer):
    """One token is the grey level of one square patch.

    Signal: see ``ImageTokenizer``; H and W are multiples of ``patch``. The domain on which ``decode(encode(x)) == x`` holds
    exactly is the float32 images that ``decode`` makes: the three channels equal, every patch of one value, the value on the
    grid of levels. Other images go to the nearest level of each patch's mean.

    Args:
        config: settings; the defaults give 4 levels and patches of 2 x 2.
    """

    def __init__(self, config: ToyTokenizerConfig) -> None:
        super().__init__()
        self.config: ToyTokenizerConfig = config

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
        """Nearest grey level of every patch; see ``Tokenizer.encode``."""
        self._check_signal(signal)
        side = self.config.patch
        boxes = rearrange(signal.float(), "b c (h i) (w j) -> b c h i w j", i=side, j=side)
        return self._levels(boxes.mean(dim=(1, 3, 5)))

    def decode(self, tokens: Tensor, axes: Sequence[int]) -> Tensor:
        """Float32 images with every patch of its grey level; see ``Tokenizer.decode``."""
        self._check_tokens(tokens, axes)
        side = self.config.patch
        return repeat(self._grey(tokens), "b (h w) -> b c (h i) (w j)", c=3, h=axes[0], i=side, j=side)
