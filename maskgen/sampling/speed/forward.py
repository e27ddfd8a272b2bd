"""A model under fixed conditions as a ``logits_fn``, without work whose result is known or not needed.

- What depends on the conditions alone is computed once a call (``PartialTransformer.prepare``).
- Of the last layer and the head only the queried positions are computed.
- Equal rows are run once (``maskgen.sampling.speed.rows``).
- On a CPU a large batch is run in chunks, because large tensors cost more there than their arithmetic.

Other models than ``PartialTransformer``, as any callable, are run whole.

Shapes: B batch, N tokens, P of them, K codebooks, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.models.base import PartialTransformer
from maskgen.models.partial import FeatureMemory, Prepared
from maskgen.sampling.speed.query import PartialLogits, Query
from maskgen.sampling.speed.rows import unique_rows

# Beyond 32 MiB glibc takes memory from the system and gives it back at every use: 9 and 12 % of the time of 8 and 16 rows
# of 256 tokens at 6 layers of width 768. Half of that leaves room for tensors that a model makes wider than its weights.
_CHUNK_BYTES = 16 * 2**20


class ModelLogits(PartialLogits):
    """``logits_fn(tokens, step)`` of a model.

    Args:
        model: called as ``model(tokens, cond, axes)``.
        cond: its conditions.
        axes: token grid.
    """

    def __init__(
        self,
        model: Callable[[Tensor, Cond, Sequence[int] | None], Tensor],
        cond: Cond,
        axes: Sequence[int] | None = None,
    ) -> None:
        self._model, self._cond, self._axes = model, cond, axes
        self._partial = model if isinstance(model, PartialTransformer) and model.is_partial else None
        self._prepared: dict[tuple[int, torch.device], Prepared] = {}
        self._widest = 0

    @property
    def is_partial(self) -> bool:
        """See ``PartialLogits``."""
        return self._partial is not None

    def check_reuse(self, every: int) -> None:
        """See ``PartialLogits``."""
        if self._partial is None:
            raise ValueError(
                f"reuse: got {every}, but {type(self._model).__name__} computes all positions or none; use 1 with this model"
            )

    def answer(self, tokens: Tensor, step: int, query: Query) -> Tensor:
        """See ``PartialLogits``; all steps are alike."""
        model, memory = self._partial, query.memory
        if model is None:
            return self._model(tokens, self._cond, self._axes)
        key = (len(tokens), tokens.device)
        if key not in self._prepared:
            self._prepared[key] = model.prepare(self._cond, tokens, self._axes)
        prepared = self._prepared[key]
        if memory is not None:
            if query.changed is not None and len(memory) == len(tokens):
                memory.positions = query.changed
                return model.logits_at(tokens, prepared, query.within, memory)
            memory.clear()  # filled for other rows: guidance has begun or ended since
        rows = unique_rows(tokens, self._cond) if query.may_repeat and not model.is_static else None
        if rows is None:
            return self._in_chunks(model, tokens, prepared, query.positions, memory)
        logits = self._in_chunks(model, tokens[rows.first], prepared.pick(rows.first), None, memory)
        if memory is not None:
            memory.repeat(rows.kind)
        return logits[rows.kind] if query.positions is None else logits[rows.kind[:, None], query.positions]

    def _in_chunks(
        self,
        model: PartialTransformer,
        tokens: Tensor,
        prepared: Prepared,
        positions: Tensor | None,
        memory: FeatureMemory | None,
    ) -> Tensor:
        """``PartialTransformer.logits_at``, on a CPU some rows at a time."""
        if tokens.device.type != "cpu" or memory is not None or model.is_static:
            return model.logits_at(tokens, prepared, positions, memory)
        if self._widest == 0:  # bytes of the widest activation of a position, as the weights tell
            self._widest = max(weight.shape[0] * weight.itemsize for weight in model.parameters() if weight.ndim == 2)
        chunks = -(-len(tokens) // max(1, _CHUNK_BYTES // (tokens.shape[1] * self._widest)))
        if chunks == 1:
            return model.logits_at(tokens, prepared, positions)
        rows = -(-len(tokens) // chunks)
        parts = [slice(first, first + rows) for first in range(0, len(tokens), rows)]
        at = [None if positions is None else positions[part] for part in parts]
        return torch.cat([model.logits_at(tokens[p], prepared.pick(p), a) for p, a in zip(parts, at, strict=True)])
