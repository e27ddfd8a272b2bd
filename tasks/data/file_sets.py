"""Folders of media files as training data: which half a file is in, what its class is, and what stands in for broken ones.

Shapes: B batch.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from maskgen.data import Batch
from maskgen.tasks.data.base import SignalData
from maskgen.tasks.data.broken import Broken, BrokenExamples, Tolerance
from maskgen.tasks.data.identity import Compare, arguments_of, files_identity, listing_identity
from maskgen.tasks.media.shelf import Shelf

_UNUSABLE = (ValueError, FileNotFoundError, PermissionError)  # of one file; what else a disk says stops the run

_PARTS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "holdout"}


@dataclass(frozen=True, kw_only=True)
class FileRules:
    """What becomes of the files of a data set.

    Attributes:
        held_out: share of them for ``test``.
        labels: whether the folders directly below the root are classes.
        broken: share of them that may be unreadable.
        compare: what tells whether the files are those of an earlier run, see ``maskgen.tasks.data.identity.Compare``.
    """

    held_out: float = 0.02
    labels: bool = False
    broken: float = 0.2
    compare: Compare = "auto"

    def __post_init__(self) -> None:
        if not (0 <= self.held_out < 1 and 0 <= self.broken < 1):
            raise ValueError(f"held_out, broken: got {self.held_out}, {self.broken}, expected shares from 0 to below 1")


class FileData(SignalData):
    """A data set of media files: one example a file, some files held out, broken ones left out.

    Whether a file is held out depends on a hash of its path below the root alone: files that are added move no other.

    Files that cannot be used are left out: at the start those that do not open, later those that turn out damaged, whose
    place another file of the same half takes. ``skipped`` names them all; too many are an error.

    Attributes:
        broken: the files left out.
    """

    rules = FileRules
    broken: BrokenExamples
    _shelf: Shelf
    _compare: Compare

    @abstractmethod
    def example(self, name: str, seed: int, *, fixed: bool = False) -> Tensor:
        """The example of a file.

        Args:
            name: path below the root.
            seed: all the randomness there is.
            fixed: for held-out files, see the data set.

        Raises:
            ValueError: a file that cannot be read.
        """

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the folders directly below the root, sorted; empty without ``labels``."""
        return self._classes

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Path and reason of each file left out so far."""
        return list(self.broken.reasons.items())

    def train(self) -> FileSource:
        """One random excerpt of each file that is not held out."""
        return self._train

    def test(self) -> FileSource | None:
        """One excerpt of each held-out file, always the same; None if no file is held out."""
        return self._test

    def log_skipped(self, path: Path) -> None:
        """See ``SignalData``."""
        self.broken.keep(path)

    def identity(self, names: Sequence[str]) -> dict[str, Any]:
        """What some of the files are, see ``maskgen.tasks.data.identity.Identified``."""
        labels = [self.class_names.index(_class_of(name)) for name in names] if self.class_names else None
        if (table := self._shelf.table(names)) is not None:
            return listing_identity(names, [size for size, _ in table], labels, [check for _, check in table])
        return files_identity(self._shelf.root, names, labels, self._compare)

    def _arrange(self, shelf: Shelf, listed: Sequence[str], try_out: Callable[[str], None], rules: FileRules) -> None:
        """Sort the files out.

        Args:
            shelf: their folder or archive.
            listed: paths below it.
            try_out: raises a ``ValueError`` for a file that cannot be used.
            rules: what becomes of them.
        """
        root, self._shelf, self._compare = shelf.root, shelf, rules.compare
        limit = Tolerance(place=str(root), total=len(listed), share=rules.broken, fault="files cannot be used")
        self.broken, names, found = BrokenExamples(limit), list[str](), list[Broken]()
        for name in listed:
            try:
                try_out(name)
                names.append(name)
            except _UNUSABLE as error:
                found.append(Broken(name, str(error)))
        self.broken.begin(found, stacklevel=3)
        self._classes = class_folders(names, root) if rules.labels else ()
        if not rules.labels:
            warn_of_parts(names, root)
        kept = [name for name in names if not path_number(name) < rules.held_out * 2**63]
        if not kept:
            raise ValueError(
                f"{root}: all {len(names)} files are held out; lower held_out = {rules.held_out} or add files"
            )
        test = sorted(set(names) - set(kept))
        self._train = FileSource(self, kept, fixed=False)
        self._test = FileSource(self, test, fixed=True) if test else None


class FileSource:
    """One half of a data set of files, one example a file; ``labels`` long ``[B]`` if there are classes.

    Args:
        data: makes an example of a file by its name.
        names: paths below its root.
        fixed: the same example of a file whatever the seed: its seed is then ``path_number``.
    """

    def __init__(self, data: FileData, names: Sequence[str], *, fixed: bool) -> None:
        self.data, self.names, self.fixed = data, list(names), fixed

    def __len__(self) -> int:
        return len(self.names)

    def identity(self) -> dict[str, Any]:
        """See ``maskgen.tasks.data.identity.Identified``."""
        return {"fixed": self.fixed, **arguments_of(self.data), **self.data.identity(self.names)}

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """See ``maskgen.data.Source``.

        Raises:
            ValueError: too many unreadable files.
        """
        found = [self._example(index, seed) for index, seed in zip(indices, seeds, strict=True)]
        batch = {self.data.key: torch.stack([signal for signal, _ in found])}
        if self.data.class_names:
            batch["labels"] = torch.tensor([self.data.class_names.index(_class_of(name)) for _, name in found])
        return batch

    def _example(self, index: int, seed: int) -> tuple[Tensor, str]:
        name, broken = self.names[index], self.data.broken
        draw = random.Random(f"{path_number(name) if self.fixed else seed} stands in")
        while True:
            try:
                own = path_number(name) if self.fixed else seed
                return self.data.example(name, own, fixed=self.fixed), name
            except _UNUSABLE as error:
                broken.add(Broken(name, str(error)))
            if set(self.names) <= broken.reasons.keys():
                raise ValueError(f"all {len(self.names)} files of this half are damaged, such as {name}; replace them")
            # Which file stands in depends on the seed and on the files, not on what was read before.
            name = draw.choice(self.names)


def path_number(name: str) -> int:
    """A number in [0, 2^63) that depends on the path alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def _class_of(name: str) -> str:
    """The folder directly below the root that a path lies in."""
    return PurePosixPath(name).parts[0]


def warn_of_parts(names: Sequence[str], root: Path) -> bool:
    """Say so where the files of ``train`` and ``test`` become one data set, as folders mean nothing; whether they do."""
    found = sorted({_class_of(name) for name in names})
    parts = len(found) > 1 and {name.lower() for name in found} <= _PARTS
    if parts:
        warnings.warn(
            f"{root}: the files of {', '.join(found)} are all used; name one of these folders as root to keep them apart",
            stacklevel=4,
        )
    return parts


def class_folders(names: Sequence[str], root: Path) -> tuple[str, ...]:
    """The folders directly below the root, sorted: one class each.

    Raises:
        ValueError: files outside of any, or folders that are parts of a data set, as ``train`` and ``val``.
    """
    loose = [name for name in names if "/" not in name]
    found = tuple(sorted({_class_of(name) for name in names if "/" in name}))
    if loose:
        raise ValueError(
            f"{root}: got {len(loose)} files such as {loose[0]} outside of any folder, expected one folder a class; move "
            "them into one, or elsewhere, or say that there are no classes"
        )
    if len(found) > 1 and {name.lower() for name in found} <= _PARTS:
        raise ValueError(
            f"{root}: its folders {', '.join(found)} are parts of a data set and no classes; name one of them as root"
        )
    return found
