"""What a prediction is conditioned on, besides the tokens themselves.

Shapes: B batch, L context length, D context width, P width of the pooled context, M plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

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
        coarse: long ``[B, M, 1]``, tokens of a smaller grid of the same item (the first stage of a cascade).
        null: what ``context`` and ``pooled`` are for the empty prompt, in the same fields; classifier-free guidance on a
            context needs it. Also holds a negative prompt.
    """

    labels: Tensor | None = None
    task: Tensor | None = None
    context: Tensor | None = None
    context_mask: Tensor | None = None
    pooled: Tensor | None = None
    micro: Tensor | None = None
    coarse: Tensor | None = None
    null: Cond | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Cond:
        """A copy with ``function`` applied to every field that is present."""
        present = {name: function(value) for name, value in self._tensors().items() if value is not None}
        return Cond(**present, null=None if self.null is None else self.null.map(function))

    def rows(self, index: slice | Tensor | Sequence[int]) -> Cond:
        """The conditions of some rows, in the order of ``index``; a row may come more than once."""
        return self.map(lambda value: value[index])

    def to(self, device: torch.device | str) -> Cond:
        """The same conditions on a device."""
        return self.map(lambda value: value.to(device))

    def unconditional(self) -> Cond:
        """What classifier-free guidance compares with: no label in any row, and the context of the empty prompt.

        ``task``, ``micro`` and ``coarse`` stay: they say what is made, not what it shows.

        Raises:
            ValueError: a context without ``null``; it would be compared with itself.
        """
        given = [name for name in ("context", "pooled") if getattr(self, name) is not None]
        if given and self.null is None:
            raise ValueError(f"cond.null: got none beside {given[0]}; guidance needs the context of the empty prompt")
        labels = None if self.labels is None else torch.full_like(self.labels, NO_LABEL)
        if self.null is None:
            return replace(self, labels=labels)
        empty = {name: getattr(self.null, name) for name in ("context", "context_mask", "pooled")}
        return replace(self, labels=labels, null=None, **empty)

    def class_ids(self, tokens: Tensor, null: int) -> Tensor:
        """Class of every row of ``tokens`` ``[B, ...]``, long ``[B]``: ``null`` where it has none."""
        if self.labels is None:
            return torch.full((len(tokens),), null, device=tokens.device)
        return torch.where(self.labels == NO_LABEL, null, self.labels)

    def check_used(self, model: str, *used: str) -> None:
        """Refuse conditions that a model would ignore in silence.

        Args:
            model: its name, for the error.
            used: names of the fields it looks at.

        Raises:
            ValueError: naming the fields that are given and not used.
        """
        unused = [name for name, value in self._tensors().items() if value is not None and name not in used]
        if unused:
            takes = ", ".join(used) or "no conditions"
            raise ValueError(
                f"cond.{unused[0]}: {model} does not use it (it takes {takes}); leave {', '.join(unused)} out"
            )

    def _tensors(self) -> dict[str, Tensor | None]:
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "null"}

    @staticmethod
    def cat(parts: list[Cond]) -> Cond:
        """Several batches one after the other; all must have the same fields.

        Raises:
            ValueError: if a field is present in some parts only.
        """
        joined: dict[str, Any] = {}
        for name in (item.name for item in fields(Cond)):
            values = [getattr(part, name) for part in parts]
            present = [value for value in values if value is not None]
            if present and len(present) != len(values):
                raise ValueError(f"cond.{name} is present in {len(present)} of {len(values)} parts; give all or none")
            join = Cond.cat if name == "null" else torch.cat
            joined[name] = join(present) if present else None
        return Cond(**joined)
