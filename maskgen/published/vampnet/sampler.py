"""How VampNet was sampled (Garcia et al. 2023, arXiv 2307.04686; hugofloresgarcia/vampnet): all codebooks in one ranking.

MaskGIT's loop over the tokens of all codebooks and frames together: no codebook has a share of its own, and a fine one may
be decided before a coarse one. The ranking noise falls to zero with the steps, the sampling temperature does not. With its
defaults this is ``maskgen.sampling.sample`` with the cosine schedule, but for counts that round another way and mask nothing
at the last step; its own are the cut-off of the sampling and the official counts.

Filters wrap ``logits_fn`` (``maskgen.sampling.filters.filtered_logits``): there as here they come before the
temperature, and what is ranked is the probability after both. The official typical filter is a no-op, since its result
is thrown away; so the official default is no filter, and asking for one gives one here.

Better than official here: each row plans its steps from its own masked tokens (there from those of the whole batch, so that
two items waste most of their steps; ``batch_counts`` brings that back); temperature 0 takes the most likely token (there it
samples at temperature 1); each item has its own seed. Given tokens are given whatever their id (there a given mask id counts
as masked).

Shapes: B batch, N = T frames, K codebooks, V vocabulary (V itself is the mask id).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.noise import Noise
from maskgen.sampling.checks import check_logits, check_numbers, check_sampling
from maskgen.sampling.loop import LogitsFn, SampleStep
from maskgen.sampling.selectors.ranking import mask_least_confident
from maskgen.sampling.settings import Sampling


@dataclass(frozen=True, kw_only=True)
class VampNetSampling:
    """Settings of one decoding.

    Attributes:
        steps: number of forward passes, at least 1.
        temperature: divides the logits at every step; 0 takes the most likely tokens.
        mask_temperature: weight of the ranking noise at r = 0.
        sample_cutoff: share of the steps in which tokens are sampled; 1 always samples.
        batch_counts: plan every row's steps from the masked tokens of the whole batch, as the official code does. Then an
            item depends on its batch.
    """

    steps: int = 12
    temperature: float = 1.0
    mask_temperature: float = 10.5
    sample_cutoff: float = 1.0
    batch_counts: bool = False

    def __post_init__(self) -> None:
        check_numbers(
            temperature=self.temperature, mask_temperature=self.mask_temperature, sample_cutoff=self.sample_cutoff
        )

    @classmethod
    def of(cls, sampling: Sampling) -> VampNetSampling:
        """These fields of the settings of all loops."""
        return cls(
            steps=sampling.steps,
            temperature=sampling.number("temperature"),
            mask_temperature=sampling.number("choice_temperature"),
            sample_cutoff=sampling.vampnet.sample_cutoff,
            batch_counts=sampling.vampnet.batch_counts,
        )


def vampnet_counts(total: Tensor, masked: Tensor, step: int, steps: int) -> Tensor:
    """How many tokens of each row are masked again after ``step`` (from 0) of ``steps``.

    Args:
        total: masked tokens when decoding began, long ``[B]``.
        masked: masked tokens now, long ``[B]``.
        step: i, from 0.
        steps: S.

    Returns:
        long ``[B]``: max(1, min(masked - 1, floor(cos(pi r / 2) total))) in float32, r = (i + 1) / S; 0 at the last step.
    """
    if step == steps - 1:
        return torch.zeros_like(total)
    gamma = torch.cos(torch.tensor((step + 1) / steps) * math.pi / 2).clamp(1e-10, 1.0).to(total.device)
    return torch.minimum(masked - 1, (gamma * total.float()).floor().long()).clamp(min=1)


@torch.no_grad()
def sample_vampnet(
    logits_fn: LogitsFn,
    tokens: Tensor,
    mask: Tensor,
    settings: VampNetSampling,
    *,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> Tensor:
    """Decide all masked tokens; arguments but ``settings``, result and errors as of ``maskgen.sampling.sample``.

    What ``logits_fn`` says of given codebooks, as the conditioning ones of the coarse-to-fine model, is not used. For each
    step i = 0 .. S - 1, with r = (i + 1) / S:

    1. predict logits for all tokens and divide them by the temperature;
    2. sample every masked token from their softmax while i / S <= sample_cutoff, else take the most likely one;
    3. confidence = log-probability of that token + mask_temperature (1 - r) Gumbel noise;
    4. remask the ``vampnet_counts`` least confident tokens, whichever their codebook (strictly below the cut-off).
    """
    steps, temperature = settings.steps, settings.temperature
    source = check_sampling(tokens, mask, steps, seeds, noise)
    total = mask.flatten(1).sum(1)
    if settings.batch_counts:
        total = total.sum().expand_as(total)
    guess = tokens
    for step in range(steps):
        current = torch.where(mask, tokens, guess)
        logits = check_logits(logits_fn(current, step), tokens)
        if temperature not in (0, 1):
            logits = logits / temperature
        at_random = temperature > 0 and step / steps <= settings.sample_cutoff
        ids = (source.sample(step, logits.shape).add_(logits) if at_random else logits).argmax(-1)
        guess = torch.where(mask, ids, current)
        log_probs = logits.gather(-1, ids[..., None]).squeeze(-1) - logits.logsumexp(-1)
        log_probs = log_probs.masked_fill(~mask, 0.0)
        counts = vampnet_counts(total, mask.flatten(1).sum(1), step, steps)
        weight = settings.mask_temperature * (1 - (step + 1) / steps)
        ranking = source.choice(step, mask.shape).flatten(1)
        confidence = log_probs.flatten(1) + weight * ranking
        mask = mask_least_confident(confidence, mask.flatten(1), counts).view_as(mask)
        if callback is not None:
            callback(SampleStep(step, steps, guess, mask, log_probs))
    return guess
