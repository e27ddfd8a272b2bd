"""The files below a folder or inside a zip archive: which are pictures, sounds or clips, and which are left out.

A file is of a kind by the ending of its name; where the name has none that anybody knows, by its first bytes. What systems
put beside files (thumbnails, resource forks, whatever is hidden) is nobody's data; everything else that is left out is said.
"""

from __future__ import annotations

import hashlib
import mimetypes
import os
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

_ENDINGS = (
    "png apng jpg jpeg jpe jfif mpo webp avif gif bmp dib tif tiff ppm pgm pbm pnm pfm jp2 j2k jpx jpf jpc j2c tga qoi pcx "
    "psd ico icns dds sgi ras"
)

PICTURE_SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""How the names of picture files end, in lower case."""

_HEADS = {
    "image": (
        *(b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xffO\xffQ", b"qoif"),
        *(b"P%d%c" % (number, space) for number in range(1, 7) for space in b"\n "),
    ),
    "audio": (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"FORM", b".snd", b"caff", b"riff"),
    "video": (b"\x1aE\xdf\xa3", b"FLV\x01", b"\0\0\x01\xba"),
}  # first bytes of files

_INSIDE = {b"WAVE": "audio", b"WEBP": "image", b"AVI ": "video", b"avif": "image", b"avis": "image", b"M4A ": "audio"}

_SYSTEM = {"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found"} | {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
}

_ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".bz2", ".xz"}

_TYPES = mimetypes.MimeTypes()  # the library's own: what a machine adds must not decide which files are data

_PRINTED = bytes(range(32, 256)) + b"\t\r\n"  # what a text holds, in any encoding of a byte a letter and in UTF-8

_ASKED = 8  # files of an ending that nobody knows that are looked into

_NAMED = 3  # files that a warning names


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
        """Paths below the root, but for hidden files and what systems put beside files."""
        if self.root.is_dir():
            start = len(os.path.join(self.root, ""))
            return [path[start:].replace(os.sep, "/") for path in files_below(self.root)]
        names = (info.filename for info in self._zip().infolist() if not info.is_dir())
        return [name for name in names if not is_hidden(PurePosixPath(name))]

    def names(self, modality: str, suffixes: Collection[str], what: str = "", hint: str = "") -> list[str]:
        """Those of a kind, sorted; warns of others, with their number and why they are left out.

        Args:
            modality: "image", "video" or "audio".
            suffixes: how names of that kind end, in lower case, with their dots.
            what: was not found, in the words of the error; if left out, what is expected there.
            hint: ends the error.

        Raises:
            ValueError: there are none.
        """
        found, others, misses = set[str](), defaultdict[str, list[str]](list), Counter[str]()
        for name in sorted(set(self.every())):
            suffix = PurePosixPath(name).suffix.lower()
            if suffix in suffixes:
                found.add(name)
                continue
            known = (_TYPES.guess_type(name)[0] or "").partition("/")[0]
            look = not known and (not suffix or misses[suffix] < _ASKED)
            kind = self._kind(name) if look else known
            if look and kind == modality:
                found.add(name)
                continue
            misses[suffix] += 1
            if reason := _reason(kind, modality, suffix, known):
                others[reason].append(name)
        if not found:
            expected = ", ".join(sorted(suffixes))
            told = what or f"{self.what} found"
            raise ValueError(f"{self.root}: no {told}; expected names that end in {expected}{hint}")
        if others:
            told = "; ".join(f"{len(some)} {why} ({', '.join(some[:_NAMED])})" for why, some in others.items())
            warnings.warn(f"{self.root}: {sum(map(len, others.values()))} files are left out: {told}", stacklevel=4)
        return sorted(found)

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

    def _kind(self, name: str) -> str:
        """What a file is by its first bytes: "image", "audio", "video", "text" or ""; "link" if it leads nowhere."""
        try:
            with self._zip().open(name) if self.root.is_file() else (self.root / name).open("rb") as file:
                head = file.read(64)
        except FileNotFoundError:
            return "link"
        except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile):
            return ""
        if head[:4] in (b"RIFF", b"RF64") or head[4:8] == b"ftyp":
            return _INSIDE.get(head[8:12], "video" if head[4:8] == b"ftyp" else "")
        kind = next((kind for kind, starts in _HEADS.items() if head.startswith(starts)), "")
        return kind or ("text" if not head.translate(None, _PRINTED) else "")

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
        yield from (os.path.join(at, name) for name in names if not is_hidden(PurePosixPath(name)))


def is_hidden(path: PurePosixPath) -> bool:
    """Whether a path is hidden, or something that a system put there: thumbnails, resource forks, a waste bin."""
    return any(part.startswith(".") or part.lower() in _SYSTEM for part in path.parts)


def _reason(kind: str, modality: str, suffix: str, known: str) -> str:
    """Why a file is left out; "" for companions such as captions, labels and notes, which nobody takes for an example."""
    if kind == modality and known:
        return f"{suffix} files, which are not read here; convert them"
    if kind in ("image", "audio", "video"):
        return f"{kind} files"
    if kind == "link":
        return "links that lead nowhere"
    if suffix in _ARCHIVES:
        return "archives, which have to be unpacked"
    return "" if known or kind == "text" else f"{suffix or 'further'} files, which are of no known kind"
