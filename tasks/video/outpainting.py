"""Add new picture around every frame, in memory or in a file.

Shapes: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from maskgen.sampling.commit import Prompt
from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from maskgen.tasks.media.video.backends import Frames
from maskgen.tasks.media.video.files import VideoFile
from maskgen.tasks.pipeline import Label, Pipeline
from maskgen.tasks.video.completion import Drawing, clip_size, drawing, trained
from maskgen.tasks.video.files import _READER, ClipOptions, _places, write_pieces
from maskgen.tasks.video.regions import (
    FitRegion,
    TaskRegion,
    outpainting,
)
from maskgen.tasks.video.source import Clip, FileFrames, MemoryFrames
from maskgen.tasks.video.windows import (
    _collect,
    painted_pieces,
)

__all__ = ["outpaint_file", "outpaint_video"]


def outpaint_video(
    pipe: Pipeline,
    frames: Clip,
    *,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    region: str | None = None,
    label: Label | None = None,
    seeds: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    paste: bool = True,
    callback: Callable[[SampleStep], None] | None = None,
) -> list[Frames]:
    """Add new picture around every frame.

    The model's frame is the wider picture: the clip is resized until it fits into it with what is added, and what is then
    left over at opposite sides is painted, too. With ``region`` the clip has the size of the result, and all of it outside
    of the region is painted anew.

    Args:
        pipe: a video model.
        frames: a clip of any length and size, see the head of this file.
        left: pixels to add, in the clip's own scale.
        right: likewise.
        top: likewise.
        bottom: likewise.
        region: instead of these, what of the model's frame is kept: ``central``, the middle half of rows and columns;
            ``vertical``, of columns; ``horizontal``, of rows; ``dynamic``, half the columns on the way from left to right.
        label: class id or name; None for none.
        seeds: one integer a result; (0,) if left out.
        sampling: settings, instead of the model's own.
        paste: whether all that is kept comes back as it was (resized), and not in the model's version of it.
        callback: sees each step of each window.

    Returns:
        One uint8 ``[T, H, W, 3]`` a seed.

    Raises:
        TypeError, ValueError: see ``predict_frames``; nothing to add, negative numbers, or both numbers and a region.
    """
    pipe.require("video", "outpainting")
    trained(pipe).check([Prompt.OUTPAINTING], "outpainting")
    size = clip_size(pipe)[1:]
    source = MemoryFrames(frames, size)
    draw = drawing(pipe, label, seeds, sampling, paste=paste, callback=callback)
    task, fit = outpainting(source.given, (left, right, top, bottom), region, size)
    if fit is None:
        pieces = painted_pieces(pipe, source, TaskRegion(task, source.frames, size), task, draw, exact=True)
    else:
        pieces = painted_pieces(pipe, MemoryFrames(frames, size, fit), FitRegion(fit), task, draw)
    return _collect(pieces, len(draw.request.seeds))


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
    """Add new picture around every frame of a file; see ``maskgen.tasks.video.outpainting.outpaint_video`` and
    ``predict_file``.

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
