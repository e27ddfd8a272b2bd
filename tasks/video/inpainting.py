"""Paint a part of every frame anew, in memory or in a file.

Shapes: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maskgen.sampling.commit import Prompt
from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from maskgen.tasks.media.video.backends import Frames
from maskgen.tasks.pipeline import Label, Pipeline
from maskgen.tasks.video.completion import Drawing, clip_size, drawing, trained
from maskgen.tasks.video.files import ClipOptions, _opened, write_pieces
from maskgen.tasks.video.regions import (
    INPAINTED,
    MemoryMask,
    TaskRegion,
    open_mask,
    task_of_region,
)
from maskgen.tasks.video.source import Clip, MemoryFrames
from maskgen.tasks.video.windows import (
    _collect,
    painted_pieces,
)

__all__ = ["inpaint_file", "inpaint_video"]


def inpaint_video(
    pipe: Pipeline,
    frames: Clip,
    mask: Any,
    *,
    label: Label | None = None,
    seeds: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    paste: bool = True,
    callback: Callable[[SampleStep], None] | None = None,
) -> list[Frames]:
    """Paint a part of every frame anew.

    Windows of a clip longer than the model overlap; what one makes of their common frames is given to the next.

    Args:
        pipe: a video model.
        frames: a clip of any length and size, see the head of this file.
        mask: bool or uint8 array or tensor, ``[h, w]`` for all frames alike or ``[T, h, w]``, of the clip's own size: True,
            and of uint8 half grey and lighter (or 1, if there are only 0 and 1), is painted anew. Or a region of the model's
            frame by name: ``central``, its middle half, or ``dynamic``, the same on the way from left to right.
        label: class id or name; None for none.
        seeds: one integer a result; (0,) if left out.
        sampling: settings, instead of the model's own.
        paste: whether all that is kept comes back as it was, and not in the model's version of it.
        callback: sees each step of each window.

    Returns:
        One uint8 ``[T, H, W, 3]`` a seed.

    Raises:
        TypeError, ValueError: see ``predict_frames``; no such mask.
    """
    pipe.require("video", "inpainting")
    trained(pipe).check([Prompt.INPAINTING], "inpainting")
    size = clip_size(pipe)[1:]
    source = MemoryFrames(frames, size)
    draw = drawing(pipe, label, seeds, sampling, paste=paste, callback=callback)
    if isinstance(mask, str):
        task = task_of_region(mask, INPAINTED, "mask")
        pieces = painted_pieces(pipe, source, TaskRegion(task, source.frames, size), task, draw, exact=True)
    else:
        pieces = painted_pieces(pipe, source, MemoryMask(mask, source, size), INPAINTED["central"], draw)
    return _collect(pieces, len(draw.request.seeds))


def inpaint_file(
    pipe: Pipeline,
    path: str | Path,
    mask: str | Path,
    out_path: str | Path,
    draw: Drawing,
    *,
    clip: ClipOptions | None = None,
) -> int:
    """Paint a part of every frame of a file anew; see ``maskgen.tasks.video.inpainting.inpaint_video`` and ``predict_file``.

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
