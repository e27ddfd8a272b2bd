"""What a selector is, what it sees, and what its flags promise the loop.

A selector is one function, ``remask(selection) -> mask``: it is called after the tokens of a step are sampled and says which
of them are masked again. Everything else about it is optional. ``Selector(remask=f)`` alone is always correct; each flag of
``Selector`` is a promise about ``f`` that lets the loop leave out work (``bounded``, ``blind``, ``ties``), or a wish the
loop fulfils (``revises``, ``adaptive``, ``exponent``, ``critic``).

Shapes: B batch, M = N x K tokens of a row with the codebooks of a position side by side, L of them, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

CriticFn = Callable[[Tensor, int], Tensor]
"""``critic(tokens, step)``: complete tokens ``[B, N, K]`` -> float ``[B, N, K]``, log-odds that each is real."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """One step after its tokens are sampled, rows flattened to M tokens.

    Attributes:
        step: counted from 0.
        steps: how many there are.
        tokens: long ``[B, M]``, the complete guess of this step.
        log_probs: float ``[B, M]``, log-probability of each freshly sampled token; 0 at tokens that were not masked.
        settled: the same, but at decided tokens that of when they were last sampled; 0 at tokens that were given.
        logits: float ``[B, M, V]``, of the distribution that ``log_probs`` are of; for a selector that is ``bounded``
            maybe only ``[B, L, V]``, those of the tokens ``at``, among them all that are masked; for one that is ``blind``
            maybe nothing, ``[B, 0, V]``.
        mask: bool ``[B, M]``, masked before this step.
        start: bool ``[B, M]``, masked when decoding began: what a selector may mask at all.
        counts: long ``[B]``, how many the schedule leaves masked after this step, at least 1: at most one fewer than are
            masked now, or, for a selector that revises, than were when decoding began.
        shares: what the schedule leaves masked before and after this step, as shares of ``start``, each ``[B, 1]``; 1
            before the first step that is run.
        noise: float ``[B, M]``, Gumbel noise of this step.
        item_noise: float ``[B, 1]``, Gumbel noise of the item, the same at every step.
        weight: of ``noise`` at this step.
        scores: float ``[B, M]``, what the critic said of ``tokens``; None at the last step and without a critic.
        at: long ``[B, L]``, which tokens ``logits`` are of; None where they are all M in their order.
    """

    step: int
    steps: int
    tokens: Tensor
    log_probs: Tensor
    settled: Tensor
    logits: Tensor
    mask: Tensor
    start: Tensor
    counts: Tensor
    shares: tuple[Tensor, Tensor]
    noise: Tensor
    item_noise: Tensor
    weight: float
    scores: Tensor | None = None
    at: Tensor | None = None

    def spread(self, values: Tensor) -> Tensor:
        """Values of the tokens of ``logits``, ``[B, L]``, as ``[B, M]``; 0 at other tokens."""
        return values if self.at is None else values.new_zeros(self.mask.shape).scatter(1, self.at, values)


def _plain(weight: float) -> float:
    return 1.0


@dataclass(frozen=True, kw_only=True)
class Selector:
    """A way to choose what is masked again, and what the loop may rely on.

    Attributes:
        remask: ``remask(selection) -> mask``, bool ``[B, M]``; True only where ``start`` is. After the last step nobody
            looks at it.
        revises: whether decided tokens may be masked again, so that ``counts`` are of all tokens to be decided.
        adaptive: whether all may be decided before the last step; the loop then stops, which costs a look at the mask
            after every step.
        bounded: whether ``remask`` never masks more than ``counts``, and reads ``logits`` through ``Selection.spread``;
            then the loop predicts no more positions than can be masked.
        blind: whether, besides, ``remask`` looks at no ``logits``, ``tokens``, ``log_probs``, ``settled`` or ``scores``,
            keeps exactly what is not in ``counts`` but for ties, and takes nothing back; then the loop calls it before the
            forward pass, and predicts only what it keeps.
        ties: how many more positions a ``blind`` selector keeps at most, because they tie with the cut. Seeded noise has
            2^23 values: more than 4 of 4,096 positions tie once in 10^13 steps (and then wait for the next step).
        exponent: tokens are sampled from p to the power of ``exponent(weight)``, at the last step from p itself.
        critic: scores the sampled tokens at every step but the last.
    """

    remask: Callable[[Selection], Tensor]
    revises: bool = False
    adaptive: bool = False
    bounded: bool = False
    blind: bool = False
    ties: int = 4
    exponent: Callable[[float], float] = _plain
    critic: CriticFn | None = None
