"""Equal rows of a batch, which need one forward between them.

At the first step rows are often equal: same tokens, same conditions. Where everything is masked that is one row a class,
and a single one for all unconditional halves.

Shapes: B batch, R unique rows.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from maskgen.conditioning import Cond


@dataclass(frozen=True)
class UniqueRows:
    """Which rows of a batch are equal.

    Attributes:
        first: long ``[R]``, index of the first row of each kind.
        kind: long ``[B]``, which of the R kinds each row is.
    """

    first: Tensor
    kind: Tensor


def unique_rows(tokens: Tensor, cond: Cond) -> UniqueRows | None:
    """Find equal rows, comparing tokens and all conditions byte for byte on the host.

    Args:
        tokens: long ``[B, N, K]``.
        cond: conditions of B rows.

    Returns:
        The kinds, in order of their first rows; None if all rows differ, or on the meta device, whose tensors hold nothing.
    """
    if tokens.is_meta:
        return None
    conditions = (getattr(cond, item.name) for item in fields(cond))
    parts = [tokens, *(part for part in conditions if isinstance(part, Tensor))]
    kinds: dict[tuple[bytes, ...], int] = {}
    kind = [kinds.setdefault(row, len(kinds)) for row in zip(*map(_row_bytes, parts), strict=True)]
    if len(kinds) == len(tokens):
        return None
    first = [kind.index(number) for number in range(len(kinds))]
    return UniqueRows(*(torch.tensor(numbers, device=tokens.device) for numbers in (first, kind)))


def _row_bytes(part: Tensor) -> list[bytes]:
    rows = part.detach().reshape(len(part), -1).contiguous().cpu()
    return [row.tobytes() for row in rows.view(torch.uint8).numpy()]
