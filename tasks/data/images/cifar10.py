"""CIFAR-10 (Krizhevsky 2009): 60,000 photographs of 32 x 32 pixels in ten classes, from the files as they are given out.

Shapes: M images, H W pixels.
"""

import hashlib
import random
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from maskgen.data import Batch, Source
from maskgen.tasks.data.base import ImageData
from maskgen.tasks.data.identity import short_hash
from maskgen.tasks.data.images.digits import shifted
from maskgen.tasks.data.images.sources import decode_picture

_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_SIDE = 32

_RECORD = 1 + 3 * _SIDE * _SIDE  # bytes of an image in the binary version: label, then red, green, blue

_TRAIN, _TEST = tuple(f"data_batch_{number}.bin" for number in range(1, 6)), ("test_batch.bin",)


class Cifar10(ImageData):
    """50,000 images for training and 10,000 for testing, all kept in memory.

    Args:
        root: where they are: a folder with ``cifar10-train.zip`` and ``cifar10-test.zip`` (one folder of pictures a class),
            the archive ``cifar-10-binary.tar.gz`` or its folder ``cifar-10-batches-bin``. The Python version holds pickles,
            which can run code, and is not read.
        flip: whether training images are mirrored at random.
        max_shift: training images move by up to this many pixels along each axis.
        limit: train and test on the first so many images of each class only; 0 for all.

    Raises:
        FileNotFoundError: none of these are there.
        ValueError: a damaged file, pickles, or settings out of range.
    """

    def __init__(self, root: Path, flip: bool = True, max_shift: int = 0, *, limit: int = 0) -> None:
        if not 0 <= max_shift < _SIDE or limit < 0:
            raise ValueError(
                f"Cifar10: got max_shift {max_shift}, limit {limit}; expected 0 to {_SIDE - 1}, and 0 or more"
            )
        self.size, self.flip, self.max_shift, self.limit = (_SIDE, _SIDE), flip, max_shift, limit
        train, test = _read(Path(root))
        self._train = PixelSource(*_first(train, limit), flip=flip, max_shift=max_shift)
        self._test = PixelSource(*_first(test, limit))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The ten names, in the official order."""
        return _NAMES

    def train(self) -> Source:
        """50,000 images."""
        return self._train

    def test(self) -> Source:
        """10,000 images."""
        return self._test


class PixelSource:
    """Images in memory as bytes, a quarter of what floats take; mirrored and moved by their seeds.

    Args:
        pixels: uint8 ``[M, 3, H, W]``.
        labels: long ``[M]``.
        flip: mirror with probability one half.
        max_shift: move by up to this many pixels along each axis, with the border moving in.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, *, flip: bool = False, max_shift: int = 0) -> None:
        self.pixels, self.labels, self.flip, self.max_shift = pixels, labels, flip, max_shift

    def __len__(self) -> int:
        return len(self.pixels)

    def identity(self) -> dict[str, Any]:
        """See ``maskgen.tasks.data.identity.Identified``."""
        return {
            "augmentation": [self.flip, self.max_shift],
            "content": hashlib.sha256(self.pixels.numpy().tobytes()).hexdigest()[:16],
            "labels": short_hash(self.labels.tolist()),
        }

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """See ``maskgen.data.Source``."""
        chosen = torch.as_tensor(indices)
        images = self.pixels[chosen].float().div_(255)
        draws = [random.Random(seed) for seed in seeds]
        if self.flip:
            turned = torch.tensor([draw.random() < 0.5 for draw in draws])
            images = torch.where(turned[:, None, None, None], images.flip(-1), images)
        if self.max_shift:
            images = shifted(images, draws, self.max_shift)
        return {"images": images, "labels": self.labels[chosen]}


_Half = tuple[Tensor, Tensor]


def _first(half: _Half, limit: int) -> _Half:
    """The first ``limit`` images of each class; all for 0."""
    pixels, labels = half
    if not limit:
        return half
    kept = torch.cat([(labels == label).nonzero()[:limit, 0] for label in range(len(_NAMES))]).sort().values
    return pixels[kept], labels[kept]


def _read(root: Path) -> tuple[_Half, _Half]:
    zips = (root / "cifar10-train.zip", root / "cifar10-test.zip")
    if all(path.is_file() for path in zips):
        return _from_zip(zips[0]), _from_zip(zips[1])
    if root.is_file() and tarfile.is_tarfile(root):
        with tarfile.open(root) as archive:
            members = {PurePosixPath(member.name).name: member for member in archive if member.isfile()}
            if members.keys() >= {*_TRAIN, *_TEST}:

                def content(name: str) -> bytes:
                    found = archive.extractfile(members[name])
                    return found.read() if found else b""

                return _from_records(map(content, _TRAIN), root), _from_records(map(content, _TEST), root)
            names = set(members)
    else:
        names = {path.name for path in root.iterdir()} if root.is_dir() else set()
        inside = root / "cifar-10-batches-bin"
        if inside.is_dir() and not names >= {*_TRAIN, *_TEST}:
            return _read(inside)
        if names >= {*_TRAIN, *_TEST}:
            train, test = ([(root / name).read_bytes() for name in half] for half in (_TRAIN, _TEST))
            return _from_records(train, root), _from_records(test, root)
    if "data_batch_1" in names or "cifar-10-batches-py" in names:
        raise ValueError(
            f"{root}: holds CIFAR-10 for Python: pickles, which can run any code when they are read; fetch the binary "
            "version (cifar-10-binary.tar.gz) instead"
        )
    raise FileNotFoundError(
        f"root: got {root}, expected cifar10-train.zip and cifar10-test.zip in it, cifar-10-binary.tar.gz or "
        "cifar-10-batches-bin"
    )


def _from_records(files: Iterable[bytes], root: Path) -> _Half:
    parts = list(files)
    content = b"".join(parts)
    if not content or any(len(part) % _RECORD for part in parts):
        raise ValueError(f"{root}: expected whole records of {_RECORD} bytes in each file; fetch it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    labels = torch.from_numpy(records[:, 0].astype(np.int64))
    if int(labels.max()) >= len(_NAMES):
        raise ValueError(f"{root}: got a label {int(labels.max())}, expected 0 to 9; is it CIFAR-100?")
    return rearrange(torch.from_numpy(records[:, 1:].copy()), "m (c h w) -> m c h w", c=3, h=_SIDE), labels


def _from_zip(path: Path) -> _Half:
    """Pictures in one folder a class."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = list(_pictures(archive))
            if not entries:
                raise ValueError(f"{path}: no pictures in it, expected one folder a class")
            pixels = torch.empty(len(entries), 3, _SIDE, _SIDE, dtype=torch.uint8)
            for place, (name, _) in enumerate(entries):
                picture = decode_picture(archive.read(name), f"{path}/{name}")
                if picture.size != (_SIDE, _SIDE):
                    raise ValueError(f"{path}/{name}: got {picture.size} pixels, expected {_SIDE} x {_SIDE}")
                pixels[place] = rearrange(torch.from_numpy(np.array(picture)), "h w c -> c h w")
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: damaged ({error}); fetch it again") from None
    return pixels, torch.tensor([label for _, label in entries])


def _pictures(archive: zipfile.ZipFile) -> Iterator[tuple[str, int]]:
    """Path and class of each picture, sorted."""
    for name in sorted(archive.namelist()):
        parts = PurePosixPath(name).parts
        if len(parts) >= 2 and parts[-2] in _NAMES and not name.endswith("/"):
            yield name, _NAMES.index(parts[-2])
