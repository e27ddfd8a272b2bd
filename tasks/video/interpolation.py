"""Fill the time between two pictures or clips.

Shapes: T frames, H W pixels.
"""

from typing import Unpack

from maskgen.sampling.commit import Prompt
from maskgen.tasks.conditions.request import Options
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import clip_size, video_request
from maskgen.tasks.video.edit import VideoEdit, edited
from maskgen.tasks.video.source import Clip, VideoPath, open_clip
from maskgen.tasks.video.windows import between_pieces, given_ends


def interpolate(
    pipe: Pipeline,
    first: Clip | VideoPath,
    last: Clip | VideoPath,
    *,
    total: int | None = None,
    paste: bool = True,
    **options: Unpack[Options],
) -> VideoEdit:
    """Fill the time between two pictures or clips.

    A gap shorter than the model's takes evenly spaced frames of its clip; a longer one is spanned by a clip whose frames are
    the ends of shorter gaps.

    Args:
        pipe: a video model.
        first: a picture or clip, in memory or by its path, see ``predict_frames``.
        last: likewise, what comes at the end.
        total: frames of the result, all given ones included; None for a gap as long as in training.
        paste: see ``predict_frames``.
        options: see ``predict_frames``.

    Returns:
        One uint8 ``[total, H, W, 3]`` a seed, see ``predict_frames``. It is written with the frame rate of the first source
        that has one.

    Raises:
        FileNotFoundError, OSError, ImportError, TypeError, ValueError: see ``predict_frames``; no frame is missing.
    """
    request = video_request(pipe, options, Prompt.FRAME_INTERPOLATION, "interpolation")
    head, tail = (open_clip(source, clip_size(pipe)[1:]) for source in (first, last))
    ends = given_ends(pipe, head.frames, tail.frames, total)
    return edited(
        pipe,
        len(request.seeds),
        lambda: between_pieces(pipe, head, tail, ends, request, paste=paste),
        head,
        tail,
        places=(0, ends[1] - tail.frames),
    )
