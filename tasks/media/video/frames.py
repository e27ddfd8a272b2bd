"""Clips resized the way the official MAGVIT evaluation does it.

Shapes: T frames, H W pixels; leading axes may be anything.
"""

import torch
from torch import Tensor


def resize_tf1(video: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing as TensorFlow 1 did it, which the published FVD numbers depend on.

    A pixel is taken at ``position x old / new`` of the old picture, without the half pixel that others add on both sides,
    and without a low-pass filter.

    Args:
        video: float ``[..., H, W]``.
        size: new (H, W).

    Returns:
        ``[..., *size]``.

    Raises:
        ValueError: a size below 1.
    """
    if min(size) < 1:
        raise ValueError(f"resize: got {size}, expected (height, width), 1 pixel or more each")
    for axis, length in zip((-2, -1), size, strict=True):
        old = video.shape[axis]
        if old == length:
            continue
        # float32, as the original: whole numbers must come out whole.
        position = torch.arange(length, dtype=torch.float32, device=video.device) * (old / length)
        low = position.floor().long().clamp(max=old - 1)
        high = (low + 1).clamp(max=old - 1)
        weight = (position - low).to(video.dtype)
        weight = weight[:, None] if axis == -2 else weight
        below, above = video.index_select(axis, low), video.index_select(axis, high)
        video = below + (above - below) * weight
    return video
