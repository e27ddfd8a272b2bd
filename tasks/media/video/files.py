"""Video in and out: files to frames and back, frames to tensors, and one clear line for whatever is no video.

Files are read by PyAV, or by decord where that is asked for and safe (see ``backends``); written by PyAV as H.264, or by
Pillow as GIF. Both libraries come with the extra ``video``.

Shapes: B batch, T frames, H W pixels. Frames are uint8 ``[T, H, W, 3]``, tensors float ``[B, 3, T, H, W]`` in [0, 1].
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from maskgen.tasks.media.checks import check_file, to_bytes
from maskgen.tasks.media.video.backends import Decoder, Frames, Reader, open_decoder
from maskgen.tasks.media.video.index import scan
from maskgen.tasks.media.video.originals import VideoOriginal
from maskgen.tasks.media.video.writer import VideoWriter, check_frame_rate, check_frames

VIDEO_SUFFIXES = frozenset(
    {
        ".mp4",
        ".m4v",
        ".mov",
        ".3gp",
        ".3g2",
        ".mkv",
        ".webm",
        ".avi",
        ".wmv",
        ".asf",
        ".flv",
        ".f4v",
        ".ogv",
        ".mxf",
        ".dv",
    }
    | {".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".gif"}
)
"""How the names of video files end, in lower case; what ``tasks.video_data`` looks for."""

_MOST_BYTES = 4 << 30  # of frames in one piece; a person who asks for more has forgotten how large videos are


class VideoFile:
    """A video file open for reading, frame by frame. A context manager.

    Opening reads the file through once without decoding it; later only what is asked for is decoded, from the nearest key
    frame before it. Frames stand upright, as players show them. Decoding what lies between frames that are asked for
    cannot be avoided, so ask for frames in ascending order.

    Args:
        path: the file; its content and not its name decides how it is read.
        threads: decoding threads; 0 for as many as the library finds right.
        reader: ``pyav`` refuses frames whose contents the decoder had to guess. ``decord`` passes them on, and reads files
            of the usual kinds only: PyAV reads the others anyway, and as fast.
        quiet: warn of nothing, as for the files of a data set, which says it of all at once.

    Attributes:
        name: how errors call it.
        frames: T, how many there are.
        height, width: of a frame as it is shown, in pixels; where those of the file are not square, players draw out the
            side that is too short, and so do we.
        frame_rate: frames a second as a fraction. Where they are not evenly spaced, that of nine frames in ten, if as many
            are, else the average.
        variable_rate: whether frames are not evenly spaced in time, as in many videos of phones and screens.
        duration: seconds.
        times: float64 ``[T]``, when each frame is shown, in seconds since the first.
        bits: of a channel, as stored; frames have 8.
        remarks: what of the file is not as a player shows it, or is left out, in words; they are warned of.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder; no video, or sound alone; no frames; cut off; damaged; no such reader. Damage that only shows
            when a frame is decoded is an error when that frame is read.
        OSError: it cannot be read.
        ImportError: without PyAV.
    """

    def __init__(self, path: str | Path, *, threads: int = 0, reader: Reader = "pyav", quiet: bool = False) -> None:
        check_file(Path(path), "a video file")
        if threads < 0 or reader not in ("decord", "pyav"):
            raise ValueError(
                f"{path}: got threads {threads}, reader {reader!r}; expected 0 or more, and decord or pyav"
            )
        self.name, self._path, self._threads, self._reader = str(path), Path(path), threads, reader
        self._index = index = scan(self._path, self.name)
        self.frames, self.height, self.width = len(index), index.shown.height, index.shown.width
        self.frame_rate, self.variable_rate = index.rate, index.variable
        self.duration, self.times = index.seconds, index.times
        self.bits, self.remarks = index.shown.bits, index.remarks
        if self.remarks and not quiet:
            warnings.warn(f"{path}: {'; '.join(self.remarks)}", stacklevel=2)
        self._decoder: Decoder | None = None

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        rate = f"{float(self.frame_rate):g} frames a second" + (", unevenly spaced" if self.variable_rate else "")
        return f"VideoFile({self.name}: {self.frames} frames of {self.width} x {self.height}, {rate})"

    def close(self) -> None:
        """Let go of the file; a later ``read`` opens it again."""
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = None

    def read(
        self,
        indices: Sequence[int] | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
        step: int = 1,
        size: tuple[int, int] | None = None,
    ) -> Frames:
        """Some frames.

        Args:
            indices: which, in any order, repeated or not; None for ``range(start, stop, step)``.
            start: first frame.
            stop: one past the last; None for all there are.
            step: every how many frames.
            size: (H, W) to resize to while reading (bilinear, with low-pass filter where it shrinks); None leaves them.

        Returns:
            uint8 ``[T, H, W, 3]``.

        Raises:
            ValueError: no frames or more than there are, a size below 1, a damaged frame, or more than 4 GiB at once: read
                such a video by ``blocks``.
        """
        if indices is None:
            if start < 0 or step < 1 or (stop is not None and stop <= start):
                raise ValueError(
                    f"{self.name}: got start {start}, stop {stop}, step {step}; expected 0 <= start < stop and step >= 1"
                )
            indices = range(start, self.frames if stop is None else stop, step)
        height, width = self._check_size(size)
        self._check_indices(indices, height, width)
        wanted = sorted(set(indices))
        if self._decoder is None:
            self._decoder = open_decoder(self._path, self.name, self._index, self._threads, self._reader)
        found = self._decoder.read(wanted, (height, width))
        return found if list(indices) == wanted else found[np.searchsorted(wanted, indices)]

    def blocks(
        self, count: int, indices: Sequence[int] | None = None, *, size: tuple[int, int] | None = None
    ) -> Iterator[Frames]:
        """A video of any length, piece by piece.

        Args:
            count: most frames of a piece.
            indices: which frames; None for all.
            size: see ``read``.

        Yields:
            uint8 ``[T, H, W, 3]`` with T at most ``count``.

        Raises:
            ValueError: see ``read``, or a count below 1.
        """
        if count < 1:
            raise ValueError(f"{self.name}: got blocks of {count} frames, expected at least 1")
        chosen = range(self.frames) if indices is None else indices
        for first in range(0, len(chosen), count):
            yield self.read(chosen[first : first + count], size=size)

    def at_rate(self, frame_rate: float | Fraction, *, start: float = 0.0, count: int | None = None) -> list[int]:
        """Which frames are on the screen when the video is played at another rate; right for uneven spacing, too.

        Args:
            frame_rate: frames a second.
            start: seconds.
            count: how many; None for as many as the video lasts.

        Returns:
            Indices for ``read``, ascending. A frame shown for long appears more than once.

        Raises:
            ValueError: a rate out of range, or less video than asked for.
        """
        rate = check_frame_rate(frame_rate, self.name)
        if not 0 <= start < self.duration:
            raise ValueError(
                f"{self.name}: got a start at {start:g} s, expected 0 to {self.duration:g} s: so long it lasts"
            )
        there = max(1, math.ceil(float((self.duration - start) * rate) - min(0.1, 1e-3 * rate)))
        wanted = there if count is None else count
        if not 1 <= wanted <= there:
            raise ValueError(
                f"{self.name}: got {wanted} frames from {start:g} s on at {float(rate):g} a second, expected 1 to {there}: "
                f"it lasts {self.duration:g} s"
            )
        # Stamps are rounded to ticks: a frame that begins within a thousandth of a second is the one that is meant.
        clock = self._index.clock
        shortest = float(np.diff(clock).min()) if len(clock) > 1 else 1.0
        moments = start + np.arange(wanted) / float(rate) + min(1e-3, shortest / 4)
        return [max(0, int(index)) for index in np.searchsorted(clock, moments, side="right") - 1]

    def original(self, start: float, seconds: float) -> VideoOriginal:
        """What a result made of a part of the file can keep of it beside its pictures, see ``VideoWriter``.

        Args:
            start: where the part begins, in seconds since the first frame.
            seconds: how long it is.
        """
        ends = start + seconds > self.duration - 0.5 / float(self.frame_rate)
        begin, colours = self._index.begin + start, self._index.shown.colours
        return VideoOriginal(path=self._path, begin=begin, seconds=seconds, ends=ends, colours=colours)

    def _check_size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        if size is None:
            return self.height, self.width
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"{self.name}: got size {tuple(size)}, expected (height, width), 1 pixel or more each")
        return int(size[0]), int(size[1])

    def _check_indices(self, indices: Sequence[int], height: int, width: int) -> None:
        if not len(indices) or min(indices) < 0 or max(indices) >= self.frames:
            told = f"frames {min(indices)} to {max(indices)}" if len(indices) else "no frames"
            raise ValueError(
                f"{self.name}: got {told}, expected some of 0 to {self.frames - 1}: it has {self.frames} frames"
            )
        size = len(indices) * height * width * 3
        if size > _MOST_BYTES:
            raise ValueError(
                f"{self.name}: got {len(indices)} frames of {width} x {height}, {size / 2**30:.0f} GiB; expected at most "
                f"{_MOST_BYTES >> 30} GiB at once: ask for fewer, for a smaller size, or read it by blocks"
            )


def load_video(
    path: str | Path,
    *,
    start: float = 0.0,
    frames: int | None = None,
    frame_rate: float | Fraction | None = None,
    size: tuple[int, int] | None = None,
) -> tuple[Frames, Fraction]:
    """A video file, or a part of it.

    Args:
        path: the file.
        start: where to begin, in seconds.
        frames: how many; None for all up to the end.
        frame_rate: play it at so many frames a second, by leaving out or repeating frames; None takes them as stored, and
            warns where they are not evenly spaced.
        size: (H, W) to resize to.

    Returns:
        uint8 ``[T, H, W, 3]`` and frames a second.

    Raises:
        FileNotFoundError, ValueError, OSError, ImportError: see ``VideoFile``.
    """
    with VideoFile(path) as file:
        if frame_rate is not None:
            rate = check_frame_rate(frame_rate, file.name)
            return file.read(file.at_rate(rate, start=start, count=frames), size=size), rate
        if file.variable_rate:
            warnings.warn(
                f"{path}: frames are not evenly spaced in time ({float(file.frame_rate):.3g} a second on average) and are "
                "taken as stored; give frame_rate to take them by time",
                stacklevel=2,
            )
        first = file.at_rate(file.frame_rate, start=start, count=1)[0]
        stop = file.frames if frames is None else first + frames
        return file.read(start=first, stop=stop, size=size), file.frame_rate


def save_video(
    frames: Frames | Sequence[Image.Image], path: str | Path, frame_rate: float | Fraction, *, quality: int = 18
) -> None:
    """Write a video, whole or not at all; the suffix chooses the format. See ``VideoWriter``.

    The x264 in PyAV 18's wheels makes files that differ a little from run to run, whatever the number of threads.

    Args:
        frames: uint8 ``[T, H, W, 3]``, or pictures of one size.
        path: see ``VideoWriter``.
        frame_rate: see ``VideoWriter``.
        quality: see ``VideoWriter``.

    Raises:
        TypeError: frames of another type.
        ValueError: no frames, another shape, odd sizes in H.264, or a suffix or rate that cannot be written.
        OSError: the place cannot be written to.
        ImportError: without PyAV.
    """
    array = frames if isinstance(frames, np.ndarray) else _stack(frames)
    with VideoWriter(path, frame_rate, quality=quality) as writer:
        writer.write(array)


def to_video_tensor(frames: Frames | Sequence[Image.Image]) -> Tensor:
    """One clip as a float32 tensor.

    Args:
        frames: uint8 ``[T, H, W, 3]``, or pictures of one size.

    Returns:
        float32 ``[1, 3, T, H, W]`` in [0, 1].

    Raises:
        TypeError: another type.
        ValueError: another shape, no frames, or pictures of different sizes.
    """
    array = frames if isinstance(frames, np.ndarray) else _stack(frames)
    check_frames(array)
    return (
        rearrange(torch.from_numpy(np.ascontiguousarray(array)), "T H W C -> 1 C T H W").float().div_(255).contiguous()
    )


def to_frames(video: Tensor) -> list[Frames]:
    """Clips as 8-bit frames: clamped, rounded to nearest.

    Args:
        video: float ``[B, 3, T, H, W]``, nominally in [0, 1].

    Returns:
        One uint8 ``[T, H, W, 3]`` a clip.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    pixels = to_bytes(video, "video", "B, 3, T, H, W")
    return list(rearrange(pixels, "B C T H W -> B T H W C").cpu().contiguous().numpy())


def _stack(pictures: Sequence[Image.Image]) -> Frames:
    """Pictures as ``[T, H, W, 3]``."""
    foreign = [type(picture).__name__ for picture in pictures if not isinstance(picture, Image.Image)]
    if foreign:
        raise TypeError(f"frames: got {foreign[0]}, expected PIL images or one uint8 array [T, H, W, 3]")
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) != 1:
        raise ValueError(f"frames: got pictures of sizes {sizes}, expected at least one and all of one size")
    return np.stack([np.asarray(picture.convert("RGB"), dtype=np.uint8) for picture in pictures])
