"""What is hidden from the model while it trains.

Shapes: B batch, N tokens, K codebooks; M = N x K places of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from maskgen.schedules import get_schedule

__all__ = ["hide_exactly", "random_mask"]


def random_mask(
    shape: Sequence[int],
    *,
    schedule: str = "cosine",
    min_ratio: float = 0.0,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """A training mask: every row draws its own ratio, then hides exactly that many places (MaskGIT, section 3.1).

    For each row: r ~ U[0, 1); gamma = max(schedule(r), min_ratio); ceil(gamma x M) places, at least one, chosen uniformly.

    Args:
        shape: ``(B, N, K)``.
        schedule: a name for ``maskgen.schedules.get_schedule``.
        min_ratio: lower bound of the mask ratio, in [0, 1].
        generator: source of randomness on ``device``; torch's global one by default.
        device: where the mask is made.

    Returns:
        bool ``[B, N, K]``, True = hidden.

    Raises:
        ValueError: ``min_ratio`` outside [0, 1] or an unknown schedule.
    """
    if not 0 <= min_ratio <= 1:
        raise ValueError(f"min_ratio: got {min_ratio}, expected a share in [0, 1]")
    rows, places = shape[0], shape[1] * shape[2]
    ratio = torch.rand(rows, generator=generator, device=device)
    gamma = get_schedule(schedule)(ratio, torch.full_like(ratio, places)).clamp(min=min_ratio)
    # gamma is at least 1e-6, so the ceiling is at least one place.
    counts = torch.ceil(gamma * places).long()
    return hide_exactly(counts, places, generator=generator).view(*shape)


def hide_exactly(counts: torch.Tensor, places: int, *, generator: torch.Generator | None = None) -> torch.Tensor:
    """Hide exactly ``counts[b]`` of ``places`` in row b, uniformly at random.

    Args:
        counts: long ``[B]``, each in [0, places].
        places: M.
        generator: source of randomness on the device of ``counts``.

    Returns:
        bool ``[B, M]``.
    """
    scores = torch.rand(len(counts), places, generator=generator, device=counts.device)
    order = scores.argsort(dim=-1)
    chosen = torch.arange(places, device=counts.device) < counts[:, None]
    return torch.zeros_like(chosen).scatter(1, order, chosen)
