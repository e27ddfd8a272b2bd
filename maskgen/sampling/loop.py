"""Parallel decoding with a confidence scheduler (MaskGIT, Chang et al. 2022, arXiv 2202.04200, section 3.2).

A pure function of tensors: it never sees a tokenizer, a class list or a progress bar.

Shapes: B batch, N tokens, K codebooks, V vocabulary (V itself is the id of a hidden token for our models).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from maskgen.noise import Noise, SeededNoise, check_seeds, sample_noise
from maskgen.sampling.selectors.base import CriticFn, Selection, Selector
from maskgen.sampling.selectors.named import get_selector
from maskgen.sampling.speed.asking import Asking
from maskgen.sampling.speed.plan import Plan, plan_steps
from maskgen.sampling.temperatures import Temperature, choice_weights, temperatures
from maskgen.schedules import get_schedule

__all__ = ["LogitsFn", "SampleStep", "sample"]

LogitsFn = Callable[[torch.Tensor, int], torch.Tensor]
"""``logits_fn(tokens, step)``: long ``[B, N, K]`` with V at hidden places -> logits ``[B, N, K, V]``."""


@dataclass(frozen=True)
class SampleStep:
    """What a callback sees after each step.

    Attributes:
        step: counted from 0.
        steps: how many there are.
        drawn: the complete guess of this step, long ``[B, N, K]``, before anything is hidden again. Where keys and values
            are used again (``Prediction.reusing``) the orders ``random`` and ``halton`` draw what they keep only; then id 0
            stands at places that are still hidden.
        mask: bool ``[B, N, K]``, what is hidden after this step.
        confidence: float ``[B, N, K]``, log-probability of each drawn token; 0 at known places.
    """

    step: int
    steps: int
    drawn: torch.Tensor
    mask: torch.Tensor
    confidence: torch.Tensor


@torch.no_grad()
def sample(
    logits_fn: LogitsFn,
    tokens: torch.Tensor,
    mask: torch.Tensor,
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
) -> torch.Tensor:
    """Decide all hidden tokens in ``steps`` parallel steps.

    For each step k = start_step .. steps - 1:

    1. predict logits for all places and draw every hidden token from the softmax (an argmax over logits + Gumbel noise);
       known tokens keep their ids;
    2. ratio = (k + 1) / steps; count = max(1, min(hidden now - 1, floor(hidden at the start x schedule(ratio)))), per row;
    3. confidence = log-probability of the drawn token + choice_temperature x (1 - ratio) x Gumbel noise;
    4. hide the ``count`` least confident again (strictly below the cut-off) and go on; the last step keeps its full draw.

    Steps 3 and 4 are those of the selector ``confidence``; other selectors hide by other rules.

    Args:
        logits_fn: see ``LogitsFn``; its V columns are all that can be drawn.
        tokens: long ``[B, N, K]``, holding the mask id (V for our models) at the masked places.
        mask: bool ``[B, N, K]``, True where a token is to be decided. Rows may differ; an all-False row comes back as it is.
        steps: number of forward passes if ``start_step`` is 0, at least 1 (``entropy`` may need fewer). More steps than
            tokens is legal.
        schedule: a name for ``maskgen.schedules.get_schedule``.
        select: a name for ``maskgen.sampling.get_selector``, or what that returns; ``halton``, ``critic`` and
            ``self-critic`` need more than a name.
        temperature: divides the logits before drawing; 0 takes the most likely token. A number, or a course over the steps,
            see ``maskgen.sampling.temperatures``.
        choice_temperature: weight of the noise on the confidence at ratio 0 (official ImageNet setting: 4.5), or a course
            of that weight over the steps.
        seeds: one integer an item: the item's sample depends on nothing else of the batch.
        noise: the source of randomness itself, instead of ``seeds``.
        start_step: skip the first steps of the schedule, as the official editing does (2 of 12).
        callback: called after each step with a ``SampleStep``.

    Returns:
        long ``[B, N, K]`` without hidden tokens.

    Raises:
        ValueError: shapes that do not fit, ``steps`` < 1, ``start_step`` outside [0, steps), negative temperatures, an
            unknown schedule or selector, a selector that lacks what it needs, neither or both of ``seeds`` and ``noise``.
    """
    gamma = get_schedule(schedule)
    selector = get_selector(select) if isinstance(select, str) else select
    _check(tokens, mask, steps, start_step)
    heats, weights = temperatures(temperature, steps), choice_weights(choice_temperature, steps)
    source = _source(seeds, noise, tokens)
    watched = callback is not None
    every = getattr(logits_fn, "reuse", 1)  # steps between whole ones count, too
    plan = plan_steps(mask, gamma, selector, steps=steps, start_step=start_step, watched=watched or every > 1)
    work = _Work(
        tokens, mask, steps, selector, heats, weights, source, plan, Asking(logits_fn, selector, plan, watched)
    )
    return _decode(work, callback)


@dataclass(frozen=True)
class _Work:
    """What stays the same over the steps, see ``sample``; ``heats`` and ``weights`` are the temperatures of each step."""

    tokens: torch.Tensor
    start: torch.Tensor
    steps: int
    selector: Selector
    heats: Sequence[float]
    weights: Sequence[float]
    noise: Noise
    plan: Plan
    ask: Asking

    def seen(
        self, step: int, mask: torch.Tensor, before: torch.Tensor, ranking: torch.Tensor, item_noise: torch.Tensor
    ) -> Selection:
        """A step before its draw; what comes with the draw is empty."""
        start, nothing = self.start.flatten(1), torch.zeros(mask.shape, device=mask.device).flatten(1)
        unknown = (start if self.selector.revises else mask.flatten(1)).sum(1)
        return Selection(
            step=step,
            steps=self.steps,
            drawn=self.tokens.flatten(1),
            log_probs=nothing,
            settled=nothing,
            logits=nothing[:, :0, None],
            mask=mask.flatten(1),
            start=start,
            counts=torch.minimum(unknown - 1, self.plan.planned[step]).clamp(min=1),
            shares=(before, self.plan.shares[step]),
            noise=ranking,
            item_noise=item_noise,
            weight=self.weights[step],
        )


def _decode(work: _Work, callback: Callable[[SampleStep], None] | None) -> torch.Tensor:
    """All steps of the plan."""
    tokens, mask, selector = work.tokens, work.start, work.selector
    before, item_noise = torch.ones_like(work.plan.shares[0]), None  # before the first step nothing is decided
    drawn, settled = tokens, torch.zeros(mask.shape, device=mask.device)
    for step in work.plan.run:
        last = step == work.steps - 1
        current = torch.where(mask, tokens, drawn)  # ``tokens`` still holds the mask id wherever anything can be hidden
        ranking = work.noise.choice(step, mask.shape).flatten(1)
        item_noise = ranking[:, :1] if item_noise is None else item_noise
        seen = work.seen(step, mask, before, ranking, item_noise)
        ahead = work.ask.is_ahead and not last
        wanted = mask & ~selector.hide(seen).view_as(mask) if ahead else mask
        logits, places = work.ask(current, wanted, step, last)
        sharper = (work.heats[step], 1.0 if last else selector.exponent(work.weights[step]))
        drawn, log_probs, logits = _draw(logits.float(), current, wanted, places, *sharper, work.noise, step)
        settled = torch.where(mask, log_probs, settled)
        if ahead:
            mask = mask & ~(wanted if places is None else wanted & _among(places, mask))
        else:
            seen = replace(
                seen,
                drawn=drawn.flatten(1),
                log_probs=log_probs.flatten(1),
                settled=settled.flatten(1),
                logits=logits.flatten(1, 2),
                at=None if places is None else _cells(places, mask.shape[2]),
                scores=None if last or selector.critic is None else _scores(selector.critic, drawn, step),
            )
            mask = selector.hide(seen).view_as(mask)
        before = work.plan.shares[step]
        if callback is not None:
            callback(SampleStep(step, work.steps, drawn.masked_fill(mask, 0) if ahead else drawn, mask, log_probs))
        if selector.adaptive and not bool(mask.any()):
            break
    return drawn


def _source(seeds: Sequence[int] | None, noise: Noise | None, tokens: torch.Tensor) -> Noise:
    if (noise is None) == (seeds is None):
        raise ValueError("sample: give either seeds (one integer an item) or noise")
    return noise or SeededNoise(check_seeds(seeds or [], len(tokens)), tokens.device)


def _cells(places: torch.Tensor, codebooks: int) -> torch.Tensor:
    """Places ``[B, P]`` with the codebooks of each side by side, ``[B, P K]``."""
    return (places[:, :, None] * codebooks + torch.arange(codebooks, device=places.device)).flatten(1)


def _among(places: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Bool ``[B, N, 1]``, what was asked for: if more places than that tie with the cut of an order, the others wait."""
    return torch.zeros_like(mask[..., 0]).scatter(1, places, True)[..., None]


def _draw(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    wanted: torch.Tensor,
    places: torch.Tensor | None,
    temperature: float,
    exponent: float,
    noise: Noise,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw an id for every wanted token from p^exponent, p the softmax of logits / temperature.

    Logits are of ``places`` ``[B, P]``, or of all N; the noise is one pass over them.

    Returns:
        Ids and log p of them (0 where not wanted), both ``[B, N, K]``, and the logits of p.
    """
    if places is None and logits.shape[:-1] != tokens.shape:
        raise ValueError(
            f"logits_fn returned {tuple(logits.shape)}, expected [B, N, K, V] with [B, N, K] = {tuple(tokens.shape)}"
        )
    if temperature not in (0, 1):
        logits = logits / temperature
    if temperature == 0 or exponent == math.inf:
        drawn = logits.argmax(-1)
    else:
        sharpened = logits if exponent == 1 else logits * exponent
        gumbel = sample_noise(noise, step, (*tokens.shape, logits.shape[-1]), places)
        drawn = gumbel.add_(sharpened).argmax(-1)
    log_probs = logits.gather(-1, drawn[..., None]).squeeze(-1) - logits.logsumexp(-1)
    if places is not None:
        index = places[:, :, None].expand_as(drawn)
        drawn = tokens.scatter(1, index, drawn)
        log_probs = torch.zeros(tokens.shape, device=tokens.device).scatter(1, index, log_probs)
    return torch.where(wanted, drawn, tokens), log_probs.masked_fill(~wanted, 0.0), logits


def _scores(critic: CriticFn, drawn: torch.Tensor, step: int) -> torch.Tensor:
    """What the critic says of the draw, ``[B, M]``."""
    scores = critic(drawn, step)
    if scores.shape != drawn.shape:
        raise ValueError(f"critic: returned {tuple(scores.shape)}, expected one score a token, {tuple(drawn.shape)}")
    return scores.flatten(1)


def _check(tokens: torch.Tensor, mask: torch.Tensor, steps: int, start_step: int) -> None:
    if tokens.ndim != 3 or tokens.dtype != torch.long or 0 in tokens.shape[1:]:
        raise ValueError(f"tokens: got {tokens.dtype} {tuple(tokens.shape)}, expected int64 [B, N, K], not empty")
    if mask.shape != tokens.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask: got {mask.dtype} {tuple(mask.shape)}, expected bool {tuple(tokens.shape)} as the tokens"
        )
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    if not 0 <= start_step < steps:
        raise ValueError(f"start_step: got {start_step}, expected 0 <= start_step < steps = {steps}")
