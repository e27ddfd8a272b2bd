"""Files that say which class an image has, and names of classes."""

import csv
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from maskgen.tasks.conditions.classes import imagenet_classes, listed
from maskgen.tasks.data.texts import decode_text, spelling

_IMAGE, _LABEL = (
    ("image", "file", "filename", "file_name", "path", "name"),
    ("label", "class", "category", "class_name"),
)


def read_labels(path: Path, images: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Labels of images from a text file with a line ``image,label`` for each: comma, semicolon, tab or white space between.

    Paths may be spelt with backslashes, ``./`` and accents of either kind. A heading that names the columns (image, file,
    filename, path; label, class, category, in any case) tells which they are, whatever stands beside them.

    Labels are all numbers, 0 to K - 1, or all names; the classes of names are their sorted set. A first line of which the
    left part is no image is a heading.

    Args:
        path: the file; a line is for ``path/of/image.jpg`` below the data's folder.
        images: such paths, of the images there are.

    Returns:
        Class id of each image, and one name a class (the numbers, where the file has numbers).

    Raises:
        FileNotFoundError: no such file.
        ValueError: images without a label, labels without an image, an image named twice, numbers with a gap, or no text.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"label_file: got {path}, expected a text file with a line `image,label` for each image"
        )
    found = _read_lines(path, _by_spelling(path, images))
    bare = [name for name in images if name not in found]
    gone = sorted(found.keys() - set(images))
    if bare:
        remedy = "add a line for each, or take the images away"
        if gone:
            remedy = (
                f"{len(gone)} lines name no image ({_some(gone)}); write paths as they stand below the data's folder"
            )
        raise ValueError(f"{path}: {len(bare)} of {len(images)} images have no label ({_some(bare)}); {remedy}")
    if gone:
        raise ValueError(
            f"{path}: {len(gone)} labels are for images that do not exist ({_some(gone)}); take the lines out"
        )
    labels = [found[name] for name in images]
    if all(label.isdecimal() for label in labels):
        numbers = [int(label) for label in labels]
        classes = max(numbers, default=-1) + 1
        missing = [str(number) for number in sorted(set(range(min(classes, 1 << 20))) - set(numbers))]
        if missing:
            raise ValueError(
                f"{path}: got class numbers up to {classes - 1}, but no image for {len(missing)} of them "
                f"({_some(missing)}); expected 0 to K - 1 without gaps; write names instead of numbers to have them numbered"
            )
        return numbers, tuple(str(number) for number in range(classes))
    names = sorted(set(labels))
    places = {name: number for number, name in enumerate(names)}
    return [places[label] for label in labels], tuple(names)


def class_names(given: str | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    """Names of classes.

    Args:
        given: None for the usual ones, ``imagenet`` for the 1000 English names of ImageNet, or a text file with one name a
            line in the order of the labels.
        usual: what the data call them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another number of names than of classes.
    """
    if given is None:
        return usual
    if given == "imagenet":
        names = imagenet_classes()
    else:
        path = Path(given)
        if not path.is_file():
            raise FileNotFoundError(f"names: got {given}, expected imagenet or a text file with one class name a line")
        names = tuple(line.strip() for line in decode_text(path.read_bytes(), str(path)).splitlines() if line.strip())
    if len(names) != len(usual):
        raise ValueError(f"names: got {len(names)} from {given}, expected {len(usual)}, one for each class of the data")
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        warnings.warn(
            f"names: {given} has {listed(twice)} more than once; such classes are told apart by number", stacklevel=2
        )
    return names


def _by_spelling(path: Path, images: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in images:
        if (other := found.setdefault(spelling(name), name)) != name:
            raise ValueError(f"{path}: {other} and {name} are spelt the same but for accents; rename one of them")
    return found


def _read_lines(path: Path, images: Mapping[str, str]) -> dict[str, str]:
    """Label of each image; ``images`` are their names by the spelling that all spellings are brought to."""
    lines = [line for line in decode_text(path.read_bytes(), str(path)).splitlines() if line.strip()]
    found: dict[str, str] = {}
    left, right, wide = 0, 1, 2  # columns of image and label, and how many there are
    for number, line in enumerate(lines):
        parts = _split(line, left, images)
        if number == 0 and (columns := _columns(parts)) is not None and spelling(parts[columns[0]]) not in images:
            (left, right), wide = columns, len(parts)
            continue
        if len(parts) != wide or not parts[left].strip() or not parts[right].strip():
            raise ValueError(f"{path}: line {number + 1}: got {line[:80]!r}, expected `image,label`")
        name, label = images.get(spelling(parts[left]), parts[left].strip()), parts[right].strip()
        if number == 0 and spelling(name) not in images and len(lines) > len(images):
            continue
        if name in found:
            raise ValueError(f"{path}: line {number + 1}: got a second label for {name}, expected one line an image")
        found[name] = unicodedata.normalize("NFC", label)
    return found


def _split(line: str, column: int, images: Mapping[str, str]) -> list[str]:
    """The columns of a line; of several marks between them, the one that gives the name of an image."""
    options = [next(csv.reader([line], delimiter=mark)) for mark in "\t,;" if mark in line]
    options.append(line.rsplit(maxsplit=1))
    fitting = (parts for parts in options if column < len(parts) and spelling(parts[column]) in images)
    return next(fitting, options[0])


def _columns(heading: Sequence[str]) -> tuple[int, int] | None:
    """Which columns of a heading are the image's and the label's; None for what is no heading."""
    words = [word.strip().lower() for word in heading]
    image, label = (next((word for word in known if word in words), None) for known in (_IMAGE, _LABEL))
    return None if image is None or label is None else (words.index(image), words.index(label))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
