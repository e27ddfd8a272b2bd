"""The entropy term of a codebook: sure rows, evenly used codes.

Shapes: V codes.
"""

from typing import Literal

import torch
from torch import Tensor

from maskgen.training.distributed.whole_batch import whole_mean

EntropyKind = Literal["softmax", "argmax"]


def unknown_kind(kind: str, expected: str) -> ValueError:
    """The error for a choice that there is not."""
    return ValueError(f"kind: got {kind!r}, expected {expected}")


def entropy_loss(affinity: Tensor, kind: EntropyKind = "softmax", temperature: float = 0.01) -> Tensor:
    """Confident rows, evenly used codes: mean entropy of a row minus entropy of the mean row.

    With p = softmax(affinity / temperature): mean_i H(p_i) - H(mean_i p_i), at least -log V. "argmax" puts a
    straight-through one-hot instead of p. Both 1e-5 of the official code are kept: one is a shift that softmax does
    not see, the other bounds the logarithm. On several processes the mean p is that of the whole batch (the official code
    takes each device's own, so that the same batch on more devices is another loss).

    Args:
        affinity: [..., V], larger is closer; for a codebook the negative squared distance.
        kind: "softmax" or "argmax".
        temperature: positive.

    Returns:
        Scalar, float32.

    Raises:
        ValueError: for another kind or a temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature: got {temperature}, expected a positive number")
    rows = affinity.flatten(end_dim=-2).float() / temperature
    probs = rows.softmax(dim=-1)
    log_probs = (rows + 1e-5).log_softmax(dim=-1)
    if kind == "softmax":
        target = probs
    elif kind == "argmax":
        hard = torch.zeros_like(probs).scatter_(1, rows.argmax(dim=-1, keepdim=True), 1.0)
        target = probs - (probs - hard).detach()
    else:
        raise unknown_kind(kind, "'softmax' or 'argmax'")
    mean = whole_mean(target.mean(dim=0))
    mean_entropy = -(mean * (mean + 1e-5).log()).sum()
    row_entropy = -(target * log_probs).sum(dim=-1).mean()
    return row_entropy - mean_entropy
