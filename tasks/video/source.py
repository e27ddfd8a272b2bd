"""Video as the engine of the video tasks reads it: a few frames at a time, at the model's size.

Frames of another size are resized until they cover the model's frame, and the middle is taken, as in training; or, to be
outpainted, until the wider picture fits into it.

Shapes: T frames, H W pixels of the model, h w of the video itself. Frames are uint8 ``[T, h, w, 3]``, tensors float
``[1, 3, T, H, W]`` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from maskgen.tasks.media.video.backends import Frames
from maskgen.tasks.media.video.files import VideoFile, to_frames, to_video_tensor
from maskgen.tasks.media.video.writer import check_frames

__all__ = ["Clip", "FileFrames", "Fit", "FrameSource", "MemoryFrames", "as_frames"]

Clip = Frames | Image.Image | Sequence[Image.Image] | Tensor
"""What people hold: uint8 ``[T, h, w, 3]`` or ``[h, w, 3]``, one picture or several, a float tensor ``[3, T, h, w]`` or
``[1, 3, T, h, w]`` in [0, 1]."""


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
            pictures = frames[0].transpose(0, 1)
            resized = F.interpolate(pictures, size=self.scaled, mode="bilinear", antialias=True)
            frames = resized.transpose(0, 1)[None].clamp(0, 1)
        return self.place(frames).contiguous()


class MemoryFrames:
    """A clip in memory as a ``FrameSource``.

    Args:
        clip: see ``Clip``.
        size: (H, W) of the model.
        fit: how frames come to it; their middle, as large as it covers, by default.

    Attributes:
        frames: T.
        given: (h, w), size of the clip itself.

    Raises:
        TypeError, ValueError: not such a clip.
    """

    def __init__(self, clip: Clip, size: tuple[int, int], fit: Fit | None = None) -> None:
        self._clip = as_frames(clip)
        axes = (2, 3, 4) if isinstance(self._clip, Tensor) else (0, 1, 2)
        self.frames, height, width = (int(self._clip.shape[axis]) for axis in axes)
        self.given = (height, width)
        self._fit = fit or Fit.cover(self.given, size)

    def read(self, start: int, stop: int) -> Tensor:
        """Float ``[1, 3, stop - start, H, W]``."""
        if isinstance(self._clip, Tensor):
            return self._fit(self._clip[:, :, start:stop])
        return self._fit(to_video_tensor(np.array(self._clip[start:stop])))  # a copy: torch warns of read-only memory


class FileFrames:
    """A video file as a ``FrameSource``: only what is asked for is decoded.

    Args:
        file: the file.
        size: (H, W).
        places: its frames in the order of the clip; None for all.
        fit: see ``MemoryFrames``.

    Attributes:
        frames: T.
        given: (h, w).
    """

    def __init__(
        self, file: VideoFile, size: tuple[int, int], places: Sequence[int] | None = None, fit: Fit | None = None
    ) -> None:
        self._file, self._places = file, range(file.frames) if places is None else places
        self.frames, self.given = len(self._places), (file.height, file.width)
        self._fit = fit or Fit.cover(self.given, size)

    def read(self, start: int, stop: int) -> Tensor:
        """Float ``[1, 3, stop - start, H, W]``.

        Raises:
            ValueError: a damaged frame.
        """
        return self._fit(to_video_tensor(self._file.read(self._places[start:stop], size=self._fit.scaled)))


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
