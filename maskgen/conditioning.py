"""What a prediction is conditioned on, besides the tokens themselves.

Shapes: B batch, L context length, D context width, P width of the pooled context, M plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch

__all__ = ["NO_LABEL", "Cond"]

NO_LABEL = -1
"""Label of a row that has none: the model uses its null class there."""


@dataclass(frozen=True, kw_only=True)
class Cond:
    """Conditions of one batch; a field left out means "unconditional" in that respect.

    Attributes:
        labels: class ids, long ``[B]``; ``NO_LABEL`` marks single rows without a class.
        task: task ids, long ``[B]`` (MAGVIT's multi-task prefix).
        context: float ``[B, L, D]``, for instance text features (Muse).
        context_mask: bool ``[B, L]``, True where ``context`` is real.
        pooled: float ``[B, P]``, one vector for the whole context (aMUSEd: CLIP's projected text embedding).
        micro: float ``[B, M]``, plain numbers about the wanted item (aMUSEd: sizes, crop and an aesthetic score).
    """

    labels: torch.Tensor | None = None
    task: torch.Tensor | None = None
    context: torch.Tensor | None = None
    context_mask: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    micro: torch.Tensor | None = None

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Cond:
        """A copy with ``function`` applied to every field that is present."""
        present = {item.name: getattr(self, item.name) for item in fields(self)}
        return Cond(**{name: value if value is None else function(value) for name, value in present.items()})

    def without_labels(self) -> Cond:
        """The same conditions with every row's label dropped: the unconditional half of guidance."""
        dropped = None if self.labels is None else torch.full_like(self.labels, NO_LABEL)
        return replace(self, labels=dropped)

    @staticmethod
    def cat(parts: list[Cond]) -> Cond:
        """Several batches one after the other; all must have the same fields.

        Raises:
            ValueError: if a field is present in some parts only.
        """
        joined: dict[str, torch.Tensor | None] = {}
        for item in fields(Cond):
            values = [getattr(part, item.name) for part in parts]
            present = [value for value in values if value is not None]
            if present and len(present) != len(values):
                raise ValueError(
                    f"cond.{item.name} is present in {len(present)} of {len(values)} parts; give all or none"
                )
            joined[item.name] = torch.cat(present) if present else None
        return Cond(**joined)
