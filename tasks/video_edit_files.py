"""The video tasks on files of any length: frames are read when a window needs them, and written as they are made.

A 10-minute file costs as much memory as a short one, except for results that are GIFs. The results are those of
``maskgen.tasks.video``, up to what the formats hold.

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

from maskgen.commit import Prompt
from maskgen.tasks.media import load_image
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video_backends import Reader
from maskgen.tasks.video_draw import Drawing, clip_size, trained
from maskgen.tasks.video_edits import Piece, between_pieces, painted_pieces, predicted_pieces, predicted_total
from maskgen.tasks.video_files import VIDEO_SUFFIXES, VideoFile, save_video, to_frames
from maskgen.tasks.video_regions import INPAINTED, FitRegion, TaskRegion, open_mask, outpainting, task_of_region
from maskgen.tasks.video_source import FileFrames, MemoryFrames
from maskgen.tasks.video_writer import VideoWriter, check_frame_rate

__all__ = [
    "ClipOptions",
    "inpaint_file",
    "interpolate_files",
    "outpaint_file",
    "output_rate",
    "predict_file",
    "write_pieces",
]

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


def predict_file(
    pipe: Pipeline,
    path: str | Path,
    out_path: str | Path,
    draw: Drawing,
    *,
    clip: ClipOptions | None = None,
    total: int | None = None,
    context: int | None = None,
) -> int:
    """Go on with a video file; see ``maskgen.tasks.video.predict_frames``.

    Args:
        pipe: a video model.
        path: the file.
        out_path: the new file, whole or not at all; its suffix chooses the format.
        draw: of one seed, see ``maskgen.tasks.video_draw.drawing``.
        clip: which part of the file is taken; all of it by default.
        total: frames of the result, those of the part included; None for as many as one window of the model adds.
        context: see ``predict_frames``.

    Returns:
        How many frames were written.

    Raises:
        FileNotFoundError, ValueError, OSError, ImportError: see ``maskgen.tasks.video_files.VideoFile`` and
            ``predict_frames``; a format that cannot be written.
    """
    pipe.require("video", "prediction")
    trained(pipe).check([Prompt.FRAME_PREDICTION], "prediction")
    with _opened(pipe, path, clip or ClipOptions()) as (source, rate):
        whole = predicted_total(pipe, source.frames, total, context)
        return write_pieces(predicted_pieces(pipe, source, whole, context, draw), out_path, rate)


def interpolate_files(
    pipe: Pipeline,
    first: str | Path,
    last: str | Path,
    out_path: str | Path,
    draw: Drawing,
    *,
    total: int | None = None,
) -> int:
    """Fill the time between two files, pictures or videos; see ``maskgen.tasks.video.interpolate`` and ``predict_file``.

    Args:
        pipe: a video model.
        first: the file at the start, all of which is taken.
        last: the file at the end.
        out_path: the new file; it has the frame rate of the first of them that is a video.
        draw: of one seed.
        total: frames of the result, all given ones included; None for a gap as long as in training.

    Returns:
        How many frames were written.

    Raises:
        FileNotFoundError, ValueError, OSError, ImportError: see ``predict_file``.
    """
    pipe.require("video", "interpolation")
    trained(pipe).check([Prompt.FRAME_INTERPOLATION], "interpolation")
    with _picture_or_video(pipe, Path(first)) as (head, rate), _picture_or_video(pipe, Path(last)) as (tail, other):
        pieces = between_pieces(pipe, head, tail, total, draw)
        return write_pieces(pieces, out_path, rate or other or output_rate(pipe))


def inpaint_file(
    pipe: Pipeline,
    path: str | Path,
    mask: str | Path,
    out_path: str | Path,
    draw: Drawing,
    *,
    clip: ClipOptions | None = None,
) -> int:
    """Paint a part of every frame of a file anew; see ``maskgen.tasks.video.inpaint_video`` and ``predict_file``.

    Args:
        pipe: a video model.
        path: the file.
        mask: a picture or video of the file's size, white is painted anew; or the name of a region.
        out_path: the new file.
        draw: of one seed.
        clip: which part of the file is taken. The first frame of a mask that is a video belongs to the part's first.

    Returns:
        How many frames were written.

    Raises:
        FileNotFoundError, ValueError, OSError, ImportError: see ``predict_file``.
    """
    pipe.require("video", "inpainting")
    trained(pipe).check([Prompt.INPAINTING], "inpainting")
    size = clip_size(pipe)[1:]
    with _opened(pipe, path, clip or ClipOptions()) as (source, rate):
        if str(mask) in INPAINTED:
            task = task_of_region(str(mask), INPAINTED, "mask")
            region = TaskRegion(task, source.frames, size)
            return write_pieces(painted_pieces(pipe, source, region, task, draw, exact=True), out_path, rate)
        drawn = open_mask(Path(mask), source, size)
        return write_pieces(painted_pieces(pipe, source, drawn, INPAINTED["central"], draw), out_path, rate)


def outpaint_file(
    pipe: Pipeline,
    path: str | Path,
    out_path: str | Path,
    draw: Drawing,
    *,
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    region: str | None = None,
    clip: ClipOptions | None = None,
) -> int:
    """Add new picture around every frame of a file; see ``maskgen.tasks.video.outpaint_video`` and ``predict_file``.

    Args:
        pipe: a video model.
        path: the file.
        out_path: the new file.
        draw: of one seed.
        pads: pixels to add at the left, right, top and bottom.
        region: instead of these, what is kept, by name.
        clip: which part of the file is taken.

    Returns:
        How many frames were written.

    Raises:
        FileNotFoundError, ValueError, OSError, ImportError: see ``predict_file``.
    """
    pipe.require("video", "outpainting")
    trained(pipe).check([Prompt.OUTPAINTING], "outpainting")
    size, options = clip_size(pipe)[1:], clip or ClipOptions()
    with VideoFile(path, reader=_READER) as file:
        places, rate = _places(file, options)
        task, fit = outpainting((file.height, file.width), pads, region, size)
        source = FileFrames(file, size, places, fit)
        kept = TaskRegion(task, source.frames, size) if fit is None else FitRegion(fit)
        return write_pieces(painted_pieces(pipe, source, kept, task, draw, exact=fit is None), out_path, rate)


def write_pieces(pieces: Iterable[Piece], path: str | Path, frame_rate: float | Fraction) -> int:
    """Write one result as it is made, whole or not at all; only a GIF is collected first.

    Args:
        pieces: of one result, from its start.
        path: the file.
        frame_rate: frames a second.

    Returns:
        How many frames were written.

    Raises:
        ValueError, OSError, ImportError: see ``maskgen.tasks.video_files.save_video``.
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


@contextlib.contextmanager
def _picture_or_video(pipe: Pipeline, path: Path) -> Iterator[tuple[FileFrames | MemoryFrames, Fraction | None]]:
    """All of a file at the model's size, and the frame rate of a video."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        with _opened(pipe, path, ClipOptions()) as (source, rate):
            yield source, rate
    else:
        yield MemoryFrames(load_image(path), clip_size(pipe)[1:]), None
