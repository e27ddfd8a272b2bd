"""Captions: sentences about examples. Where they stand, how they are read, and which of several an example takes.

What ``captions`` of a data set says:

1. ``txt``, ``caption`` or any other ending: the file of that ending beside each example holds one caption a line.
2. ``json:FIELD``: the file ``.json`` beside each example has them in a field, a text or a list of texts.
3. ``list.csv``, ``list.tsv``, ``list.jsonl``: one file for all, with paths and captions; ``list.csv:a,b`` names the columns.

Shapes: B rows.
"""

import csv
import io
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

from maskgen.data import Source, item_seed
from maskgen.tasks.data.broken import Broken, BrokenExamples, Tolerance
from maskgen.tasks.data.patience import patiently
from maskgen.tasks.data.texts import decode_text, spelling

Captions = tuple[str, ...]
"""All captions of one example."""

_DRAW = 0xCA97  # apart from what else the seed of a row decides

_AT_ONCE = 16  # files that are read together: most of it is waiting for disks far away

_LISTS = (".csv", ".tsv", ".jsonl")

_PATHS = ("image", "file", "filename", "file_name", "filepath", "file_path", "image_path", "path", "name")

_TEXTS = ("caption", "captions", "text", "texts", "prompt", "title", "description")


@runtime_checkable
class Captioned(Source, Protocol):
    """Examples with captions; one that has the method and no captions has the attribute ``has_captions`` False."""

    def captions(self, indices: Sequence[int], seeds: Sequence[int]) -> list[str]:
        """One caption an example: of several the one that its seed draws.

        It is about what ``batch`` of the same indices shows, also where one example stands in for another.
        """
        ...


def is_captioned(source: object) -> TypeGuard[Captioned]:
    """Whether examples have captions."""
    return isinstance(source, Captioned) and getattr(source, "has_captions", True)


def draw_caption(captions: Captions, seed: int) -> str:
    """One of several; the same one for a seed, whatever else it decides."""
    return captions[item_seed(seed, _DRAW) % len(captions)] if len(captions) > 1 else captions[0]


def lines_of(text: str) -> Captions:
    """One caption a line, without those of spaces alone."""
    return _cleaned(text.splitlines())


def captions_of(value: Any, name: str) -> Captions:
    """The captions of a field: a text, a list of texts, or nothing.

    Raises:
        ValueError: anything else.
    """
    values = [value] if isinstance(value, str) or value is None else value
    if not isinstance(values, list | tuple) or not all(isinstance(one, str | None) for one in values):
        raise ValueError(f"{name}: got {value!r:.80}, expected a caption or a list of captions")
    return _cleaned(one or "" for one in values)


def read_captions(content: bytes, kind: str, name: str) -> Captions:
    """The captions of a file that stands beside an example.

    Args:
        content: of the file.
        kind: its ending, or ``json:FIELD``.
        name: how errors call it.

    Raises:
        ValueError: it is no text, or not what ``kind`` says.
    """
    text, field = decode_text(content, name), kind.partition(":")[2]
    if not field:
        return lines_of(text)
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: not a JSON file ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name}: got a {type(found).__name__}, expected an object with the field {field!r}")
    return captions_of(found.get(field), f"{name}: {field}")


def ending_of(kind: str) -> str:
    """The ending, in lower case and without its dot, of the files that ``captions`` names.

    Raises:
        ValueError: it names none.
    """
    ending = kind.partition(":")[0].lower().removeprefix(".")
    if not ending.isalnum() or (":" in kind and (ending != "json" or kind.endswith(":"))):
        raise ValueError(
            f"captions: got {kind!r}, expected the ending of files beside the examples such as txt, or json:FIELD"
        )
    return ending


def find_captions(root: Path, names: Sequence[str], kind: str) -> list[Captions | Broken]:
    """The captions of each of some files, or why it has none.

    Args:
        root: folder of the files.
        names: their paths below it.
        kind: see the top of this module.

    Raises:
        FileNotFoundError: no such list.
        ValueError: a list that cannot be read, or a setting that names neither list nor ending.
    """
    place, columns = _listed(kind)
    if place is None:
        ending = ending_of(kind)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(lambda name: _beside(root, name, ending, kind), names))
    found = _read_list(place, columns, root, names)
    missing = f"no caption in {place.name}"
    return [found.get(name) or Broken(name, f"{name}: {missing}") for name in names]


def captioned(place: str, found: Sequence[Captions | Broken], share: float, *, stacklevel: int = 1) -> list[int]:
    """Numbers of the examples that have captions; how many have none is said.

    Args:
        place: of the data, named in errors.
        found: captions of each, or why there are none.
        share: of them that may have none.
        stacklevel: of the warning, 1 for the caller.

    Raises:
        ValueError: too many have none.
    """
    fault = "have no caption that can be read"
    limit = Tolerance(place=place, total=len(found), share=share, fault=fault, option="uncaptioned")
    BrokenExamples(limit).begin([one for one in found if isinstance(one, Broken)], stacklevel=stacklevel + 1)
    return [number for number, one in enumerate(found) if not isinstance(one, Broken)]


def _cleaned(texts: Iterable[str]) -> Captions:
    """Without white space that means nothing, and without empty ones."""
    return tuple(found for text in texts if (found := " ".join(text.split())))


def _listed(kind: str) -> tuple[Path | None, list[str]]:
    """The list that ``captions`` names, and the columns of it that are named, if any."""
    for ending in _LISTS:
        head, found, tail = kind.lower().partition(ending)
        if found and (not tail or tail.startswith(":")):
            cut = len(head) + len(ending)
            return Path(kind[:cut]), [name.strip() for name in kind[cut + 1 :].split(",") if name.strip()]
    return None, []


def _beside(root: Path, name: str, ending: str, kind: str) -> Captions | Broken:
    path = Path(os.path.splitext(root / name)[0] + f".{ending}")

    def ask() -> bytes | None:
        try:
            return path.read_bytes()
        except OSError as error:
            # One file that is gone is a missing caption; its whole folder gone, or a failing disk, is something else.
            if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError) and path.parent.is_dir():
                return None
            raise

    content = patiently(str(path), ask)
    try:
        found = () if content is None else read_captions(content, kind, str(path))
    except ValueError as error:
        return Broken(name, str(error))
    return found or Broken(name, f"{path}: {'no such file' if content is None else 'holds no caption'}")


def _read_list(place: Path, columns: Sequence[str], root: Path, names: Sequence[str]) -> Mapping[str, Captions]:
    """Captions by name; several lines of one name add up. Lines of other names are counted and said."""
    if not place.is_file():
        raise FileNotFoundError(f"captions: got {place}, expected a list with a path and captions in each line")
    by_spelling = {spelling(name): name for name in names}
    found, strange = defaultdict[str, list[str]](list), list[str]()
    for path, captions in _rows(place, columns, lambda path: _below(path, root) in by_spelling):
        name = by_spelling.get(_below(path, root))
        if name is None:
            strange.append(path)
        else:
            found[name] += captions
    if strange:
        told = f"{place}: {len(strange)} lines are for files that {root} does not hold, such as {strange[0]}; left out"
        warnings.warn(told, stacklevel=6)
    return {name: tuple(dict.fromkeys(captions)) for name, captions in found.items() if captions}


def _rows(place: Path, columns: Sequence[str], known: Callable[[str], bool]) -> Iterable[tuple[str, Captions]]:
    """Path and captions of each line."""
    text = decode_text(place.read_bytes(), str(place))
    if place.suffix.lower() == ".jsonl":
        rows = _objects(place, text)
        path, chosen = _columns(place, list(dict.fromkeys(key for row in rows for key in row)), columns)
        for row in rows:
            found = (captions_of(row.get(name), f"{place}: {name}") for name in chosen)
            yield str(row.get(path, "")), tuple(chain.from_iterable(found))
        return
    try:
        lines = _table(text, known, "\t" if place.suffix.lower() == ".tsv" else ",;\t")
    except csv.Error as error:
        raise ValueError(f"{place}: cannot be read as a table ({error})") from None
    titles, left = [title.strip() for title in lines[0]] if lines else [], lines[1:]
    if titles and not columns and known(titles[0]):  # no heading: path, then captions
        titles, left = [_PATHS[0], *(f"{_TEXTS[0]}{number}" for number in range(1, len(titles)))], lines
    path, chosen = _columns(place, titles, columns)
    for number, line in enumerate(left, 1 + len(lines) - len(left)):
        if len(line) != len(titles):
            raise ValueError(f"{place}: row {number}: got {len(line)} columns, expected {len(titles)}")
        cells = list(zip(titles, line, strict=True))
        yield line[titles.index(path)], _cleaned(cell for title, cell in cells if title in chosen)


def _objects(place: Path, text: str) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{place}: line {number}: got {line[:80]!r}, expected an object")
        found += [row] if row else []
    return found


def _table(text: str, known: Callable[[str], bool], marks: str) -> list[list[str]]:
    """The cells of each line that is not empty, by the mark that makes a known path or a heading of the first."""

    def read(mark: str) -> list[list[str]]:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        return [row for row in rows if any(row)]

    heading = text.partition("\n")[0]
    for mark in marks:
        first = next(csv.reader([heading], delimiter=mark), [""])
        if len(first) > 1 and (known(first[0]) or any(title.strip().lower() in _PATHS for title in first)):
            return read(mark)
    return read(max(marks, key=heading.count))


def _columns(place: Path, titles: Sequence[str], wanted: Sequence[str]) -> tuple[str, list[str]]:
    """Names of the columns of paths and of captions; a heading ``caption_2`` or ``text3`` is one of several."""
    path = next((title for known in _PATHS for title in titles if title.lower() == known), None)
    usual = [title for title in titles if title.lower().rstrip("_ 0123456789") in _TEXTS and title != path]
    missing = [name for name in wanted if name not in titles]
    if path is None or missing or not (wanted or usual):
        what = f"column {missing[0]!r}" if missing else "column of paths" if path is None else "column of captions"
        raise ValueError(
            f"{place}: has no {what}, only {', '.join(titles) or 'nothing'}; expected one of {', '.join(_PATHS)} and one of "
            f"{', '.join(_TEXTS)}, or columns named as in captions: {place.name}:column"
        )
    return path, list(wanted) or usual


def _below(path: str, root: Path) -> str:
    """A path of a list as one below the root, in the common spelling: as it is, or with the root in front of it."""
    found = spelling(path)
    return found.removeprefix(f"{spelling(str(root))}/").removeprefix(f"{spelling(str(root.resolve()))}/")
