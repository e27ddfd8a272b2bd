"""Folders of images to train on: one sub-folder a class, one class, no classes, or a file of labels.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from maskgen.tasks.data.base import ImageData
from maskgen.tasks.data.broken import Broken, BrokenExamples, Tolerance
from maskgen.tasks.data.images.labels import class_names, read_labels
from maskgen.tasks.data.images.sources import Crop, CropKind, Encoded, PictureSource
from maskgen.tasks.data.patience import patiently

__all__ = ["Folder", "FolderSource"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


class Folder(ImageData):
    """A folder of images, one sub-folder a class (any depth below); images directly inside form one class.

    Images that cannot be decoded are skipped: the next one stands in, and ``skipped.jsonl`` of the run names them. Too many
    are an error.

    Args:
        root: training images.
        size: side of the images in pixels.
        test_root: held-out images with the same sub-folders, cropped in the middle.
        flip: whether training images are mirrored at random.
        crop: how training images are cropped, see ``maskgen.tasks.data.images.sources.Crop``.
        min_scale: see there.
        classes: whether there are classes at all; without, sub-folders mean nothing.
        label_file: a text file with the class of each training image instead of sub-folders, see
            ``maskgen.tasks.data.images.labels.read_labels``.
        test_label_file: the same for ``test_root``.
        names: names of the classes: ``imagenet`` or a text file with one a line; those of the sub-folders if left out.
        broken: share of the images that may be unusable.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: no images, a class in ``test_root`` that ``root`` lacks, labels that do not fit, settings out of range.
    """

    def __init__(
        self,
        root: Path,
        size: int = 256,
        test_root: Path | None = None,
        flip: bool = True,
        *,
        crop: CropKind = "random",
        min_scale: float = 0.8,
        classes: bool = True,
        label_file: Path | None = None,
        test_label_file: Path | None = None,
        names: str | None = None,
        broken: float = 0.05,
    ) -> None:
        self.size, self.flip, self.crop, self.min_scale, self.classes = (size, size), flip, crop, min_scale, classes
        if label_file is not None and not classes:
            raise ValueError("label_file: got one with classes: false, expected one or the other")
        if test_root is not None and (label_file is None) != (test_label_file is None):
            raise ValueError("label_file and test_label_file: got one of them, expected both or none with a test_root")
        self._crop = Crop(size=self.size, kind=crop, min_scale=min_scale, flip=flip)
        usual, train = _labelled(Path(root), label_file, classes, None)
        self._names = class_names(names, usual)
        self._train = train
        self._broken = BrokenExamples(Tolerance(place=str(root), total=len(train), share=broken))
        self._test = None
        if test_root is not None:
            _, self._test = _labelled(Path(test_root), test_label_file, classes, usual)
            limit = Tolerance(place=str(test_root), total=len(self._test), share=broken)
            self._test_broken = BrokenExamples(limit)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the sub-folders, sorted, or those that were given."""
        return self._names

    def train(self) -> FolderSource:
        """All images below ``root``."""
        return FolderSource(
            self._train,
            self.size,
            augment=True,
            flip=self.flip,
            crop=self._crop,
            broken=self._broken,
            labelled=self.classes,
        )

    def test(self) -> FolderSource | None:
        """All images below ``test_root``."""
        if self._test is None:
            return None
        return FolderSource(
            self._test, self.size, augment=False, flip=False, broken=self._test_broken, labelled=self.classes
        )

    def log_skipped(self, path: Path) -> None:
        """See ``SignalData``."""
        self._broken.keep(path)


class _Files:
    """Image files, read when they are needed; a million paths are kept as strings, which takes a fifth of the memory."""

    def __init__(self, files: Sequence[tuple[Path | str, int]], labelled: bool) -> None:
        self.paths, self.labels, self.labelled = (
            [str(path) for path, _ in files],
            [label for _, label in files],
            labelled,
        )

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: Sequence[int]) -> list[Encoded | Broken]:
        """See ``maskgen.tasks.data.images.sources.Encodings``."""
        return [self._read(Path(self.paths[index]), self.labels[index]) for index in indices]

    def _read(self, path: Path, label: int) -> Encoded | Broken:
        def ask() -> Encoded | Broken:
            try:
                return Encoded(str(path), path.read_bytes(), label if self.labelled else None)
            except OSError as error:
                # One file that is gone is a broken example; its whole folder gone, or a failing disk, is something else.
                if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError) and path.parent.is_dir():
                    return Broken(str(path), f"{path}: {error.strerror}")
                raise

        return patiently(str(path), ask)


class FolderSource(PictureSource):
    """Image files, read when they are needed.

    Args:
        files: path and label of each.
        size: (H, W) in pixels.
        augment: crop at random instead of in the middle.
        flip: mirror at random.
        crop: how the images get the size, instead of what the two above say.
        broken: told of broken images; without it the first one is an error.
        labelled: whether batches hold the labels.
    """

    pictures: _Files

    def __init__(
        self,
        files: Sequence[tuple[Path | str, int]],
        size: tuple[int, int],
        *,
        augment: bool,
        flip: bool,
        crop: Crop | None = None,
        broken: BrokenExamples | None = None,
        labelled: bool = True,
    ) -> None:
        plain = Crop(size=size, kind="random" if augment else "centre", flip=flip)
        none = Tolerance(place="images", total=len(files), share=0.0)
        super().__init__(_Files(files, labelled), crop or plain, broken or BrokenExamples(none))

    @property
    def files(self) -> list[tuple[Path, int]]:
        """Path and label of each image."""
        return [(Path(path), label) for path, label in zip(self.pictures.paths, self.pictures.labels, strict=True)]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.crop.size


def _labelled(
    root: Path, label_file: Path | None, classes: bool, known: tuple[str, ...] | None
) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
    """Class names, and the images with their class; ``known`` are the classes of the training images."""
    if label_file is not None or not classes:
        files = _images(root)
        if not files:
            raise ValueError(f"{root}: no images found; expected {', '.join(sorted(_SUFFIXES))}")
        if label_file is None:
            return (), [(path, 0) for path in files]
        labels, names = read_labels(label_file, [Path(path).relative_to(root).as_posix() for path in files])
        if known is not None:
            strange = sorted(set(names) - set(known))
            if strange:
                raise ValueError(f"{label_file}: has classes {strange[:5]} that the training images lack")
            labels = [known.index(names[label]) for label in labels]
        return known or names, list(zip(files, labels, strict=True))
    names = known or tuple(_sub_folders(root)) or (root.name,)
    return names, _list_images(root, names)


def _sub_folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise FileNotFoundError(f"data folder: got {root}, expected a folder of images, one sub-folder a class")
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(root: Path) -> list[str]:
    """All image files below a folder, sorted; hidden ones are none, links to folders are followed once."""
    if not root.is_dir():
        raise FileNotFoundError(f"data folder: got {root}, expected a folder of images")

    def walk() -> Iterator[str]:
        for at, folders, names in os.walk(root, followlinks=True):
            above = {place.resolve() for place in (Path(at), *Path(at).parents)}
            folders[:] = [
                name for name in folders if not name.startswith(".") and Path(at, name).resolve() not in above
            ]
            for name in names:
                if not name.startswith(".") and os.path.splitext(name)[1].lower() in _SUFFIXES:
                    yield os.path.join(at, name)

    return sorted(walk(), key=lambda path: path.split(os.sep))


def _list_images(root: Path, names: tuple[str, ...]) -> list[tuple[str, int]]:
    own = _sub_folders(root)
    if not set(own) <= set(names):
        raise ValueError(f"{root}: has classes {sorted(set(own) - set(names))[:5]} that the training folder lacks")
    if not own and len(names) > 1:
        raise ValueError(f"{root}: got no sub-folders, expected one for each class, as in the training folder")
    files: list[tuple[str, int]] = []
    empty = []
    for label, name in enumerate(names):
        folder = root / name if own else root
        found = _images(folder) if folder.is_dir() else []
        files += [(path, label) for path in found]
        if not found:
            empty.append(name)
    if not files:
        raise ValueError(f"{root}: no images found; expected {', '.join(sorted(_SUFFIXES))} in one sub-folder a class")
    if empty:
        warnings.warn(f"{root}: no images for {len(empty)} classes: {', '.join(empty[:5])}", stacklevel=4)
    return files
