"""ReMDM: decided tokens may be masked again (Wang et al. 2025, arXiv 2503.00307).

A masked model cannot take a token back. ReMDM masks each decided token again with a small probability sigma, and decides
correspondingly more of the masked ones, so that the expected share of masked tokens stays the schedule's: it trades steps
for quality, and wants many (16 at least on 64 tokens).

The three choices of sigma follow the authors' project page (remdm.github.io); the step is that of their MaskGIT
(yair-schiff/maskgit, ``mdim``), which was read there but not run. Their fourth, ``loop``, is not here. The defaults of eta
are ours: theirs (cap 0.008, rescale 0.015) are for text in 1,024 steps and more.

Shapes: B batch, M = N x K tokens of a row.
"""

from typing import Literal

import torch
from torch import Tensor

from maskgen.sampling.selectors.base import Selection, Selector

Remasking = Literal["cap", "rescale", "conf"]

_DEFAULTS: dict[str, float] = {"cap": 0.05, "rescale": 0.05, "conf": 1.0}


def remasking_selector(kind: Remasking, eta: float | None = None) -> Selector:
    """A selector that masks each token by a coin of its own.

    With a and b the schedule's masked shares before and after the step, and sigma_max = min(1, b / (1 - a)):

    1. ``cap``: sigma = min(eta, sigma_max); ``rescale``: sigma = eta x sigma_max; ``conf``: sigma of a token =
       eta x sigma_max x softmax(-p) over the decided tokens of the row, p the probability each was sampled with;
    2. a decided token is masked again with probability sigma;
    3. a masked token stays masked with probability (b - (1 - a) sigma) / a, for ``conf`` with b / a (its masked tokens
       have sigma 0, so a little more than the schedule's share is masked).

    Counts are therefore random; the schedule is what they are on average. Given tokens are never masked, and shares are of
    what was masked at the start. The loop's last step decides all that is left.

    Args:
        kind: see above.
        eta: in [0, 1]; 0 never masks a decided token. By default 0.05, 0.05 and 1.

    Raises:
        ValueError: another kind, or ``eta`` out of range.
    """
    if kind not in _DEFAULTS:
        raise ValueError(f"remasking: got {kind!r}, expected one of {sorted(_DEFAULTS)}")
    strength = _DEFAULTS[kind] if eta is None else eta
    if not 0 <= strength <= 1:
        raise ValueError(f"remdm-{kind}: got {strength}, expected a number in [0, 1]")

    def remask(seen: Selection) -> Tensor:
        before, after = (share.double() for share in seen.shares)
        decided = seen.start & ~seen.mask
        most = (after / (1 - before)).clamp(max=1.0)  # inf before anything is decided, hence 1; then it does not matter
        sigma = most.clamp(max=strength) if kind == "cap" else strength * most
        stay = after / before
        if kind == "conf":
            doubt = (-seen.settled.double().exp()).masked_fill(~decided, -torch.inf).softmax(1)
            sigma = sigma * doubt.nan_to_num()  # a row without decided tokens has nothing but -inf
        else:
            stay = stay - sigma * (1 - before) / before
        chance = torch.where(seen.mask, stay, torch.where(decided, sigma, 0.0))
        # The noise is -log(-log u) for a uniform u, so its inverse is u again.
        return seen.start & (torch.exp(-torch.exp(-seen.noise.double())) < chance)

    return Selector(remask=remask, revises=True)
