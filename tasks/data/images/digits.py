"""Images to train on: handwritten digits here; folders, shards and others by their import path.

Shapes: B batch, H W pixels.
"""

import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskgen.data import Batch, Source, TensorSource
from maskgen.tasks.data.base import ImageData
from maskgen.tasks.data.identity import source_identity


class Digits(ImageData):
    """The 1,797 handwritten 8x8 digits that ship inside scikit-learn (UCI "Optical recognition of handwritten digits").

    Enlarged with bicubic interpolation; 1,437 for training and 360 for testing, split once and for all, by class.

    Args:
        size: side of the images in pixels.
        max_shift: training images move by up to this many pixels along each axis.
    """

    def __init__(self, size: int = 32, max_shift: int = 0) -> None:
        if size < 8:
            raise ValueError(f"size: got {size}, expected at least 8 pixels")
        if not 0 <= max_shift < size:
            raise ValueError(f"max_shift: got {max_shift}, expected 0 <= max_shift < size = {size}")
        self.size, self.max_shift = (size, size), max_shift
        self._train, self._test = _digits(size)

    @property
    def class_names(self) -> tuple[str, ...]:
        """English names of the digits."""
        return ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    def train(self) -> Source:
        """1,437 digits."""
        return ShiftedSource(self._train, self.max_shift) if self.max_shift else self._train

    def test(self) -> TensorSource:
        """360 digits."""
        return self._test


def _digits(size: int) -> tuple[TensorSource, TensorSource]:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise ImportError('the digits come with scikit-learn: pip install "maskgen[demo]"') from None
    found = load_digits()
    small = torch.from_numpy(found.images).float().div_(16)[:, None]
    images = F.interpolate(small, size=(size, size), mode="bicubic", align_corners=False).clamp_(0, 1)
    images = images.expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(found.target).long()
    kept, held_out = train_test_split(range(len(labels)), test_size=360, random_state=0, stratify=found.target)
    return (
        TensorSource(images=images[kept], labels=labels[kept]),
        TensorSource(images=images[held_out], labels=labels[held_out]),
    )


class ShiftedSource:
    """Images in memory, moved a little, with the border colour moving in.

    Args:
        source: holds ``images``.
        max_shift: pixels along each axis.
    """

    def __init__(self, source: TensorSource, max_shift: int) -> None:
        self.source, self.max_shift = source, max_shift

    def __len__(self) -> int:
        return len(self.source)

    def identity(self) -> dict[str, Any]:
        """See ``maskgen.tasks.data.identity.Identified``."""
        return {"max_shift": self.max_shift, **source_identity(self.source)}

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """See ``maskgen.data.Source``."""
        batch = self.source.batch(indices, seeds)
        return {**batch, "images": shifted(batch["images"], map(random.Random, seeds), self.max_shift)}


def shifted(images: Tensor, generators: Iterable[random.Random], max_shift: int) -> Tensor:
    """Images moved at random, with their border moving in.

    Args:
        images: ``[B, 3, H, W]``.
        generators: one an image.
        max_shift: most pixels along each axis.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (max_shift,) * 4, mode="replicate")
    moved = []
    for image, generator in zip(padded, generators, strict=True):
        top, left = generator.randint(0, 2 * max_shift), generator.randint(0, 2 * max_shift)
        moved.append(image[:, top : top + height, left : left + width])
    return torch.stack(moved)
