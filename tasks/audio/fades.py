"""Gaps in a sound: emptied before the codec hears them, and faded into afterwards.

Shapes: S samples; leading axes may be anything.
"""

import torch
from torch import Tensor

from maskgen.tasks.media.windows import cosine_fade


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
    offset = torch.arange(length, device=waveform.device)
    weight = (1.0 - (offset + 0.5) / length).to(waveform.dtype)
    if not left or not right:
        weight = torch.full_like(weight, float(left > 0))
    inside = torch.zeros_like(waveform[..., start:stop])
    if left:
        inside += weight * waveform[..., left - 1 - _mirror(offset, left)]
    if right:
        inside += (1 - weight) * waveform[..., stop + _mirror(offset.flip(0), right)]
    filled[..., start:stop] = inside
    return filled


def gap_weights(before: int, inside: int, after: int) -> Tensor:
    """Weight of the new sound around a gap: a fade, ones, a fade; float32 ``[before + inside + after]``."""
    return torch.cat((cosine_fade(before), torch.ones(inside), cosine_fade(after).flip(0)))


def _mirror(offset: Tensor, length: int) -> Tensor:
    """0 1 .. length-1 length-1 .. 1 0 0 1 ..: how far from the edge the mirror image of a sample lies."""
    turn = offset % (2 * length)
    return torch.minimum(turn, 2 * length - 1 - turn)
