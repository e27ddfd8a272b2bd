"""Paint a part of every frame anew.

Shapes: T frames, H W pixels.
"""

from typing import Unpack

from maskgen.sampling.commit import Prompt
from maskgen.tasks.conditions.request import Options
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import clip_size, video_request
from maskgen.tasks.video.edit import VideoEdit, edited
from maskgen.tasks.video.regions import Mask, inpainted_region
from maskgen.tasks.video.source import Clip, VideoPath, open_clip
from maskgen.tasks.video.windows import painted_pieces


def inpaint_video(
    pipe: Pipeline, source: Clip | VideoPath, mask: Mask, *, paste: bool = True, **options: Unpack[Options]
) -> VideoEdit:
    """Paint a part of every frame anew.

    Windows of a clip longer than the model overlap; what one makes of their common frames is given to the next.

    Args:
        pipe: a video model.
        source: a clip of any length and size, see ``predict_frames``.
        mask: what is painted anew: bool or uint8 array or tensor, ``[h, w]`` for all frames alike or ``[T, h, w]``, of the
            clip's own size: True, and of uint8 half grey and lighter (or 1, if there are only 0 and 1). Or the path of such
            a picture or video. Masks of as many frames as the clip's file has, or as are taken of it, belong to them one
            by one; other videos are laid on by time, from the first frame that is taken on. Or a region of the model's frame
            by name: ``central``, its middle half, or ``dynamic``, the same on the way from left to right.
        paste: whether all that is kept comes back as it was, and not in the model's version of it.
        options: see ``predict_frames``.

    Returns:
        One uint8 ``[T, H, W, 3]`` a seed, see ``predict_frames``.

    Raises:
        FileNotFoundError, OSError, ImportError, TypeError, ValueError: see ``predict_frames``; no such mask.
    """
    request = video_request(pipe, options, Prompt.INPAINTING, "inpainting")
    size = clip_size(pipe)[1:]
    clip = open_clip(source, size)
    region, task, exact = inpainted_region(mask, clip, size)
    return edited(
        pipe,
        len(request.seeds),
        lambda: painted_pieces(pipe, clip, region, task, request, paste=paste, exact=exact),
        clip,
        region=region,
    )
