"""What a selector is, and what it sees.

Shapes: B batch, M = N x K places of a row with the codebooks of a token side by side, V vocabulary.
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
        logits: float ``[B, M, V]``, of the distribution that ``log_probs`` are of.
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
        exponent: tokens are drawn from p to the power of ``exponent(weight)``, at the last step from p itself.
        critic: scores the drawn tokens at every step but the last.
    """

    hide: Callable[[Selection], torch.Tensor]
    revises: bool = False
    adaptive: bool = False
    chooses_first: bool = False
    exponent: Callable[[float], float] = _plain
    critic: CriticFn | None = None
