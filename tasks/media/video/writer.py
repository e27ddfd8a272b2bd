"""Video files written, whole or not at all: H.264 through PyAV, GIF through Pillow.

Shapes: T frames, H W pixels.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from maskgen.checkpoint import atomic_file
from maskgen.tasks.media.images import save_gif
from maskgen.tasks.media.video.backends import Frames
from maskgen.tasks.media.video.encoder import Encoder, open_encoder
from maskgen.tasks.media.video.originals import VideoOriginal

_WRITTEN = (".mp4", ".m4v", ".mov", ".mkv", ".gif")

_LOWEST_RATE, _HIGHEST_RATE, _GIF_RATE = Fraction(1, 1000), 1000, 50

_QUALITY = 18  # x264's rate factor, which its makers call visually lossless


class VideoWriter:
    """A video file open for writing, piece by piece; it appears when the ``with`` block ends well, whole or not at all.

    Only a GIF is held in memory until then.

    Args:
        path: ends in .mp4, .m4v, .mov or .mkv (H.264, even height and width), or in .gif.
        frame_rate: frames a second, above 0 to 1000; at most 50 in a GIF, where frames end at hundredths of a second.
        quality: of H.264, 0 (lossless but for colour at half the resolution) to 51.
        original: the file that the frames were made of: its sound, subtitles, chapters, tags and colours go into the result,
            and what of them is lost is warned of. None for frames that come from nowhere.

    Attributes:
        frames: how many were written.

    Raises:
        ValueError: a suffix, rate or quality that cannot be written, or no frame at all at the end.
        OSError: the place cannot be written to.
        ImportError: without PyAV.
    """

    def __init__(
        self,
        path: str | Path,
        frame_rate: float | Fraction,
        *,
        quality: int = _QUALITY,
        original: VideoOriginal | None = None,
    ) -> None:
        self.path, self.frame_rate, self.quality = Path(path), check_frame_rate(frame_rate, str(path)), quality
        self._original = original
        if self.path.suffix.lower() not in _WRITTEN:
            raise ValueError(f"{path}: expected a name that ends in {', '.join(_WRITTEN[:-1])} or .gif")
        if not 0 <= quality <= 51:
            raise ValueError(f"{path}: got quality {quality}, expected 0 (best) to 51")
        if self.path.suffix.lower() == ".gif" and self.frame_rate > _GIF_RATE:
            raise ValueError(
                f"{path}: got {float(self.frame_rate):g} frames a second, expected at most {_GIF_RATE}, the most that "
                "browsers show of a GIF; take fewer (frame_rate), or write .mp4"
            )
        self.frames = 0
        self._stack = contextlib.ExitStack()
        self._open = False
        self._writing: tuple[tuple[int, int], Encoder | _Gif] | None = None

    def __enter__(self) -> VideoWriter:
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open, self._writing = False, None
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
        elif self.frames:
            self._stack.close()
        else:
            raise ValueError(f"{self.path}: got no frames, expected at least one; nothing was written")

    def write(self, frames: Frames) -> None:
        """Add frames.

        Args:
            frames: uint8 ``[T, H, W, 3]``, T at least 1, H and W the same as before.

        Raises:
            TypeError: another type.
            ValueError: another shape, or outside of ``with``.
        """
        if not self._open:
            raise ValueError(f"{self.path}: not open; write inside `with VideoWriter(...) as writer:`")
        check_frames(frames)
        size = (frames.shape[1], frames.shape[2])
        if self._writing is None:
            self._writing = size, self._begin(size)
        if size != self._writing[0]:
            before = self._writing[0]
            raise ValueError(f"{self.path}: got frames of {size[1]} x {size[0]}, expected {before[1]} x {before[0]}")
        self._writing[1].write(frames)
        self.frames += len(frames)

    def _begin(self, size: tuple[int, int]) -> Encoder | _Gif:
        if self.path.suffix.lower() == ".gif":
            if self._original is not None and (lost := self._original.losses()):
                warnings.warn(f"{self._original.path}: a GIF has no {', '.join(lost)}: left out", stacklevel=5)
            return self._stack.enter_context(_Gif(self.path, float(1 / self.frame_rate)))
        if size[0] % 2 or size[1] % 2:
            raise ValueError(
                f"{self.path}: got frames of {size[1]} x {size[0]}, expected an even width and height for H.264; leave out "
                "or repeat one row or column, or write a .gif"
            )
        try:
            temporary = self._stack.enter_context(atomic_file(self.path))
        except OSError as error:
            raise OSError(f"{self.path}: cannot be written ({error.strerror or error})") from None
        return self._stack.enter_context(
            open_encoder(temporary, self.path, self.frame_rate, size, self.quality, self._original)
        )


class _Gif:
    """Collects frames, and writes them when the ``with`` block ends well."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._seconds = path, seconds
        self._pictures: list[Image.Image] = []

    def __enter__(self) -> _Gif:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            save_gif(self._pictures, self._path, self._seconds)

    def write(self, frames: Frames) -> None:
        self._pictures += [Image.fromarray(frame) for frame in frames]


def check_frames(frames: Frames) -> None:
    """Refuse what are no 8-bit frames.

    Args:
        frames: array to look at.

    Raises:
        TypeError: not uint8.
        ValueError: another shape than ``[T, H, W, 3]``, or nothing in it.
    """
    if frames.dtype != np.uint8:
        raise TypeError(f"frames: got {frames.dtype}, expected uint8; make them with to_frames(video)")
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"frames: got shape {frames.shape}, expected [T, H, W, 3] with at least one frame")


def check_frame_rate(frame_rate: float | Fraction, name: str) -> Fraction:
    """A frame rate as a fraction.

    Args:
        frame_rate: frames a second.
        name: how the error calls what has this rate.

    Raises:
        ValueError: not from 1/1000 to 1000.
    """
    if not (math.isfinite(frame_rate) and _LOWEST_RATE <= frame_rate <= _HIGHEST_RATE):
        raise ValueError(f"{name}: got {float(frame_rate):g} frames a second, expected 0.001 to {_HIGHEST_RATE}")
    return Fraction(frame_rate).limit_denominator(1001)
