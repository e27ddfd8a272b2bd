"""What of a clip is kept while the rest is painted anew: masks, the regions of MAGVIT's tasks, a picture made wider.

Shapes: T frames, H W pixels of the model, h w of the video itself.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from maskgen.tasks.conditions.video import VIDEO_TASKS, TokenCells, VideoTask
from maskgen.tasks.media.images import load_mask
from maskgen.tasks.media.video.files import VIDEO_SUFFIXES, VideoFile
from maskgen.tasks.video.source import FileFrames, Fit, MemoryFrames

Mask = NDArray[Any] | Tensor | str | Path
"""What is painted anew: an array, the path of a picture or video, or the name of a region (no suffix)."""

INPAINTED: Mapping[str, VideoTask] = MappingProxyType({"central": VIDEO_TASKS["IPC"], "dynamic": VIDEO_TASKS["IPD"]})
"""Regions by name that are painted anew: the middle half of rows and columns; the same in columns that move to the right."""

OUTPAINTED: Mapping[str, VideoTask] = MappingProxyType(
    {
        "central": VIDEO_TASKS["OPC"],
        "vertical": VIDEO_TASKS["OPV"],
        "horizontal": VIDEO_TASKS["OPH"],
        "dynamic": VIDEO_TASKS["OPD"],
    }
)
"""Regions by name around which is painted anew: the middle half of rows and columns, of columns, of rows; half the columns,
moving to the right."""


class Region(ABC):
    """What of a clip is kept."""

    @abstractmethod
    def kept(self, start: int, stop: int) -> Tensor:
        """Bool ``[stop - start, H, W]``, True where the clip's own pixels are given."""

    def close(self) -> None:
        """Let go of what is open; nothing, in general."""
        return None


class FixedRegion(Region):
    """Pixels that are known beforehand.

    Args:
        kept: bool ``[T, H, W]``, or ``[1, H, W]`` for all frames alike.
    """

    def __init__(self, kept: Tensor) -> None:
        self._kept = kept

    def kept(self, start: int, stop: int) -> Tensor:
        """See ``Region``."""
        return self._kept[start:stop] if len(self._kept) > 1 else self._kept.expand(stop - start, -1, -1)


class MemoryMask(Region):
    """Which pixels of a clip are painted anew, at the model's size: a pixel is, if it shows any part of one that is marked.

    Args:
        mask: bool or uint8, array or tensor: ``[h, w]`` for all frames alike or ``[T, h, w]``, for those that are taken of
            the clip or for all that its file has. True, and of uint8 half grey and lighter, is painted anew; uint8 of
            nothing but 0 and 1 counts as bool.
        source: the clip it belongs to.
        size: (H, W).

    Raises:
        TypeError: another type.
        ValueError: another shape, or nothing marked, or everything.
    """

    def __init__(self, mask: Any, source: MemoryFrames | FileFrames, size: tuple[int, int]) -> None:
        marked = _marked(mask)
        self._numbers = source.numbers(len(marked)) if marked.ndim == 3 else None
        if tuple(marked.shape[-2:]) != source.given or (marked.ndim != 2 and self._numbers is None):
            shapes = f"{source.given} for all frames alike or {(source.frames, *source.given)}"
            raise ValueError(f"mask: got shape {tuple(marked.shape)}, expected {shapes}, as the video")
        if not marked.any() or marked.all():
            raise ValueError(
                "mask: nothing is marked to be painted anew: make those pixels True or white"
                if not marked.any()
                else "mask: everything is marked, nothing of the video is kept; use generate"
            )
        self._marked, self._fit = marked, Fit.cover(source.given, size)

    def kept(self, start: int, stop: int) -> Tensor:
        """See ``Region``."""
        part = self._marked[None] if self._numbers is None else self._marked[list(self._numbers[start:stop])]
        return _unmarked(part, self._fit).expand(stop - start, -1, -1)


class FileMask(Region):
    """A mask that is a video of the clip's size: what is half grey and lighter is painted anew, frame by frame.

    Args:
        file: the mask. If it has as many frames as the clip's file, or as are taken of it, each belongs to one of these;
            else they are taken by time, from that of the first frame taken of the clip.
        source: the clip.
        size: (H, W).

    Raises:
        ValueError: another size, or not as long as the clip.
    """

    def __init__(self, file: VideoFile, source: MemoryFrames | FileFrames, size: tuple[int, int]) -> None:
        numbers = source.numbers(file.frames)
        if numbers is None:
            numbers = range(file.frames) if source.frame_rate is None else file.at_rate(source.frame_rate)
        if (file.height, file.width) != source.given or len(numbers) < source.frames:
            height, width = source.given
            raise ValueError(
                f"mask: got {file.frames} frames of {file.width} x {file.height}, expected {source.frames} or more of "
                f"{width} x {height}, as the video"
            )
        if source.uneven and not file.variable_rate and source.numbers(file.frames) is not None:
            warnings.warn(
                f"{file.name}: evenly spaced, but the clip's frames are not: taken for a mask of each of them, one by one",
                stacklevel=5,
            )
        self._file, self._numbers, self._fit = file, numbers, Fit.cover(source.given, size)

    def kept(self, start: int, stop: int) -> Tensor:
        """See ``Region``."""
        grey = self._file.read(self._numbers[start:stop]).mean(-1, dtype=np.float32)
        return _unmarked(torch.from_numpy(grey) >= 128, self._fit)

    def close(self) -> None:
        """Let go of the file; a later ``kept`` opens it again."""
        self._file.close()


def inpainted_region(
    mask: Mask, clip: MemoryFrames | FileFrames, size: tuple[int, int]
) -> tuple[Region, VideoTask, bool]:
    """What inpainting keeps of a clip, the task it asks of the model, and whether the region is the task's own.

    Args:
        mask: see ``maskgen.tasks.video.inpainting.inpaint_video``.
        clip: the clip.
        size: (H, W).

    Raises:
        TypeError: another type.
        FileNotFoundError, ValueError, OSError: no such region or file, or it is damaged, or does not fit the clip.
    """
    if isinstance(mask, str) and not Path(mask).suffix:
        return _named_region(mask, INPAINTED, "mask", clip.frames, size)
    task = INPAINTED["central"]
    if isinstance(mask, str | Path) and Path(mask).suffix.lower() in VIDEO_SUFFIXES:
        return FileMask(VideoFile(mask), clip, size), task, False
    marked = load_mask(mask, (clip.given[1], clip.given[0])) if isinstance(mask, str | Path) else mask
    return MemoryMask(marked, clip, size), task, False


def outpainted_region(
    pads: tuple[int, int, int, int], region: str | None, clip: MemoryFrames | FileFrames, size: tuple[int, int]
) -> tuple[Region, VideoTask, bool]:
    """``inpainted_region`` for outpainting; also sets where the clip lies on the wider picture.

    Args:
        pads: pixels to add at the left, right, top and bottom, in the clip's scale.
        region: what of the picture is kept, instead.
        clip: the clip.
        size: (H, W).

    Raises:
        ValueError: negative numbers, numbers and a region, no such region, or nothing to add.
    """
    if min(pads) < 0 or (region is not None and any(pads)):
        raise ValueError(
            f"outpaint: got left {pads[0]}, right {pads[1]}, top {pads[2]}, bottom {pads[3]}, region {region}; expected "
            "pixels of 0 or more, or a region"
        )
    if region is not None:
        return _named_region(region, OUTPAINTED, "region", clip.frames, size)
    clip.fit = Fit.inside(clip.given, pads, size)
    kept = clip.fit.kept
    if kept.all():
        raise ValueError(
            "outpaint: nothing to add: left, right, top and bottom are 0 or too small to show at the model's "
            f"{size[1]} x {size[0]} pixels; give more, or a region"
        )
    return FixedRegion(kept[None]), OUTPAINTED["central"], False


def _named_region(
    name: str, regions: Mapping[str, VideoTask], what: str, frames: int, size: tuple[int, int]
) -> tuple[Region, VideoTask, bool]:
    """The region of a task, for clips of any length."""
    if name not in regions:
        raise ValueError(f"{what}: got {name!r}, expected {', '.join(regions)}")
    task = regions[name]
    length = frames if task.region in ("strip", "window") else 1
    whole = TokenCells.even((1, 1, 1), (length, *size))
    return FixedRegion(task.condition(torch.zeros(1, 3, length, *size), whole).pixels[0, 0]), task, True


def _unmarked(marked: Tensor, fit: Fit) -> Tensor:
    """Pixels of the model's frame that show no part of a marked one: bool ``[T, h, w]`` -> ``[T, H, W]``."""
    scaled = F.adaptive_max_pool2d(marked[None].float(), fit.scaled)
    return fit.place(scaled[None])[0, 0] == 0


def _marked(mask: Any) -> Tensor:
    """A mask as bool, True = to be painted anew."""
    if not isinstance(mask, Tensor | np.ndarray):
        raise TypeError(f"mask: got {type(mask).__name__}, expected an array or a tensor of bool or uint8")
    found = mask.cpu() if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))
    if found.dtype not in (torch.bool, torch.uint8):
        raise TypeError(f"mask: got {found.dtype}, expected bool or uint8")
    if found.dtype == torch.bool:
        return found
    return found.bool() if found.numel() and int(found.max()) <= 1 else found >= 128
