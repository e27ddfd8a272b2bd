"""Selectors by name: which of the freshly sampled tokens are masked again.

``SELECTORS`` is the one list of names; docs/samplers.md says which to use when.
Shapes: B batch, M = N x K tokens of a row, V vocabulary.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from maskgen.sampling.selectors.base import CriticFn, Selection, Selector
from maskgen.sampling.selectors.halton import halton_turns
from maskgen.sampling.selectors.ranking import mask_least_confident
from maskgen.sampling.selectors.remasking import remasking_selector
from maskgen.sampling.selectors.spans import span_selector

NEEDS_CRITIC = ("critic", "self-critic")
"""Names of selectors that score the sampled tokens with a model."""


class Needs(NamedTuple):
    """What a selector is made of besides its name: the number in it, the token grid and a critic, where they are given."""

    number: float | None
    axes: Sequence[int] | None
    critic: CriticFn | None


def get_selector(name: str, *, axes: Sequence[int] | None = None, critic: CriticFn | None = None) -> Selector:
    """The selector of that name.

    Args:
        name: one of ``SELECTORS``. What stands in angle brackets is a number, of nats in ``entropy``, eta in ``remdm-*``,
            which may be left out with its colon; the length of spans may not. ``critic`` and ``self-critic`` differ in
            whose scores they are given.
        axes: the token grid, for ``halton``.
        critic: what scores the sampled tokens, for ``critic`` and ``self-critic``; see ``maskgen.objectives.critic``.

    Raises:
        ValueError: for any other name, or if what the selector needs was not given.
    """
    form, number = _parsed(name)
    if form == "halton" and axes is None:
        raise ValueError("select: 'halton' needs the token grid; give get_selector('halton', axes=(H, W))")
    if form in NEEDS_CRITIC and critic is None:
        raise ValueError(
            f"select: {name!r} needs a critic, a model that scores tokens, and got none; train one with `maskgen train "
            "critic`, or choose another order"
        )
    return SELECTORS[form](Needs(number, axes, critic))


def check_selector(name: str) -> None:
    """Refuse a name that ``get_selector`` does not know, or a number out of range.

    Raises:
        ValueError: naming those that there are.
    """
    form, number = _parsed(name)
    if form != "halton" and form not in NEEDS_CRITIC:
        SELECTORS[form](Needs(number, None, None))


def _parsed(name: str) -> tuple[str, float | None]:
    """The entry of ``SELECTORS`` and the number in the name."""
    for form in SELECTORS:
        before, slot, after = re.split(r"(:?<\w+>|$)", form, maxsplit=1)
        pattern = {"": "", "<length>": r"([1-9]\d*)"}.get(slot, r"(?::(\d+(?:\.\d*)?|\.\d+))?")
        if found := re.fullmatch(re.escape(before) + pattern + re.escape(after), name):
            return form, float(found[1]) if slot and found[1] else None
    raise ValueError(f"selector: got {name!r}, expected one of {', '.join(map(repr, SELECTORS))}")


def select_confidence(seen: Selection) -> Tensor:
    """Mask the least confident: log p + weight x Gumbel (official MaskGIT, mask_by_random_topk)."""
    return mask_least_confident(seen.log_probs + seen.weight * seen.noise, seen.mask, seen.counts)


def select_random(seen: Selection) -> Tensor:
    """Mask at random, whatever the model thinks: the baseline every order is measured against."""
    return mask_least_confident(seen.noise, seen.mask, seen.counts)


def halton_selector(axes: Sequence[int]) -> Selector:
    """A selector that decides positions in an order that spreads over the grid (Besnier et al. 2025, arXiv 2503.17076).

    Every item begins at another point of the one order, by its own noise; given positions are passed over. The codebooks of
    a position follow each other, the first one first. Goes with the schedule ``arccos`` and 32 steps in the paper.

    Args:
        axes: the token grid, 1 to 6 axes.

    Raises:
        ValueError: see ``maskgen.sampling.selectors.halton.halton_cells``; later, tokens that do not fill the grid.
    """
    grid = tuple(axes)
    cells = torch.Size(grid).numel()
    halton_turns(grid, "cpu")

    def remask(seen: Selection) -> Tensor:
        tokens = seen.mask.shape[1]
        if tokens % cells:
            raise ValueError(f"halton: got {tokens} tokens a row, which do not fill the grid {grid}")
        turns = halton_turns(grid, str(seen.mask.device))
        # The noise is -log(-log u) for a uniform u: the share of the order that the item skips.
        skipped = (torch.exp(-torch.exp(-seen.item_noise.double())) * cells).long().clamp(max=cells - 1)
        codebooks = torch.arange(tokens // cells, device=turns.device)
        late = ((turns - skipped) % cells)[:, :, None] * len(codebooks) + codebooks
        return mask_least_confident(-late.flatten(1).double(), seen.mask, seen.counts)

    return Selector(remask=remask, bounded=True, blind=True, ties=0)


def select_moment(seen: Selection) -> Tensor:
    """Mask where the moment of p is smallest: a log(sum of p^(1 + 1/a)) + a x Gumbel, a the weight.

    The moment sampler (Hayakawa et al. 2025, arXiv 2510.04525; formula from memory, and derived): where few of many tokens
    are decided, MaskGIT's rule, which samples everywhere and keeps the best of log p + a x Gumbel, comes to choosing one
    in proportion to the sum of p^(1 + 1/a), then sampling it in proportion to p^(1 + 1/a). So positions are chosen before
    tokens are sampled, and only those need sampling. At weight 0 both are greedy: max p. Two things are ours: weights are
    those of ``confidence``, and the last step, which chooses no positions, samples from p itself, as MaskGIT's does.
    """
    log_p, weight = seen.logits.log_softmax(-1), seen.weight
    chance = (_moment(weight) * log_p).logsumexp(-1) if weight else log_p.amax(-1)
    score = weight * (seen.spread(chance) + seen.noise) if weight else seen.spread(chance)
    return mask_least_confident(score, seen.mask, seen.counts)


def _moment(weight: float) -> float:
    return 1 + 1 / weight if weight else math.inf


def entropy_selector(bound: float) -> Selector:
    """A selector that decides as many tokens as the entropy bound allows, and at least as many as the schedule wants.

    EB-Sampler (Ben-Hamu et al. 2025, arXiv 2505.24857): tokens sampled together are sampled as if independent, and the
    mutual information of tokens with entropies H_i is at most sum(H_i) - max(H_i). So, with tokens ordered by entropy:

    1. order masked tokens by weight x Gumbel - H, highest first (the paper's order at weight 0);
    2. keep the longest beginning whose sum(H) - max(H) is at most the bound, a single token in any case;
    3. keep more if the schedule masks fewer (ours: the paper has no schedule, and as many steps as it takes).

    A row whose tokens are sure is finished before the last step, and the loop stops when all are.

    Args:
        bound: nats, 0 or more; 0 follows the schedule alone, but for tokens of no entropy.

    Raises:
        ValueError: a bound that is negative or not finite.
    """
    if not 0 <= bound < math.inf:
        raise ValueError(f"entropy: got a bound of {bound}, expected a finite number of nats, 0 or more")

    def remask(seen: Selection) -> Tensor:
        entropy = seen.spread(torch.special.entr(seen.logits.softmax(-1)).sum(-1))
        score = (seen.weight * seen.noise - entropy).masked_fill(~seen.mask, -torch.inf)
        order = score.argsort(dim=1, descending=True, stable=True)
        ordered = entropy.double().gather(1, order)
        shared = ordered.cumsum(1) - ordered.cummax(1).values
        allowed = ((shared <= bound) & seen.mask.gather(1, order)).sum(1)
        kept = torch.maximum(allowed, seen.mask.sum(1) - seen.counts)
        return seen.mask & (order.argsort(dim=1) >= kept[:, None])

    return Selector(remask=remask, adaptive=True, bounded=True)


def select_critic(seen: Selection) -> Tensor:
    """Mask what the critic believes least: log P(real) + weight x Gumbel, decided tokens included.

    Token-Critic (Lezama et al. 2022, arXiv 2209.04439, from memory): the confidence of the generator is about each token by
    itself; a second model that sees all sampled tokens can tell which do not go together, and may take back tokens of
    earlier steps. Ours: the noise is Gumbel's on the log-probability, as in MaskGIT, where the paper adds uniform noise.
    """
    if seen.scores is None:
        return torch.zeros_like(seen.mask)
    return mask_least_confident(F.logsigmoid(seen.scores) + seen.weight * seen.noise, seen.start, seen.counts)


def _critic(needs: Needs) -> Selector:
    return Selector(remask=select_critic, revises=True, bounded=True, critic=needs.critic)


def _spans(*, overlap: bool = False, best: bool = False) -> Callable[[Needs], Selector]:
    return lambda needs: span_selector(int(needs.number or 0), overlap=overlap, best=best)


SELECTORS: dict[str, Callable[[Needs], Selector]] = {
    "confidence": lambda needs: Selector(remask=select_confidence, bounded=True),
    "random": lambda needs: Selector(remask=select_random, bounded=True, blind=True),
    "halton": lambda needs: halton_selector(needs.axes or ()),
    "moment": lambda needs: Selector(remask=select_moment, bounded=True, exponent=_moment),
    "entropy:<nats>": lambda needs: entropy_selector(1.0 if needs.number is None else needs.number),
    "critic": _critic,
    "self-critic": _critic,
    "remdm-cap:<eta>": lambda needs: remasking_selector("cap", needs.number),
    "remdm-rescale:<eta>": lambda needs: remasking_selector("rescale", needs.number),
    "remdm-conf:<eta>": lambda needs: remasking_selector("conf", needs.number),
    "span<length>": _spans(best=True),
    "span<length>-prod": _spans(),
    "span<length>-stride1": _spans(overlap=True),
}
"""Every name that ``select`` takes, and how the selector is made; see the functions of this module and beside it."""
