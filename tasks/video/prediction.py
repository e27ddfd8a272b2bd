"""Go on with a clip for as long as asked.

Shapes: T frames, H W pixels.
"""

from typing import Unpack

from maskgen.sampling.commit import Prompt
from maskgen.tasks.conditions.request import Options
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import clip_size, video_request
from maskgen.tasks.video.edit import VideoEdit, edited
from maskgen.tasks.video.source import Clip, VideoPath, open_clip
from maskgen.tasks.video.windows import predicted_pieces, predicted_total


def predict_frames(
    pipe: Pipeline,
    source: Clip | VideoPath,
    *,
    total: int | None = None,
    context: int | None = None,
    paste: bool = True,
    **options: Unpack[Options],
) -> VideoEdit:
    """Go on with a clip for as long as asked.

    Beyond the model's length its last frames are the condition of the next window, and the windows fade into each other.

    Args:
        pipe: a video model.
        source: a clip of any length and size, see ``maskgen.tasks.video.source.Clip``; or the path of a file, or a part of
            one (``maskgen.tasks.video.source.Excerpt``).
        total: frames of the result, the given ones included; None for as many as one window of the model adds.
        context: how many of the last frames the model is shown, fewer than its length; None for the most it was trained
            with.
        paste: whether the given frames come back as they were, and not in the model's version of them.
        options: seeds, label and settings, see ``maskgen.tasks.conditions.request.Options``.

    Returns:
        One uint8 ``[total, H, W, 3]`` a seed, which begins with the given frames; from a file, computed when it is read
        or written.

    Raises:
        FileNotFoundError, OSError, ImportError: see ``maskgen.tasks.media.video.files.VideoFile``.
        TypeError: no such clip.
        ValueError: no such clip; nothing left to predict; settings out of range; an unknown class; a model of another
            modality, or trained on other tasks.
    """
    request = video_request(pipe, options, Prompt.FRAME_PREDICTION, "prediction")
    clip = open_clip(source, clip_size(pipe)[1:])
    whole = predicted_total(pipe, clip.frames, total, context)
    return edited(
        pipe, len(request.seeds), lambda: predicted_pieces(pipe, clip, whole, context, request, paste=paste), clip
    )
