"""Which class of one side is which of another: by name, for a number says nothing by itself.

Folders are numbered in the order of their names, a model numbers its classes as it was trained, an array holds bare numbers.
"""

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence

from maskgen.tasks.conditions.classes import folded, imagenet_classes, listed
from maskgen.tasks.evaluation.sets.base import SampleSet, Subset

_WNID = re.compile(r"n[0-9]{8}")


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


class MatchedSamples(Subset):
    """A set with the class numbers of another side.

    Args:
        samples: the set.
        names: of the other side, or none.
        where: what errors call that.

    Raises:
        ValueError: see ``class_places``.
    """

    def __init__(self, samples: SampleSet, names: Sequence[str], where: str) -> None:
        super().__init__(samples, range(len(samples)))
        places = class_places(samples.labels or (), samples.class_names, names, samples.name, where)
        self.whole, self.class_names = samples, tuple(names)
        self.labels = None if samples.labels is None else [places[label] for label in samples.labels]

    def digest(self) -> str:
        """See ``SampleSet``; classes that keep their numbers do not change it."""
        found = self.whole.digest()
        if self.labels == self.whole.labels:
            return found
        return hashlib.sha256(f"{found} {self.labels}".encode()).hexdigest()[:16]


def _places(names: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault(name, []).append(place)
    return found


def _both_imagenet(names: Sequence[str], others: Sequence[str], used: Sequence[int]) -> bool:
    """Whether both sides are ImageNet-1k, whose numbers are everywhere those of its sorted WordNet ids."""
    sides = [_imagenet(side) for side in (names, others)]
    bare = max(used, default=0) < 1000
    return any(sides) and bare and all(known or not side for known, side in zip(sides, (names, others), strict=True))


def _imagenet(names: Sequence[str]) -> bool:
    return len(names) == 1000 and (all(map(_WNID.fullmatch, names)) or tuple(names) == imagenet_classes())
