"""The engine of the video tasks: clips of any length, made window by window.

One window of the model's length is in memory at a time, however long the video:

1. *going on*: the last frames of a window are the condition of the next;
2. *in between*: a window spans the whole gap, and where that is longer than the model, windows between its frames follow;
3. *painting anew*: windows overlap, and what the one before it made of their common frames is given to the next.

Where windows overlap in time, they fade into each other. Window number n of a result with seed s is drawn with
``item_seed(s, n)``.

Shapes: R results (one a seed), T frames and H W pixels of the model.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskgen.sampling.commit import Prompt
from maskgen.tasks.conditions.video import TokenCells, VideoCondition, VideoTask, condition_from_mask
from maskgen.tasks.media.video.backends import Frames
from maskgen.tasks.media.video.files import to_frames
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import Drawing, clip_cells, clip_size, complete, decide_clips, trained
from maskgen.tasks.video.fades import clip_windows, cross_fade, paste_given
from maskgen.tasks.video.source import FrameSource

__all__ = [
    "Piece",
    "Region",
    "between_pieces",
    "context_frames",
    "generated_pieces",
    "generated_total",
    "given_ends",
    "painted_pieces",
    "predicted_pieces",
    "predicted_total",
]


def _collect(pieces: Iterable[Piece], results: int) -> list[Frames]:
    """All pieces of each result as one array."""
    parts = [to_frames(piece) for _, piece in pieces]
    return [np.concatenate([part[number] for part in parts]) for number in range(results)]


_BLOCK = 16  # frames copied at a time

Piece = tuple[int, Tensor]
"""First frame and float ``[R, 3, T, H, W]`` of a part of the results; pieces follow each other without gaps."""


class Region(Protocol):
    """What of a clip is kept."""

    def kept(self, start: int, stop: int) -> Tensor:
        """Bool ``[stop - start, H, W]``, True where the clip's own pixels are given."""
        ...


def predicted_pieces(
    pipe: Pipeline, source: FrameSource, total: int, context: int | None, draw: Drawing
) -> Iterator[Piece]:
    """A clip and what comes after it.

    Args:
        pipe: a video model.
        source: what is given.
        total: frames of the result, more than are given.
        context: see ``context_frames``.
        draw: how tokens are drawn.
    """
    shown = context_frames(pipe, source.frames, context)
    begin = source.frames - shown
    yield from _copied(source, 0, begin, len(draw.request.seeds))
    given = source.read(begin, source.frames)
    first = _predict(pipe, given, draw, 0)
    for start, piece in cross_fade(_going_on(pipe, begin, first, total, context, draw)):
        part = piece[:, :, : total - start]
        if draw.paste and start < source.frames:
            known = given[:, :, start - begin :][:, :, : part.shape[2]]
            part = torch.cat((known.expand(len(part), -1, -1, -1, -1), part[:, :, known.shape[2] :]), dim=2)
        yield start, part


def generated_pieces(pipe: Pipeline, total: int, context: int | None, draw: Drawing) -> Iterator[Piece]:
    """A clip from nothing but its class, and what comes after it where that is longer than the model."""
    nothing = torch.zeros(1, 3, *clip_size(pipe))
    first = complete(pipe, nothing, VideoTask(kind=Prompt.FULL_GENERATION), draw)
    for start, piece in cross_fade(_going_on(pipe, 0, first, total, context, draw)):
        yield start, piece[:, :, : total - start]


def generated_total(pipe: Pipeline, total: int | None) -> int:
    """Frames of a generated clip; None for the model's length.

    Raises:
        ValueError: fewer than one, or a model that was not trained to generate or, for longer clips, to go on.
    """
    trained(pipe).check([Prompt.FULL_GENERATION], "generate")
    length = clip_size(pipe)[0]
    if total is not None and total < 1:
        raise ValueError(f"total: got {total}, expected at least 1 frame")
    if total is not None and total > length:
        trained(pipe).check([Prompt.FRAME_PREDICTION], f"generating more than the model's {length} frames")
    return length if total is None else total


def predicted_total(pipe: Pipeline, given: int, total: int | None, context: int | None) -> int:
    """Frames of a prediction, the given ones included.

    Args:
        pipe: a video model.
        given: how many there are.
        total: how many are wanted; None for as many as one window of the model gives.
        context: see ``context_frames``.

    Raises:
        ValueError: nothing is left to predict.
    """
    if total is None:
        return given - context_frames(pipe, given, context) + clip_size(pipe)[0]
    if total <= given:
        raise ValueError(f"total: got {total}, expected more than the {given} frames that are given")
    return total


def context_frames(pipe: Pipeline, given: int, context: int | None = None) -> int:
    """How many of the given frames the model is shown to go on from.

    Args:
        pipe: a video model.
        given: how many there are.
        context: how many at most; None for the most that it was trained with, or for half its length if it was trained with
            none of so few, or nobody knows.

    Raises:
        ValueError: fewer than one, or as many as the model has frames.
    """
    length = clip_size(pipe)[0]
    if length < 2:
        raise ValueError("prediction: this model makes single frames, expected one that makes clips")
    if context is not None and not 1 <= context < length:
        raise ValueError(
            f"context: got {context}, expected 1 to {length - 1}: the model makes clips of {length} frames"
        )
    if context is not None:
        return min(context, given)
    known = [count for count in trained(pipe).frames(Prompt.FRAME_PREDICTION) if count <= min(given, length - 1)]
    return max(known, default=min(given, length // 2))


def given_ends(pipe: Pipeline, first: int, last: int, total: int | None) -> tuple[int, int]:
    """How many frames of each end the model is shown, and how many the result has.

    More than one frame an end helps only if the gap is exactly as long as in training.

    Args:
        pipe: a video model.
        first: frames given at the start.
        last: frames given at the end.
        total: frames of the result, all given ones included; None for a gap as long as in training.

    Returns:
        Frames an end, and the total.

    Raises:
        ValueError: no frame is missing, or the model is too short to have any between two.
    """
    length = clip_size(pipe)[0]
    if length < 3:
        raise ValueError(f"interpolation: this model makes clips of {length} frames, expected 3 or more")
    most = min(first, last, (length - 1) // 2)
    known = [count for count in trained(pipe).frames(Prompt.FRAME_INTERPOLATION) if count <= most]
    shown = max(known, default=1)
    if total is None:
        return shown, first + last + length - 2 * shown
    if total <= first + last:
        raise ValueError(f"total: got {total}, expected more than the {first + last} frames that are given")
    return (shown if total - first - last == length - 2 * shown else 1), total


def between_pieces(
    pipe: Pipeline, first: FrameSource, last: FrameSource, total: int | None, draw: Drawing
) -> Iterator[Piece]:
    """Two clips and what lies between them.

    A gap shorter than the model's takes evenly spaced frames of its clip. A longer one is first spanned by a whole clip,
    whose frames then are the ends of shorter gaps.

    Args:
        pipe: a video model.
        first: the start.
        last: the end.
        total: see ``given_ends``.
        draw: how tokens are drawn.
    """
    shown, total = given_ends(pipe, first.frames, last.frames, total)
    results, numbers = len(draw.request.seeds), itertools.count()
    begin, end = first.frames - shown, total - last.frames + shown
    yield from _copied(first, 0, begin, results)
    head, tail = first.read(begin, first.frames), last.read(0, shown)
    for offset, piece in _between(pipe, head, tail, end - begin, draw, numbers):
        yield begin + offset, piece
    for start, piece in _copied(last, shown, last.frames, results):
        yield end + start - shown, piece


def painted_pieces(
    pipe: Pipeline, source: FrameSource, region: Region, task: VideoTask, draw: Drawing, *, exact: bool = False
) -> Iterator[Piece]:
    """A clip of which a part is painted anew.

    Args:
        pipe: a video model.
        source: the clip.
        region: what of it is kept.
        task: gives the prompt and the padding of what is not kept, see ``_given``.
        draw: how tokens are drawn.
        exact: ``region`` is the task's own, and where the clip is no longer than the model the task itself says which tokens
            that makes.
    """
    yield from cross_fade(_painted(pipe, source, region, task, draw, exact=exact))


def _painted(
    pipe: Pipeline, source: FrameSource, region: Region, task: VideoTask, draw: Drawing, *, exact: bool
) -> Iterator[Piece]:
    """Windows that overlap by a quarter of the model's length."""
    length, results = clip_size(pipe)[0], len(draw.request.seeds)
    cells = clip_cells(pipe)
    spans = clip_windows(source.frames, length, -(-length // 4) if length > 1 else 0)
    before: Piece | None = None
    for number, (first, last) in enumerate(spans):
        clip, kept = _longer(source.read(first, last), 2, length), _longer(region.kept(first, last), 0, length)
        if kept.all():
            made = clip.expand(results, -1, -1, -1, -1)
        elif exact and len(spans) == 1:
            made = complete(pipe, clip, task, draw, number)
        else:
            shared = None if before is None else before[1][:, :, first - before[0] :]
            made = decide_clips(pipe, _given(clip, kept, task.padding, cells, shared), task, draw, number)
            made = paste_given(made, clip, kept) if draw.paste else made
        before = (first, made)
        yield first, made[:, :, : last - first]


def _given(clip: Tensor, kept: Tensor, padding: str, cells: TokenCells, before: Tensor | None) -> VideoCondition:
    """The condition of a window.

    Args:
        clip: float ``[1, 3, T, H, W]``.
        kept: bool ``[T, H, W]``, what of it is given.
        padding: of the rest: ``edge``, else that of ``condition_from_mask``.
        cells: of the tokenizer.
        before: float ``[R, 3, o, H, W]``, its first frames as the window before it made them; they are all given.
    """
    if padding == "edge":
        padded = _spread(clip, kept)
    else:
        padded = condition_from_mask(clip, kept, cells).clip if kept.any() else torch.zeros_like(clip)
    if before is not None:
        shared = before.shape[2]
        padded = torch.cat((before, padded[:, :, shared:].expand(len(before), -1, -1, -1, -1)), dim=2)
        kept = torch.cat((torch.ones_like(kept[:shared]), kept[shared:]))
    return VideoCondition(clip=padded, pixels=kept[None, None], tokens=cells.holding(kept))


def _spread(clip: Tensor, kept: Tensor) -> Tensor:
    """Every pixel outside of a rectangle, the same in all frames, from the nearest one inside."""
    rows, columns = (kept[0].any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    inner = clip[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = kept.shape[1:]
    return F.pad(inner, (columns[0], width - 1 - columns[-1], rows[0], height - 1 - rows[-1], 0, 0), mode="replicate")


def _going_on(
    pipe: Pipeline, begin: int, first: Tensor, total: int, context: int | None, draw: Drawing
) -> Iterator[Piece]:
    """A first window, number 0, and those that go on from it until ``total`` frames are there; they overlap."""
    length, made = clip_size(pipe)[0], first
    plain = dataclasses.replace(draw, paste=False)  # two versions of the common frames, to fade from one to the other
    for number in itertools.count(1):
        yield begin, made
        if begin + length >= total:
            return
        shown = context_frames(pipe, length, context)
        begin += length - shown
        made = _predict(pipe, made[:, :, -shown:], plain, number)


def _predict(pipe: Pipeline, shown: Tensor, draw: Drawing, number: int) -> Tensor:
    """A window that begins with the given frames ``[R or 1, 3, c, H, W]``."""
    task = VideoTask(kind=Prompt.FRAME_PREDICTION, region="first", padding="time", frames=shown.shape[2])
    return complete(pipe, _longer(shown, 2, clip_size(pipe)[0]), task, draw, number)


def _between(
    pipe: Pipeline, head: Tensor, tail: Tensor, total: int, draw: Drawing, numbers: Iterator[int]
) -> Iterator[Piece]:
    """Pieces of ``total`` frames from the first of ``head`` to the last of ``tail``, ``[R or 1, 3, c, H, W]`` both."""
    length, shown = clip_size(pipe)[0], head.shape[2]
    task = VideoTask(kind=Prompt.FRAME_INTERPOLATION, region="ends", padding="time", frames=shown)
    missing = head[:, :, -1:].expand(-1, -1, length - 2 * shown, -1, -1)
    made = complete(pipe, torch.cat((head, missing, tail), dim=2), task, draw, next(numbers))
    places = _spaced(min(total, length), max(total, length))
    if total <= length:
        yield 0, made[:, :, places]
        return
    inner = dataclasses.replace(draw, paste=True)  # neighbouring gaps must agree on their common frame
    for number, (start, stop) in enumerate(itertools.pairwise(places)):
        ends = made[:, :, number : number + 1], made[:, :, number + 1 : number + 2]
        if stop - start == 1:
            yield start, ends[0]
            continue
        for offset, piece in _between(pipe, *ends, stop - start + 1, inner, numbers):
            # The last frame is the next gap's first.
            part = piece[:, :, : stop - start - offset]
            if part.shape[2]:
                yield start + offset, part
    yield places[-1], made[:, :, -1:]


def _spaced(count: int, total: int) -> list[int]:
    """``count`` different places from 0 to ``total`` - 1, as evenly as can be."""
    return [round(place * (total - 1) / (count - 1)) for place in range(count)]


def _copied(source: FrameSource, start: int, stop: int, results: int) -> Iterator[Piece]:
    """Frames of the source, a few at a time."""
    for first in range(start, stop, _BLOCK):
        part = source.read(first, min(first + _BLOCK, stop))
        yield first, part.expand(results, -1, -1, -1, -1)


def _longer(tensor: Tensor, axis: int, length: int) -> Tensor:
    """The last frame again until there are ``length``."""
    missing = length - tensor.shape[axis]
    last = tensor.narrow(axis, tensor.shape[axis] - 1, 1)
    return torch.cat((tensor, last.repeat_interleave(missing, dim=axis)), dim=axis) if missing > 0 else tensor
