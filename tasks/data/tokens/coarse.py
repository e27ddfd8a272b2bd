"""The smaller grid of a cascade: tokens of the same pictures, made smaller, by another tokenizer.

Muse (arXiv 2301.00704, section 2.5) trains its second stage on the low-resolution tokens of real pictures.

Shapes: B batch, H W pixels, M tokens of the smaller grid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from maskgen.checkpoint import code_fingerprint
from maskgen.tokenizers.base import Tokenizer


def smaller(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures ``[B, 3, H, W]`` as the first stage sees them, in training and edits: each pixel is the mean of its area."""
    return F.interpolate(pictures, size, mode="area")


@dataclass(frozen=True)
class SmallPictures:
    """How the first stage of a cascade sees a picture.

    Attributes:
        tokenizer: of the first stage, with a single codebook.
        size: (H, W) of its pictures.
    """

    tokenizer: Tokenizer
    size: tuple[int, int]

    @property
    def axes(self) -> tuple[int, ...]:
        """Its token grid."""
        return tuple(self.tokenizer.axes((1, 3, *self.size)))

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Tokens long ``[B, M, 1]`` of float ``[B, 3, H, W]`` of any size, see ``smaller``."""
        device = next((weight.device for weight in self.tokenizer.parameters()), torch.device("cpu"))
        return self.tokenizer.encode(smaller(pictures, self.size).to(device))

    def identity(self) -> str:
        """What decides its tokens."""
        return f"{code_fingerprint(self.tokenizer)} {self.size[0]} x {self.size[1]}"
