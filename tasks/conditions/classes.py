"""What a label means: the one rule for calls, commands, pages and label files; and the names of ImageNet's classes."""

import difflib
import operator
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from functools import cache

Label = int | str


def class_id(label: Label, count: int, names: Sequence[str] = ()) -> int:
    """Id of a class that is given by its number or name.

    A text is, in this order: a name, letter by letter; a name but for case, accents' encoding, spaces and underscores; a
    number, where no name looks like one (of folders 01, 02, ... "1" is no name, and which class would be number 1 is
    anybody's guess); whole words of one name only, and then a warning says which class was taken.

    Args:
        label: an integer (of Python, numpy or torch) or a text.
        count: how many classes there are.
        names: one for each, or none.

    Raises:
        TypeError: neither an integer nor a text.
        ValueError: no such class, or more than one.
    """
    if not count:
        raise ValueError(f"label: got {label!r}, but this model has no classes; give none")
    if not isinstance(label, str):
        return _in_range(_integer(label), count)
    exact = [number for number, name in enumerate(names) if name == label]
    wanted = folded(label)
    close = exact or [number for number, name in enumerate(names) if folded(name) == wanted]
    if len(close) == 1:
        return close[0]
    numbered = any(re.fullmatch(r"[+-]?[0-9]+", name.strip()) for name in names)
    if not close and re.fullmatch(r"[+-]?[0-9]+", wanted):
        if not numbered:
            return _in_range(int(wanted), count)
        raise ValueError(
            f"label: got {label!r}, which is no class; the names are numbers themselves ({listed(names)}): give one of "
            "them as it stands, or in Python an int for the class number"
        )
    words = wanted.split()
    close = close or [number for number, name in enumerate(names) if words and _holds(folded(name), words)]
    if len(close) == 1:
        warnings.warn(f"label: {label!r} is taken as class {close[0]}, {names[close[0]]!r}", stacklevel=3)
        return close[0]
    raise ValueError(_unknown(label, count, names, close))


def label_list(labels: Label | Iterable[Label]) -> list[Label]:
    """A list of one or more labels; arrays and tensors are lists unless they hold a single number."""
    if isinstance(labels, str | int):
        return [labels]
    try:
        return list(labels)
    except TypeError:  # an integer of numpy or torch
        return [labels]  # type: ignore[list-item]


def split_labels(text: Label | Sequence[Label], names: Sequence[str] = ()) -> list[Label]:
    """The labels of a list, or of a text with commas between them.

    Args:
        text: a label, several in a list, or a text such as ``3,cat``. A name may hold commas itself: the longest run of
            pieces that is a name, letter by letter but for case, is that name.
        names: of the classes.

    Raises:
        ValueError: nothing between two commas.
    """
    if not isinstance(text, str):
        return label_list(text)
    known, pieces = {folded(name) for name in names}, text.split(",")
    labels: list[Label] = []
    first = 0
    while first < len(pieces):
        runs = range(len(pieces), first, -1)
        last = next((end for end in runs if folded(",".join(pieces[first:end])) in known), first + 1)
        labels.append(",".join(pieces[first:last]).strip())
        first = last
    if not all(labels):
        raise ValueError(f"labels: got {text!r}, expected class numbers or names separated by commas")
    return labels


def folded(text: str) -> str:
    """A name without case, with accents in one encoding, and with one space for spaces and underscores."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().replace("_", " ").split())


def listed(names: Sequence[str]) -> str:
    """The first dozen of some names."""
    return f"{', '.join(names[:12])}{', ...' if names[12:] else ''}"


@cache
def imagenet_classes() -> tuple[str, ...]:
    """One short English name a class, in the order of their ids, from torchvision's description of its own weights.

    The order is that of ImageNet-1k's sorted WordNet ids, which the published models were trained with. A name may
    occur twice in some versions of torchvision (the bird and the machine are both cranes): labels are then given by
    number.
    """
    from torchvision.models import ResNet50_Weights

    return tuple(str(name) for name in ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def _integer(label: object) -> int:
    if isinstance(label, bool):
        raise TypeError(f"label: got {label}, expected a class number or name")
    try:
        return operator.index(label)  # type: ignore[arg-type]
    except TypeError:
        kind = type(label).__name__
        raise TypeError(f"label: got {label!r} ({kind}), expected a class number (an integer) or name") from None


def _in_range(label: int, count: int) -> int:
    if not 0 <= label < count:
        raise ValueError(f"label: got {label}, expected 0 to {count - 1}")
    return label


def _holds(name: str, words: Sequence[str]) -> bool:
    """Whether the words stand in a name, whole and side by side."""
    found = re.findall(r"\w+", name)
    return any(found[at : at + len(words)] == list(words) for at in range(len(found)))


def _unknown(label: str, count: int, names: Sequence[str], close: Sequence[int]) -> str:
    if close:
        hint = f"it could be {', '.join(f'{names[n]} ({n})' for n in close[:8])}{', ...' if close[8:] else ''}"
    elif near := difflib.get_close_matches(label, names):
        hint = f"the nearest names are {', '.join(near)}"
    else:
        hint = f"known: {listed(names)}" if names else "this model has no names"
    return f"label: got {label!r}, expected a number from 0 to {count - 1} or a class name; {hint}"
