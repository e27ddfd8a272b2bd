"""Folders of media files as training data: which half a file is in, what its class is, and what stands in for broken ones.

Shapes: B batch.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

import torch
from torch import Tensor

from maskgen.data import Batch

__all__ = ["FileSource", "LeftOut", "class_folders", "class_of", "held_out", "path_number"]


class LeftOut:
    """Files that cannot be used, with the reasons; too many of them are an error.

    Args:
        root: the folder or archive, named in errors.
        total: how many files there are.
        broken: share of them that may be left out.
    """

    def __init__(self, root: Path, total: int, broken: float) -> None:
        self.root, self.total, self.broken = root, total, broken
        self.reasons: dict[str, str] = {}

    def check(self) -> None:
        """Refuse a data set of which too much is broken.

        Raises:
            ValueError: naming some of the files.
        """
        if len(self.reasons) > self.broken * self.total or len(self.reasons) == self.total:
            raise ValueError(
                f"{self.root}: {len(self.reasons)} of {self.total} files cannot be used, expected at most a share of "
                f"{self.broken:g} (broken): {self._named()}"
            )

    def warn(self, *, stacklevel: int) -> None:
        """Say what was left out at the start, if anything was."""
        if self.reasons:
            told = f"{self.root}: {len(self.reasons)} of {self.total} files left out: {self._named()}"
            warnings.warn(told, stacklevel=stacklevel + 1)

    def add(self, name: str, reason: str) -> None:
        """Note a file that turned out damaged, and warn about it the first time.

        Raises:
            ValueError: there are too many of them by now.
        """
        if name not in self.reasons:
            self.reasons[name] = reason
            self.check()
            warnings.warn(f"left out: {reason}", stacklevel=4)

    def _named(self) -> str:
        return "; ".join(list(self.reasons.values())[:3])


class _Examples(Protocol):
    """A data set of files."""

    @property
    def key(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def left_out(self) -> LeftOut: ...

    def example(self, name: str, seed: int, *, fixed: bool) -> Tensor: ...


class FileSource:
    """One half of a data set of files, one example a file; ``labels`` long ``[B]`` if there are classes.

    Args:
        data: makes an example of a file by its name.
        names: paths below its root.
        fixed: the same example of a file whatever the seed: its seed is then ``path_number``.
    """

    def __init__(self, data: _Examples, names: Sequence[str], *, fixed: bool) -> None:
        self.data, self.names, self.fixed = data, list(names), fixed

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """See ``maskgen.data.Source``.

        Raises:
            ValueError: too many unreadable files.
        """
        found = [self._example(index, seed) for index, seed in zip(indices, seeds, strict=True)]
        batch = {self.data.key: torch.stack([signal for signal, _ in found])}
        if self.data.class_names:
            batch["labels"] = torch.tensor([self.data.class_names.index(class_of(name)) for _, name in found])
        return batch

    def _example(self, index: int, seed: int) -> tuple[Tensor, str]:
        name = self.names[index]
        draw = random.Random(f"{path_number(name) if self.fixed else seed} stands in")
        while True:
            try:
                own = path_number(name) if self.fixed else seed
                return self.data.example(name, own, fixed=self.fixed), name
            except ValueError as error:
                self.data.left_out.add(name, str(error))
            reasons: Mapping[str, str] = self.data.left_out.reasons
            if set(self.names) <= reasons.keys():
                raise ValueError(f"all {len(self.names)} files of this half are damaged, such as {name}; replace them")
            # Which file stands in depends on the seed and on the files, not on what was read before.
            name = draw.choice(self.names)


def class_of(name: str) -> str:
    """The folder directly below the root that a path lies in."""
    return PurePosixPath(name).parts[0]


def class_folders(names: Sequence[str], root: Path) -> tuple[str, ...]:
    """The folders directly below the root, sorted: one class each.

    Raises:
        ValueError: a file outside of any.
    """
    loose = [name for name in names if "/" not in name]
    if loose:
        raise ValueError(f"{root}: got {loose[0]} outside of any folder, expected one folder a class with labels=True")
    return tuple(sorted({class_of(name) for name in names}))


def path_number(name: str) -> int:
    """A number in [0, 2^63) that depends on the path alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def held_out(names: Sequence[str], share: float, root: Path) -> tuple[list[str], list[str]]:
    """Names to train on and names held out, by a hash of each: files that are added move no other.

    Raises:
        ValueError: all are held out.
    """
    kept = [name for name in names if not path_number(name) < share * 2**63]
    if not kept:
        raise ValueError(f"{root}: all {len(names)} files are held out; lower held_out = {share} or add files")
    return kept, [name for name in names if path_number(name) < share * 2**63]
