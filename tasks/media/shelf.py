"""The files below a folder or inside a zip archive, by their names' endings."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any


class Shelf:
    """The files below a folder or inside a ``.zip``.

    Args:
        root: folder or archive.
        what: is expected there, named in errors.

    Raises:
        FileNotFoundError: there is no such place.
        ValueError: a file that is no archive.
    """

    def __init__(self, root: Path, what: str) -> None:
        self.root, self.what = Path(root), what
        if not self.root.exists():
            raise FileNotFoundError(f"{root}: no such file or folder, expected a folder or an archive of {what}")
        self._archive: tuple[int, zipfile.ZipFile] | None = None
        if self.root.is_file():
            self._zip()

    def every(self) -> list[str]:
        """Paths below the root, but for hidden files and the resource folders of macOS."""
        if self.root.is_dir():
            found = (Path(path) for path in files_below(self.root))
            return [path.relative_to(self.root).as_posix() for path in found if path.is_file()]
        names = (info.filename for info in self._zip().infolist() if not info.is_dir())
        return [name for name in names if not is_hidden(PurePosixPath(name))]

    def names(self, suffixes: Collection[str], what: str = "") -> list[str]:
        """Those whose names end so, sorted.

        Args:
            suffixes: in lower case, with their dots.
            what: was not found, in the words of the error; if left out, what is expected there.

        Raises:
            ValueError: there are none.
        """
        found = sorted({name for name in self.every() if PurePosixPath(name).suffix.lower() in suffixes})
        if not found:
            expected = ", ".join(sorted(suffixes))
            told = what or f"{self.what} found"
            raise ValueError(f"{self.root}: no {told}; expected names that end in {expected}")
        return found

    def read(self, name: str) -> bytes:
        """Content of one file.

        Raises:
            ValueError: empty, damaged or encrypted inside the archive.
            OSError: it cannot be read.
        """
        if self.root.is_dir():
            content = (self.root / name).read_bytes()
        else:
            try:
                content = self._zip().read(name)
            except (zipfile.BadZipFile, RuntimeError, NotImplementedError, KeyError) as error:
                raise ValueError(f"{self.told(name)}: damaged or encrypted inside the archive ({error})") from None
        if not content:
            raise ValueError(f"{self.told(name)}: got an empty file")
        return content

    def path(self, name: str) -> Path | None:
        """Where a file is on the disk; None inside an archive."""
        return self.root / name if self.root.is_dir() else None

    def table(self, names: Sequence[str]) -> list[tuple[int, int]] | None:
        """Size and checksum of files in an archive; None for a folder, which keeps no checksums."""
        if self.root.is_dir():
            return None
        found = {info.filename: info for info in self._zip().infolist()}
        return [(found[name].file_size, found[name].CRC) for name in names]

    def told(self, name: str) -> str:
        """How errors call a file."""
        return f"{self.root}/{name}"

    def digest(self, names: list[str]) -> str:
        """Hash of names and contents; of an archive, of the checksums in its table."""
        found = hashlib.sha256()
        if self.root.is_file():
            for name, (size, check) in zip(names, self.table(names) or (), strict=True):
                found.update(f"{name} {check} {size}\n".encode())
            return found.hexdigest()[:16]
        for name in names:
            try:
                content = (self.root / name).read_bytes()
            except OSError as error:
                content = str(error.strerror).encode()
            found.update(f"{name} {len(content)}\n".encode() + hashlib.sha256(content).digest())
        return found.hexdigest()[:16]

    def _zip(self) -> zipfile.ZipFile:
        """Open in this process: a loader's workers must not share one place in the file."""
        if self._archive is None or self._archive[0] != os.getpid():
            try:
                self._archive = (os.getpid(), zipfile.ZipFile(self.root))
            except (zipfile.BadZipFile, OSError) as error:
                raise ValueError(f"{self.root}: expected a folder or a zip archive of {self.what} ({error})") from None
        return self._archive[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}


def files_below(root: Path) -> Iterator[str]:
    """All files below a folder that are not hidden; links to folders are followed once."""
    for at, folders, names in os.walk(root, followlinks=True):
        above = {place.resolve() for place in (Path(at), *Path(at).parents)}
        folders[:] = [
            name for name in folders if not is_hidden(PurePosixPath(name)) and Path(at, name).resolve() not in above
        ]
        yield from (os.path.join(at, name) for name in names if not name.startswith("."))


def is_hidden(path: PurePosixPath) -> bool:
    """Whether a path is hidden, or in a resource folder of macOS."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
