"""One step as a selector sees it, from the few things a test cares about."""

from typing import Any

import torch
from torch import Tensor

from maskgen.sampling.selectors.base import Selection


def selection(
    log_probs: Tensor, mask: Tensor, counts: Tensor, noise: Tensor | None = None, weight: float = 0.0, **more: Any
) -> Selection:
    """A step in the middle of a decoding of rows ``[B, M]`` that began with ``mask`` hidden; ``more`` replaces fields."""
    half = torch.full((len(mask), 1), 0.5)
    plain: dict[str, Any] = {
        "step": 1,
        "steps": 4,
        "drawn": torch.zeros_like(mask, dtype=torch.long),
        "log_probs": log_probs,
        "settled": log_probs,
        "logits": log_probs[..., None],
        "mask": mask,
        "start": mask,
        "counts": counts,
        "shares": (half, half / 2),
        "noise": torch.zeros(mask.shape) if noise is None else noise,
        "item_noise": torch.zeros(len(mask), 1),
        "weight": weight,
    }
    return Selection(**{**plain, **more})
