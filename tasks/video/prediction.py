"""Go on with a clip, in memory or in a file, for as long as asked.

Shapes: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from maskgen.sampling.commit import Prompt
from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from maskgen.tasks.media.video.backends import Frames
from maskgen.tasks.pipeline import Label, Pipeline
from maskgen.tasks.video.completion import Drawing, clip_size, drawing, trained
from maskgen.tasks.video.files import ClipOptions, _opened, write_pieces
from maskgen.tasks.video.source import Clip, MemoryFrames
from maskgen.tasks.video.windows import (
    _collect,
    predicted_pieces,
    predicted_total,
)

__all__ = ["predict_file", "predict_frames"]


def predict_frames(
    pipe: Pipeline,
    frames: Clip,
    *,
    total: int | None = None,
    context: int | None = None,
    label: Label | None = None,
    seeds: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    paste: bool = True,
    callback: Callable[[SampleStep], None] | None = None,
) -> list[Frames]:
    """Go on with a clip for as long as asked.

    Beyond the model's length its last frames are the condition of the next window, and the windows fade into each other.

    Args:
        pipe: a video model.
        frames: a clip of any length and size, see the head of this file.
        total: frames of the result, the given ones included; None for as many as one window of the model adds.
        context: how many of the last frames the model is shown, fewer than its length; None for the most it was trained
            with.
        label: class id or name; None for none.
        seeds: one integer a result; (0,) if left out. A result depends on its own seed alone.
        sampling: settings, instead of the model's own.
        paste: whether the given frames come back as they were, and not in the model's version of them.
        callback: sees each step of each window.

    Returns:
        One uint8 ``[total, H, W, 3]`` a seed, which begins with the given frames.

    Raises:
        TypeError: no such clip.
        ValueError: no such clip; nothing left to predict; settings out of range; an unknown class; a model of another
            modality, or trained on other tasks.
    """
    pipe.require("video", "prediction")
    trained(pipe).check([Prompt.FRAME_PREDICTION], "prediction")
    source = MemoryFrames(frames, clip_size(pipe)[1:])
    whole = predicted_total(pipe, source.frames, total, context)
    draw = drawing(pipe, label, seeds, sampling, paste=paste, callback=callback)
    return _collect(predicted_pieces(pipe, source, whole, context, draw), len(draw.request.seeds))


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
    """Go on with a video file; see ``maskgen.tasks.video.prediction.predict_frames``.

    Args:
        pipe: a video model.
        path: the file.
        out_path: the new file, whole or not at all; its suffix chooses the format.
        draw: of one seed, see ``maskgen.tasks.video.completion.drawing``.
        clip: which part of the file is taken; all of it by default.
        total: frames of the result, those of the part included; None for as many as one window of the model adds.
        context: see ``predict_frames``.

    Returns:
        How many frames were written.

    Raises:
        FileNotFoundError, ValueError, OSError, ImportError: see ``maskgen.tasks.media.video.files.VideoFile`` and
            ``predict_frames``; a format that cannot be written.
    """
    pipe.require("video", "prediction")
    trained(pipe).check([Prompt.FRAME_PREDICTION], "prediction")
    with _opened(pipe, path, clip or ClipOptions()) as (source, rate):
        whole = predicted_total(pipe, source.frames, total, context)
        return write_pieces(predicted_pieces(pipe, source, whole, context, draw), out_path, rate)
