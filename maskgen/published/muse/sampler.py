"""The decoding loop of lucidrains' Muse (muse-maskgit-pytorch 0.3.5), as a pure function.

It differs from ``maskgen.sampling.sample`` in four ways: the sampling temperature falls to 0 and no noise ranks the tokens;
they are ranked by the probability before any filter; how many stay masked comes from a float32 line from 0 to 1 over the
steps; and a token critic ranks all tokens anew, so that sampled ones may change.

Shapes: B batch, N tokens, K codebooks, V vocabulary (V is the mask id), M = N x K tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.noise import Noise
from maskgen.published.muse.transformer import MuseNetwork, text_mask, without_text
from maskgen.sampling.checks import check_logits, check_numbers, check_sampling
from maskgen.sampling.critics import token_scores
from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.guidance import TokenModel, weighted_logits
from maskgen.sampling.loop import LogitsFn, SampleStep
from maskgen.sampling.selectors.base import CriticFn
from maskgen.sampling.settings import Sampling


@dataclass(frozen=True, kw_only=True)
class MuseSampling:
    """Settings of one decoding.

    Attributes:
        steps: S, at least 1; 18 by default, as the original.
        temperature: T at the first step; falls as T (S - 1 - k) / S.
        filter: which codes may be drawn; the original keeps the ``kept_codes`` most likely.
        critic_noise: weight of the noise on a critic's scores at the first step; falls as the temperature.
    """

    steps: int = 18
    temperature: float = 1.0
    filter: TokenFilter = field(default_factory=TokenFilter)
    critic_noise: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(temperature=self.temperature, critic_noise=self.critic_noise)

    @classmethod
    def of(cls, sampling: Sampling) -> MuseSampling:
        """These fields of the settings of all loops, where ``choice_temperature`` is the critic's noise."""
        return cls(
            steps=sampling.steps,
            temperature=sampling.number("temperature"),
            filter=sampling.filter,
            critic_noise=sampling.number("choice_temperature"),
        )


def kept_codes(vocab_size: int, threshold: float = 0.9) -> int:
    """How many codes the original may draw: ceil((1 - threshold) V), in float64, for ``TokenFilter.top_k``."""
    return math.ceil((1 - threshold) * vocab_size)


@torch.no_grad()
def sample_muse(
    logits_fn: LogitsFn,
    tokens: Tensor,
    mask: Tensor,
    settings: MuseSampling,
    *,
    critic: CriticFn | None = None,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> Tensor:
    """Decide all masked tokens; what is not described here is as of ``maskgen.sampling.sample``.

    For each step k = 0 .. S - 1:

    1. predict logits and draw every masked token from softmax(filter(logits) / T_k); given tokens keep their ids;
    2. after the last step that is the result; before, ``muse_counts`` says how many are masked again;
    3. those of the masked ones whose token was the least probable under softmax(logits), without noise; or, with a
        critic, those it holds most wrong of all that were masked at the start, with uniform noise.

    The original begins with everything masked and counts all tokens; here a row counts those masked at its start.

    Args:
        logits_fn: see ``muse_guided_logits``.
        tokens: as there.
        mask: as there.
        settings: see ``MuseSampling``.
        critic: see ``muse_critic_scores``.
        seeds: as there.
        noise: as there; the critic's uniform noise is made of the Gumbel noise ``choice``.
        callback: as there.
    """
    steps = settings.steps
    source = check_sampling(tokens, mask, steps, seeds, noise)
    start, guess = mask, tokens
    for step in range(steps):
        left = (steps - 1 - step) / steps
        current = torch.where(mask, tokens, guess)  # ``tokens`` holds the mask id wherever anything can be masked
        logits = check_logits(logits_fn(current, step), tokens)
        sharp = settings.filter(logits) / max(settings.temperature * left, 1e-10)
        guess = torch.where(mask, source.sample(step, logits.shape).add_(sharp).argmax(-1), current)
        ids = torch.where(mask, guess, 0)[..., None]  # given ids are the caller's and need not be columns
        log_probs = logits.log_softmax(-1).gather(-1, ids).squeeze(-1).masked_fill(~mask, 0.0)
        if step + 1 == steps:
            mask = torch.zeros_like(mask)
        elif critic is None:
            mask = _mask_lowest(log_probs, mask, muse_counts(step + 1, steps, start.flatten(1).sum(1)))
        else:
            uniform = (-(-source.choice(step, mask.shape)).exp()).exp()
            scores = critic(guess, step) - (uniform - 0.5) * (settings.critic_noise * left)
            mask = _mask_lowest(scores, start, muse_counts(step + 1, steps, start.flatten(1).sum(1)))
        if callback is not None:
            callback(SampleStep(step, steps, guess, mask, log_probs))
    return guess


def muse_counts(step: int, steps: int, total: Tensor) -> Tensor:
    """How many tokens are masked when a step begins: max(1, int(cos(t pi / 2) total)), t = linspace(0, 1, S)[k], in float32.

    Args:
        step: k, from 0.
        steps: S.
        total: tokens of each row that were masked at the start, ``[B]``.

    Returns:
        long ``[B]``.
    """
    ratio = torch.cos(torch.linspace(0, 1, steps)[step] * math.pi * 0.5)
    return (ratio.to(total.device) * total).long().clamp(min=1)


def _mask_lowest(scores: Tensor, allowed: Tensor, counts: Tensor) -> Tensor:
    """Exactly ``counts`` of the allowed tokens, those of the lowest scores; of equal ones the first."""
    ranked = scores.masked_fill(~allowed, torch.inf).flatten(1)
    places = ranked.argsort(dim=-1, stable=True).argsort(-1)
    return (places < counts[:, None]).view_as(allowed) & allowed


def muse_guided_logits(
    model: TokenModel, cond: Cond, weights: Sequence[float], *, axes: Sequence[int] | None = None
) -> LogitsFn:
    """A ``logits_fn`` with guidance c + w (c - u), and with self-conditioning where the model has it.

    u is the prediction for ``cond.null``, a negative prompt; without one it is that without text, in which low-resolution
    tokens stay. (The original fails on negative prompts.) Features of a step, those of the conditional half, go into both
    halves of the next, so steps must come in order.

    Args:
        model: see ``TokenModel``.
        cond: text and, in super-resolution, the small picture.
        weights: w of each step: their scale s is 1 + w, so that 2 is their default; the paper's rises from 0
            (``Guidance(ramp="linear").weights(steps)``).
        axes: token grid, passed on to the model.
    """
    if isinstance(model, MuseNetwork) and model.config.self_conditioned:
        return _SelfConditioned(model, cond, weights, axes)
    return weighted_logits(model, *_halves(cond), weights, axes)


def muse_critic_scores(
    critic: TokenModel, cond: Cond, weights: Sequence[float], *, axes: Sequence[int] | None = None
) -> CriticFn:
    """``sample_muse``'s critic: scores guided as the logits are; other arguments as of ``muse_guided_logits``."""

    def one_number(tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        return token_scores(critic(tokens, cond, axes), tokens)[..., None]

    logits_fn = weighted_logits(one_number, *_halves(cond), weights, axes)
    return lambda tokens, step: logits_fn(tokens, step).squeeze(-1)


def _halves(cond: Cond) -> tuple[Cond, Cond]:
    """Conditions of c and of u, both with masks."""
    halves = (cond, without_text(cond) if cond.null is None else cond.unconditional())
    wanted, weaker = (
        half
        if half.context is None
        else replace(half, context_mask=text_mask(half.context, half.context_mask), null=None)
        for half in halves
    )
    return wanted, weaker


class _SelfConditioned:
    """See ``muse_guided_logits``."""

    def __init__(self, model: MuseNetwork, cond: Cond, weights: Sequence[float], axes: Sequence[int] | None) -> None:
        self._model, self._weights, self._axes = model, weights, axes
        halves = _halves(cond)
        self._cond, self._both = halves[0], Cond.cat(list(halves))
        self._previous: Tensor | None = None

    def __call__(self, tokens: Tensor, step: int) -> Tensor:
        weight, previous = self._weights[step], None if step == 0 else self._previous
        cond = self._cond
        if weight:
            tokens, cond = tokens.repeat(2, 1, 1), self._both
            previous = None if previous is None else previous.repeat(2, 1, 1)
        features = self._model.features(tokens, cond, self._axes, previous)
        logits = self._model.outputs(features).float()
        if not weight:
            self._previous = features
            return logits
        self._previous = features.chunk(2)[0]
        conditional, weak = logits.chunk(2)
        return conditional + weight * (conditional - weak)
