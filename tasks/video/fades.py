"""Long clips in windows of the model's length, and putting given pixels back.

The numbers are those of the official MAGVIT code, but for one thing: it drops the frames that fill no window, here the last
window ends with the clip.

Shapes: B batch, T frames, H W pixels; leading axes of clips may be anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from maskgen.tasks.media.windows import windows

__all__ = ["clip_windows", "composite", "composite_weights", "cross_fade", "paste_given"]


def clip_windows(total: int, size: int, overlap: int, *, drop_rest: bool = False) -> list[tuple[int, int]]:
    """Cut a clip into windows that overlap.

    Args:
        total: frames of the clip, at least 1.
        size: frames of a window.
        overlap: frames that neighbours share at least, 0 to half a window, so that no more than two meet.
        drop_rest: leave out frames at the end that fill no window (official) instead of moving the last window back.

    Returns:
        (first frame, one past the last) from left to right; a single shorter window where all fits into one (none with
        ``drop_rest``).

    Raises:
        ValueError: no frames, or an overlap out of range.
    """
    if total < 1 or not 0 <= overlap <= size // 2:
        raise ValueError(
            f"windows: got {total} frames, windows of {size} that overlap by {overlap}; expected at least 1 frame and an "
            f"overlap of 0 to {size // 2}, half a window"
        )
    if drop_rest:
        return [(start, start + size) for start in range(0, total - size + 1, size - overlap)]
    return windows(total, size, overlap)


def cross_fade(blocks: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    """Join clips that overlap in time into pieces that do not; holds two clips at a time.

    Over o shared frames the second fades in with weights 0, 1/o, .., (o - 1)/o.

    Args:
        blocks: (first frame, float ``[..., T, H, W]``) from left to right; each begins within the one before it or right
            after it, and does not end before it.

    Yields:
        (first frame, clip) from left to right, each starting where the last one ended.

    Raises:
        ValueError: blocks out of order or with a hole between them.
    """
    start, held = 0, None
    for begin, block in blocks:
        if held is None:
            start, held = begin, block
            continue
        end, stop = start + held.shape[-3], begin + block.shape[-3]
        if not start <= begin <= end or stop < end:
            raise ValueError(
                f"blocks: got [{start}, {end}) and then [{begin}, {stop}); expected the second to begin within the first or "
                "right after it, and not to end before it"
            )
        shared = end - begin
        old, held = held.split((begin - start, shared), dim=-3)
        if begin > start:
            yield start, old
        weight = (torch.arange(shared, device=block.device, dtype=block.dtype) / max(shared, 1))[:, None, None]
        mixed = held * (1 - weight) + block[..., :shared, :, :] * weight
        start, held = begin, torch.cat((mixed, block[..., shared:, :, :]), dim=-3)
    if held is not None:
        yield start, held


def composite_weights(
    size: tuple[int, int], *, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0, ramp: int = 8
) -> Tensor:
    """How much of the given pixels goes into an outpainted clip.

    1 inside, 0 outside, and a ramp 0, 1/r, .., (r - 1)/r inwards from every side that was extended. Where the ramps of two
    sides meet, the larger weight counts.

    Args:
        size: (H, W) of the outpainted clip.
        top: rows of it above the given pixels.
        bottom: rows below.
        left: columns to the left.
        right: columns to the right.
        ramp: r in pixels; at most half of the given pixels along an axis is used.

    Returns:
        float32 ``[H, W]``.

    Raises:
        ValueError: negative numbers, or no room for given pixels.
    """
    if min(top, bottom, left, right) < 0 or ramp < 1 or top + bottom >= size[0] or left + right >= size[1]:
        raise ValueError(
            f"composite: got top {top}, bottom {bottom}, left {left}, right {right}, ramp {ramp} in {size[1]} x {size[0]}; "
            "expected 0 or more, a ramp of 1 or more, and room for what is given"
        )
    down = _ramps(size[0], top, bottom, ramp)[:, None]
    across = _ramps(size[1], left, right, ramp)
    level = torch.maximum(down, across)
    weights = torch.where(level < 0, 1.0, level)
    inside = torch.zeros(size, dtype=torch.bool)
    inside[top : size[0] - bottom, left : size[1] - right] = True
    return weights * inside


def composite(generated: Tensor, given: Tensor, weights: Tensor) -> Tensor:
    """``weights`` x given + (1 - ``weights``) x generated; where the weight is 1 exactly the given pixel.

    Args:
        generated: float ``[..., H, W]``.
        given: float, of the same shape; anything where the weight is 0.
        weights: float ``[H, W]`` in [0, 1], see ``composite_weights``.
    """
    weights = weights.to(generated)
    mixed = given * weights + generated * (1 - weights)
    return torch.where(weights == 1, given, torch.where(weights == 0, generated, mixed))


def paste_given(generated: Tensor, clip: Tensor, pixels: Tensor) -> Tensor:
    """The generated clip with the given pixels in place of the model's version of them.

    Args:
        generated: float ``[B, 3, T, H, W]``.
        clip: float, the same shape: the condition's clip or the original one.
        pixels: bool, broadcastable, True where given.
    """
    return torch.where(pixels, clip.to(generated), generated)


def _ramps(length: int, before: int, after: int, ramp: int) -> Tensor:
    """Weights along one axis, float32 ``[length]``; -1 where there is no ramp."""
    ramp = min(ramp, max(1, (length - before - after) // 2))
    rising, level = torch.arange(ramp) / ramp, torch.full((length,), -1.0)
    if before:
        level[before : before + ramp] = rising
    if after:
        level[length - after - ramp : length - after] = rising.flip(0)
    return level
