"""Windows over a long time axis, for sound and video alike: how it is cut, and how what was made of the windows is joined.

Shapes: leading axes of blocks may be anything; time is counted in samples or frames.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

Piece = tuple[int, Tensor]
"""A part of a signal: the place on the time axis where it begins, and what is there."""


def windows(total: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Cut ``total`` frames into windows of ``size`` that overlap by at least ``overlap``; the last ends at the end.

    Args:
        total: frames, at least 1.
        size: frames of a window.
        overlap: frames shared by neighbours, 0 to size - 1.

    Returns:
        (first frame, one past the last) from left to right; a single shorter window when all fits into one.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"overlap: got {overlap}, expected 0 to {size - 1}, less than the window")
    if total <= size:
        return [(0, total)]
    starts = list(range(0, total - size, size - overlap))
    return [(start, start + size) for start in [*starts, total - size]]


def cosine_fade(length: int) -> Tensor:
    """Weights of the new signal over a cross-fade: half a cosine, strictly between 0 and 1, float32 ``[length]``.

    Weights of old and new add up to 1 (equal gain): both are the same music, one of them out of the codec.
    """
    return 0.5 - 0.5 * torch.cos(torch.pi * (torch.arange(length) + 0.5) / max(length, 1))


def linear_fade(length: int) -> Tensor:
    """Weights of the new signal over a cross-fade as in the official MAGVIT code: 0, 1/n, .., (n - 1)/n; float32."""
    return torch.arange(length) / max(length, 1)


def blend(old: Tensor, new: Tensor, weight: Tensor) -> Tensor:
    """``weight`` x new + (1 - ``weight``) x old; where the weight is 1 exactly the new sample, where it is 0 the old.

    Args:
        old: float.
        new: float, of a shape that broadcasts.
        weight: float in [0, 1], likewise.

    Returns:
        The mixture in ``old``'s type.
    """
    part = weight.to(old)
    fresh = new.to(old.dtype)
    mixed = fresh * part + old * (1 - part)
    return torch.where(part == 1, fresh, torch.where(part == 0, old, mixed))


def stitch(
    blocks: Iterable[Piece], *, width: int | None = None, weights: Callable[[int], Tensor] = cosine_fade, axis: int = -1
) -> Iterator[Piece]:
    """Join blocks that overlap in time into pieces that do not; holds two blocks at a time.

    Two neighbours change over in the middle of what they share, for a block is least reliable at its ends. What a block
    shares with all but the last one before it is left out.

    Args:
        blocks: from left to right; each begins within the one before it or right after it, and does not end before it.
        width: frames of each cross-fade, 0 for a hard change; None for the whole overlap, which is also the most.
        weights: of the later block over a cross-fade, by its length.
        axis: of time, counted from the last: -1 for sound ``[..., S]``, -3 for video ``[..., T, H, W]``.

    Yields:
        Pieces from left to right, each starting where the last one ended.

    Raises:
        ValueError: blocks out of order or with a hole between them.
    """
    start, before, held = 0, 0, None
    for begin, block in blocks:
        if held is None:
            start, before, held = begin, begin, block
            continue
        end, stop = start + held.shape[axis], begin + block.shape[axis]
        if not before <= begin <= end or stop < end:
            raise ValueError(
                f"blocks: got [{start}, {end}) and then [{begin}, {stop}); expected the second to begin within the first or "
                "right after it, and not to end before it"
            )
        before, first = (
            begin,
            max(begin, start),
        )  # the join before this one may lie to the right of where this block begins
        block = block.narrow(axis, first - begin, stop - first)
        shared = end - first
        faded = shared if width is None else min(width, shared)
        change = first + (shared - faded) // 2
        if change > start:
            yield start, held.narrow(axis, 0, change - start)
        mixed = blend(
            held.narrow(axis, change - start, faded),
            block.narrow(axis, change - first, faded),
            weights(faded).view(-1, *[1] * (-axis - 1)),
        )
        rest = block.narrow(axis, change - first + faded, stop - change - faded)
        start, held = change, torch.cat((mixed, rest), dim=axis)
    if held is not None and held.shape[axis]:
        yield start, held
