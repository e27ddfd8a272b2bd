"""Validation whose numbers can be compared over a run: the same examples under the same masks every time.

Shapes: B batch, N tokens, K codebooks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from maskgen.conditioning import NO_LABEL
from maskgen.data import Batch, Source, draw_numbers
from maskgen.models.base import MaskedTransformer
from maskgen.training.distributed.rows import RandomRows

_MOST, _AT_A_TIME = 512, 64  # examples of a validation


@torch.no_grad()
def fixed_validation(
    held_out: Source,
    device: torch.device,
    mask: Callable[[Batch, torch.Generator], Tensor],
    forward: Callable[[Batch, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> tuple[float, float]:
    """Mean loss and accuracy of up to 512 held-out examples, the same ones every time, see ``draw_numbers``.

    Args:
        held_out: the examples.
        device: where ``forward`` computes.
        mask: bool ``[B, N, K]`` of all of them, from a generator whose seed never changes.
        forward: loss and accuracy, scalars, of some of them, their mask, and their places among all of them, long ``[b]``.
    """
    numbers = draw_numbers(len(held_out), _MOST)
    count, batch = len(numbers), held_out.batch(numbers, numbers)
    masked = mask(batch, torch.Generator().manual_seed(0))
    totals = torch.zeros(2)
    for rows in torch.arange(count).split(_AT_A_TIME):
        part = {name: tensor[rows].to(device) for name, tensor in batch.items()}
        found = forward(part, masked[rows].to(device), rows)
        totals += torch.stack(found).cpu() * len(rows) / count
    return float(totals[0]), float(totals[1])


def drop_labels(labels: Tensor | None, share: float, rows: RandomRows) -> Tensor | None:
    """Labels ``[B]`` of which a random share is ``NO_LABEL``: guidance needs rows without their class."""
    if labels is None or not share:
        return labels
    return labels.masked_fill(rows.rand((len(labels),), labels.device) < share, NO_LABEL)


def check_dropout(name: str, share: float, model: MaskedTransformer) -> None:
    """Refuse rows without a class on a model that cannot have them.

    Args:
        name: of the setting.
        share: of the rows that lose their class.
        model: to be trained.

    Raises:
        ValueError: it has classes but no null class.
    """
    if share and model.num_classes and not model.null_class:
        raise ValueError(f"{name}: got {share}, but the model has no null class; set null_class or 0")
