"""The video tasks: go on with a clip, fill the time between two, paint a part of the frames anew, generate.

All are MAGVIT's (Yu et al. 2023, arXiv 2212.05199): what is given is padded to a whole clip and tokenised, and the model
decides the tokens of the whole clip. Clips of any length are made in windows of the model's length (``video_edits``).

Clips go in as uint8 ``[T, H, W, 3]`` of numpy, as one or more PIL images, or as a float tensor ``[3, T, H, W]`` or
``[1, 3, T, H, W]`` in [0, 1]. They come out as one uint8 ``[T, H, W, 3]`` a seed, at the model's size: frames of another
size are resized until they cover it, and their middle is taken; for outpainting, until the wider picture fits into it.

Shapes: B clips, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from maskgen.commit import Prompt
from maskgen.sampler import SampleStep
from maskgen.tasks.pipeline import Label, Pipeline
from maskgen.tasks.sampling import Sampling
from maskgen.tasks.trained_tasks import named_task
from maskgen.tasks.video_backends import Frames
from maskgen.tasks.video_draw import clip_size, complete, drawing, trained
from maskgen.tasks.video_edits import (
    Piece,
    between_pieces,
    generated_pieces,
    generated_total,
    painted_pieces,
    predicted_pieces,
    predicted_total,
)
from maskgen.tasks.video_files import to_frames
from maskgen.tasks.video_regions import INPAINTED, FitRegion, MemoryMask, TaskRegion, outpainting, task_of_region
from maskgen.tasks.video_source import Clip, MemoryFrames
from maskgen.tokenizers.video import check_video

__all__ = ["complete_clips", "generate_video", "inpaint_video", "interpolate", "outpaint_video", "predict_frames"]


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
    return _collect(predicted_pieces(pipe, source, whole, context, draw), len(draw.seeds))


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
    return _collect(pieces, len(draw.seeds))


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
    return _collect(pieces, len(draw.seeds))


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
    return _collect(pieces, len(draw.seeds))


def generate_video(
    pipe: Pipeline,
    labels: Label | Sequence[Label] | None = None,
    *,
    total: int | None = None,
    seeds: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> list[Frames]:
    """Clips from nothing but a class.

    Args:
        pipe: a video model.
        labels: class id or name, or one for each clip; None for a model that works without.
        total: frames of a clip; None for the model's length. A longer one goes on as in ``predict_frames``.
        seeds: one integer a clip, 0, 1, 2... by default. A single label goes with any number of seeds.
        sampling: settings, instead of the model's own.
        callback: sees each step of each window.

    Returns:
        One uint8 ``[total, H, W, 3]`` a seed.

    Raises:
        ValueError: numbers of labels and seeds that differ, an unknown class, settings out of range, or a model of another
            modality, or trained on other tasks.
    """
    pipe.require("video", "generate")
    whole = generated_total(pipe, total)
    several = 1 if labels is None or isinstance(labels, int | str) else len(labels)
    draw = drawing(pipe, labels, range(several) if seeds is None else seeds, sampling, callback=callback)
    return _collect(generated_pieces(pipe, whole, None, draw), len(draw.seeds))


def complete_clips(
    pipe: Pipeline,
    clips: Tensor,
    task: str,
    *,
    seeds: Sequence[int],
    labels: Label | Sequence[Label] | None = None,
    sampling: Sampling | None = None,
    paste: bool = True,
    callback: Callable[[SampleStep], None] | None = None,
) -> Tensor:
    """One of MAGVIT's tasks on a batch of real clips, as in training: for evaluation.

    Args:
        pipe: a video model.
        clips: float ``[B, 3, T, H, W]`` in [0, 1], of the model's size; only what the task gives of them is looked at.
        task: its name, as FP, FP5 or IPC; see ``maskgen.tasks.trained_tasks.named_task``.
        seeds: B integers.
        labels: class id or name, or one for each clip; None for none.
        sampling: settings, instead of the model's own.
        paste: whether given pixels replace the model's version of them.
        callback: sees each step.

    Returns:
        float ``[B, 3, T, H, W]`` in [0, 1].

    Raises:
        TypeError, ValueError: no such clips, task or class; another number of seeds; settings out of range; a model of
            another modality, or trained on other tasks.
    """
    pipe.require("video", "complete_clips")
    wanted = named_task(task)
    trained(pipe).check([wanted.kind], task)
    check_video(clips)
    if tuple(clips.shape[2:]) != clip_size(pipe) or len(clips) != len(seeds):
        raise ValueError(
            f"clips: got {tuple(clips.shape)} and {len(seeds)} seeds, expected [B, 3, T, H, W] of the model's size "
            f"{clip_size(pipe)} and one seed for each"
        )
    draw = drawing(pipe, labels, seeds, sampling, paste=paste, callback=callback)
    return complete(pipe, clips.float().cpu(), wanted, draw)


def _collect(pieces: Iterable[Piece], results: int) -> list[Frames]:
    """All pieces of each result as one array."""
    parts = [to_frames(piece) for _, piece in pieces]
    return [np.concatenate([part[number] for part in parts]) for number in range(results)]
