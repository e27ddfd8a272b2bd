"""Some positions of a grid instead of all: picking them, what is computed once for all steps, what may be used again.

Shapes: B batch, N tokens, S sequence (a prefix, then the tokens), C and P some of them, D width, H heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def take(x: Tensor, at: Tensor) -> Tensor:
    """The rows ``at`` ``[B, P]`` of ``x`` ``[B, S, ...]``: ``[B, P, ...]``."""
    index = at.reshape(*at.shape, *([1] * (x.ndim - 2)))
    return x.gather(1, index.expand(*at.shape, *x.shape[2:]))


def first_positions(wanted: Tensor, count: int, repeat: bool = False) -> Tensor:
    """Indices of the wanted positions, in their order, padded to a fixed count.

    The count does not depend on the values of ``wanted``, so the host does not wait for the device.

    Args:
        wanted: bool ``[B, N]``.
        count: P, at most N; no fewer than are wanted in any row.
        repeat: pad with the first wanted position again, so that a row has no others than it wants (and one, if it wants
            none), whatever the count; else with unwanted positions, none twice.

    Returns:
        long ``[B, P]``.
    """
    positions = wanted.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
    if not repeat:
        return positions
    spare = torch.arange(count, device=wanted.device) >= wanted.sum(1, keepdim=True)
    return torch.where(spare, positions[:, :1], positions)


@dataclass(frozen=True)
class Prepared:
    """What a model makes of its conditions and grid before the first step.

    Attributes:
        rows: tensors whose first axis is the batch.
        shared: tensors that all rows share.
        grid: sides of the grid, for models that need them.
    """

    rows: tuple[Tensor, ...]
    shared: tuple[Tensor, ...] = ()
    grid: tuple[int, ...] = ()

    def pick(self, index: Tensor | slice) -> Prepared:
        """The same for some rows of the batch."""
        return Prepared(tuple(tensor[index] for tensor in self.rows), self.shared, self.grid)


class FeatureMemory:
    """Keys and values of all layers, so that later steps compute some positions only and see the others as they were.

    This is approximate: the features of a position depend on all tokens, those decided since included. After ReCAP
    (plug-and-play context feature reuse, arXiv 2505.19089, read about, not run).

    Attributes:
        positions: long ``[B, C]``, the positions that a step computes anew, repeats allowed; None for all of them, which
            fills the memory.
    """

    def __init__(self) -> None:
        self.positions: Tensor | None = None
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        """B, rows that it was filled for; 0 if it was not."""
        return len(self._held[0][0]) if self._held else 0

    def clear(self) -> None:
        """Forget everything: the next step fills it again."""
        self.positions = None
        self._held = {}

    def of_layer(self, layer: int, prefix: int = 0) -> LayerMemory:
        """The part of one layer, whose sequence begins with ``prefix`` positions that are not in the grid."""
        return LayerMemory(self, layer, prefix)

    def rows(self, prefix: int) -> Tensor:
        """Indices into such a sequence of what is computed anew, long ``[B, prefix + C]``; the prefix always is."""
        assert self.positions is not None, "only where some positions are computed"
        first = torch.arange(prefix, device=self.positions.device).expand(len(self.positions), -1)
        return torch.cat((first, self.positions + prefix), dim=1)

    def repeat(self, index: Tensor) -> None:
        """Repeat rows: row i becomes what row ``index[i]`` was."""
        self._held = {layer: (k[index], v[index]) for layer, (k, v) in self._held.items()}


class LayerMemory:
    """Keys and values of one layer; see ``FeatureMemory``."""

    def __init__(self, memory: FeatureMemory, layer: int, prefix: int) -> None:
        self._memory, self._layer, self._prefix = memory, layer, prefix

    @property
    def positions(self) -> Tensor | None:
        """See ``FeatureMemory``; with a prefix they are not those of the sequence."""
        return self._memory.positions

    def merge(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put new keys and values ``[B, H, prefix + C, d]`` among those held; all of them, ``[B, H, S, d]``."""
        held = self._memory._held
        if self._memory.positions is not None:
            index = self._memory.rows(self._prefix)[:, None, :, None].expand(k.shape)
            k, v = (old.scatter(2, index, new) for old, new in zip(held[self._layer], (k, v), strict=True))
        held[self._layer] = (k, v)
        return k, v
