"""Fill the time between two pictures or clips, in memory or in files.

Shapes: T frames, H W pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from maskgen.sampling.commit import Prompt
from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from maskgen.tasks.media.images import load_image
from maskgen.tasks.media.video.backends import Frames
from maskgen.tasks.media.video.files import VIDEO_SUFFIXES
from maskgen.tasks.pipeline import Label, Pipeline
from maskgen.tasks.video.completion import Drawing, clip_size, drawing, trained
from maskgen.tasks.video.files import ClipOptions, _opened, output_rate, write_pieces
from maskgen.tasks.video.source import Clip, FileFrames, MemoryFrames
from maskgen.tasks.video.windows import (
    _collect,
    between_pieces,
)

__all__ = ["interpolate", "interpolate_files"]


def interpolate(
    pipe: Pipeline,
    first: Clip,
    last: Clip,
    *,
    total: int | None = None,
    label: Label | None = None,
    seeds: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    paste: bool = True,
    callback: Callable[[SampleStep], None] | None = None,
) -> list[Frames]:
    """Fill the time between two pictures or clips.

    A gap shorter than the model's takes evenly spaced frames of its clip; a longer one is spanned by a clip whose frames are
    the ends of shorter gaps.

    Args:
        pipe: a video model.
        first: a picture or clip, see the head of this file.
        last: likewise, what comes at the end.
        total: frames of the result, all given ones included; None for a gap as long as in training.
        label: class id or name; None for none.
        seeds: one integer a result; (0,) if left out.
        sampling: settings, instead of the model's own.
        paste: whether the given frames come back as they were, and not in the model's version of them.
        callback: sees each step of each window.

    Returns:
        One uint8 ``[total, H, W, 3]`` a seed.

    Raises:
        TypeError, ValueError: see ``predict_frames``; no frame is missing.
    """
    pipe.require("video", "interpolation")
    trained(pipe).check([Prompt.FRAME_INTERPOLATION], "interpolation")
    size = clip_size(pipe)[1:]
    draw = drawing(pipe, label, seeds, sampling, paste=paste, callback=callback)
    pieces = between_pieces(pipe, MemoryFrames(first, size), MemoryFrames(last, size), total, draw)
    return _collect(pieces, len(draw.request.seeds))


def interpolate_files(
    pipe: Pipeline,
    first: str | Path,
    last: str | Path,
    out_path: str | Path,
    draw: Drawing,
    *,
    total: int | None = None,
) -> int:
    """Fill the time between two files, pictures or videos; see ``maskgen.tasks.video.interpolation.interpolate`` and
    ``predict_file``.

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


@contextlib.contextmanager
def _picture_or_video(pipe: Pipeline, path: Path) -> Iterator[tuple[FileFrames | MemoryFrames, Fraction | None]]:
    """All of a file at the model's size, and the frame rate of a video."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        with _opened(pipe, path, ClipOptions()) as (source, rate):
            yield source, rate
    else:
        yield MemoryFrames(load_image(path), clip_size(pipe)[1:]), None
