"""Folders of images to train on: one sub-folder a class, one class, no classes, or a file of labels.

Shapes: B batch, H W pixels.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from maskgen.tasks.data.broken import Broken
from maskgen.tasks.data.captions import Captions, captioned, find_captions
from maskgen.tasks.data.file_sets import class_folders, warn_of_parts
from maskgen.tasks.data.identity import Compare, files_identity
from maskgen.tasks.data.images.labels import class_names, read_labels
from maskgen.tasks.data.images.sources import Encoded, PictureData, PictureRules
from maskgen.tasks.data.patience import patiently
from maskgen.tasks.data.texts import Texts
from maskgen.tasks.media.shelf import PICTURE_SUFFIXES, Shelf, is_hidden


class Folder(PictureData):
    """A folder of images, one sub-folder a class (any depth below); where there are none, all are of one class.

    Args:
        root: training images.
        size: side of the images in pixels.
        test_root: held-out images with the same sub-folders.
        classes: whether there are classes at all; without, sub-folders mean nothing.
        label_file: a text file with the class of each training image instead of sub-folders, see
            ``maskgen.tasks.data.images.labels.read_labels``.
        test_label_file: the same for ``test_root``.
        names: names of the classes: ``imagenet`` or a text file with one a line; those of the sub-folders if left out.
        test_captions: the captions of ``test_root``, where those of ``root`` are a list; see
            ``maskgen.tasks.data.captions``.
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
        test_captions: str | None = None,
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
        test = None
        told: dict[str, Any] = {"labelled": classes, "compare": settled.compare}
        kind = settled.captions
        if test_root is not None:
            _, found = _labelled(Path(test_root), test_label_file, classes, usual)
            files = _captioned(found, Path(test_root), test_captions or kind, settled.uncaptioned)
            test = (ImageFiles(*files, root=Path(test_root), **told), str(test_root))
        files = _captioned(train, Path(root), kind, settled.uncaptioned)
        self._hold(size, settled, (ImageFiles(*files, root=Path(root), **told), str(root)), test)


class ImageFiles:
    """Image files, read when they are needed; a million paths are kept as strings, which takes a fifth of the memory.

    Args:
        files: path and label of each.
        captions: of each, if they have any.
        root: a folder that they are below.
        labelled: whether the labels mean anything.
        compare: see ``maskgen.tasks.data.identity.Compare``.
    """

    def __init__(
        self,
        files: Sequence[tuple[Path | str, int]],
        captions: Sequence[Captions] = (),
        *,
        root: Path = Path(),
        labelled: bool = True,
        compare: Compare = "auto",
    ) -> None:
        self.paths, self.root, self.compare = [str(path) for path, _ in files], root, compare
        self.labels, self.labelled = [label for _, label in files], labelled
        self.captions = Texts.of("\n".join(some) for some in captions)

    def __len__(self) -> int:
        return len(self.paths)

    def identity(self) -> dict[str, Any]:
        """See ``maskgen.tasks.data.identity.Identified``."""
        names = [path.removeprefix(f"{self.root}{os.sep}") for path in self.paths]
        told = files_identity(self.root, names, self.labels if self.labelled else None, self.compare)
        return told | ({"captions": self.captions.digest()} if len(self.captions) else {})

    def read(self, indices: Sequence[int]) -> list[Encoded | Broken]:
        """See ``maskgen.tasks.data.images.sources.Encodings``."""
        return [self._read(int(index)) for index in indices]

    def _read(self, index: int) -> Encoded | Broken:
        path, label = Path(self.paths[index]), self.labels[index] if self.labelled else None
        captions = tuple(self.captions[index].split("\n")) if len(self.captions) else ()

        def ask() -> Encoded | Broken:
            try:
                return Encoded(str(path), path.read_bytes(), label, captions)
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
    if not root.is_dir():
        raise FileNotFoundError(f"data folder: got {root}, expected a folder of images, one sub-folder a class")
    shelf = Shelf(root, "images")
    hint = "" if label_file is not None or not classes else " in one sub-folder a class"
    images = sorted(shelf.names("image", PICTURE_SUFFIXES, hint=hint), key=lambda name: name.split("/"))
    if not classes:
        warn_of_parts(images, root)
        return (), [(os.path.join(root, name), 0) for name in images]
    if label_file is None:
        names, labels = _by_folder(root, images, known)
    else:
        labels, names = read_labels(label_file, images)
        if known is not None:
            strange = sorted(set(names) - set(known))
            if strange:
                raise ValueError(f"{label_file}: has classes {strange[:5]} that the training images lack")
            labels = [known.index(names[label]) for label in labels]
    return known or names, [(os.path.join(root, name), label) for name, label in zip(images, labels, strict=True)]


def _captioned(
    files: list[tuple[str, int]], root: Path, kind: str | None, share: float
) -> tuple[list[tuple[str, int]], list[Captions]]:
    """The images that have captions, and these; all images and no captions where none are wanted."""
    if kind is None:
        return files, []
    found = find_captions(root, [os.path.relpath(path, root).replace(os.sep, "/") for path, _ in files], kind)
    kept = captioned(str(root), found, share, stacklevel=3)
    return [files[number] for number in kept], [one for one in found if not isinstance(one, Broken)]


def _by_folder(root: Path, images: Sequence[str], known: tuple[str, ...] | None) -> tuple[tuple[str, ...], list[int]]:
    """Class names and the class of each image: its folder below the root, or all are one class."""
    flat = not any("/" in name for name in images)
    folders = () if flat else class_folders(images, root)
    empty = {path.name for path in root.iterdir() if path.is_dir() and not is_hidden(PurePosixPath(path.name))}
    names = known or tuple(sorted({*folders, *(() if flat else empty)})) or (root.name,)
    if not set(folders) <= set(names):
        raise ValueError(f"{root}: has classes {sorted(set(folders) - set(names))[:5]} that the training folder lacks")
    if flat and len(names) > 1:
        raise ValueError(f"{root}: got no sub-folders, expected one for each class, as in the training folder")
    if missing := [] if flat else [name for name in names if name not in folders]:
        warnings.warn(f"{root}: no images for {len(missing)} classes: {', '.join(missing[:5])}", stacklevel=5)
    places = {name: number for number, name in enumerate(names)}
    return names, [0 if flat else places[name.partition("/")[0]] for name in images]
