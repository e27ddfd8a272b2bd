"""Windows over a long time axis, for sound and video alike."""

from __future__ import annotations

__all__ = ["windows"]


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
