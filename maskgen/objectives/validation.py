"""Validation whose numbers can be compared over a run: the same examples under the same masks every time.

Shapes: B batch, N tokens, K codebooks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from maskgen.data import Batch, Source, draw_numbers

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
