"""Whether something is the same as before: which data, whose labels, which weights and settings decide a result.

1. What decides a result is written beside it as a record of plain values, see ``describe``.
2. Whoever finds it again asks ``differences``, the one place that compares records and says what differs.
3. Files are the same by their names, sizes, labels and contents; of many bytes nobody reads all for that: their times of
   change stand for the contents. Copies without the times of their originals then count as others.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import nn

from maskgen.data import TensorSource
from maskgen.tasks.data.base import SignalData

Compare = Literal["auto", "times", "content"]
"""What tells files of one name and size apart: times of change, contents, or (``auto``) contents up to 256 MiB in all."""

AUTO_BYTES = 256 << 20  # half a second of hashing

_AT_ONCE = 16  # files that are looked at together: most of it is waiting for disks far away

_NAMED = 4  # differences that a message names

_LONG = 80  # characters of a value in a message

# Where data lie says nothing about what they are.
_PLACES = {"root", "test_root", "shards", "captions", "test_captions"}


@runtime_checkable
class Identified(Protocol):
    """A source of examples that knows what it is made of."""

    def identity(self) -> dict[str, Any]:
        """Everything that decides its examples, as plain values; an example need not be read for it."""
        ...


def describe(**parts: Any) -> dict[str, Any]:
    """Everything that decides a result, as plain values.

    Args:
        **parts: settings (dataclasses), modules built from a config, data sets, and plain values.
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        if isinstance(value, nn.Module):
            return {"class": type(value).__name__, "config": dataclasses.asdict(value.config)}  # type: ignore[call-overload]
        return _describe_data(value) if isinstance(value, SignalData) else value

    found: dict[str, Any] = json.loads(json.dumps({name: plain(value) for name, value in parts.items()}))
    return found


def source_identity(source: object) -> dict[str, Any]:
    """What a source of examples says it is made of; nothing for one that cannot say."""
    if isinstance(source, Identified):
        return source.identity()
    if not isinstance(source, TensorSource):
        return {}
    digest = hashlib.sha256()
    for name, tensor in sorted(source.tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {"content": digest.hexdigest()[:16]}


def arguments_of(data: object) -> dict[str, Any]:
    """The public plain attributes of a data set: what it was told."""
    kinds = (bool, int, float, str, tuple)
    return {name: value for name, value in vars(data).items() if name[0] != "_" and isinstance(value, kinds)}


def files_identity(
    root: Path, names: Sequence[str], labels: Sequence[int] | None = None, compare: Compare = "auto"
) -> dict[str, Any]:
    """What files are, in words and hashes that say what has changed.

    Args:
        root: the folder that names are below.
        names: paths of the files.
        labels: class of each, if there are classes.
        compare: see ``Compare``.
    """

    def look(name: str) -> tuple[int, int]:
        try:
            found = (root / name).stat()
        except OSError:
            return -1, 0  # gone: a change like any other
        return found.st_size, found.st_mtime_ns

    def content(name: str) -> str:
        try:
            with (root / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return ""

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        seen = list(pool.map(look, names))
        told = listing_identity(names, [size for size, _ in seen], labels)
        newest = max(range(len(names)), key=lambda number: seen[number][1], default=None)
        if newest is not None:
            when = datetime.fromtimestamp(seen[newest][1] / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            told["times"] = f"newest {names[newest]} of {when} ({short_hash([time for _, time in seen])})"
        if compare == "content" or (compare == "auto" and sum(size for size, _ in seen) <= AUTO_BYTES):
            told["content"] = short_hash(list(pool.map(content, names)))
    return told


def listing_identity(
    names: Sequence[str], sizes: Sequence[int], labels: Sequence[int] | None = None, content: object = None
) -> dict[str, Any]:
    """What files are, as far as a list of them says.

    Args:
        names: their paths.
        sizes: bytes of each.
        labels: class of each, if there are classes.
        content: what tells their contents apart, such as checksums of an archive.
    """
    told = {
        "names": f"{len(names)} files ({short_hash(list(names))})",
        "sizes": f"{sum(sizes):,} bytes ({short_hash(list(sizes))})",
    }
    if labels is not None:
        counts = Counter(labels)
        few = ", ".join(f"{counts[label]} of class {label}" for label in sorted(counts)[:_NAMED])
        more = ", ..." if len(counts) > _NAMED else ""
        told["labels"] = f"{few}{more} ({short_hash([int(label) for label in labels])})"
    return told | ({} if content is None else {"content": short_hash(content)})


def differences(before: Any, now: Any) -> list[str]:
    """What differs between two records, each in words: its name, the old value, the new one. Nothing: they are the same.

    Records of versions that did not note the data's files are compared by what they hold.

    Args:
        before: what was written.
        now: from ``describe``.
    """
    return list(_differing("", before, json.loads(json.dumps(now))))


def refuse_others(place: Path, before: Any, now: Any, holds: str, remedy: str) -> None:
    """Refuse to go on with what is not the same as before.

    Args:
        place: what holds the earlier result.
        before: its record.
        now: from ``describe``.
        holds: what it is, such as "another run".
        remedy: what to do, for the end of the message.

    Raises:
        ValueError: in one line: what differs, with old and new values, and the remedy.
    """
    if found := differences(before, now):
        if all(line.split(":")[0].endswith("times") for line in found):
            remedy = f"copy files with their times (cp -p, rsync -t) to go on; or {remedy}"
        raise ValueError(f"{place}: holds {holds} ({in_words(found)}); {remedy}")


def in_words(found: Sequence[str]) -> str:
    """The first few differences, and how many more there are."""
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return "; ".join(found[:_NAMED]) + more


def short_hash(value: object) -> str:
    """16 hexadecimal digits of plain values, whatever the order of their names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _describe_data(data: SignalData) -> dict[str, Any]:
    halves = {"train": data.train(), "test": data.test()}
    files = {name: found for name, half in halves.items() if (found := source_identity(half))}
    return {
        "class": type(data).__name__,
        "class_names": data.class_names,
        **arguments_of(data),
        **{name: 0 if half is None else len(half) for name, half in halves.items()},
        **({"files": files} if files else {}),
    }


def _differing(name: str, before: Any, now: Any) -> list[str]:
    if before == now:
        return []
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(f"{name}[{place}]", *pair) for place, pair in enumerate(zip(before, now, strict=True))]
    elif isinstance(before, Mapping) and isinstance(now, Mapping):
        unseen = _not_compared(before, now)
        keys = [key for key in {**before, **now} if key not in unseen]
        pairs = [(f"{name}.{key}" if name else key, before.get(key), now.get(key)) for key in keys]
    else:
        return [f"{name}: {_shown(before)} before, {_shown(now)} now"]
    return [line for pair in pairs for line in _differing(*pair)]


def _not_compared(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """Names inside a record that others of it stand for."""
    unseen: set[str] = set()
    if before.get("content") and now.get("content"):
        if before["content"] == now["content"]:  # else the times tell what was changed last
            unseen.add("times")
    elif before.get("times") and now.get("times"):
        unseen.add("content")  # asked for on one side only
    if "class_names" in now and "files" in now:
        unseen |= _PLACES if "files" in before else {"files"}
    return unseen


def _shown(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."
