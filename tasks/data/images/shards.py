"""Shards of images to train on, in WebDataset's layout: here, behind http or s3, at the end of a pipe.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from maskgen.tasks.data.base import ImageData
from maskgen.tasks.data.broken import BrokenExamples, Tolerance
from maskgen.tasks.data.images.labels import class_names
from maskgen.tasks.data.images.places import ShardPlace, expand
from maskgen.tasks.data.images.sources import Crop, CropKind, PictureSource
from maskgen.tasks.data.images.tar import TarShards, index_folder

__all__ = ["ShardImages", "ShardSource"]


class ShardImages(ImageData):
    """Images in tar shards: each sample a picture (``.jpg``, ``.png``, ``.webp``...) and its class (``.cls``, ``.json``).

    Every shard is read through once, before the first step; an index of it is kept. After that each process reads the bytes
    of its own samples only, in an order that depends on seed and epoch alone, so that a run goes on at the very sample where
    it stopped, on any number of processes and workers. Shards that serve no ranges (``pipe:``, ``.tar.gz``) are fetched
    whole, once an epoch for all processes of a machine.

    Args:
        shards: a folder of tar files, or their addresses as ``s3://bucket/train-{0000..1280}.tar``, joined by ``::``.
        num_classes: how many classes there are; 0 for what the labels show, and for data without.
        size: side of the images in pixels.
        test_shards: held-out ones, cropped in the middle.
        flip: whether training images are mirrored at random.
        crop: see ``maskgen.tasks.data.images.sources.Crop``.
        min_scale: see there.
        label: which member holds the class id: ``cls``, or ``json:field`` for a field of ``.json``; null for no classes.
        names: names of the classes, ``imagenet`` or a text file with one a line; numbers if left out.
        window: how many shards are mixed at once; 0 for all. If left out, all where ranges are read, else 16: twice as many
            are kept on the disk.
        index: folder for the index and for fetched shards; ``~/.cache/maskgen/shards`` if left out.
        broken: share of the samples that may be unusable.

    Raises:
        FileNotFoundError: a shard that is not there.
        ValueError: no samples, labels beyond ``num_classes``, settings out of range.
        maskgen.data.DataUnavailable: a place that cannot be reached.
        ImportError: fsspec lacks what the address needs.
    """

    def __init__(
        self,
        shards: str,
        num_classes: int = 0,
        size: int = 256,
        test_shards: str | None = None,
        flip: bool = True,
        *,
        crop: CropKind = "random",
        min_scale: float = 0.8,
        label: str | None = "cls",
        names: str | None = None,
        window: int | None = None,
        index: Path | None = None,
        broken: float = 0.05,
    ) -> None:
        if label is not None and not (label.isalnum() or label.startswith("json:")):
            raise ValueError(f"label: got {label!r}, expected a member's ending such as cls, or json:field, or null")
        if window is not None and window < 0:
            raise ValueError(f"window: got {window}, expected 0 (all shards) or how many are mixed at once")
        self.size, self.flip, self.crop, self.min_scale = (size, size), flip, crop, min_scale
        self.shards, self.label = shards, label or ""
        folder = index_folder(index)
        self._crop = Crop(size=self.size, kind=crop, min_scale=min_scale, flip=flip)
        self._train = _open(shards, label, folder, window)
        self._test = None if test_shards is None else _open(test_shards, label, folder, window)
        self.window = self._train.window
        counted = self._classes(num_classes) if label is not None else 0
        self._names = class_names(names, tuple(str(number) for number in range(counted)))
        self._broken = BrokenExamples(Tolerance(place=shards, total=len(self._train), share=broken))
        limit = Tolerance(place=test_shards or "", total=len(self._test or ()), share=broken)
        self._test_broken = BrokenExamples(limit)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Numbers, or the names that were given."""
        return self._names

    def train(self) -> ShardSource:
        """All samples of ``shards``."""
        return ShardSource(self._train, self._crop, self._broken)

    def test(self) -> ShardSource | None:
        """All samples of ``test_shards``."""
        if self._test is None:
            return None
        return ShardSource(self._test, Crop(size=self.size, kind="centre", flip=False), self._test_broken)

    def log_skipped(self, path: Path) -> None:
        """See ``SignalData``."""
        self._broken.keep(path)

    def _classes(self, given: int) -> int:
        most = int(max(np.max(part.labels) for part in (self._train, self._test) if part is not None)) + 1
        if given and most > given:
            raise ValueError(
                f"num_classes: got {given}, but the shards have a label {most - 1}, expected 0 to {given - 1}"
            )
        if not given and most and len(np.unique(self._train.labels[self._train.labels >= 0])) < most:
            raise ValueError(
                f"num_classes: got none, and the labels from 0 to {most - 1} have gaps; give the number of classes, or "
                "number them without gaps"
            )
        if not given and not most:
            raise ValueError(
                f"{self.shards}: got samples without {self.label}, expected a class id in each, or label: null"
            )
        return given or most


class ShardSource(PictureSource):
    """Samples of shards, which like to be read in the order of the shards.

    Args:
        pictures: the samples.
        crop: how the images get the wanted size.
        broken: told of broken ones.
    """

    pictures: TarShards

    def order(self, seed: int) -> torch.Tensor:
        """See ``maskgen.data.OrderedSource``."""
        return self.pictures.order(seed)


def _open(shards: str, label: str | None, folder: Path, window: int | None) -> TarShards:
    urls: Sequence[str] = expand(shards)
    whole = any(ShardPlace(url, folder, 1).whole for url in urls)
    chosen = window if window is not None else (16 if whole else 0)
    # What is fetched whole must stay until its samples are used up, those of the next window beside them.
    most = 2 * (chosen or len(urls)) + 2
    return TarShards([ShardPlace(url, folder, most) for url in urls], label=label, folder=folder, window=chosen)
