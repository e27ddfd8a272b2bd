"""The cost of a masked prediction.

Shapes: B batch, ... any number of token axes, V vocabulary.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Normalize = Literal["row", "batch"]


def masked_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    label_smoothing: float = 0.0,
    normalize: Normalize = "row",
    unmasked_weight: float | Tensor = 0.0,
    over_processes: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Cross-entropy over masked tokens, with label smoothing.

    1. weight of a token: 1 where masked, ``unmasked_weight`` elsewhere;
    2. target: (1 - eps) one-hot + eps / V over all V given columns;
    3. ``row``: sum(w CE) / sum(w) in each row, then the mean over rows (official MaskGIT: a row with few masked tokens
       weighs as much as one with many); ``batch``: one sum over one sum (VampNet).

    On several processes the gradients of equal shares of rows are averaged. For ``row`` that is the gradient of the whole
    batch. A mean of ratios is not the ratio of the sums, so ``batch`` divides by the mean of the processes' weights
    (``over_processes``): then the mean of the losses is the loss of the whole batch, on any number of processes.

    Args:
        logits: ``[B, ..., V]``; give the codebook slice to spend no probability on class ids.
        targets: long ``[B, ...]``.
        mask: bool ``[B, ...]``, True = masked.
        label_smoothing: eps in [0, 1).
        normalize: see 3.
        unmasked_weight: weight of visible tokens (1d-tokenizer uses 0.1), or of those of each row, ``[B]``.
        over_processes: mean over processes of a scalar, for ``batch``; None on one process.

    Returns:
        scalar, nats.

    Raises:
        ValueError: shapes that do not fit or an unknown ``normalize``.
    """
    if logits.shape[:-1] != targets.shape or mask.shape != targets.shape:
        raise ValueError(
            f"loss: got logits {tuple(logits.shape)}, targets {tuple(targets.shape)}, mask {tuple(mask.shape)}; "
            "expected [B, ..., V], [B, ...], [B, ...]"
        )
    flat = F.cross_entropy(
        logits.flatten(0, -2).float(), targets.flatten(), label_smoothing=label_smoothing, reduction="none"
    )
    cost = flat.view(len(targets), -1)
    weight = mask.flatten(1).to(cost.dtype)
    if isinstance(unmasked_weight, Tensor):
        weight = weight + unmasked_weight[:, None] * (1 - weight)
    elif unmasked_weight:
        weight = weight + unmasked_weight * (1 - weight)
    if normalize == "row":
        return ((cost * weight).sum(1) / weight.sum(1).clamp(min=1e-8)).mean()
    if normalize == "batch":
        total = weight.sum() if over_processes is None else over_processes(weight.sum())
        return (cost * weight).sum() / total.clamp(min=1e-8)
    raise ValueError(f"normalize: got {normalize!r}, expected 'row' or 'batch'")


def masked_accuracy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Share of masked tokens whose most likely id is right; scalar in [0, 1]."""
    right = (logits.argmax(-1) == targets) & mask
    return right.sum() / mask.sum().clamp(min=1)
