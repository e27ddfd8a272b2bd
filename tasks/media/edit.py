"""What a task makes of sound or video: results that are read like a list, or written to files as they are made.

Shapes: R results, one a seed.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, overload

from torch import Tensor

Result = TypeVar("Result")
Part = TypeVar("Part", contravariant=True)
Opened = TypeVar("Opened", bound="Writer[Any]")


class Writer(Protocol[Part]):
    """A file being written, such as ``SoundWriter`` and ``VideoWriter``: complete when the ``with`` block ends well."""

    def write(self, block: Part, /) -> None:
        """Add a part of the result."""
        ...

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> bool | None: ...


class Edit(Sequence[Result], ABC, Generic[Result]):
    """The results of a call, one a seed.

    What was made from sources in memory is there at once. What is made from a file is computed when it is first read or
    written; until then the file must stay as it is. ``write`` holds one window in memory at a time and keeps nothing;
    reading collects all results in memory and keeps them.

    Args:
        results: R.
        pieces: starts to compute, and yields the results of all seeds from left to right, float ``[R, ...]``.
        at_once: compute now.
    """

    def __init__(self, results: int, pieces: Callable[[], Iterator[Tensor]], *, at_once: bool) -> None:
        self._count, self._pieces = results, pieces
        self._results: list[Result] | None = None
        if at_once:
            self._collect()

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Result: ...

    @overload
    def __getitem__(self, index: slice) -> list[Result]: ...

    def __getitem__(self, index: int | slice) -> Result | list[Result]:
        return self._collect()[index]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._count} result(s){'' if self._results else ', not computed yet'})"

    @abstractmethod
    def _split(self, piece: Tensor) -> Sequence[Result]:
        """A piece ``[R, ...]`` as a part of each result."""

    @abstractmethod
    def _join(self, parts: list[Result]) -> Result:
        """The parts of one result."""

    def _collect(self) -> list[Result]:
        if self._results is None:
            self._results = [self._join(list(parts)) for parts in zip(*self._parts(), strict=True)]
            del self._pieces  # and with it the model
        return self._results

    def _parts(self) -> Iterable[Sequence[Result]]:
        """Parts of all results from left to right, as they are made."""
        return map(self._split, self._pieces()) if self._results is None else [self._results]

    def _write(self, path: str | Path | Sequence[str | Path], open_writer: Callable[[Path], Opened]) -> list[Opened]:
        """Write each result to a path of its own, piece by piece; the writers, closed.

        Raises:
            ValueError: another number of paths than results.
        """
        paths = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
        if len(paths) != len(self):
            raise ValueError(f"write: got {len(paths)} path(s) for {len(self)} result(s), expected one for each")
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(open_writer(one)) for one in paths]
            for parts in self._parts():
                for writer, part in zip(writers, parts, strict=True):
                    writer.write(part)
        return writers
