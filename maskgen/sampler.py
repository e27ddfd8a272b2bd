"""Parallel decoding with a confidence scheduler (MaskGIT, Chang et al. 2022, arXiv 2202.04200, section 3.2).

A pure function of tensors: it never sees a tokenizer, a class list or a progress bar.

Shapes: B batch, N tokens, K codebooks, V vocabulary (V itself is the id of a hidden token for our models).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from maskgen.noise import Noise, SeededNoise, check_seeds
from maskgen.schedules import get_schedule, mask_counts, step_ratio
from maskgen.selectors import get_selector

__all__ = ["LogitsFn", "SampleStep", "sample"]

LogitsFn = Callable[[torch.Tensor, int], torch.Tensor]
"""``logits_fn(tokens, step)``: long ``[B, N, K]`` with V at hidden places -> logits ``[B, N, K, V]``."""


@dataclass(frozen=True)
class SampleStep:
    """What a callback sees after each step.

    Attributes:
        step: counted from 0.
        steps: how many there are.
        drawn: the complete guess of this step, long ``[B, N, K]``, before anything is hidden again.
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
    select: str = "confidence",
    temperature: float = 1.0,
    choice_temperature: float = 4.5,
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

    Args:
        logits_fn: see ``LogitsFn``; its V columns are all that can be drawn.
        tokens: long ``[B, N, K]``, holding the mask id (V for our models) at the masked places.
        mask: bool ``[B, N, K]``, True where a token is to be decided. Rows may differ; an all-False row comes back as it is.
        steps: number of forward passes if ``start_step`` is 0, at least 1. More steps than tokens is legal.
        schedule: a name for ``maskgen.schedules.get_schedule``.
        select: a name for ``maskgen.selectors.get_selector``.
        temperature: divides the logits before drawing; 0 takes the most likely token.
        choice_temperature: weight of the noise on the confidence at ratio 0 (official ImageNet setting: 4.5).
        seeds: one integer an item: the item's sample depends on nothing else of the batch.
        noise: the source of randomness itself, instead of ``seeds``.
        start_step: skip the first steps of the schedule, as the official editing does (2 of 12).
        callback: called after each step with a ``SampleStep``.

    Returns:
        long ``[B, N, K]`` without hidden tokens.

    Raises:
        ValueError: shapes that do not fit, ``steps`` < 1, ``start_step`` outside [0, steps), negative temperatures, an
            unknown schedule or selector, neither or both of ``seeds`` and ``noise``.
    """
    gamma, selector = get_schedule(schedule), get_selector(select)
    _check(tokens, mask, steps, start_step, temperature, choice_temperature)
    if (noise is None) == (seeds is None):
        raise ValueError("sample: give either seeds (one integer an item) or noise")
    source = noise or SeededNoise(check_seeds(seeds or [], len(tokens)), tokens.device)
    total = mask.flatten(1).sum(1)
    drawn = tokens
    for step in range(start_step, steps):
        current = torch.where(mask, tokens, drawn)  # ``tokens`` still holds the mask id wherever anything can be hidden
        logits = logits_fn(current, step).float()
        drawn, log_probs = _draw(logits, current, mask, temperature, source, step)
        ratio = step_ratio(step, steps)
        counts = mask_counts(gamma, ratio, total, mask.flatten(1).sum(1))
        ranking = source.choice(step, mask.shape).flatten(1)
        weight = choice_temperature * (1 - (step + 1) / steps)
        mask = selector(log_probs.flatten(1), mask.flatten(1), counts, ranking, weight).view_as(mask)
        if callback is not None:
            callback(SampleStep(step, steps, drawn, mask, log_probs))
    return drawn


def _draw(
    logits: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor, temperature: float, noise: Noise, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw an id for every hidden token; returns ids and log-probabilities (0 where known), both ``[B, N, K]``."""
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(
            f"logits_fn returned {tuple(logits.shape)}, expected [B, N, K, V] with [B, N, K] = {tuple(tokens.shape)}"
        )
    if temperature == 0:
        drawn = logits.argmax(-1)
    else:
        logits = logits if temperature == 1 else logits / temperature
        drawn = noise.sample(step, logits.shape).add_(logits).argmax(-1)
    log_probs = logits.gather(-1, drawn[..., None]).squeeze(-1) - logits.logsumexp(-1)
    return torch.where(mask, drawn, tokens), log_probs.masked_fill(~mask, 0.0)


def _check(
    tokens: torch.Tensor, mask: torch.Tensor, steps: int, start_step: int, temperature: float, choice_temperature: float
) -> None:
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
    if temperature < 0 or choice_temperature < 0:
        raise ValueError(
            f"temperature and choice_temperature: got {temperature} and {choice_temperature}, expected 0 or more"
        )
