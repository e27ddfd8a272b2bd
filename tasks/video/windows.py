"""The engine of the video tasks: clips of any length, made window by window.

One window of the model's length is in memory at a time, however long the video:

1. *going on*: the last frames of a window are the condition of the next;
2. *in between*: a window spans the whole gap, and where that is longer than the model, windows between its frames follow;
3. *painting anew*: windows overlap, and what the one before it made of their common frames is given to the next.

Where windows overlap in time, they fade into each other. Window number n of a result with seed s is sampled with
``item_seed(s, n)``.

Shapes: R results (one a seed), T frames and H W pixels of the model.
"""

import itertools
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from maskgen.sampling.commit import Prompt
from maskgen.tasks.conditions.request import Request
from maskgen.tasks.conditions.video import TokenCells, VideoCondition, VideoTask, condition_from_mask, spread_edges
from maskgen.tasks.media.windows import Piece, linear_fade, stitch, windows
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import clip_cells, clip_size, complete, decide_clips, paste_given, trained
from maskgen.tasks.video.regions import Region
from maskgen.tasks.video.source import FrameSource

_BLOCK = 16  # frames copied at a time

_stitched = partial(stitch, weights=linear_fade, axis=-3)


def predicted_pieces(
    pipe: Pipeline, source: FrameSource, total: int, context: int | None, request: Request, *, paste: bool = True
) -> Iterator[Piece]:
    """A clip and what comes after it.

    Args:
        pipe: a video model.
        source: what is given.
        total: frames of the result, more than are given.
        context: see ``context_frames``.
        request: of R rows.
        paste: whether the given frames come back as they were.
    """
    shown = context_frames(pipe, source.frames, context)
    begin = source.frames - shown
    yield from _copied(source, 0, begin, len(request.seeds))
    given = source.read(begin, source.frames)
    first = _predict(pipe, given, request, 0, paste=paste)
    for start, piece in _stitched(_going_on(pipe, begin, first, total, context, request)):
        part = piece[:, :, : total - start]
        if paste and start < source.frames:
            own = given[:, :, start - begin :][:, :, : part.shape[2]]
            part = torch.cat((own.expand(len(part), -1, -1, -1, -1), part[:, :, own.shape[2] :]), dim=2)
        yield start, part


def generated_pieces(pipe: Pipeline, total: int, request: Request) -> Iterator[Piece]:
    """A clip from nothing but its class, and what comes after it where that is longer than the model."""
    nothing = torch.zeros(1, 3, *clip_size(pipe))
    first = complete(pipe, nothing, VideoTask(kind=Prompt.FULL_GENERATION), request)
    for start, piece in _stitched(_going_on(pipe, 0, first, total, None, request)):
        yield start, piece[:, :, : total - start]


def generated_total(pipe: Pipeline, total: int | None) -> int:
    """Frames of a generated clip; None for the model's length.

    Raises:
        ValueError: fewer than one, or a longer clip of a model that was not trained to go on.
    """
    length = clip_size(pipe)[0]
    if total is not None and total < 1:
        raise ValueError(f"total: got {total}, expected at least 1 frame")
    if total is not None and total > length:
        trained(pipe).check(Prompt.FRAME_PREDICTION, f"generating more than the model's {length} frames")
    return length if total is None else total


def predicted_total(pipe: Pipeline, given: int, total: int | None, context: int | None) -> int:
    """Frames of a prediction, the given ones included.

    Args:
        pipe: a video model.
        given: how many there are.
        total: how many are wanted; None for as many as one window of the model gives.
        context: see ``context_frames``.

    Raises:
        ValueError: nothing is left to predict; see ``context_frames``.
    """
    shown = context_frames(pipe, given, context)
    if total is None:
        return given - shown + clip_size(pipe)[0]
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
    learned = [count for count in trained(pipe).frames(Prompt.FRAME_PREDICTION) if count <= min(given, length - 1)]
    return max(learned, default=min(given, length // 2))


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
    learned = [count for count in trained(pipe).frames(Prompt.FRAME_INTERPOLATION) if count <= most]
    shown = max(learned, default=1)
    if total is None:
        return shown, first + last + length - 2 * shown
    if total <= first + last:
        raise ValueError(f"total: got {total}, expected more than the {first + last} frames that are given")
    return (shown if total - first - last == length - 2 * shown else 1), total


def between_pieces(
    pipe: Pipeline,
    first: FrameSource,
    last: FrameSource,
    ends: tuple[int, int],
    request: Request,
    *,
    paste: bool = True,
) -> Iterator[Piece]:
    """Two clips and what lies between them.

    A gap shorter than the model's takes evenly spaced frames of its clip. A longer one is first spanned by a whole clip,
    whose frames then are the ends of shorter gaps.

    Args:
        pipe: a video model.
        first: the start.
        last: the end.
        ends: what ``given_ends`` says.
        request: of R rows.
        paste: whether the given frames come back as they were.
    """
    shown, total = ends
    results, numbers = len(request.seeds), itertools.count()
    begin, end = first.frames - shown, total - last.frames + shown
    yield from _copied(first, 0, begin, results)
    head, tail = first.read(begin, first.frames), last.read(0, shown)
    for offset, piece in _between(pipe, head, tail, end - begin, request, numbers, paste=paste):
        yield begin + offset, piece
    for start, piece in _copied(last, shown, last.frames, results):
        yield end + start - shown, piece


def painted_pieces(
    pipe: Pipeline,
    source: FrameSource,
    region: Region,
    task: VideoTask,
    request: Request,
    *,
    paste: bool = True,
    exact: bool = False,
) -> Iterator[Piece]:
    """A clip of which a part is painted anew.

    Args:
        pipe: a video model.
        source: the clip.
        region: what of it is kept.
        task: gives the prompt and the padding of what is not kept, see ``_given``.
        request: of R rows.
        paste: whether what is kept comes back as it was.
        exact: ``region`` is the task's own, and where the clip is no longer than the model the task itself says which tokens
            that makes.
    """
    yield from _stitched(_painted(pipe, source, region, task, request, paste=paste, exact=exact))


def _painted(
    pipe: Pipeline, source: FrameSource, region: Region, task: VideoTask, request: Request, *, paste: bool, exact: bool
) -> Iterator[Piece]:
    """Windows that overlap by a quarter of the model's length."""
    length, results = clip_size(pipe)[0], len(request.seeds)
    cells = clip_cells(pipe)
    spans = windows(source.frames, length, -(-length // 4) if length > 1 else 0)
    before: Piece | None = None
    for number, (first, last) in enumerate(spans):
        clip, kept = _longer(source.read(first, last), 2, length), _longer(region.kept(first, last), 0, length)
        if kept.all():
            made = clip.expand(results, -1, -1, -1, -1)
        elif exact and len(spans) == 1:
            made = complete(pipe, clip, task, request, number, paste=paste)
        else:
            shared = None if before is None else before[1][:, :, first - before[0] :]
            made = decide_clips(pipe, _given(clip, kept, task.padding, cells, shared), task, request, number)
            made = paste_given(made, clip, kept) if paste else made
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
        padded = spread_edges(clip, kept[0])
    else:
        padded = condition_from_mask(clip, kept, cells).clip if kept.any() else torch.zeros_like(clip)
    if before is not None:
        shared = before.shape[2]
        padded = torch.cat((before, padded[:, :, shared:].expand(len(before), -1, -1, -1, -1)), dim=2)
        kept = torch.cat((torch.ones_like(kept[:shared]), kept[shared:]))
    return VideoCondition(clip=padded, pixels=kept[None, None], tokens=cells.holding(kept))


def _going_on(
    pipe: Pipeline, begin: int, first: Tensor, total: int, context: int | None, request: Request
) -> Iterator[Piece]:
    """A first window, number 0, and those that go on from it until ``total`` frames are there; they overlap."""
    length, made = clip_size(pipe)[0], first
    for number in itertools.count(1):
        yield begin, made
        if begin + length >= total:
            return
        shown = context_frames(pipe, length, context)
        begin += length - shown
        # Nothing is pasted: two versions of the common frames, to fade from one to the other.
        made = _predict(pipe, made[:, :, -shown:], request, number, paste=False)


def _predict(pipe: Pipeline, shown: Tensor, request: Request, number: int, *, paste: bool) -> Tensor:
    """A window that begins with the given frames ``[R or 1, 3, c, H, W]``."""
    task = VideoTask(kind=Prompt.FRAME_PREDICTION, region="first", padding="time", frames=shown.shape[2])
    return complete(pipe, _longer(shown, 2, clip_size(pipe)[0]), task, request, number, paste=paste)


def _between(
    pipe: Pipeline, head: Tensor, tail: Tensor, total: int, request: Request, numbers: Iterator[int], *, paste: bool
) -> Iterator[Piece]:
    """Pieces of ``total`` frames from the first of ``head`` to the last of ``tail``, ``[R or 1, 3, c, H, W]`` both."""
    length, shown = clip_size(pipe)[0], head.shape[2]
    task = VideoTask(kind=Prompt.FRAME_INTERPOLATION, region="ends", padding="time", frames=shown)
    missing = head[:, :, -1:].expand(-1, -1, length - 2 * shown, -1, -1)
    made = complete(pipe, torch.cat((head, missing, tail), dim=2), task, request, next(numbers), paste=paste)
    chosen = _spaced(min(total, length), max(total, length))
    if total <= length:
        yield 0, made[:, :, chosen]
        return
    for number, (start, stop) in enumerate(itertools.pairwise(chosen)):
        ends = made[:, :, number : number + 1], made[:, :, number + 1 : number + 2]
        if stop - start == 1:
            yield start, ends[0]
            continue
        # Ends are pasted: neighbouring gaps must agree on their common frame.
        for offset, piece in _between(pipe, *ends, stop - start + 1, request, numbers, paste=True):
            # The last frame is the next gap's first.
            part = piece[:, :, : stop - start - offset]
            if part.shape[2]:
                yield start + offset, part
    yield chosen[-1], made[:, :, -1:]


def _spaced(count: int, total: int) -> list[int]:
    """``count`` different frames of 0 to ``total`` - 1, as evenly as can be."""
    return [round(number * (total - 1) / (count - 1)) for number in range(count)]


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
