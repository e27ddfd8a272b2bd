"""How the generators of 1d-tokenizer (ImageBert, UViTBert) were sampled: ``generate()`` of bytedance/1d-tokenizer.

MaskGIT's loop with three differences: tokens are ranked by their logit, not by their log-probability; one temperature
weighs the noise of the sampling and of the ranking, and falls to zero at the last step; and counts come from arccos in
float64.

Two things are done better here. The official code takes the number of tokens to remask from row 0 for all rows, and from the
whole grid: where rows begin with different masks it masks tokens that were given. Here every row counts its own masked
tokens. And the power-cosine guidance always ran both passes there; here a weight that changes nothing saves the second one.

Shapes: B batch, N tokens, K codebooks, V vocabulary (V itself is the mask id).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.noise import Noise
from maskgen.sampling.checks import check_logits, check_numbers, check_sampling
from maskgen.sampling.guidance import Guidance, TokenModel, weighted_logits
from maskgen.sampling.loop import LogitsFn, SampleStep
from maskgen.sampling.selectors.ranking import mask_lowest


@dataclass(frozen=True, kw_only=True)
class OneDTokSampling:
    """Settings of one decoding, by their official names.

    Attributes:
        steps: number of forward passes, at least 1.
        randomize_temperature: weight of both noises at r = 0; 0 takes the most likely tokens.
        anneal: see step 1 of ``sample_onedtok`` (official: ``softmax_temperature_annealing``).
    """

    steps: int = 8
    randomize_temperature: float = 4.5
    anneal: bool = False

    def __post_init__(self) -> None:
        check_numbers(randomize_temperature=self.randomize_temperature)


def onedtok_weights(guidance: Guidance, steps: int) -> list[float]:
    """Weight w of every step t of S in c + w (c - u), for conditional logits c and unconditional logits u.

    ``constant``: w = scale; ``linear``: w = scale t / S; ``power-cosine``, and ``cosine`` as well: w = (scale - 1)
    (1 - cos(pi (t / S)^power)) / 2, which the official code writes as u + (1 + w) (c - u): there a scale of 1 is none.
    """
    if guidance.ramp == "constant":
        return [guidance.scale] * steps
    if guidance.ramp == "linear":
        return [guidance.scale * step / steps for step in range(steps)]
    grown = [(1 - math.cos(math.pi * (step / steps) ** guidance.power)) / 2 for step in range(steps)]
    return [(guidance.scale - 1) * share for share in grown]


def onedtok_guided_logits(
    model: TokenModel, cond: Cond, guidance: Guidance, *, steps: int, axes: Sequence[int] | None = None
) -> LogitsFn:
    """A ``logits_fn`` with ``onedtok_weights``; see ``maskgen.sampling.guidance.guided_logits``."""
    return weighted_logits(model, cond, cond.unconditional(), onedtok_weights(guidance, steps), axes)


def onedtok_counts(total: Tensor, masked: Tensor, step: int, steps: int) -> Tensor:
    """How many tokens of each row are masked again after ``step`` (from 0) of ``steps``.

    Args:
        total: masked tokens when decoding began, long ``[B]``.
        masked: masked tokens now, long ``[B]``.
        step: t, from 0.
        steps: S.

    Returns:
        long ``[B]``: max(1, min(masked - 1, floor(total arccos((t + 1) / S) / (pi / 2)))), in float64.
    """
    gamma = math.acos((step + 1) / steps) / (math.pi * 0.5)
    return torch.minimum(masked - 1, (total.double() * gamma).floor().long()).clamp(min=1)


@torch.no_grad()
def sample_onedtok(
    logits_fn: LogitsFn,
    tokens: Tensor,
    mask: Tensor,
    settings: OneDTokSampling,
    *,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> Tensor:
    """Decide all masked tokens; arguments but ``settings``, result and errors as of ``maskgen.sampling.sample``.

    For each step t = 0 .. S - 1, with r = (t + 1) / S and T = randomize_temperature (1 - r):

    1. predict logits for all positions; with ``anneal`` divide them by 0.5 + 0.8 (1 - r);
    2. take the token with the largest logit + T x Gumbel noise; given tokens keep their ids;
    3. confidence = logit of that token + T x another Gumbel noise;
    4. remask the ``onedtok_counts`` least confident (ties with the last of them too); the last step keeps all.
    """
    steps = settings.steps
    source = check_sampling(tokens, mask, steps, seeds, noise)
    total = mask.flatten(1).sum(1)
    guess = tokens
    for step in range(steps):
        current = torch.where(mask, tokens, guess)
        logits = check_logits(logits_fn(current, step), tokens)
        left = 1 - (step + 1) / steps
        temperature = settings.randomize_temperature * left
        if settings.anneal:
            logits = logits / (0.5 + 0.8 * left)
        # The official last step has temperature 0, thus no noise; making none is the same and cheaper.
        noisy = logits if temperature == 0 else source.sample(step, logits.shape).mul_(temperature).add_(logits)
        guess = torch.where(mask, noisy.argmax(-1), current)
        picked = logits.gather(-1, guess[..., None]).squeeze(-1)
        before = mask
        if step == steps - 1:
            mask = torch.zeros_like(mask)
        else:
            confidence = picked if temperature == 0 else picked + temperature * source.choice(step, mask.shape)
            mask = mask_lowest(confidence, mask, onedtok_counts(total, mask.flatten(1).sum(1), step, steps))
        if callback is not None:
            log_probs = (picked - logits.logsumexp(-1)).masked_fill(~before, 0.0)
            callback(SampleStep(step, steps, guess, mask, log_probs))
    return guess
