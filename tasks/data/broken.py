"""Broken examples: what stands in the place of one, how many are too many, and where a run names them."""

import json
import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_REASON = 300  # characters of a reason that are kept: one line of the file is written at once

_NAMED = 3  # examples that an error names


@dataclass(frozen=True)
class Broken:
    """What stands where an example should be.

    Attributes:
        name: of the example, as errors call it.
        reason: one line that names it.
    """

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How many examples of a data set may be broken.

    Attributes:
        place: of the data, named in errors.
        total: how many examples there are.
        share: of them that may be broken, in [0, 1).
        fault: what errors say of them.
        option: that sets the share, named in errors.
    """

    place: str
    total: int
    share: float
    fault: str = "examples cannot be used"
    option: str = "broken"

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(
                f"{self.option}: got {self.share}, expected the share that may be unusable, from 0 to below 1"
            )

    def check(self, reasons: Collection[str], *, at_least: bool = False) -> None:
        """Refuse a data set of which too much is broken.

        Args:
            reasons: one for each broken example.
            at_least: whether there may be more of them.

        Raises:
            ValueError: naming the last few.
        """
        if len(reasons) > self.share * self.total:
            counted = f"{'at least ' if at_least else ''}{len(reasons)} of {self.total}"
            named = "; ".join(list(reasons)[-_NAMED:])
            raise ValueError(
                f"{self.place}: {counted} {self.fault}, expected at most a share of {self.share:g} ({self.option}): {named}"
            )


class BrokenExamples:
    """Broken examples of a data set: skipped, counted, and an error when they are too many.

    Only this process knows of them, until ``keep`` names a file that all processes of a run share.

    Args:
        tolerance: how many there may be.

    Attributes:
        reasons: by the example's name, as far as this process knows.
    """

    def __init__(self, tolerance: Tolerance) -> None:
        self.tolerance = tolerance
        self.reasons: dict[str, str] = {}
        self._path: Path | None = None
        self._told = 0

    def keep(self, path: Path) -> None:
        """Name them in this file from now on, one JSON line each, after those that it holds already."""
        self._path, mine = path, dict(self.reasons)
        self._read()
        for name in mine.keys() - _lines(path).keys():
            self._write(name)

    def begin(self, found: Collection[Broken], *, stacklevel: int) -> None:
        """Note those that show before the first example is read, all in one warning.

        Args:
            found: all of them.
            stacklevel: of the warning, 1 for the caller.

        Raises:
            ValueError: there are too many.
        """
        self.reasons |= {broken.name: broken.reason[:_REASON] for broken in found}
        self.tolerance.check(self.reasons.values())
        if found:
            named = "; ".join(list(self.reasons.values())[:_NAMED])
            told = f"{self.tolerance.place}: {len(found)} of {self.tolerance.total} files left out: {named}"
            warnings.warn(told, stacklevel=stacklevel + 1)

    def add(self, broken: Broken) -> None:
        """Note one; the first, the tenth, the hundredth... are also warned of.

        Raises:
            ValueError: there are too many by now, in all processes together.
        """
        if broken.name not in self.reasons:
            self.reasons[broken.name] = broken.reason[:_REASON]
            if self._path is not None:
                self._write(broken.name)
                self._read()
        self.tolerance.check(self.reasons.values())
        count = len(self.reasons)
        if len(str(count)) > self._told:
            self._told = len(str(count))
            where = "" if self._path is None else f", all of them in {self._path}"
            warnings.warn(f"{count} skipped so far{where}: {broken.reason}", stacklevel=2)

    def _write(self, name: str) -> None:
        """One short write at the file's end, which no other process can cut in two."""
        assert self._path is not None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"name": name, "reason": self.reasons[name]}, ensure_ascii=False) + "\n"
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def _read(self) -> None:
        if self._path is not None:
            self.reasons = _lines(self._path) | self.reasons


def count_broken(path: Path) -> int:
    """How many examples a file of ``BrokenExamples.keep`` names.

    Args:
        path: the file; it need not exist.
    """
    return len(_lines(path))


def _lines(path: Path) -> dict[str, str]:
    """Reasons by name; a process may have been killed in the middle of a line."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {found["name"]: found["reason"] for line in lines if line.endswith("}") for found in (json.loads(line),)}
