"""Add new picture around every frame.

Shapes: T frames, H W pixels.
"""

from __future__ import annotations

from typing import Unpack

from maskgen.sampling.commit import Prompt
from maskgen.tasks.conditions.request import Options
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import clip_size, video_request
from maskgen.tasks.video.edit import VideoEdit, edited
from maskgen.tasks.video.regions import outpainted_region
from maskgen.tasks.video.source import Clip, VideoPath, open_clip
from maskgen.tasks.video.windows import painted_pieces

__all__ = ["outpaint_video"]


def outpaint_video(
    pipe: Pipeline,
    source: Clip | VideoPath,
    *,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    region: str | None = None,
    paste: bool = True,
    **options: Unpack[Options],
) -> VideoEdit:
    """Add new picture around every frame.

    The model's frame is the wider picture: the clip is resized until it fits into it with what is added, and what is then
    left over at opposite sides is painted, too. With ``region`` the clip has the size of the result, and all of it outside
    of the region is painted anew.

    Args:
        pipe: a video model.
        source: a clip of any length and size, see ``predict_frames``.
        left: pixels to add, in the clip's own scale.
        right: likewise.
        top: likewise.
        bottom: likewise.
        region: instead of these, what of the model's frame is kept: ``central``, the middle half of rows and columns;
            ``vertical``, of columns; ``horizontal``, of rows; ``dynamic``, half the columns on the way from left to right.
        paste: whether all that is kept comes back as it was (resized), and not in the model's version of it.
        options: see ``predict_frames``.

    Returns:
        One uint8 ``[T, H, W, 3]`` a seed, see ``predict_frames``.

    Raises:
        FileNotFoundError, OSError, ImportError, TypeError, ValueError: see ``predict_frames``; nothing to add, negative
            numbers, or both numbers and a region.
    """
    request = video_request(pipe, options, Prompt.OUTPAINTING, "outpainting")
    size = clip_size(pipe)[1:]
    clip = open_clip(source, size)
    kept, task, exact = outpainted_region((left, right, top, bottom), region, clip, size)
    return edited(
        pipe,
        len(request.seeds),
        lambda: painted_pieces(pipe, clip, kept, task, request, paste=paste, exact=exact),
        clip,
    )
