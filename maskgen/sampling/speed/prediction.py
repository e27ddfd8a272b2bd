"""A model under conditions and guidance as the sampler's ``logits_fn``, and what of it can be left out exactly.

- Guidance c + w (c - u) runs c and u as one forward of 2 B rows, and c alone at steps of weight 0.
- What depends on the conditions alone is computed once a call (``PartialTransformer.prepare``).
- Of the last layer and the head only the places that the sampler asks for are computed.
- At the first step rows are often equal: same tokens, same conditions. Each is run once. Where everything is hidden that is
  one row a class, and a single one for all unconditional halves; those are kept for later calls
  (``maskgen.sampling.speed.first_step``).
- On a CPU a large batch is run in pieces, because large tensors cost more there than their arithmetic.

Other models than ``PartialTransformer``, as any callable, are run whole.

Shapes: B batch, N tokens, P of them, C of them, K codebooks, V vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from maskgen.conditioning import Cond
from maskgen.models.base import PartialTransformer
from maskgen.models.partial import FeatureMemory, Prepared
from maskgen.sampling.speed.first_step import RowKinds, known_rows, row_kinds

__all__ = ["Asked", "Prediction"]


# Beyond 32 MiB glibc takes memory from the system and gives it back at every use: 9 and 12 % of the time of 8 and 16 rows
# of 256 tokens at 6 layers of width 768. Half of that leaves room for tensors that a model makes wider than its weights.
_PIECE_BYTES = 16 * 2**20

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
    """``logits_fn(tokens, step)`` of a model, see ``maskgen.sampling.loop.LogitsFn``; ``at`` does only what is asked.

    Args:
        model: called as ``model(tokens, cond, axes)``.
        cond: conditions of c.
        axes: token grid.
        against: conditions of u; with ``weights``.
        weights: w of each step; none means no guidance.
        weaker: what u sees of the tokens, ``weaker(tokens, step)``; the same tokens if left out.
        keep: filter of the logits, such as a ``maskgen.sampling.filters.TokenFilter``.

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
        self._width = 0
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
        (``maskgen.models.partial.FeatureMemory``).

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
        kinds = None
        if asked.share and not self._partial.is_static:
            kinds = row_kinds(tokens, cond, self._partial.vocab_size, self._axes)
        logits = None if kinds is None else self._first_step(self._partial, tokens, prepared, kinds, asked, memory)
        return self._pieces(self._partial, tokens, prepared, asked.places, memory) if logits is None else logits

    def _first_step(
        self,
        model: PartialTransformer,
        tokens: torch.Tensor,
        prepared: Prepared,
        kinds: RowKinds,
        asked: Asked,
        memory: FeatureMemory | None,
    ) -> torch.Tensor | None:
        """Logits of one row of each kind that is not known yet, spread over all; None where nothing is gained by that."""
        device = tokens.device
        known = known_rows(model) if memory is None and any(kinds.hidden) else None
        rows = [None if known is None else known.get(key) for key in kinds.keys]
        missing = [kind for kind, row in enumerate(rows) if row is None]
        kept = [known is not None and kinds.hidden[kind] and known.meets(kinds.keys[kind]) for kind in missing]
        if len(missing) == len(tokens) and not any(kept):
            return None
        of = torch.tensor(kinds.of, device=device)
        if missing:
            at = torch.tensor([kinds.first[kind] for kind in missing], device=device)
            found = self._pieces(model, tokens[at], prepared.pick(at), None, memory)
            for kind, row, keep in zip(missing, found, kept, strict=True):
                rows[kind] = row
                if keep and known is not None:
                    known.put(kinds.keys[kind], row)
        if memory is not None:
            memory.spread(of)
        logits = torch.stack([row for row in rows if row is not None])
        return logits[of] if asked.places is None else logits[of[:, None], asked.places]

    def _pieces(
        self,
        model: PartialTransformer,
        tokens: torch.Tensor,
        prepared: Prepared,
        places: torch.Tensor | None,
        memory: FeatureMemory | None,
    ) -> torch.Tensor:
        """``PartialTransformer.logits_at``, on a CPU some rows at a time."""
        if tokens.device.type != "cpu" or memory is not None or model.is_static:
            return model.logits_at(tokens, prepared, places, memory)
        row = tokens.shape[1] * self._widest(model)
        count = -(-len(tokens) // max(1, _PIECE_BYTES // row))
        if count == 1:
            return model.logits_at(tokens, prepared, places)
        size = -(-len(tokens) // count)
        parts = [slice(start, start + size) for start in range(0, len(tokens), size)]
        return torch.cat(
            [
                model.logits_at(tokens[part], prepared.pick(part), None if places is None else places[part])
                for part in parts
            ]
        )

    def _widest(self, model: PartialTransformer) -> int:
        """Bytes of the widest activation of a place, as the weights tell."""
        if self._width == 0:
            self._width = max(weight.shape[0] * weight.itemsize for weight in model.parameters() if weight.ndim == 2)
        return self._width

    def _prepare(self, model: PartialTransformer, tokens: torch.Tensor, cond: Cond, doubled: bool) -> Prepared:
        """The conditions, once; the first half of both is that of a step without guidance."""
        rows, device = len(tokens), tokens.device
        key = (doubled, rows, device)
        if key not in self._prepared:
            both = self._prepared.get((True, 2 * rows, device))
            halved = None if both is None else both.pick(slice(rows))
            self._prepared[key] = halved or model.prepare(cond, tokens, self._axes)
        return self._prepared[key]
