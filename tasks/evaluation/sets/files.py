"""Sample files in folders and archives: which there are, and what is in one.

Shapes: T frames, H W pixels, C channels, S samples of sound.
"""

import io
import re
from pathlib import PurePosixPath
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
from maskgen.tasks.media.results import MANIFEST
from maskgen.tasks.media.shelf import PICTURE_SUFFIXES, Shelf
from maskgen.tasks.media.video.files import VIDEO_SUFFIXES, VideoFile

_SUFFIXES: dict[str, frozenset[str]] = {"image": PICTURE_SUFFIXES, "video": VIDEO_SUFFIXES, "audio": SOUND_SUFFIXES}


def sample_names(shelf: Shelf, modality: Modality) -> list[str]:
    """Paths of all files of a modality, sorted.

    Raises:
        ValueError: there are none.
    """
    ends = {PurePosixPath(name).suffix.lower() for name in shelf.every()}
    others = [other for other, suffixes in _SUFFIXES.items() if ends & suffixes]
    told = f" (it holds {' and '.join(others)}: name features of that kind)" if others else ""
    return shelf.names(modality, _SUFFIXES[modality], f"{modality} files found{told}")


def manifest_items(shelf: Shelf, modality: Modality) -> tuple[list[dict[str, Any]] | None, dict[str, str], int]:
    """What a generated set says about itself.

    Args:
        shelf: where it might be.
        modality: of the samples that are looked for.

    Returns:
        Its items, names of classes by their numbers and, for clips kept as strips of frames, the frames of one (else 0);
        (None, {}, 0) without a manifest.

    Raises:
        ValueError: it is damaged, not finished, or of another modality.
    """
    place = shelf.path(MANIFEST)
    if place is None or not place.is_file():
        return None, {}, 0
    found = read_json(place)
    items = found.get("items") if isinstance(found, dict) else None
    if not items or not all(isinstance(item, dict) and "file" in item for item in items):
        raise ValueError(f"{place}: damaged, or no list of samples; expected items with a file each")
    if found.get("complete") is False:
        raise ValueError(f"{shelf.root}: this set is not finished; run the command that makes it again")
    own = found.get("modality", "image")
    if own != modality:
        raise ValueError(f"{shelf.root}: holds samples of {own}, but the features are of {modality}")
    return items, found.get("classes", {}), int(found.get("frames", 0)) if modality == "video" else 0


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
