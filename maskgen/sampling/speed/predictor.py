"""The sampler's one call to the model at each step, behind which stands all that makes it fast.

Shapes: B batch, N tokens, P of them, K codebooks, V vocabulary.
"""

from collections.abc import Callable

from torch import Tensor

from maskgen.models.partial import first_positions
from maskgen.sampling.selectors.base import Selector
from maskgen.sampling.speed.plan import Plan
from maskgen.sampling.speed.query import PartialLogits, Query
from maskgen.sampling.speed.reuse import Reuse, check_selector_reuse


class Predictor:
    """``predict(tokens, wanted, step, last) -> (logits, positions)``.

    Args:
        logits_fn: a ``PartialLogits``, which can predict some positions only; any other function predicts all of them,
            which is the slow path.
        selector: decides which positions matter.
        plan: how many.

    Raises:
        ValueError: see ``check_selector_reuse``.
    """

    def __init__(self, logits_fn: Callable[[Tensor, int], Tensor], selector: Selector, plan: Plan) -> None:
        self._logits_fn, self._plan, self._bounded = logits_fn, plan, selector.bounded
        self._partial = logits_fn if isinstance(logits_fn, PartialLogits) and logits_fn.is_partial else None
        self._first = plan.run[0] if plan.run else 0
        self._reuse: Reuse | None = None
        if self._partial is not None and self._partial.reuse > 1:
            check_selector_reuse(selector, self._partial.reuse)
            self._reuse = Reuse(self._partial.reuse, self._first)
        self.chooses_first = self._partial is not None and selector.blind
        """Whether positions are chosen before the forward, which then predicts only those."""

    def __call__(self, tokens: Tensor, wanted: Tensor, step: int, last: bool) -> tuple[Tensor, Tensor | None]:
        """Logits of the wanted positions, and maybe others.

        Args:
            tokens: long ``[B, N, K]``, what the model sees.
            wanted: bool ``[B, N, K]``, the tokens to be sampled.
            step: counted from 0.
            last: whether it is the last of all.

        Returns:
            Logits ``[B, P, K, V]`` and their positions, long ``[B, P]``; None for all N.
        """
        if self._partial is None:
            return self._logits_fn(tokens, step), None
        count = self._plan.decided[step] if self.chooses_first and not last else self._plan.masked[step]
        count = max(1, count) if self._bounded else tokens.shape[1]
        if self._reuse is not None:
            query = self._reuse.query(wanted.any(-1), step, count, self.chooses_first)
        else:
            positions = None if count >= tokens.shape[1] else first_positions(wanted.any(-1), count)
            query = Query(positions=positions, may_repeat=step == self._first)
        return self._partial.answer(tokens, step, query), query.positions
