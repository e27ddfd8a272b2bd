"""Video as the engine of the video tasks reads it: a few frames at a time, at the model's size.

Frames of another size are resized until they cover the model's frame, and the middle is taken, as in training; or, to be
outpainted, until the wider picture fits into it.

Shapes: T frames, H W pixels of the model, h w of the video itself. Frames are uint8 ``[T, h, w, 3]``, tensors float
``[1, 3, T, H, W]`` in [0, 1].
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from maskgen.tasks.media.images import load_image
from maskgen.tasks.media.video.backends import Frames
from maskgen.tasks.media.video.files import VIDEO_SUFFIXES, VideoFile, to_frames, to_video_tensor
from maskgen.tasks.media.video.originals import VideoOriginal
from maskgen.tasks.media.video.writer import check_frame_rate, check_frames

Clip = Frames | Image.Image | Sequence[Image.Image] | Tensor
"""What people hold: uint8 ``[T, h, w, 3]`` or ``[h, w, 3]``, one picture or several, a float tensor ``[3, T, h, w]`` or
``[1, 3, T, h, w]`` in [0, 1]."""


@dataclass(frozen=True)
class Excerpt:
    """A part of a video file.

    Attributes:
        path: the file, whatever its name.
        start: where the part begins, in seconds.
        frames: how many frames it has; up to the end of the file if left out.
        frame_rate: take so many frames a second, by time; those of the file if left out.
    """

    path: str | Path
    start: float = 0.0
    frames: int | None = None
    frame_rate: float | None = None


VideoPath = str | Path | Excerpt
"""A file: a video, all of it or a part, or a picture, which is one frame; by the suffix unless it is an ``Excerpt``."""


class FrameSource(Protocol):
    """Frames that can be read in parts."""

    @property
    def frames(self) -> int:
        """T."""
        ...

    def read(self, start: int, stop: int) -> Tensor:
        """Float ``[1, 3, stop - start, H, W]``, at the model's size."""
        ...


@dataclass(frozen=True)
class Fit:
    """Where a frame lies on the model's frame.

    Attributes:
        scaled: (height, width) the frame is resized to.
        corner: (row, column) of its upper left pixel on the model's frame; negative where it is cropped.
        size: (H, W).
    """

    scaled: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def cover(cls, given: tuple[int, int], size: tuple[int, int]) -> Fit:
        """The middle of frames of size ``given``, as large as fits without a border."""
        scale = max(Fraction(size[0], given[0]), Fraction(size[1], given[1]))
        scaled = (max(size[0], round(given[0] * scale)), max(size[1], round(given[1] * scale)))
        return cls(scaled, (-((scaled[0] - size[0]) // 2), -((scaled[1] - size[1]) // 2)), size)

    @classmethod
    def inside(cls, given: tuple[int, int], pads: tuple[int, int, int, int], size: tuple[int, int]) -> Fit:
        """Frames with something added around them, as large as fits; what is left over goes evenly to opposite sides.

        Args:
            given: (h, w).
            pads: pixels added at the left, right, top and bottom, in the frames' own scale.
            size: (H, W).

        Raises:
            ValueError: so much is added that less than a pixel of the frames is left.
        """
        left, right, top, bottom = pads
        whole = (top + given[0] + bottom, left + given[1] + right)
        scale = min(Fraction(size[0], whole[0]), Fraction(size[1], whole[1]))
        scaled = (round(given[0] * scale), round(given[1] * scale))
        if min(scaled) < 1:
            raise ValueError(
                f"outpaint: got {given[1]} x {given[0]} pixels to widen to {whole[1]} x {whole[0]}, of which the model's "
                f"{size[1]} x {size[0]} would show less than a pixel; add less"
            )
        corner = tuple(
            min(max(0, round((length - total * scale) / 2 + before * scale)), length - inner)
            for length, total, before, inner in zip(size, whole, (top, left), scaled, strict=True)
        )
        return cls(scaled, (corner[0], corner[1]), size)

    @property
    def kept(self) -> Tensor:
        """Pixels of the model's frame that show the given frame, bool ``[H, W]``."""
        found = torch.zeros(self.size, dtype=torch.bool)
        rows, columns = (
            slice(max(0, corner), corner + side) for corner, side in zip(self.corner, self.scaled, strict=True)
        )
        found[rows, columns] = True
        return found

    def place(self, frames: Tensor) -> Tensor:
        """Resized frames ``[1, C, T, *scaled]`` on the model's frame, borders drawn outwards: ``[1, C, T, H, W]``."""
        (top, left), (height, width) = self.corner, self.size
        frames = frames[..., max(0, -top) : max(0, -top) + height, max(0, -left) : max(0, -left) + width]
        top, left = max(0, top), max(0, left)
        pads = (left, width - left - frames.shape[-1], top, height - top - frames.shape[-2], 0, 0)
        return F.pad(frames, pads, mode="replicate") if any(pads) else frames

    def __call__(self, frames: Tensor) -> Tensor:
        """Frames of any size ``[1, 3, T, h, w]`` at the model's: ``[1, 3, T, H, W]``, bit for bit where nothing changes."""
        if tuple(frames.shape[-2:]) != self.scaled:
            pictures = rearrange(frames, "1 C T h w -> T C h w")
            resized = F.interpolate(pictures, size=self.scaled, mode="bilinear", antialias=True)
            frames = rearrange(resized, "T C h w -> 1 C T h w").clamp(0, 1)
        return self.place(frames).contiguous()


class MemoryFrames:
    """A clip in memory as a ``FrameSource``.

    Args:
        clip: see ``Clip``.
        size: (H, W) of the model.

    Attributes:
        frames: T.
        given: (h, w), size of the clip itself.
        fit: how frames come to the model's size; their middle, as large as it covers, unless set otherwise.
        frame_rate: None; a clip in memory does not say.
        original: None; likewise.
        uneven: whether its frames are not evenly spaced in time.
        lazy: whether what is made of it is computed when it is read or written, and not at once.

    Raises:
        TypeError, ValueError: not such a clip.
    """

    frame_rate: Fraction | None = None
    original: VideoOriginal | None = None
    uneven = False
    lazy = False

    def __init__(self, clip: Clip, size: tuple[int, int]) -> None:
        self._clip = as_frames(clip)
        axes = (2, 3, 4) if isinstance(self._clip, Tensor) else (0, 1, 2)
        self.frames, height, width = (int(self._clip.shape[axis]) for axis in axes)
        self.given = (height, width)
        self.fit = Fit.cover(self.given, size)

    def read(self, start: int, stop: int) -> Tensor:
        """Float ``[1, 3, stop - start, H, W]``."""
        if isinstance(self._clip, Tensor):
            return self.fit(self._clip[:, :, start:stop])
        return self.fit(to_video_tensor(np.array(self._clip[start:stop])))  # a copy: torch warns of read-only memory

    def numbers(self, count: int) -> Sequence[int] | None:
        """See ``FileFrames``."""
        return range(self.frames) if count == self.frames else None

    def close(self) -> None:
        """Nothing is to be closed."""


class FileFrames:
    """A video file, or a part of it, as a ``FrameSource``: only what is asked for is decoded.

    Frames are taken by the time at which they are shown, which is right for unevenly spaced ones, too. What edits cannot
    keep of them is warned of.

    Args:
        excerpt: the file and the part.
        size: (H, W).

    Attributes:
        frames: T.
        given: (h, w).
        fit: see ``MemoryFrames``.
        frame_rate: frames a second.
        original: what the file has beside its pictures, for the result.
        uneven: see ``MemoryFrames``.
        lazy: see ``MemoryFrames``.

    Raises:
        FileNotFoundError, ValueError, OSError, ImportError: see ``maskgen.tasks.media.video.files.VideoFile``; a part that
            the file does not have.
    """

    lazy = True

    def __init__(self, excerpt: Excerpt, size: tuple[int, int]) -> None:
        self._file, self._excerpt = VideoFile(excerpt.path), excerpt
        self.uneven = self._file.variable_rate
        rate, wanted = self._file.frame_rate, excerpt.frame_rate
        self.frame_rate = rate if wanted is None else check_frame_rate(wanted, "frame_rate")
        self._indices = self._file.at_rate(self.frame_rate, start=excerpt.start, count=excerpt.frames)
        self.frames, self.given = len(self._indices), (self._file.height, self._file.width)
        self.fit = Fit.cover(self.given, size)
        seconds = self.frames / float(self.frame_rate)
        self.original = self._file.original(excerpt.start, seconds)
        if lost := self._losses():
            warnings.warn(f"{excerpt.path}: {'; '.join(lost)}", stacklevel=5)

    def read(self, start: int, stop: int) -> Tensor:
        """Float ``[1, 3, stop - start, H, W]``.

        Raises:
            ValueError: a damaged frame.
        """
        return self.fit(to_video_tensor(self._file.read(self._indices[start:stop], size=self.fit.scaled)))

    def numbers(self, count: int) -> Sequence[int] | None:
        """Which of ``count`` pictures that were made for this clip belong to its frames, one each.

        As many as the file has frames were made of these, as many as are taken of it, of those. None for others.
        """
        own = self._excerpt.frame_rate is not None and count == self.frames
        if count == self._file.frames and not own:
            return self._indices
        return range(self.frames) if count == self.frames else None

    def close(self) -> None:
        """Let go of the file; a later ``read`` opens it again."""
        self._file.close()

    def _losses(self) -> list[str]:
        lost = [f"{self._file.bits} bits a channel come back as 8"] if self._file.bits > 8 else []
        if self.uneven and self._excerpt.frame_rate is None:
            lost.append(
                f"frames are not evenly spaced: taken by time, {float(self.frame_rate):.3g} a second, so that some come "
                "twice or not at all; frame_rate says another number"
            )
        return lost


def open_clip(clip: Clip | VideoPath, size: tuple[int, int]) -> MemoryFrames | FileFrames:
    """What people hold, in memory or as the path of a video or picture, as a ``FrameSource``.

    Raises:
        FileNotFoundError, TypeError, ValueError, OSError, ImportError: no such clip, file or part of it.
    """
    if isinstance(clip, str | Path) and Path(clip).suffix.lower() in VIDEO_SUFFIXES:
        clip = Excerpt(clip)
    if isinstance(clip, Excerpt):
        return FileFrames(clip, size)
    found = MemoryFrames(load_image(clip) if isinstance(clip, str | Path) else clip, size)
    found.lazy = isinstance(clip, str | Path)
    return found


def as_frames(clip: Clip) -> Frames | Tensor:
    """What people hold as uint8 ``[T, h, w, 3]``, or as a float tensor ``[1, 3, T, h, w]`` in [0, 1].

    Raises:
        TypeError: another type.
        ValueError: another shape, no frames, pictures of different sizes, or numbers out of range.
    """
    if isinstance(clip, Tensor):
        return _check_tensor(clip)
    if isinstance(clip, np.ndarray):
        frames = clip[None] if clip.ndim == 3 else clip
        check_frames(frames)
        return frames
    pictures = [clip] if isinstance(clip, Image.Image) else list(clip)
    return to_frames(to_video_tensor(pictures))[0]


def _check_tensor(clip: Tensor) -> Tensor:
    video = clip[None] if clip.ndim == 4 else clip
    if not video.is_floating_point():
        raise TypeError(f"frames: got a tensor of {video.dtype}, expected floating point values in [0, 1]")
    if video.ndim != 5 or video.shape[:2] != (1, 3) or 0 in video.shape:
        raise ValueError(
            f"frames: got a tensor of shape {tuple(clip.shape)}, expected [3, T, H, W] or [1, 3, T, H, W]; arrays of numpy "
            "are [T, H, W, 3]"
        )
    low, high = (float(bound) for bound in video.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"frames: got values from {low:g} to {high:g}, expected 0 to 1")
    return video.detach().cpu().float()
