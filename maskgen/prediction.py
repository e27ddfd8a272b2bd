"""A model under conditions and guidance as the sampler's ``logits_fn``, and what of it can be left out exactly.

- Guidance c + w (c - u) runs c and u as one forward of 2 B rows, and c alone at steps of weight 0.
- What depends on the conditions alone is computed once a call (``PartialTransformer.prepare``).
- Of the last layer and the head only the places that the sampler asks for are computed.
- At the first step rows are often equal: same tokens, same conditions. Each is run once. Where everything is hidden that is
  one row a class, and a single one for all unconditional halves.

Other models than ``PartialTransformer``, as any callable, are run whole.

Shapes: B batch, N tokens, P of them, C of them, K codebooks, V vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch

from maskgen.conditioning import Cond
from maskgen.places import FeatureMemory, Prepared
from maskgen.transformer import PartialTransformer

__all__ = ["Asked", "Prediction", "distinct_rows"]

_Model = Callable[[torch.Tensor, Cond, Sequence[int] | None], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the sampler wants of a step.

    Attributes:
        places: long ``[B, P]``, whose logits; all N if left out.
        share: whether rows may be equal, so that looking for it pays.
        keep: whether keys and values of this step may be used by later ones, see ``changed``.
        changed: long ``[B, C]``, the places that may differ from the last step with ``keep``: only they are computed.
        within: long ``[B, P]``, where in ``changed`` the ``places`` stand.
    """

    places: torch.Tensor | None = None
    share: bool = False
    keep: bool = False
    changed: torch.Tensor | None = None
    within: torch.Tensor | None = None

    def doubled(self) -> Asked:
        """The same of two batches, one after the other."""
        twice = [None if part is None else torch.cat((part, part)) for part in (self.places, self.changed, self.within)]
        return dataclasses.replace(self, places=twice[0], changed=twice[1], within=twice[2])


class Prediction:
    """``logits_fn(tokens, step)`` of a model, see ``maskgen.sampler.LogitsFn``; ``at`` does only what is asked.

    Args:
        model: called as ``model(tokens, cond, axes)``.
        cond: conditions of c.
        axes: token grid.
        against: conditions of u; with ``weights``.
        weights: w of each step; none means no guidance.
        weaker: what u sees of the tokens, ``weaker(tokens, step)``; the same tokens if left out.
        keep: filter of the logits, such as a ``maskgen.filters.TokenFilter``.

    Raises:
        ValueError: ``cond`` and ``against`` have different fields.
    """

    def __init__(
        self,
        model: _Model,
        cond: Cond,
        axes: Sequence[int] | None = None,
        *,
        against: Cond | None = None,
        weights: Sequence[float] = (),
        weaker: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
        keep: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._model, self._axes, self._cond = model, axes, cond
        self._both = cond if against is None else Cond.cat([cond, against])
        self._weights, self._weaker, self._keep = weights, weaker, keep
        self._partial = model if isinstance(model, PartialTransformer) and model.is_partial else None
        self._prepared: dict[tuple[bool, int, torch.device], Prepared] = {}
        self._memory = FeatureMemory()
        self.reuse = 1
        """Every so many steps the sampler asks for everything, in between for what changed; 1 is exact."""

    @property
    def is_partial(self) -> bool:
        """Whether ``at`` can leave out places."""
        return self._partial is not None

    def filtered(self, keep: Callable[[torch.Tensor], torch.Tensor]) -> Prediction:
        """The same with its float32 logits ``[..., V]`` through a filter."""
        other = copy.copy(self)
        other._keep, other._prepared, other._memory = keep, {}, FeatureMemory()
        return other

    def reusing(self, every: int) -> Prediction:
        """The same with keys and values used again: only one step in ``every`` computes all places.

        In between, places decided before the last whole step are seen as they were then, which is approximate
        (``maskgen.places.FeatureMemory``).

        Raises:
            ValueError: ``every`` < 1; or it is over 1 and the model cannot do this, or sees other tokens at every step
                (self-guidance).
        """
        if every < 1:
            raise ValueError(f"reuse: got {every}, expected at least 1 (every step whole)")
        if every > 1 and self._partial is None:
            raise ValueError(
                f"reuse: got {every}, but {type(self._model).__name__} computes all places or none; use 1 with this model"
            )
        if every > 1 and self._weaker is not None:
            raise ValueError(f"reuse: got {every} with guidance that hides other tokens at every step; use 1 with it")
        other = copy.copy(self)
        other.reuse, other._prepared, other._memory = every, {}, FeatureMemory()
        return other

    def __call__(self, tokens: torch.Tensor, step: int) -> torch.Tensor:
        """Logits ``[B, N, K, V]`` of all places."""
        return self.at(tokens, step, Asked())

    def at(self, tokens: torch.Tensor, step: int, asked: Asked) -> torch.Tensor:
        """Logits ``[B, P, K, V]`` of what is asked for.

        Args:
            tokens: long ``[B, N, K]``, V where hidden.
            step: counted from 0.
            asked: with ``places`` only where ``is_partial``.
        """
        weight = self._weights[step] if self._weights else 0.0
        if weight == 0:
            logits = self._run(tokens, self._cond, False, asked)
        else:
            seen = tokens if self._weaker is None else self._weaker(tokens, step)
            both = self._run(torch.cat((tokens, seen)), self._both, True, asked.doubled())
            stronger, weak = both.float().chunk(2)
            logits = stronger + weight * (stronger - weak)
        return logits if self._keep is None else self._keep(logits.float())

    def _run(self, tokens: torch.Tensor, cond: Cond, doubled: bool, asked: Asked) -> torch.Tensor:
        if self._partial is None:
            return self._model(tokens, cond, self._axes)
        prepared = self._prepare(self._partial, tokens, cond, doubled)
        if asked.changed is not None and len(self._memory) == len(tokens):
            self._memory.places = asked.changed
            return self._partial.logits_at(tokens, prepared, asked.within, self._memory)
        memory = None
        if asked.keep or asked.changed is not None:  # the latter: a half that was not run before has no memory yet
            memory = self._memory = FeatureMemory()
        found = distinct_rows(tokens, cond) if asked.share and not self._partial.is_static else None
        if found is None:
            return self._partial.logits_at(tokens, prepared, asked.places, memory)
        first, copies = found
        logits = self._partial.logits_at(tokens[first], prepared.pick(first), None, memory)
        if memory is not None:
            memory.spread(copies)
        return logits[copies] if asked.places is None else logits[copies[:, None], asked.places]

    def _prepare(self, model: PartialTransformer, tokens: torch.Tensor, cond: Cond, doubled: bool) -> Prepared:
        """The conditions, once; the first half of both is that of a step without guidance."""
        rows, device = len(tokens), tokens.device
        key = (doubled, rows, device)
        if key not in self._prepared:
            both = self._prepared.get((True, 2 * rows, device))
            halved = None if both is None else both.pick(slice(rows))
            self._prepared[key] = halved or model.prepare(cond, tokens, self._axes)
        return self._prepared[key]


def distinct_rows(tokens: torch.Tensor, cond: Cond) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Which rows are the same, tokens and conditions alike.

    Args:
        tokens: long ``[B, N, K]``.
        cond: conditions of B rows.

    Returns:
        The first of each kind, long ``[U]``, and the kind of each row, long ``[B]``; None if no two rows are alike (or
        nobody knows: tensors on the meta device hold nothing).
    """
    if len(tokens) < 2 or tokens.is_meta:
        return None
    parts = [tokens, *(part for item in fields(cond) if (part := getattr(cond, item.name)) is not None)]
    numbers = [part.flatten(1) if part.ndim > 1 else part[:, None] for part in parts]
    kinds = [
        torch.unique(part.long() if part.dtype == torch.bool else part, dim=0, return_inverse=True)[1].tolist()
        for part in numbers
    ]
    known: dict[tuple[int, ...], int] = {}
    first: list[int] = []
    copies: list[int] = []
    for row, kind in enumerate(zip(*kinds, strict=True)):
        if kind not in known:
            known[kind] = len(first)
            first.append(row)
        copies.append(known[kind])
    if len(first) == len(copies):
        return None
    return torch.tensor(first, device=tokens.device), torch.tensor(copies, device=tokens.device)
