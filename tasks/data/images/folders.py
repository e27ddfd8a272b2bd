"""Folders of images to train on: one sub-folder a class, one class, no classes, or a file of labels.

Shapes: B batch, H W pixels.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskgen.tasks.data.broken import Broken
from maskgen.tasks.data.identity import Compare, files_identity
from maskgen.tasks.data.images.labels import class_names, read_labels
from maskgen.tasks.data.images.sources import Encoded, PictureData, PictureRules
from maskgen.tasks.data.patience import patiently
from maskgen.tasks.media.shelf import files_below

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


class Folder(PictureData):
    """A folder of images, one sub-folder a class (any depth below); images directly inside form one class.

    Args:
        root: training images.
        size: side of the images in pixels.
        test_root: held-out images with the same sub-folders.
        classes: whether there are classes at all; without, sub-folders mean nothing.
        label_file: a text file with the class of each training image instead of sub-folders, see
            ``maskgen.tasks.data.images.labels.read_labels``.
        test_label_file: the same for ``test_root``.
        names: names of the classes: ``imagenet`` or a text file with one a line; those of the sub-folders if left out.
        **rules: see ``maskgen.tasks.data.images.sources.PictureRules``.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: no images, a class in ``test_root`` that ``root`` lacks, labels that do not fit, settings out of range.
    """

    def __init__(
        self,
        root: Path,
        size: int = 256,
        test_root: Path | None = None,
        *,
        classes: bool = True,
        label_file: Path | None = None,
        test_label_file: Path | None = None,
        names: str | None = None,
        **rules: Any,
    ) -> None:
        settled = PictureRules(**rules)
        self.min_scale, self.classes = settled.min_scale, classes
        if label_file is not None and not classes:
            raise ValueError("label_file: got one with classes: false, expected one or the other")
        if test_root is not None and (label_file is None) != (test_label_file is None):
            raise ValueError("label_file and test_label_file: got one of them, expected both or none with a test_root")
        usual, train = _labelled(Path(root), label_file, classes, None)
        self._names = class_names(names, usual)
        test, told = None, {"labelled": classes, "compare": settled.compare}
        if test_root is not None:
            _, found = _labelled(Path(test_root), test_label_file, classes, usual)
            test = (ImageFiles(found, root=Path(test_root), **told), str(test_root))
        self._hold(size, settled, (ImageFiles(train, root=Path(root), **told), str(root)), test)


class ImageFiles:
    """Image files, read when they are needed; a million paths are kept as strings, which takes a fifth of the memory.

    Args:
        files: path and label of each.
        root: a folder that they are below.
        labelled: whether the labels mean anything.
        compare: see ``maskgen.tasks.data.identity.Compare``.
    """

    def __init__(
        self,
        files: Sequence[tuple[Path | str, int]],
        *,
        root: Path = Path(),
        labelled: bool = True,
        compare: Compare = "auto",
    ) -> None:
        self.paths, self.root, self.compare = [str(path) for path, _ in files], root, compare
        self.labels, self.labelled = [label for _, label in files], labelled

    def __len__(self) -> int:
        return len(self.paths)

    def identity(self) -> dict[str, Any]:
        """See ``maskgen.tasks.data.identity.Identified``."""
        names = [path.removeprefix(f"{self.root}{os.sep}") for path in self.paths]
        return files_identity(self.root, names, self.labels if self.labelled else None, self.compare)

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
    found = (path for path in files_below(root) if os.path.splitext(path)[1].lower() in _SUFFIXES)
    return sorted(found, key=lambda path: path.split(os.sep))


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
