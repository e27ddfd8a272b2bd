"""Sample files in folders and archives: which there are, and what is in one.

Shapes: T frames, H W pixels, C channels, S samples of sound.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from maskgen.checkpoint import read_json
from maskgen.tasks.data.base import Modality
from maskgen.tasks.media.audio.files import SOUND_SUFFIXES, SoundFile
from maskgen.tasks.media.images import load_image
from maskgen.tasks.media.video.files import VIDEO_SUFFIXES, VideoFile

__all__ = ["Shelf", "manifest_items", "read_clip", "read_picture", "read_sound", "read_strip"]

_MANIFEST = "manifest.json"

_SUFFIXES: dict[str, frozenset[str]] = {
    "image": frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}),
    "video": VIDEO_SUFFIXES,
    "audio": SOUND_SUFFIXES,
}


class Shelf:
    """The files below a folder or inside a ``.zip``.

    Args:
        root: folder or archive.

    Raises:
        FileNotFoundError: there is no such place.
        ValueError: a file that is no archive.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        if not self.root.exists():
            raise FileNotFoundError(f"{root}: no such file or folder, expected a folder, a .zip or an .npz of samples")
        self._archive: tuple[int, zipfile.ZipFile] | None = None
        if self.root.is_file():
            self._zip()

    def names(self, modality: Modality) -> list[str]:
        """Paths below the root of all files of a modality by their names' endings, sorted; hidden ones are none.

        Raises:
            ValueError: there are none.
        """
        if self.root.is_dir():
            every = (path.relative_to(self.root).as_posix() for path in _walk(self.root))
        else:
            every = (info.filename for info in self._zip().infolist() if not info.is_dir())
        suffixes, seen = _SUFFIXES[modality], list(every)
        found = sorted(
            name
            for name in seen
            if PurePosixPath(name).suffix.lower() in suffixes
            and not any(part.startswith(".") for part in PurePosixPath(name).parts)
        )
        if not found:
            others = [
                other for other, ends in _SUFFIXES.items() if any(PurePosixPath(n).suffix.lower() in ends for n in seen)
            ]
            told = f" (it holds {' and '.join(others)}: name features of that kind)" if others else ""
            raise ValueError(
                f"{self.root}: no {modality} files found{told}; expected names that end in {', '.join(sorted(suffixes))}"
            )
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

    def told(self, name: str) -> str:
        """How errors call a file."""
        return f"{self.root}/{name}"

    def digest(self, names: list[str]) -> str:
        """Hash of names and contents; of an archive, of the checksums in its table."""
        found = hashlib.sha256()
        if self.root.is_file():
            table = {info.filename: info for info in self._zip().infolist()}
            for name in names:
                found.update(f"{name} {table[name].CRC} {table[name].file_size}\n".encode())
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
                raise ValueError(f"{self.root}: got a file that is no .zip ({error}), expected samples") from None
        return self._archive[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_archive": None}


def manifest_items(shelf: Shelf, modality: Modality) -> tuple[list[dict[str, Any]] | None, int]:
    """What a generated set says about itself.

    Args:
        shelf: where it might be.
        modality: of the samples that are looked for.

    Returns:
        Its items and, for clips kept as strips of frames, the frames of one (else 0); (None, 0) without a manifest.

    Raises:
        ValueError: it is damaged, not finished, or of another modality.
    """
    place = shelf.path(_MANIFEST)
    if place is None or not place.is_file():
        return None, 0
    found = read_json(place)
    items = found.get("items") if isinstance(found, dict) else None
    if not items or not all(isinstance(item, dict) and "file" in item for item in items):
        raise ValueError(f"{place}: damaged, or no list of samples; expected items with a file each")
    if found.get("complete") is False:
        raise ValueError(f"{shelf.root}: this set is not finished; run the command that makes it again")
    own = found.get("modality", "image")
    if own != modality:
        raise ValueError(f"{shelf.root}: holds samples of {own}, but the features are of {modality}")
    return items, int(found.get("frames", 0)) if modality == "video" else 0


def read_picture(shelf: Shelf, name: str) -> Tensor:
    """A picture as uint8 ``[3, H, W]``.

    Raises:
        ValueError: no picture, or a damaged one.
    """
    content = shelf.read(name)
    try:
        with Image.open(io.BytesIO(content)) as opened:
            picture = np.asarray(load_image(opened))
    except Exception as error:  # Pillow's readers raise almost anything on damaged files
        told = re.sub(r" <[^>]*>$", "", " ".join(str(error).split()))  # Pillow names the buffer in memory
        reason = told or type(error).__name__
        raise ValueError(f"{shelf.told(name)}: no picture, or a damaged one ({reason[:120]})") from None
    return rearrange(torch.from_numpy(picture.copy()), "h w c -> c h w").contiguous()


def read_strip(shelf: Shelf, name: str, frames: int) -> Tensor:
    """A clip whose frames stand one above the other in a picture, as uint8 ``[3, T, H, W]``.

    Args:
        shelf: where it is.
        name: its path.
        frames: T.

    Raises:
        ValueError: no picture, or a height that is no multiple of T.
    """
    picture = read_picture(shelf, name)
    if picture.shape[1] % frames:
        raise ValueError(f"{shelf.told(name)}: got {picture.shape[1]} rows, expected a multiple of {frames} frames")
    return rearrange(picture, "c (t h) w -> c t h w", t=frames)


def read_clip(shelf: Shelf, name: str, frames: int) -> Tensor:
    """The beginning of a video file, as uint8 ``[3, T, H, W]``.

    Args:
        shelf: a folder; video inside an archive is not read.
        name: path of the file.
        frames: most frames to read.

    Raises:
        ValueError: no video, or a damaged one.
    """
    path = shelf.path(name)
    if path is None:
        raise ValueError(f"{shelf.root}: got an archive, expected a folder of video files; unpack it")
    with VideoFile(path, reader="pyav") as file:  # which refuses frames that the decoder had to guess
        found = file.read(range(min(frames, file.frames)))
    return torch.from_numpy(np.ascontiguousarray(rearrange(found, "t h w c -> c t h w")))


def read_sound(shelf: Shelf, name: str) -> tuple[Tensor, int]:
    """A sound file, float ``[C, S]``, and its sample rate.

    Raises:
        ValueError: no sound, or a damaged one.
    """
    with SoundFile(io.BytesIO(shelf.read(name)), shelf.told(name)) as file:
        return file.read(0, file.frames), file.sample_rate


def _walk(root: Path) -> Iterator[Path]:
    """All files below a folder, those behind links to folders as well; no folder twice on the way down."""
    for at, folders, names in os.walk(root, followlinks=True):
        above = {place.resolve() for place in (Path(at), *Path(at).parents)}
        folders[:] = [name for name in folders if Path(at, name).resolve() not in above]
        yield from (path for name in names if (path := Path(at, name)).is_file())
