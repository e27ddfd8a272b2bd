"""Shards of images to train on, in WebDataset's layout: here, behind http or s3, at the end of a pipe.

Shapes: B batch, H W pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskgen.tasks.data.captions import ending_of
from maskgen.tasks.data.images.labels import class_names
from maskgen.tasks.data.images.places import ShardPlace, expand
from maskgen.tasks.data.images.sources import PictureData, PictureRules
from maskgen.tasks.data.images.tar import TarShards, index_folder


class ShardImages(PictureData):
    """Images in tar shards: each sample a picture (``.jpg``, ``.png``, ``.webp``...) and its class (``.cls``, ``.json``).

    ``captions`` names the member with the captions: ``txt``, ``text``, ``caption``... or ``json:field``.

    Every shard is read through once, before the first step; an index of it is kept. After that each process reads the bytes
    of its own samples only, in an order that depends on seed and epoch alone, so that a run goes on at the very sample where
    it stopped, on any number of processes and workers. Shards that serve no ranges (``pipe:``, ``.tar.gz``) are fetched
    whole, once an epoch for all processes of a machine.

    Args:
        shards: a folder of tar files, or their addresses as ``s3://bucket/train-{0000..1280}.tar``, joined by ``::``.
        num_classes: how many classes there are; 0 for what the labels show, and for data without.
        size: side of the images in pixels.
        test_shards: held-out ones.
        picture: which member is the picture, as ``jpg`` or ``seg.png``; needed where samples hold several.
        label: which member holds the class id: ``cls``, or ``json:field`` for a field of ``.json``; null for no classes.
        names: names of the classes, ``imagenet`` or a text file with one a line; numbers if left out.
        window: how many shards are mixed at once; 0 for all. If left out, all where ranges are read, else 16: twice as many
            are kept on the disk.
        index: folder for the index and for fetched shards; ``~/.cache/maskgen/shards`` if left out.
        **rules: see ``maskgen.tasks.data.images.sources.PictureRules``.

    Raises:
        FileNotFoundError: a shard that is not there.
        ValueError: no samples, samples with several pictures, labels beyond ``num_classes``, settings out of range.
        maskgen.data.DataUnavailable: a place that cannot be reached.
        ImportError: fsspec lacks what the address needs.
    """

    def __init__(
        self,
        shards: str,
        num_classes: int = 0,
        size: int = 256,
        test_shards: str | None = None,
        *,
        picture: str | None = None,
        label: str | None = "cls",
        names: str | None = None,
        window: int | None = None,
        index: Path | None = None,
        **rules: Any,
    ) -> None:
        if label is not None and not (label.isalnum() or label.startswith("json:")):
            raise ValueError(f"label: got {label!r}, expected a member's ending such as cls, or json:field, or null")
        if window is not None and window < 0:
            raise ValueError(f"window: got {window}, expected 0 (all shards) or how many are mixed at once")
        settled, folder = PictureRules(**rules), index_folder(index)
        picture = picture and picture.lower().removeprefix(".")
        captions = settled.captions
        if captions is not None:
            ending_of(captions)
        told: dict[str, Any] = {"label": label, "picture": picture, "compare": settled.compare}
        told |= {"captions": captions, "uncaptioned": settled.uncaptioned}
        train = _open(shards, folder, window, **told)
        test = None if test_shards is None else _open(test_shards, folder, window, **told)
        self.min_scale, self.shards, self.label, self.window = settled.min_scale, shards, label or "", train.window
        self.picture = picture or ""
        counted = self._count_classes(num_classes, train, test) if label is not None else 0
        self._names = class_names(names, tuple(str(number) for number in range(counted)))
        self._hold(size, settled, (train, shards), None if test is None else (test, test_shards or ""))

    def _count_classes(self, given: int, train: TarShards, test: TarShards | None) -> int:
        most = int(max(np.max(part.labels) for part in (train, test) if part is not None)) + 1
        if given and most > given:
            raise ValueError(
                f"num_classes: got {given}, but the shards have a label {most - 1}, expected 0 to {given - 1}"
            )
        if not given and most and len(np.unique(train.labels[train.labels >= 0])) < most:
            raise ValueError(
                f"num_classes: got none, and the labels from 0 to {most - 1} have gaps; give the number of classes, or "
                "number them without gaps"
            )
        if not given and not most:
            raise ValueError(
                f"{self.shards}: got samples without {self.label}, expected a class id in each, or label: null"
            )
        return given or most


def _open(shards: str, folder: Path, window: int | None, **told: Any) -> TarShards:
    urls: Sequence[str] = expand(shards)
    whole = any(ShardPlace(url, folder, 1).whole for url in urls)
    chosen = window if window is not None else (16 if whole else 0)
    # What is fetched whole must stay until its samples are used up, those of the next window beside them.
    most = 2 * (chosen or len(urls)) + 2
    places = [ShardPlace(url, folder, most) for url in urls]
    return TarShards(places, folder=folder, window=chosen, **told)
