"""Samples as a data set to train a classifier on: generated ones, an archive, an ``.npz``.

Shapes: B batch, M samples, H W pixels.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskgen.data import Batch, Source
from maskgen.tasks.data.base import ImageData
from maskgen.tasks.data.broken import Broken
from maskgen.tasks.data.identity import short_hash
from maskgen.tasks.evaluation.sets.base import SampleSet, open_samples
from maskgen.tasks.evaluation.sets.classes import MatchedSamples

_IN_MEMORY = 1 << 30  # bytes of pixels that are kept once they were read


class SampleImages(ImageData):
    """Labelled images of one size, from wherever ``maskgen evaluate`` takes samples.

    Args:
        root: training images: a folder or ``.zip`` with one sub-folder a class, a generated set, or a labelled ``.npz``.
        test_root: held-out ones of the same classes.
        flip: whether training images are mirrored at random.
        num_classes: how many classes there are, where a set may lack the last of them; 0 for what ``root`` shows.
        names: of the classes, in the order of their numbers; those of ``root`` if left out.

    Raises:
        FileNotFoundError, ValueError: no images, no labels, classes that do not match, or a damaged first image.
    """

    def __init__(
        self,
        root: Path,
        test_root: Path | None = None,
        flip: bool = False,
        *,
        num_classes: int = 0,
        names: tuple[str, ...] = (),
    ) -> None:
        self.root, self.test_root, self.flip, self.num_classes = str(root), str(test_root or ""), flip, num_classes
        self.names = tuple(names)
        train = open_samples(Path(root), "image")
        if self.names:
            train = MatchedSamples(train, self.names, "the data")
        self._train = LabelledSource(train, flip=flip)
        self._names = class_names(train, num_classes)
        self._test = None
        if test_root is not None:
            test = MatchedSamples(open_samples(Path(test_root), "image"), train.class_names, str(root))
            if len(class_names(test)) > len(self._names):
                raise ValueError(f"{test_root}: has classes that {root} lacks; expected the same ones")
            self._test = LabelledSource(test)
        self.size = self._train.size

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the folders, or numbers."""
        return self._names

    def train(self) -> Source:
        """All images of ``root``."""
        return self._train

    def test(self) -> Source | None:
        """All images of ``test_root``."""
        return self._test


class LabelledSource:
    """The images of a set with their labels; kept in memory once they were read, if they are not too many.

    Args:
        samples: pictures of one size with labels.
        flip: mirror at random.

    Raises:
        ValueError: no labels, or a damaged first image.
    """

    def __init__(self, samples: SampleSet, *, flip: bool = False) -> None:
        if samples.labels is None:
            raise ValueError(
                f"{samples.name}: got images without labels; expected one sub-folder a class, a generated set with classes, "
                "or an .npz with arr_1"
            )
        self.samples, self.flip, self.labels = samples, flip, torch.tensor(samples.labels)
        first = self._read(0)
        self.size = (first.shape[1], first.shape[2])
        self._kept: dict[int, Tensor] | None = {} if first.numel() * len(samples) <= _IN_MEMORY else None

    def __len__(self) -> int:
        return len(self.samples)

    def identity(self) -> dict[str, Any]:
        """See ``maskgen.tasks.data.identity.Identified``."""
        return {"content": self.samples.digest(), "labels": short_hash(self.labels.tolist()), "flip": self.flip}

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """See ``maskgen.data.Source``.

        Raises:
            ValueError: a damaged image, or one of another size.
        """
        images = torch.stack([self._image(int(index)) for index in indices]).float() / 255
        if self.flip:
            turned = torch.tensor([random.Random(seed).random() < 0.5 for seed in seeds])
            images = torch.where(turned[:, None, None, None], images.flip(-1), images)
        return {"images": images, "labels": self.labels[torch.as_tensor(indices)]}

    def _image(self, index: int) -> Tensor:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        image = self._read(index)
        if tuple(image.shape[1:]) != self.size:
            raise ValueError(
                f"{self.samples.name}: got images of {self.size} and {tuple(image.shape[1:])} pixels, expected one size"
            )
        if self._kept is not None:
            self._kept[index] = image
        return image

    def _read(self, index: int) -> Tensor:
        (sample,) = self.samples.read(index, index + 1)
        if isinstance(sample, Broken):
            raise ValueError(f"{sample.reason}; take it out, or make the set again")
        return sample


def class_names(samples: SampleSet, num_classes: int = 0) -> tuple[str, ...]:
    """One name a class, numbers where nobody gave names.

    Args:
        samples: a set.
        num_classes: at least so many.
    """
    if samples.class_names:
        return samples.class_names
    most = max(samples.labels or [-1]) + 1
    return tuple(str(number) for number in range(max(most, num_classes)))
