"""What a selector is, and what it sees.

Shapes: B batch, M = N x K places of a row with the codebooks of a token side by side, L of them, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["CriticFn", "Selection", "Selector"]

CriticFn = Callable[[torch.Tensor, int], torch.Tensor]
"""``critic(tokens, step)``: complete tokens ``[B, N, K]`` -> float ``[B, N, K]``, log-odds that each is real."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """One step after its draw, rows flattened to M places.

    Attributes:
        step: counted from 0.
        steps: how many there are.
        drawn: long ``[B, M]``, the complete guess of this step.
        log_probs: float ``[B, M]``, log-probability of each freshly drawn token; 0 at places that were not hidden.
        settled: the same, but at decided places that of their last draw; 0 at places that were given.
        logits: float ``[B, M, V]``, of the distribution that ``log_probs`` are of; for a selector that is ``bounded``
            maybe only ``[B, L, V]``, those of the places ``at``, among them all that are hidden; for one that is ``blind``
            maybe nothing, ``[B, 0, V]``.
        mask: bool ``[B, M]``, hidden before this step.
        start: bool ``[B, M]``, hidden when decoding began: what a selector may hide at all.
        counts: long ``[B]``, how many the schedule hides after this step, at least 1: at most one fewer than there are
            hidden now, or, for a selector that revises, than there were when decoding began.
        shares: what the schedule hides before and after this step, as shares of ``start``, each ``[B, 1]``; 1 before the
            first step that is run.
        noise: float ``[B, M]``, Gumbel noise of this step.
        item_noise: float ``[B, 1]``, Gumbel noise of the item, the same at every step.
        weight: of ``noise`` at this step.
        scores: float ``[B, M]``, what the critic said of ``drawn``; None at the last step and without a critic.
        at: long ``[B, L]``, places of ``logits``; None where they are all M in their order.
    """

    step: int
    steps: int
    drawn: torch.Tensor
    log_probs: torch.Tensor
    settled: torch.Tensor
    logits: torch.Tensor
    mask: torch.Tensor
    start: torch.Tensor
    counts: torch.Tensor
    shares: tuple[torch.Tensor, torch.Tensor]
    noise: torch.Tensor
    item_noise: torch.Tensor
    weight: float
    scores: torch.Tensor | None = None
    at: torch.Tensor | None = None

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Numbers of the places of ``logits``, ``[B, L]``, as ``[B, M]``; 0 at other places."""
        return values if self.at is None else values.new_zeros(self.mask.shape).scatter(1, self.at, values)


def _plain(weight: float) -> float:
    return 1.0


@dataclass(frozen=True, kw_only=True)
class Selector:
    """A way to choose what is hidden again.

    Attributes:
        hide: ``hide(selection) -> mask``, bool ``[B, M]``; True only where ``start`` is. The last step's is not looked at.
        revises: whether decided tokens may be hidden again, so that ``counts`` are of all tokens to be decided.
        adaptive: whether all may be decided before the last step; the sampler then stops, which costs a look at the mask
            after every step.
        chooses_first: whether ``hide`` looks at neither ``drawn``, ``log_probs``, ``settled`` nor ``scores``, so that only
            the places it keeps need a draw.
        bounded: whether ``hide`` never hides more than ``counts``, and reads ``logits`` through ``Selection.spread``; then
            the sampler may predict fewer places than there are.
        blind: whether, besides, ``hide`` looks at no ``logits`` either, keeps exactly what is not in ``counts`` but for
            ties, and takes nothing back; then the sampler may ask it before the model, and predict what it keeps.
        ties: how many more places a ``blind`` order keeps at most, because they tie with the cut. Seeded noise has 2^23
            values: more than 4 of 4,096 places tie once in 10^13 steps (and then wait for the next step).
        exponent: tokens are drawn from p to the power of ``exponent(weight)``, at the last step from p itself.
        critic: scores the drawn tokens at every step but the last.
    """

    hide: Callable[[Selection], torch.Tensor]
    revises: bool = False
    adaptive: bool = False
    chooses_first: bool = False
    bounded: bool = False
    blind: bool = False
    ties: int = 4
    exponent: Callable[[float], float] = _plain
    critic: CriticFn | None = None
