"""How the generators of 1d-tokenizer (ImageBert, UViTBert) were sampled: ``generate()`` of bytedance/1d-tokenizer.

MaskGIT's loop with three differences: tokens are ranked by their logit, not by their log-probability; one temperature
weighs the noise of the draw and of the ranking, and falls to zero at the last step; and counts come from arccos in float64.

Two things are done better here. The official code takes the number of tokens to hide from row 0 for all rows, and from the
whole grid: where rows begin with different masks it hides tokens that were given. Here every row counts its own hidden
tokens. And the power-cosine guidance always ran both passes there; here a weight that changes nothing saves the second one.

Shapes: B batch, N tokens, K codebooks, V vocabulary (V itself is the id of a hidden token).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.noise import Noise
from maskgen.sampling.checks import check_sampling
from maskgen.sampling.guidance import TokenModel
from maskgen.sampling.loop import LogitsFn, SampleStep

__all__ = ["GuidanceDecay", "onedtok_counts", "onedtok_guidance", "onedtok_weight", "sample_onedtok"]

GuidanceDecay = Literal["constant", "linear", "power-cosine"]


def onedtok_weight(decay: str, scale: float, power: float, step: int, steps: int) -> float:
    """Weight w of one step in c + w (c - u), for conditional logits c and unconditional logits u.

    Args:
        decay: ``constant``: w = scale; ``linear``: w = scale t / S; ``power-cosine``: w = (scale - 1)
            (1 - cos(pi (t / S)^power)) / 2, which the official code writes as u + (1 + w) (c - u).
        scale: 0 means none for the first two, 1 for ``power-cosine``.
        power: exponent of ``power-cosine``.
        step: t, from 0.
        steps: S.

    Raises:
        ValueError: unknown decay.
    """
    if decay == "constant":
        return scale
    if decay == "linear":
        return scale * step / steps
    if decay == "power-cosine":
        return (scale - 1) * (1 - math.cos(math.pi * (step / steps) ** power)) / 2
    raise ValueError(f"guidance decay: got {decay!r}, expected 'constant', 'linear' or 'power-cosine'")


def onedtok_guidance(
    model: TokenModel,
    cond: Cond,
    *,
    scale: float,
    steps: int,
    decay: GuidanceDecay = "constant",
    power: float = 3.0,
    axes: Sequence[int] | None = None,
) -> LogitsFn:
    """A ``logits_fn`` with the official guidance; both halves go through one forward of 2 B rows.

    Args:
        model: see ``TokenModel``.
        cond: the conditions; the other half is ``cond.unconditional()``.
        scale: see ``onedtok_weight``.
        steps: number of sampling steps.
        decay: see ``onedtok_weight``.
        power: exponent of ``power-cosine``.
        axes: token grid, passed on to the model.

    Raises:
        ValueError: negative scale, power that is not positive, or unknown decay.
    """
    if scale < 0 or power <= 0:
        raise ValueError(f"guidance: got scale {scale} and power {power}, expected scale of 0 or more and power over 0")
    weights = [onedtok_weight(decay, scale, power, step, steps) for step in range(steps)]
    both = Cond.cat([cond, cond.unconditional()])

    def logits_fn(tokens: Tensor, step: int) -> Tensor:
        if weights[step] == 0:
            return model(tokens, cond, axes)
        conditional, unconditional = model(tokens.repeat(2, 1, 1), both, axes).float().chunk(2)
        return conditional + weights[step] * (conditional - unconditional)

    return logits_fn


def onedtok_counts(total: Tensor, unknown: Tensor, step: int, steps: int) -> Tensor:
    """How many tokens of each row are hidden again after ``step`` (from 0) of ``steps``.

    Args:
        total: hidden tokens when decoding began, long ``[B]``.
        unknown: hidden tokens now, long ``[B]``.
        step: t, from 0.
        steps: S.

    Returns:
        long ``[B]``: max(1, min(unknown - 1, floor(total arccos((t + 1) / S) / (pi / 2)))), in float64.
    """
    gamma = math.acos((step + 1) / steps) / (math.pi * 0.5)
    return torch.minimum(unknown - 1, (total.double() * gamma).floor().long()).clamp(min=1)


@torch.no_grad()
def sample_onedtok(
    logits_fn: LogitsFn,
    tokens: Tensor,
    mask: Tensor,
    *,
    steps: int = 8,
    randomize_temperature: float = 4.5,
    anneal: bool = False,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> Tensor:
    """Decide all hidden tokens in ``steps`` parallel steps.

    For each step t = 0 .. S - 1, with r = (t + 1) / S and heat = randomize_temperature (1 - r):

    1. predict logits for all places; with ``anneal`` divide them by 0.5 + 0.8 (1 - r);
    2. take the token with the largest logit + heat x Gumbel noise; known tokens keep their ids;
    3. confidence = logit of that token + heat x another Gumbel noise;
    4. hide the ``onedtok_counts`` least confident again (ties with the last of them too); the last step keeps all.

    Args:
        logits_fn: see ``LogitsFn``; its V columns are all that can be drawn.
        tokens: long ``[B, N, K]``, holding the mask id V at the masked places.
        mask: bool ``[B, N, K]``, True where a token is to be decided. Rows may differ; an all-False row comes back as it is.
        steps: number of forward passes, at least 1.
        randomize_temperature: weight of both noises at r = 0; 0 takes the most likely tokens.
        anneal: see step 1 (official: ``softmax_temperature_annealing``).
        seeds: one integer an item: the item's sample depends on nothing else of the batch.
        noise: the source of randomness itself, instead of ``seeds``.
        callback: called after each step with a ``SampleStep``.

    Returns:
        long ``[B, N, K]`` without hidden tokens.

    Raises:
        ValueError: shapes that do not fit, ``steps`` < 1, a negative temperature, neither or both of ``seeds`` and
            ``noise``.
    """
    source = check_sampling(tokens, mask, steps, seeds, noise, randomize_temperature=randomize_temperature)
    total = mask.flatten(1).sum(1)
    drawn = tokens
    for step in range(steps):
        current = torch.where(mask, tokens, drawn)
        logits = logits_fn(current, step).float()
        left = 1 - (step + 1) / steps
        heat = randomize_temperature * left
        if anneal:
            logits = logits / (0.5 + 0.8 * left)
        # The official last step has temperature 0, thus no noise; making none is the same and cheaper.
        hot = logits if heat == 0 else source.sample(step, logits.shape).mul_(heat).add_(logits)
        drawn = torch.where(mask, hot.argmax(-1), current)
        picked = logits.gather(-1, drawn[..., None]).squeeze(-1)
        before = mask
        if step == steps - 1:
            mask = torch.zeros_like(mask)
        else:
            confidence = picked if heat == 0 else picked + heat * source.choice(step, mask.shape)
            mask = _hide(confidence, mask, onedtok_counts(total, mask.flatten(1).sum(1), step, steps))
        if callback is not None:
            log_probs = (picked - logits.logsumexp(-1)).masked_fill(~before, 0.0)
            callback(SampleStep(step, steps, drawn, mask, log_probs))
    return drawn


def _hide(confidence: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
    """Hide the ``counts`` lowest of the hidden places, and what ties with the last of them, as the official code does."""
    ranked = confidence.masked_fill(~mask, torch.inf).flatten(1)
    cut = ranked.sort(dim=-1).values.gather(-1, counts[:, None] - 1)
    return (ranked <= cut).view_as(mask) & mask
