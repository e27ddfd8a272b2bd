"""Broken examples: skipped, counted over all processes of a run, named in a file, and an error when they are too many."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

__all__ = ["Skipped", "count_skipped"]

_REASON = 300  # characters of a reason that are kept: one line of the file is written at once


class Skipped:
    """Which examples cannot be used, and why.

    Only this process knows, until ``keep`` names a file that all processes of a run share.

    Args:
        place: of the data, named in errors.
        total: how many examples there are.
        share: of them that may be unusable.

    Attributes:
        reasons: by the example's name, as far as this process knows.

    Raises:
        ValueError: a share outside of [0, 1).
    """

    def __init__(self, place: str, total: int, share: float) -> None:
        if not 0 <= share < 1:
            raise ValueError(
                f"broken: got {share}, expected the share of files that may be unusable, from 0 to below 1"
            )
        self.place, self.total, self.share = place, total, share
        self.reasons: dict[str, str] = {}
        self._path: Path | None = None
        self._told = 0

    def keep(self, path: Path) -> None:
        """Name them in this file from now on, one JSON line each, after those that it holds already."""
        self._path = path
        self._read()

    def add(self, name: str, reason: str) -> None:
        """Note one; the first, the tenth, the hundredth... are also warned of.

        Raises:
            ValueError: there are too many by now, in all processes together.
        """
        if name not in self.reasons:
            self.reasons[name] = reason[:_REASON]
            if self._path is not None:
                self._write(name)
                self._read()
        count = len(self.reasons)
        if count > self.share * self.total:
            named = "; ".join(list(self.reasons.values())[-3:])
            raise ValueError(
                f"{self.place}: {count} of {self.total} examples cannot be used, expected at most a share of "
                f"{self.share:g} (broken): {named}"
            )
        if len(str(count)) > self._told:
            self._told = len(str(count))
            where = "" if self._path is None else f", all of them in {self._path}"
            warnings.warn(f"{count} skipped so far{where}: {reason}", stacklevel=2)

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


def count_skipped(path: Path) -> int:
    """How many examples such a file names.

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
