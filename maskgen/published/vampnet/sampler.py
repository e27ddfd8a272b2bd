"""How VampNet was sampled (Garcia et al. 2023, arXiv 2307.04686; hugofloresgarcia/vampnet): all codebooks in one ranking.

MaskGIT's loop over the cells of all codebooks and frames together: no codebook has a share of its own, and a fine one may be
decided before a coarse one. The ranking noise falls to zero with the steps, the temperature of the draw does not. With its
defaults this is ``maskgen.sampling.sample`` with the cosine schedule, but for counts that round another way and hide nothing
at the last step; its own are the cut-off of the draw and the official counts.

Filters wrap ``logits_fn`` (``maskgen.sampling.filters.filtered_logits``): there as here they come before the
temperature, and what is ranked is the probability after both. The official typical filter is a no-op, since its result
is thrown away; so the official default is no filter, and asking for one gives one here.

Better than official here: each row plans its steps from its own hidden tokens (there from those of the whole batch, so that
two items waste most of their steps; ``batch_counts`` brings that back); temperature 0 takes the most likely token (there it
draws at temperature 1); each item has its own seed. Known tokens are known whatever their id (there a given mask id counts
as hidden).

Shapes: B batch, N = T frames, K codebooks, V vocabulary (V itself is the id of a hidden token).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from maskgen.noise import Noise
from maskgen.sampling.checks import check_sampling
from maskgen.sampling.loop import LogitsFn, SampleStep
from maskgen.sampling.selectors.named import hide_least_confident

__all__ = ["sample_vampnet", "vampnet_counts"]


def vampnet_counts(total: Tensor, unknown: Tensor, step: int, steps: int) -> Tensor:
    """How many tokens of each row are hidden again after ``step`` (from 0) of ``steps``.

    Args:
        total: hidden tokens when decoding began, long ``[B]``.
        unknown: hidden tokens now, long ``[B]``.
        step: i, from 0.
        steps: S.

    Returns:
        long ``[B]``: max(1, min(unknown - 1, floor(cos(pi r / 2) total))) in float32, r = (i + 1) / S; 0 at the last step.
    """
    if step == steps - 1:
        return torch.zeros_like(total)
    gamma = torch.cos(torch.tensor((step + 1) / steps) * math.pi / 2).clamp(1e-10, 1.0).to(total.device)
    return torch.minimum(unknown - 1, (gamma * total.float()).floor().long()).clamp(min=1)


@torch.no_grad()
def sample_vampnet(
    logits_fn: LogitsFn,
    tokens: Tensor,
    mask: Tensor,
    *,
    steps: int = 12,
    temperature: float = 1.0,
    mask_temperature: float = 10.5,
    sample_cutoff: float = 1.0,
    batch_counts: bool = False,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> Tensor:
    """Decide all hidden tokens in ``steps`` parallel steps.

    For each step i = 0 .. S - 1, with r = (i + 1) / S:

    1. predict logits for all cells and divide them by the temperature;
    2. draw a token for every hidden cell from their softmax while i / S <= sample_cutoff, else take the most likely one;
    3. confidence = log-probability of that token + mask_temperature (1 - r) Gumbel noise;
    4. hide the ``vampnet_counts`` least confident cells again, whichever their codebook (strictly below the cut-off).

    Args:
        logits_fn: see ``LogitsFn``; its V columns are all that can be drawn. What it says of known codebooks, as the
            conditioning ones of the coarse-to-fine model, is not used.
        tokens: long ``[B, N, K]``, holding the mask id V at the masked places.
        mask: bool ``[B, N, K]``, True where a token is to be decided. Rows may differ; an all-False row comes back as it is.
        steps: number of forward passes, at least 1.
        temperature: divides the logits at every step; 0 takes the most likely tokens.
        mask_temperature: weight of the ranking noise at r = 0.
        sample_cutoff: share of the steps in which tokens are drawn; 1 draws always.
        batch_counts: plan every row's steps from the hidden tokens of the whole batch, as the official code does. Then an
            item depends on its batch.
        seeds: one integer an item: without ``batch_counts`` the item's sample depends on nothing else of the batch.
        noise: the source of randomness itself, instead of ``seeds``.
        callback: called after each step with a ``SampleStep``.

    Returns:
        long ``[B, N, K]`` without hidden tokens.

    Raises:
        ValueError: shapes that do not fit, ``steps`` < 1, a negative number, neither or both of ``seeds`` and ``noise``.
    """
    numbers = {"temperature": temperature, "mask_temperature": mask_temperature, "sample_cutoff": sample_cutoff}
    source = check_sampling(tokens, mask, steps, seeds, noise, **numbers)
    total = mask.flatten(1).sum(1)
    if batch_counts:
        total = total.sum().expand_as(total)
    drawn = tokens
    for step in range(steps):
        current = torch.where(mask, tokens, drawn)
        logits = logits_fn(current, step).float()
        if temperature not in (0, 1):
            logits = logits / temperature
        draws = temperature > 0 and step / steps <= sample_cutoff
        picked = (source.sample(step, logits.shape).add_(logits) if draws else logits).argmax(-1)
        drawn = torch.where(mask, picked, current)
        log_probs = logits.gather(-1, picked[..., None]).squeeze(-1) - logits.logsumexp(-1)
        log_probs = log_probs.masked_fill(~mask, 0.0)
        counts = vampnet_counts(total, mask.flatten(1).sum(1), step, steps)
        weight = mask_temperature * (1 - (step + 1) / steps)
        ranking = source.choice(step, mask.shape).flatten(1)
        confidence = log_probs.flatten(1) + weight * ranking
        mask = hide_least_confident(confidence, mask.flatten(1), counts).view_as(mask)
        if callback is not None:
            callback(SampleStep(step, steps, drawn, mask, log_probs))
    return drawn
