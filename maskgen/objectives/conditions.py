"""What a training batch is conditioned on, and rows that lose all of it, so that guidance has something to compare with.

Shapes: B batch.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.data import Batch
from maskgen.models.base import MaskedTransformer
from maskgen.training.distributed.rows import RandomRows

_FIELDS = tuple(field.name for field in dataclasses.fields(Cond) if field.name != "null")

_TEXT = ("context", "context_mask", "pooled")

_DROPPED = ("labels", *_TEXT)


def batch_cond(batch: Batch, dropped: Tensor | None = None, null: Cond | None = None) -> Cond:
    """The conditions of a batch, which stand in it under the names of ``Cond``'s fields.

    Args:
        batch: of B rows.
        dropped: bool ``[B]``, True for rows without label and text; what else there is stays.
        null: context, its mask and pooled vector of the empty prompt, one row: what dropped rows get.

    Raises:
        ValueError: rows are to lose their text, but ``null`` lacks it.
    """
    given: dict[str, Any] = {name: batch[name] for name in _FIELDS if name in batch}
    cond = Cond(**given)
    if dropped is None:
        return cond
    found: dict[str, Any] = {} if cond.labels is None else {"labels": cond.labels.masked_fill(dropped, NO_LABEL)}
    for name in _TEXT:
        value, empty = getattr(cond, name), getattr(null, name, None)
        if value is None:
            continue
        if empty is None:
            raise ValueError(f"null: got none for {name}; rows that lose their text get that of the empty prompt")
        rows = dropped.view(-1, *(1,) * (value.ndim - 1))
        found[name] = torch.where(rows, empty.to(value.device, value.dtype), value)
    return dataclasses.replace(cond, **found)


def draw_dropped(batch: Batch, share: float, rows: RandomRows) -> Tensor | None:
    """Which rows lose label and text, bool ``[B]``, each with probability ``share``; None where there is nothing to lose."""
    present = next((batch[name] for name in _DROPPED if name in batch), None)
    if present is None or not share:
        return None
    return rows.rand((len(present),), present.device) < share


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
