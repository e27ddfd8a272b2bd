"""What a label means: the one rule for calls, commands, pages and label files; and the names of ImageNet's classes."""

import difflib
import operator
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

Label = int | str

_WNID = re.compile(r"n[0-9]{8}")


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


def class_places(
    used: Iterable[int], names: Sequence[str], others: Sequence[str], what: str, where: str
) -> dict[int, int]:
    """For class numbers of one side those of the same classes on the other side.

    1. Equal lists of names, or none on both sides: numbers are the same;
    2. the 1000 classes of ImageNet-1k are the same in English, as the folders of WordNet ids, and as bare numbers;
    3. bare numbers are the classes of folders 0, 1, 2... that also sort in this order, and of no others;
    4. all else goes by name: letter by letter, or but for case, accents' encoding and underscores, and then it is said.

    Args:
        used: class numbers of the one side.
        names: its names, one a class, or none.
        others: names of the other side, or none.
        what: the one side, for errors.
        where: the other side.

    Raises:
        ValueError: a name that the other side lacks or has twice, or names on one side only.
    """
    numbers = sorted(set(used))
    given = [names[number] if number < len(names) else "" for number in numbers]
    if tuple(names) == tuple(others) or _both_imagenet(names, others, numbers):
        return {number: number for number in numbers}
    if not all(given) or not others:
        known = others or names
        if all(name.isdecimal() and int(name) == place for place, name in enumerate(known)) and known:
            return {number: number for number in numbers}
        bare, named = (what, where) if others else (where, what)
        raise ValueError(
            f"classes: {bare} only numbers its classes and {named} names them ({listed([n for n in known if n])}), so which "
            "is which is not known; give names on both sides: a folder a class, an .npz with class_names, or the generated "
            "set once more through the command that made it, which writes the names of its model"
        )
    exact, alike = _places(others), _places(map(folded, others))
    found = {
        number: exact.get(name) or alike.get(folded(name), []) for number, name in zip(numbers, given, strict=True)
    }
    lost = [name for number, name in zip(numbers, given, strict=True) if not found[number]]
    if lost:
        raise ValueError(
            f"classes: {what} has {listed(lost)}, which {where} lacks (it has {listed(others)}); expected the same names on "
            "both sides"
        )
    twice = [name for number, name in zip(numbers, given, strict=True) if len(found[number]) > 1]
    chosen = Counter(place for places in found.values() for place in places)
    twice += [others[place] for place, times in chosen.items() if times > 1]
    if twice:
        raise ValueError(
            f"classes: {listed(twice)} is the name of more than one class in {what} or {where}; name each in its own way"
        )
    places = {number: place for number, (place,) in found.items()}
    told = [
        f"{names[number]!r} as {others[place]!r}" for number, place in places.items() if names[number] != others[place]
    ]
    if told:
        warnings.warn(f"classes: of {what} taken for those of {where}: {listed(told)}", stacklevel=2)
    return places


def check_class_order(names: Sequence[str], others: Sequence[str], what: str, where: str) -> None:
    """Refuse classes that one side numbers otherwise than the other, where numbers are what is trained on.

    Raises:
        ValueError: see ``class_places``; or the same classes in another order.
    """
    for number, place in class_places(range(len(names)), names, others, what, where).items():
        if number != place:
            raise ValueError(
                f"classes: {names[number]!r} is number {number} in {what}, but {place} in {where}; expected the same order, "
                "which a label file or a file of names can give"
            )


def _places(names: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault(name, []).append(place)
    return found


def _both_imagenet(names: Sequence[str], others: Sequence[str], used: Sequence[int]) -> bool:
    """Whether both sides are ImageNet-1k, whose numbers are everywhere those of its sorted WordNet ids."""
    sides = (names, others)
    return (
        1000 in map(len, sides)
        and max(used, default=0) < 1000
        and any(side and not _bare(side) for side in sides)
        and all(len(side) <= 1000 and (_bare(side) or _imagenet(side)) for side in sides)
    )


def _bare(names: Sequence[str]) -> bool:
    """Whether names are none, or say no more than the numbers do."""
    return all(name == str(number) for number, name in enumerate(names))


def _imagenet(names: Sequence[str]) -> bool:
    """Whether names are WordNet ids, of all 1000 classes, or English; of a generated set those of its own classes."""
    if len(names) == 1000 and all(map(_WNID.fullmatch, names)):
        return True
    return all(name in ("", own) for name, own in zip(names, imagenet_classes(), strict=False))


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
