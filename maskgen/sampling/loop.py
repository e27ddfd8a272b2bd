"""Parallel decoding with a confidence scheduler (MaskGIT, Chang et al. 2022, arXiv 2202.04200, section 3.2).

A pure function of tensors: it never sees a tokenizer, a class list or a progress bar. The whole loop is ``sample``.

Shapes: B batch, N tokens, P of them, K codebooks, V vocabulary (V itself is the mask id of our models), M = N x K.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from maskgen.noise import Noise, sample_noise
from maskgen.sampling.checks import check_logits, check_sampling
from maskgen.sampling.selectors.base import CriticFn, Selection, Selector
from maskgen.sampling.selectors.named import get_selector
from maskgen.sampling.speed.plan import Plan, plan_steps
from maskgen.sampling.speed.predictor import Predictor
from maskgen.sampling.temperatures import Temperature, choice_weights, temperatures
from maskgen.schedules import get_schedule

LogitsFn = Callable[[Tensor, int], Tensor]
"""``logits_fn(tokens, step)``: long ``[B, N, K]`` with V where masked -> logits ``[B, N, K, V]``."""


@dataclass(frozen=True)
class SampleStep:
    """What a callback sees after each step.

    Attributes:
        step: counted from 0.
        steps: how many there are.
        tokens: long ``[B, N, K]``, the guess of this step before anything is masked again. A selector that chooses
            positions before the forward (``random``, ``halton``) has a model predict those alone: then id 0 stands at
            tokens that are still masked.
        mask: bool ``[B, N, K]``, what is masked after this step; of the last step nobody looks at it.
        confidence: float ``[B, N, K]``, log-probability of each token sampled at this step; 0 elsewhere.
    """

    step: int
    steps: int
    tokens: Tensor
    mask: Tensor
    confidence: Tensor


@torch.no_grad()
def sample(
    logits_fn: LogitsFn,
    tokens: Tensor,
    mask: Tensor,
    *,
    steps: int,
    schedule: str = "cosine",
    select: str | Selector = "confidence",
    temperature: Temperature = 1.0,
    choice_temperature: Temperature = 4.5,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    start_step: int = 0,
    callback: Callable[[SampleStep], None] | None = None,
) -> Tensor:
    """Decide all masked tokens in ``steps`` parallel steps.

    For each step k = start_step .. steps - 1:

    1. predict logits for all positions and sample every masked token from the softmax (an argmax over logits + Gumbel
       noise); given tokens keep their ids;
    2. ratio = (k + 1) / steps; count = max(1, min(masked now - 1, floor(masked at the start x schedule(ratio)))), per row;
    3. confidence = log-probability of the sampled token + choice_temperature x (1 - ratio) x Gumbel noise;
    4. remask the ``count`` least confident (strictly below the cut-off) and go on; the last step keeps all it sampled.

    Steps 3 and 4 are those of the selector ``confidence``; other selectors remask by other rules.

    Args:
        logits_fn: see ``LogitsFn``; its V columns are all that can be sampled.
        tokens: long ``[B, N, K]``, holding the mask id (V for our models) at the masked positions.
        mask: bool ``[B, N, K]``, True where a token is to be decided. Rows may differ; an all-False row comes back as it is.
        steps: number of forward passes if ``start_step`` is 0, at least 1 (``entropy`` may need fewer). More steps than
            tokens is legal.
        schedule: a name for ``maskgen.schedules.get_schedule``.
        select: a name for ``maskgen.sampling.get_selector``, or what that returns; ``halton``, ``critic`` and
            ``self-critic`` need more than a name.
        temperature: divides the logits before sampling; 0 takes the most likely token. A number, or a course over the
            steps, see ``maskgen.sampling.temperatures``.
        choice_temperature: weight of the noise on the confidence at ratio 0 (official ImageNet setting: 4.5), or a course
            of that weight over the steps.
        seeds: one integer an item: the item's sample depends on nothing else of the batch.
        noise: the source of randomness itself, instead of ``seeds``.
        start_step: skip the first steps of the schedule, as the official editing does (2 of 12).
        callback: called after each step with a ``SampleStep``, also after steps that change nothing, which are left out
            where nobody watches.

    Returns:
        long ``[B, N, K]`` without masked tokens.

    Raises:
        ValueError: shapes that do not fit, ``steps`` < 1, ``start_step`` outside [0, steps), negative temperatures, an
            unknown schedule or selector, a selector that lacks what it needs, neither or both of ``seeds`` and ``noise``.
    """
    gamma, selector = get_schedule(schedule), get_selector(select) if isinstance(select, str) else select
    noise = check_sampling(tokens, mask, steps, seeds, noise)
    if not 0 <= start_step < steps:
        raise ValueError(f"start_step: got {start_step}, expected 0 <= start_step < steps = {steps}")
    temps, weights = temperatures(temperature, steps), choice_weights(choice_temperature, steps)
    every_step = callback is not None or getattr(logits_fn, "reuse", 1) > 1  # steps between whole ones count, too
    plan = plan_steps(mask, gamma, selector, steps=steps, start_step=start_step, every_step=every_step)
    predict, view, guess = Predictor(logits_fn, selector, plan), _View(mask, steps, selector, plan), tokens
    for step in plan.run:
        last = step == steps - 1
        current = torch.where(mask, tokens, guess)  # ``tokens`` holds the mask id wherever anything can be masked
        seen = view.before(step, mask, noise.choice(step, mask.shape), weights[step])
        wanted = mask & ~selector.remask(seen).view_as(mask) if predict.chooses_first and not last else mask
        logits, positions = predict(current, wanted, step, last)
        sharper = (temps[step], 1.0 if last else selector.exponent(weights[step]))
        guess, log_probs, logits = _sampled(logits, current, wanted, positions, sharper, noise, step)
        seen = view.after(seen, guess, log_probs, logits, positions, None if last else selector.critic)
        waiting = mask & ~(wanted & _is_queried(positions, mask))  # masked, and not sampled at this step
        mask = selector.remask(seen).view_as(mask) | waiting
        if callback is not None:
            callback(SampleStep(step, steps, guess.masked_fill(waiting, 0), mask, log_probs))
        if selector.adaptive and not bool(mask.any()):
            break
    return guess


def _sampled(
    logits: Tensor,
    tokens: Tensor,
    wanted: Tensor,
    positions: Tensor | None,
    sharper: tuple[float, float],
    noise: Noise,
    step: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample an id for every wanted token from p^e, p = softmax(logits / t) with ``(t, e) = sharper``.

    Logits are of ``positions`` ``[B, P]``, or of all N; the noise is made for them alone, in one pass.

    Returns:
        Ids and log p of them (0 where not wanted), both ``[B, N, K]``, and the logits of p.
    """
    temperature, exponent = sharper
    logits = check_logits(logits, tokens) if positions is None else logits.float()
    if temperature not in (0, 1):
        logits = logits / temperature
    if temperature == 0 or exponent == math.inf:
        ids = logits.argmax(-1)
    else:
        gumbel = sample_noise(noise, step, (*tokens.shape, logits.shape[-1]), positions)
        ids = gumbel.add_(logits if exponent == 1 else logits * exponent).argmax(-1)
    log_probs = logits.gather(-1, ids[..., None]).squeeze(-1) - logits.logsumexp(-1)
    if positions is not None:
        index = positions[..., None].expand_as(ids)
        ids = tokens.scatter(1, index, ids)
        log_probs = log_probs.new_zeros(tokens.shape).scatter(1, index, log_probs)
    return torch.where(wanted, ids, tokens), log_probs.masked_fill(~wanted, 0.0), logits


def _is_queried(positions: Tensor | None, mask: Tensor) -> Tensor:
    """Bool ``[B, N, 1]``, which positions were predicted: if more of them tie with a selector's cut, the others wait."""
    if positions is None:
        return torch.ones_like(mask[..., :1])
    return torch.zeros_like(mask[..., 0]).scatter(1, positions, True)[..., None]


class _View:
    """What a selector sees of each step, before and after its tokens are sampled; rows are flattened to M tokens."""

    def __init__(self, start: Tensor, steps: int, selector: Selector, plan: Plan) -> None:
        self._start, self._steps, self._revises, self._plan = start.flatten(1), steps, selector.revises, plan
        self._share = torch.ones_like(plan.shares[0])  # before the first step everything is masked
        self._settled = torch.zeros(start.shape, device=start.device)
        self._item_noise: Tensor | None = None

    def before(self, step: int, mask: Tensor, noise: Tensor, weight: float) -> Selection:
        """The step without what comes with its tokens, which is left empty."""
        flat, noise = mask.flatten(1), noise.flatten(1)
        self._item_noise = noise[:, :1] if self._item_noise is None else self._item_noise
        shares, self._share = (self._share, self._plan.shares[step]), self._plan.shares[step]
        masked = (self._start if self._revises else flat).sum(1)
        empty = torch.zeros_like(noise)
        return Selection(
            step=step,
            steps=self._steps,
            tokens=flat.long(),
            log_probs=empty,
            settled=empty,
            logits=empty[:, :0, None],
            mask=flat,
            start=self._start,
            counts=torch.minimum(masked - 1, self._plan.planned[step]).clamp(min=1),
            shares=shares,
            noise=noise,
            item_noise=self._item_noise,
            weight=weight,
        )

    def after(
        self,
        seen: Selection,
        tokens: Tensor,
        log_probs: Tensor,
        logits: Tensor,
        positions: Tensor | None,
        critic: CriticFn | None,
    ) -> Selection:
        """The same step with its tokens, all but the mask ``[B, N, K]``."""
        self._settled = torch.where(seen.mask.view_as(tokens), log_probs, self._settled)
        return replace(
            seen,
            tokens=tokens.flatten(1),
            log_probs=log_probs.flatten(1),
            settled=self._settled.flatten(1),
            logits=rearrange(logits, "B P K V -> B (P K) V"),
            at=None if positions is None else _flat_positions(positions, tokens.shape[2]),
            scores=None if critic is None else _scores(critic, tokens, seen.step),
        )


def _flat_positions(positions: Tensor, codebooks: int) -> Tensor:
    """Positions ``[B, P]`` with the codebooks of each side by side, ``[B, P K]``."""
    return rearrange(
        positions[..., None] * codebooks + torch.arange(codebooks, device=positions.device), "B P K -> B (P K)"
    )


def _scores(critic: CriticFn, tokens: Tensor, step: int) -> Tensor:
    """What the critic says of the tokens, ``[B, M]``."""
    scores = critic(tokens, step)
    if scores.shape != tokens.shape:
        raise ValueError(f"critic: returned {tuple(scores.shape)}, expected one score a token, {tuple(tokens.shape)}")
    return scores.flatten(1)
