"""What the sampler asks of a model at one step, and the functions that can answer for some positions only.

Shapes: B batch, N tokens, P and C some of them, K codebooks, V vocabulary.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from maskgen.models.partial import FeatureMemory


@dataclass(frozen=True, kw_only=True)
class Query:
    """What one step needs.

    Attributes:
        positions: long ``[B, P]``, whose logits; all N if left out.
        may_repeat: whether rows may be equal, so that looking for equal ones pays.
        memory: where keys and values are kept for later steps; None keeps nothing.
        changed: long ``[B, C]``, the positions that may differ from what ``memory`` holds: only they are computed. None:
            all are, and fill the memory.
        within: long ``[B, P]``, indices of ``positions`` in ``changed``.
    """

    positions: Tensor | None = None
    may_repeat: bool = False
    memory: FeatureMemory | None = None
    changed: Tensor | None = None
    within: Tensor | None = None

    def doubled(self) -> Query:
        """The same of two batches, one after the other."""
        parts = (self.positions, self.changed, self.within)
        positions, changed, within = (None if part is None else torch.cat((part, part)) for part in parts)
        return replace(self, positions=positions, changed=changed, within=within)


class PartialLogits(ABC):
    """A ``LogitsFn`` (``maskgen.sampling.loop``) that also answers a ``Query``.

    Attributes:
        reuse: every so many steps the sampler computes all positions, in between those that changed; 1 is exact.
    """

    reuse: int = 1

    @property
    @abstractmethod
    def is_partial(self) -> bool:
        """Whether a query may name positions: the model is a ``PartialTransformer`` that can."""

    @abstractmethod
    def answer(self, tokens: Tensor, step: int, query: Query) -> Tensor:
        """Logits ``[B, P, K, V]`` of what the query names.

        Args:
            tokens: long ``[B, N, K]``, V where masked.
            step: counted from 0.
            query: plain ``Query()`` where not ``is_partial``.
        """

    def __call__(self, tokens: Tensor, step: int) -> Tensor:
        """Logits ``[B, N, K, V]`` of all positions."""
        return self.answer(tokens, step, Query())

    @abstractmethod
    def check_reuse(self, every: int) -> None:
        """Refuse to use keys and values again where that cannot work; wrappers pass this on to what they wrap.

        Raises:
            ValueError: saying why.
        """

    def reusing(self, every: int) -> Self:
        """The same with keys and values used again: only one step in ``every`` computes all positions.

        In between, positions decided before the last whole step are seen as they were then, which is approximate
        (``maskgen.models.partial.FeatureMemory``).

        Raises:
            ValueError: ``every`` < 1; or it is over 1 and the model cannot do this, or sees other tokens at every step
                (self-guidance).
        """
        if every < 1:
            raise ValueError(f"reuse: got {every}, expected at least 1 (every step computes all positions)")
        if every > 1:
            self.check_reuse(every)
        other = copy.copy(self)
        other.reuse = every
        return other
