"""Images to train on: where they are, how they are cropped, what their classes are called.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch.nn import functional as F

from maskgen.data import Batch, Source, TensorSource
from maskgen.tasks.media import load_image, to_tensor
from maskgen.tasks.signal_data import SignalData

__all__ = ["Digits", "Folder", "FolderSource", "ImageData", "ShiftedSource"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


class ImageData(SignalData):
    """A labelled image data set; batches hold ``images`` float ``[B, 3, H, W]`` in [0, 1] and ``labels`` long ``[B]``."""

    modality: ClassVar[str] = "image"
    key: ClassVar[str] = "images"
    size: tuple[int, int]


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

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """See ``maskgen.data.Source``."""
        batch = self.source.batch(indices, seeds)
        shift, images = self.max_shift, batch["images"]
        height, width = images.shape[-2:]
        padded = F.pad(images, (shift,) * 4, mode="replicate")
        moved = []
        for image, seed in zip(padded, seeds, strict=True):
            draw = random.Random(seed)
            top, left = draw.randint(0, 2 * shift), draw.randint(0, 2 * shift)
            moved.append(image[:, top : top + height, left : left + width])
        return {**batch, "images": torch.stack(moved)}


class Folder(ImageData):
    """A folder of images, one sub-folder a class (any depth below); images directly inside form one class.

    Training images are resized so that they cover the size, then cropped at random and flipped with probability one half;
    test images are cropped in the middle.

    Args:
        root: training images.
        size: side of the images in pixels.
        test_root: held-out images with the same sub-folders.
        flip: whether training images are mirrored at random.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: no images, or a class in ``test_root`` that ``root`` lacks.
    """

    def __init__(self, root: Path, size: int = 256, test_root: Path | None = None, flip: bool = True) -> None:
        self.size, self.flip = (size, size), flip
        self._names = _class_names(Path(root))
        self._train = _list_images(Path(root), self._names)
        self._test = _list_images(Path(test_root), self._names) if test_root is not None else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the sub-folders, sorted."""
        return self._names

    def train(self) -> FolderSource:
        """All images below ``root``."""
        return FolderSource(self._train, self.size, augment=True, flip=self.flip)

    def test(self) -> FolderSource | None:
        """All images below ``test_root``."""
        return None if self._test is None else FolderSource(self._test, self.size, augment=False, flip=False)


class FolderSource:
    """Image files, read when they are needed.

    Args:
        files: path and label of each.
        size: (H, W) in pixels.
        augment: crop at random instead of in the middle.
        flip: mirror at random.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], size: tuple[int, int], *, augment: bool, flip: bool) -> None:
        self.files, self.size, self.augment, self.flip = list(files), size, augment, flip

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """See ``maskgen.data.Source``."""
        images = [
            self._read(self.files[index][0], random.Random(seed)) for index, seed in zip(indices, seeds, strict=True)
        ]
        labels = torch.tensor([self.files[index][1] for index in indices])
        return {"images": torch.cat(images), "labels": labels}

    def _read(self, path: Path, draw: random.Random) -> torch.Tensor:
        image = load_image(path)
        height, width = self.size
        scale = max(height / image.height, width / image.width)
        image = image.resize((max(width, round(image.width * scale)), max(height, round(image.height * scale))))
        spare_x, spare_y = image.width - width, image.height - height
        left = draw.randint(0, spare_x) if self.augment else spare_x // 2
        top = draw.randint(0, spare_y) if self.augment else spare_y // 2
        cropped = to_tensor([image.crop((left, top, left + width, top + height))])
        return cropped.flip(-1) if self.flip and draw.random() < 0.5 else cropped


def _sub_folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise FileNotFoundError(f"data folder: got {root}, expected a folder of images, one sub-folder a class")
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_names(root: Path) -> tuple[str, ...]:
    return tuple(_sub_folders(root)) or (root.name,)


def _list_images(root: Path, names: tuple[str, ...]) -> list[tuple[Path, int]]:
    own = _sub_folders(root)
    if not set(own) <= set(names):
        raise ValueError(f"{root}: has classes {sorted(set(own) - set(names))[:5]} that the training folder lacks")
    if not own and len(names) > 1:
        raise ValueError(f"{root}: got no sub-folders, expected one for each class, as in the training folder")
    files: list[tuple[Path, int]] = []
    empty = []
    for label, name in enumerate(names):
        folder = root / name if own else root
        found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _SUFFIXES and path.is_file()]
        files += [(path, label) for path in found]
        if not found:
            empty.append(name)
    if not files:
        raise ValueError(f"{root}: no images found; expected {', '.join(sorted(_SUFFIXES))} in one sub-folder a class")
    if empty:
        warnings.warn(f"{root}: no images for {len(empty)} classes: {', '.join(empty[:5])}", stacklevel=3)
    return files
