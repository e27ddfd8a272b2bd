"""Selectors: which of the freshly drawn tokens are hidden again.

Every selector has one signature, ``hide(selection) -> mask``, so the sampler's loop does not change with the order.
docs/samplers.md says which to use when. Shapes: B batch, M = N x K places, V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import get_args

import torch
from torch.nn import functional as F

from maskgen.sampling.selectors.base import CriticFn, Selection, Selector
from maskgen.sampling.selectors.halton import halton_turns
from maskgen.sampling.selectors.remasking import Remasking, remasking_selector
from maskgen.sampling.selectors.spans import span_selector

__all__ = [
    "NEEDS_CRITIC",
    "check_selector",
    "entropy_selector",
    "get_selector",
    "halton_selector",
    "hide_least_confident",
    "select_confidence",
    "select_critic",
    "select_moment",
    "select_random",
]

NEEDS_CRITIC = ("critic", "self-critic")
"""Names of selectors that score the drawn tokens with a model."""

_NUMBER = r"(?::(\d+(?:\.\d*)?|\.\d+))?"

_EXPECTED = (
    "one of 'confidence', 'random', 'halton', 'moment', 'critic', 'self-critic', 'entropy' or 'entropy:<nats>', "
    "'remdm-cap', 'remdm-rescale' or 'remdm-conf' (as 'remdm-cap:0.05'), or spans as 'span3', 'span3-prod' or "
    "'span3-stride1'"
)


def get_selector(name: str, *, axes: Sequence[int] | None = None, critic: CriticFn | None = None) -> Selector:
    """The selector of that name.

    Args:
        name: ``confidence`` (MaskGIT), ``random``, ``halton`` (see ``halton_selector``), ``moment`` (see
            ``select_moment``), ``critic`` and ``self-critic`` (see ``select_critic``; they differ in whose scores they are
            given), ``entropy:<nats>`` (see ``entropy_selector``; 1 nat if not said), ``remdm-cap:<eta>``,
            ``remdm-rescale:<eta>`` and ``remdm-conf:<eta>`` (see ``maskgen.sampling.selectors.remasking``), and spans
            of L places (MAGNeT, see ``maskgen.sampling.selectors.spans``) as ``span<L>``, ``span<L>-prod`` or
            ``span<L>-stride1``.
        axes: the token grid, for ``halton``.
        critic: what scores the drawn tokens, for ``critic`` and ``self-critic``; see ``maskgen.objectives.critic``.

    Raises:
        ValueError: for any other name, or if what the selector needs was not given.
    """
    if name == "halton":
        if axes is None:
            raise ValueError("select: 'halton' needs the token grid; give get_selector('halton', axes=(H, W))")
        return halton_selector(axes)
    if name in NEEDS_CRITIC:
        if critic is None:
            raise ValueError(
                f"select: {name!r} needs a critic, a model that scores tokens, and got none; train one with `maskgen train "
                "critic`, or choose another order"
            )
        return Selector(hide=select_critic, revises=True, bounded=True, critic=critic)
    return _without_needs(name)


def check_selector(name: str) -> None:
    """Refuse a name that ``get_selector`` does not know.

    Raises:
        ValueError: naming those that there are.
    """
    if name != "halton" and name not in NEEDS_CRITIC:
        _without_needs(name)


def _without_needs(name: str) -> Selector:
    """The selectors that need neither a grid nor a model."""
    named = {
        "confidence": Selector(hide=select_confidence, bounded=True),
        "random": Selector(hide=select_random, chooses_first=True, bounded=True, blind=True),
        "moment": Selector(hide=select_moment, chooses_first=True, bounded=True, exponent=_moment),
    }
    if name in named:
        return named[name]
    if (found := re.fullmatch(rf"entropy{_NUMBER}", name)) is not None:
        return entropy_selector(float(found[1] or 1))
    for kind in get_args(Remasking):
        if (found := re.fullmatch(rf"remdm-{kind}{_NUMBER}", name)) is not None:
            return remasking_selector(kind, None if found[1] is None else float(found[1]))
    if (found := re.fullmatch(r"span([1-9]\d*)(-prod|-stride1)?", name)) is not None:
        return span_selector(int(found[1]), overlap=found[2] == "-stride1", best=found[2] is None)
    raise ValueError(f"selector: got {name!r}, expected {_EXPECTED}")


def select_confidence(seen: Selection) -> torch.Tensor:
    """Hide the least confident: log p + weight x Gumbel (official MaskGIT, mask_by_random_topk)."""
    return hide_least_confident(seen.log_probs + seen.weight * seen.noise, seen.mask, seen.counts)


def select_random(seen: Selection) -> torch.Tensor:
    """Hide at random, whatever the model thinks: the baseline every order is measured against."""
    return hide_least_confident(seen.noise, seen.mask, seen.counts)


def halton_selector(axes: Sequence[int]) -> Selector:
    """A selector that decides places in an order that spreads over the grid (Besnier et al. 2025, arXiv 2503.17076).

    Every item begins at another point of the one order, by its own noise; known places are passed over. The codebooks of a
    cell follow each other, the first one first. Goes with the schedule ``arccos`` and 32 steps in the paper.

    Args:
        axes: the token grid, 1 to 6 axes.

    Raises:
        ValueError: see ``maskgen.sampling.selectors.halton.halton_cells``; later, tokens that do not fill the grid.
    """
    grid = tuple(axes)
    cells = torch.Size(grid).numel()
    halton_turns(grid, "cpu")

    def hide(seen: Selection) -> torch.Tensor:
        places = seen.mask.shape[1]
        if places % cells:
            raise ValueError(f"halton: got {places} places a row, which do not fill the grid {grid}")
        turns = halton_turns(grid, str(seen.mask.device))
        # The noise is -log(-log u) for a uniform u: the share of the order that the item skips.
        skipped = (torch.exp(-torch.exp(-seen.item_noise.double())) * cells).long().clamp(max=cells - 1)
        codebooks = torch.arange(places // cells, device=turns.device)
        late = ((turns - skipped) % cells)[:, :, None] * len(codebooks) + codebooks
        return hide_least_confident(-late.flatten(1).double(), seen.mask, seen.counts)

    return Selector(hide=hide, chooses_first=True, bounded=True, blind=True, ties=0)


def select_moment(seen: Selection) -> torch.Tensor:
    """Hide the places of the smallest moment of p: a log(sum of p^(1 + 1/a)) + a x Gumbel, a the weight.

    The moment sampler (Hayakawa et al. 2025, arXiv 2510.04525; formula from memory, and derived): where few of many places
    are decided, MaskGIT's rule, which draws everywhere and keeps the best of log p + a x Gumbel, comes to choosing a place
    in proportion to the sum of p^(1 + 1/a), then drawing there in proportion to p^(1 + 1/a). So places are chosen before
    tokens are drawn, and only those need a draw. At weight 0 both are greedy: max p. Two things are ours: weights are those
    of ``confidence``, and the last step, which chooses no places, draws from p itself, as MaskGIT's does.
    """
    log_p, weight = seen.logits.log_softmax(-1), seen.weight
    chance = (_moment(weight) * log_p).logsumexp(-1) if weight else log_p.amax(-1)
    score = weight * (seen.spread(chance) + seen.noise) if weight else seen.spread(chance)
    return hide_least_confident(score, seen.mask, seen.counts)


def _moment(weight: float) -> float:
    return 1 + 1 / weight if weight else math.inf


def entropy_selector(bound: float) -> Selector:
    """A selector that decides as many places as the entropy bound allows, and at least as many as the schedule wants.

    EB-Sampler (Ben-Hamu et al. 2025, arXiv 2505.24857): tokens drawn together are drawn as if independent, and the mutual
    information of places with entropies H_i is at most sum(H_i) - max(H_i). So, with places ordered by entropy:

    1. order hidden places by weight x Gumbel - H, highest first (the paper's order at weight 0);
    2. keep the longest beginning whose sum(H) - max(H) is at most the bound, a single place in any case;
    3. keep more if the schedule hides fewer (ours: the paper has no schedule, and as many steps as it takes).

    A row whose tokens are sure is finished before the last step, and the sampler stops when all are.

    Args:
        bound: nats, 0 or more; 0 follows the schedule alone, but for tokens of no entropy.

    Raises:
        ValueError: a bound that is negative or not finite.
    """
    if not 0 <= bound < math.inf:
        raise ValueError(f"entropy: got a bound of {bound}, expected a finite number of nats, 0 or more")

    def hide(seen: Selection) -> torch.Tensor:
        entropy = seen.spread(torch.special.entr(seen.logits.softmax(-1)).sum(-1))
        score = (seen.weight * seen.noise - entropy).masked_fill(~seen.mask, -torch.inf)
        order = score.argsort(dim=1, descending=True, stable=True)
        ordered = entropy.double().gather(1, order)
        shared = ordered.cumsum(1) - ordered.cummax(1).values
        allowed = ((shared <= bound) & seen.mask.gather(1, order)).sum(1)
        kept = torch.maximum(allowed, seen.mask.sum(1) - seen.counts)
        return seen.mask & (order.argsort(dim=1) >= kept[:, None])

    return Selector(hide=hide, adaptive=True, chooses_first=True, bounded=True)


def select_critic(seen: Selection) -> torch.Tensor:
    """Hide what the critic believes least: log P(real) + weight x Gumbel, decided tokens included.

    Token-Critic (Lezama et al. 2022, arXiv 2209.04439, from memory): the confidence of the generator is about each token by
    itself; a second model that sees all drawn tokens can tell which do not go together, and may take back tokens of earlier
    steps. Ours: the noise is Gumbel's on the log-probability, as in MaskGIT, where the paper adds uniform noise.
    """
    if seen.scores is None:
        return torch.zeros_like(seen.mask)
    return hide_least_confident(F.logsigmoid(seen.scores) + seen.weight * seen.noise, seen.start, seen.counts)


def hide_least_confident(confidence: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Hide the ``counts`` lowest of the places that were hidden.

    The cut is strict, as in the official code: places that tie with the cut-off are kept, so ties hide fewer.

    Args:
        confidence: ``[B, M]``; what stands at known places is ignored.
        mask: bool ``[B, M]``, True where a token was to be decided. Known places are never hidden.
        counts: long ``[B]``.

    Returns:
        bool ``[B, M]``, the new mask.
    """
    ranked = confidence.masked_fill(~mask, torch.inf)
    cut = ranked.sort(dim=-1).values.gather(-1, counts.clamp(max=ranked.shape[-1] - 1)[:, None])
    return ranked < cut
