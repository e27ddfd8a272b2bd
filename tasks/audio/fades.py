"""Putting regenerated sound back: emptied gaps, fades, and joining overlapping blocks.

Pure signal work on the caller's time axis. Shapes: R results, C channels, S samples; leading axes may be anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

__all__ = ["blend", "fade_in", "fill_gap", "gap_weights", "stitch"]


def fill_gap(waveform: Tensor, start: int, stop: int) -> Tensor:
    """Replace a gap by its surroundings, mirrored at both edges, so that nothing of what stood there remains.

    A codec's encoder sees beyond a frame: whatever stands in a gap, silence too, would colour the frames beside it. The
    mirror images of both sides keep sound and loudness going; they fade into each other over the gap. A side without
    sound is left out, and with no sound on either side the gap is silent.

    Args:
        waveform: float ``[..., S]``.
        start: first sample of the gap.
        stop: one past the last, ``0 <= start <= stop <= S``.

    Returns:
        A new ``[..., S]`` that does not depend on what ``waveform`` holds in the gap.
    """
    left, right, length = start, waveform.shape[-1] - stop, stop - start
    filled = waveform.clone()
    if not length:
        return filled
    place = torch.arange(length, device=waveform.device)
    weight = (1.0 - (place + 0.5) / length).to(waveform.dtype)
    if not left or not right:
        weight = torch.full_like(weight, float(left > 0))
    inside = torch.zeros_like(waveform[..., start:stop])
    if left:
        inside += weight * waveform[..., left - 1 - _mirror(place, left)]
    if right:
        inside += (1 - weight) * waveform[..., stop + _mirror(place.flip(0), right)]
    filled[..., start:stop] = inside
    return filled


def fade_in(length: int) -> Tensor:
    """Weights of the new sound over a cross-fade: half a cosine, strictly between 0 and 1, float32 ``[length]``.

    Weights of old and new add up to 1 (equal gain): both are the same music, one of them out of the codec.
    """
    return 0.5 - 0.5 * torch.cos(torch.pi * (torch.arange(length) + 0.5) / max(length, 1))


def gap_weights(before: int, inside: int, after: int) -> Tensor:
    """Weight of the new sound around a gap: a fade, ones, a fade; float32 ``[before + inside + after]``."""
    return torch.cat((fade_in(before), torch.ones(inside), fade_in(after).flip(0)))


def blend(old: Tensor, new: Tensor, weight: Tensor) -> Tensor:
    """``weight`` x new + (1 - ``weight``) x old; where the weight is 1 exactly the new sample, where it is 0 the old.

    Args:
        old: float ``[..., S]``.
        new: float ``[..., S]``, any leading axes that broadcast.
        weight: float ``[S]`` in [0, 1].

    Returns:
        ``[..., S]`` in ``old``'s type.
    """
    part = weight.to(old.dtype)
    fresh = new.to(old.dtype)
    mixed = fresh * part + old * (1 - part)
    return torch.where(part == 1, fresh, torch.where(part == 0, old, mixed))


def stitch(blocks: Iterable[tuple[int, Tensor]], fade: int) -> Iterator[tuple[int, Tensor]]:
    """Join blocks that overlap into pieces that do not; holds two blocks at a time.

    Two neighbours change over in the middle of what they share, for a block is least reliable at its ends: a cross-fade
    of ``fade`` samples, or of the whole overlap if that is shorter. What a block shares with all but the last one before
    it is left out.

    Args:
        blocks: (first sample, sound ``[..., s]``) from left to right; each begins within the one before it or right
            after it, and does not end before it.
        fade: samples of each cross-fade, 0 for a hard change.

    Yields:
        (first sample, sound) from left to right, each starting where the last one ended.

    Raises:
        ValueError: blocks out of order or with a hole between them.
    """
    start, held = 0, None
    for begin, block in blocks:
        if held is None:
            start, held = begin, block
            continue
        end, stop = start + held.shape[-1], begin + block.shape[-1]
        if begin > end or stop < end:
            raise ValueError(
                f"blocks: got [{start}, {end}) and then [{begin}, {stop}); expected the second to begin within the first or "
                "right after it, and not to end before it"
            )
        if begin < start:  # the join before this one lies to the right of where this block begins
            begin, block = start, block[..., start - begin :]
        shared = end - begin
        width = min(fade, shared)
        change = begin + (shared - width) // 2
        if change > start:
            yield start, held[..., : change - start]
        mixed = blend(
            held[..., change - start : change - start + width],
            block[..., change - begin :][..., :width],
            fade_in(width),
        )
        start, held = change, torch.cat((mixed, block[..., change - begin + width :]), dim=-1)
    if held is not None and held.shape[-1]:
        yield start, held


def _mirror(place: Tensor, length: int) -> Tensor:
    """0 1 .. length-1 length-1 .. 1 0 0 1 ..: how far from the edge the mirror image of a place lies."""
    turn = place % (2 * length)
    return torch.minimum(turn, 2 * length - 1 - turn)
