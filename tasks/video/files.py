"""The video tasks on files of any length: frames are read when a window needs them, and written as they are made.

A 10-minute file costs as much memory as a short one, except for results that are GIFs. The results are those of
``maskgen.tasks.video.tasks``, up to what the formats hold.

Shapes: T frames, H W pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from maskgen.tasks.media.video.backends import Reader
from maskgen.tasks.media.video.files import VideoFile, save_video, to_frames
from maskgen.tasks.media.video.writer import VideoWriter, check_frame_rate
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import clip_size, trained
from maskgen.tasks.video.source import FileFrames
from maskgen.tasks.video.windows import Piece

__all__ = ["ClipOptions", "output_rate", "write_pieces"]


# Refuses frames whose contents the decoder had to guess, and is as fast as decord from frame to frame.
_READER: Reader = "pyav"

_FRAME_RATE = Fraction(8)  # of results, where nothing says another


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """Which part of a video file is taken, and what is written.

    Attributes:
        start: where the part begins, in seconds.
        frames: how many frames it has; up to the end of the file if left out.
        frame_rate: take so many frames a second, by time; those of the file if left out.
        format: of the results, ``mp4`` or ``gif``.
    """

    start: float = 0.0
    frames: int | None = None
    frame_rate: float | None = None
    format: Literal["mp4", "gif"] = "mp4"


def write_pieces(pieces: Iterable[Piece], path: str | Path, frame_rate: float | Fraction) -> int:
    """Write one result as it is made, whole or not at all; only a GIF is collected first.

    Args:
        pieces: of one result, from its start.
        path: the file.
        frame_rate: frames a second.

    Returns:
        How many frames were written.

    Raises:
        ValueError, OSError, ImportError: see ``maskgen.tasks.media.video.files.save_video``.
    """
    if Path(path).suffix.lower() == ".gif":
        frames = np.concatenate([to_frames(piece)[0] for _, piece in pieces])
        save_video(frames, path, frame_rate)
        return len(frames)
    with VideoWriter(path, frame_rate) as writer:
        for _, piece in pieces:
            writer.write(to_frames(piece)[0])
    return writer.frames


def output_rate(pipe: Pipeline) -> Fraction:
    """Frames a second of what a model makes from nothing: those it was trained on, else 8."""
    found = trained(pipe).frame_rate
    return _FRAME_RATE if found is None else Fraction(found).limit_denominator(1001)


@contextlib.contextmanager
def _opened(pipe: Pipeline, path: str | Path, clip: ClipOptions) -> Iterator[tuple[FileFrames, Fraction]]:
    """A part of a file at the model's size, and its frame rate."""
    with VideoFile(path, reader=_READER) as file:
        places, rate = _places(file, clip)
        yield FileFrames(file, clip_size(pipe)[1:], places), rate


def _places(file: VideoFile, clip: ClipOptions) -> tuple[list[int], Fraction]:
    """Which frames are taken, by the time at which they are shown: right for unevenly spaced ones, too."""
    rate = file.frame_rate if clip.frame_rate is None else check_frame_rate(clip.frame_rate, "clip.frame_rate")
    return file.at_rate(rate, start=clip.start, count=clip.frames), rate
