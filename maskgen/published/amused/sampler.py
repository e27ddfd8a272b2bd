"""The decoding loop of aMUSEd (AmusedScheduler of diffusers; Patil et al. 2024, arXiv 2401.01808), Meissonic and open-muse.

It differs from ``maskgen.sampling.sample`` in three ways: the weight of the ranking noise runs from one number to another
instead of falling with the share of the work left; the schedule counts all tokens, not those masked at the start; and a
``starting_mask_ratio`` scales it, for editing.

The published scheduler gives visible tokens the logarithm of the largest float as confidence (88.7), not infinity, and masks
a token of a row in which nothing is masked. So noise of a weight above 4 or so, or a row without a masked token, makes it
change given tokens. Here given tokens stay, unless ``AmusedSampling.rehides`` asks for the published rule.

Shapes: B batch, N tokens, K codebooks, V vocabulary (V is the mask id), M = N x K tokens of a row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.noise import Noise
from maskgen.sampling.checks import check_logits, check_sampling
from maskgen.sampling.guidance import TokenModel, model_logits
from maskgen.sampling.loop import LogitsFn, SampleStep
from maskgen.sampling.selectors.ranking import mask_least_confident
from maskgen.sampling.settings import Sampling
from maskgen.sampling.temperatures import temperatures

LAST_TEMPERATURE = 0.01  # where a single ranking temperature falls to

Start = float | Literal["row", "batch"]


@dataclass(frozen=True, kw_only=True)
class AmusedSampling:
    """Settings of one decoding; the defaults are the published ones.

    Attributes:
        steps: forward passes, at least 1; twice as many rows with guidance.
        schedule: ``cosine`` or ``linear``; open-muse also has ``sigmoid`` and ``pow<P>`` (as 'pow2'), see ``share_left``.
        temperature: weight of the ranking noise at the first and the last step; one number means (number, 0.01). Or a course
            over the steps, see ``maskgen.sampling.temperatures``.
        guidance: s of u + s (c - u), see ``amused_guided_logits``.
        starting_mask_ratio: share of the tokens that is masked at the start, in (0, 1]; scales the schedule. The scheduler
            does not take it from the mask: give it when only a part is to be painted, or ``row`` for each row's own share,
            or ``batch`` for the share of the whole batch, as published inpainting (then an item depends on its batch).
        rehides: the published rule for given tokens, see above.
    """

    steps: int = 12
    schedule: str = "cosine"
    temperature: float | tuple[float, float] | str = (2.0, 0.0)
    guidance: float = 10.0
    starting_mask_ratio: Start = 1.0
    rehides: bool = False

    def __post_init__(self) -> None:
        share_left(self.schedule, 0, 1)
        ratio = self.starting_mask_ratio
        if not (ratio in ("row", "batch") or (isinstance(ratio, float | int) and 0 < ratio <= 1)):
            raise ValueError(f"starting_mask_ratio: got {ratio}, expected 0 < ratio <= 1, 'row' or 'batch'")
        ranking_temperatures(self.temperature, self.steps)

    @classmethod
    def of(cls, sampling: Sampling) -> AmusedSampling:
        """These fields of the settings of all loops, where a number of ``choice_temperature`` falls to 0."""
        course, chosen = sampling.choice_temperature, sampling.amused
        return cls(
            steps=sampling.steps,
            schedule=sampling.schedule,
            temperature=course if isinstance(course, str) else (course, 0.0),
            starting_mask_ratio=1.0 if chosen.counts == "all" else chosen.counts,
            rehides=chosen.rehides,
        )

    def shares(self, mask: Tensor) -> Tensor:
        """What scales the schedule of each row, float32 ``[B]``, for a mask ``[B, M]`` at the start."""
        if self.starting_mask_ratio == "row":
            return mask.float().mean(1)
        if self.starting_mask_ratio == "batch":
            return (mask.sum() / mask.numel()).expand(len(mask))
        return torch.full((len(mask),), self.starting_mask_ratio, device=mask.device)


@torch.no_grad()
def sample_amused(
    logits_fn: LogitsFn,
    tokens: Tensor,
    mask: Tensor,
    settings: AmusedSampling,
    *,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    start_step: int = 0,
    callback: Callable[[SampleStep], None] | None = None,
) -> Tensor:
    """Decide all masked tokens; arguments but ``settings``, result and errors as of ``maskgen.sampling.sample``.

    For each step k = start_step .. steps - 1:

    1. predict logits for all positions and sample every masked token from the softmax; given tokens keep their ids;
    2. after the last step that is the result; before, ``amused_mask_counts`` says how many are masked again;
    3. confidence = log-probability of the sampled token + temperature[k] x Gumbel noise;
    4. remask the least confident, strictly below the cut-off.
    """
    steps, known = settings.steps, math.log(torch.finfo(torch.float32).max)
    source = check_sampling(tokens, mask, steps, seeds, noise)
    if not 0 <= start_step < steps:
        raise ValueError(f"start_step: got {start_step}, expected 0 <= start_step < steps = {steps}")
    weights, shares = ranking_temperatures(settings.temperature, steps), settings.shares(mask.flatten(1))
    guess = hidden = tokens  # which holds the mask id wherever anything can be masked
    for step in range(start_step, steps):
        current = torch.where(mask, hidden, guess)
        logits = check_logits(logits_fn(current, step), tokens)
        if settings.rehides:
            hidden = torch.full_like(tokens, logits.shape[-1])
        guess = torch.where(mask, source.sample(step, logits.shape).add_(logits).argmax(-1), current)
        # The published order of operations: softmax, then the logarithm.
        ids = torch.where(mask, guess, 0)[..., None]  # given ids are the caller's and need not be columns
        log_probs = logits.softmax(-1).gather(-1, ids).squeeze(-1).clamp(min=1e-20).log().masked_fill(~mask, 0.0)
        if step + 1 < steps:
            flat = mask.flatten(1)
            counts = amused_mask_counts(settings.schedule, step, steps, flat.shape[1], flat.sum(1), shares)
            sure = log_probs.masked_fill(~mask, known).flatten(1)
            confidence = sure + weights[step] * source.choice(step, mask.shape).flatten(1)
            may_be_masked = torch.ones_like(flat) if settings.rehides else flat
            mask = mask_least_confident(confidence, may_be_masked, counts).view_as(mask)
        else:
            mask = torch.zeros_like(mask)
        if callback is not None:
            callback(SampleStep(step, steps, guess, mask, log_probs))
    return guess


def amused_mask_counts(
    schedule: str, step: int, steps: int, total: int, masked: Tensor, starting_mask_ratio: float | Tensor = 1.0
) -> Tensor:
    """How many tokens are masked again after a step: max(1, min(masked - 1, floor(total x ratio x left))), in float32.

    Args:
        schedule: see ``share_left``.
        step: counted from 0.
        steps: how many there are.
        total: M, masked or not.
        masked: how many tokens of each row are masked now, ``[B]``.
        starting_mask_ratio: in (0, 1], of all rows or ``[B]``.

    Returns:
        long ``[B]``.

    Raises:
        ValueError: an unknown schedule.
    """
    left = share_left(schedule, step + 1, steps).to(masked.device)
    planned = torch.floor(total * (starting_mask_ratio * left))
    return torch.minimum(masked - 1, planned.long()).clamp(min=1)


def share_left(schedule: str, done: int, steps: int) -> Tensor:
    """What a schedule leaves masked after ``done`` of ``steps``, a float32 scalar.

    With r = done / steps: ``cosine`` cos(r pi / 2), ``linear`` 1 - r, and in open-muse ``pow<P>`` 1 - r^P and ``sigmoid``
    (s(3) - s(6 r - 3)) / (s(3) - s(-3)). All of it is float32 with r rounded once, so that floors fall on the published
    side: cos(pi / 3) x 256 gives 127.

    Raises:
        ValueError: an unknown schedule.
    """
    ratio = torch.tensor(done) / steps
    if schedule == "cosine":
        return torch.cos(ratio * (math.pi / 2))
    if schedule == "linear":
        return 1 - ratio  # open-muse clamps this one, too, at a step whose count is 1 anyway
    if match := re.fullmatch(r"pow(\d+(?:\.\d+)?)", schedule):
        return (1 - ratio ** float(match[1])).clamp(1e-6, 1.0)
    if schedule == "sigmoid":
        low, high = torch.tensor(-3.0).sigmoid(), torch.tensor(3.0).sigmoid()
        return ((high - (6 * ratio - 3).sigmoid()) / (high - low)).clamp(1e-6, 1.0)
    raise ValueError(
        f"schedule: got {schedule!r}, expected 'cosine' or 'linear', the two of aMUSEd; or 'sigmoid' or 'pow<P>' (as "
        "'pow2') of open-muse"
    )


def ranking_temperatures(temperature: float | tuple[float, float] | str, steps: int) -> list[float]:
    """Weight of the ranking noise at each step: evenly from the first to the second number; one number v means (v, 0.01).

    Args:
        temperature: see above; or a word of ``maskgen.sampling.temperatures``.
        steps: how many.

    Raises:
        ValueError: ``steps`` < 1, or a number that is negative or not finite.
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    if isinstance(temperature, str):
        return temperatures(temperature, steps)
    first, last = temperature if isinstance(temperature, tuple | list) else (temperature, LAST_TEMPERATURE)
    if not (0 <= first < math.inf and 0 <= last < math.inf):
        raise ValueError(f"temperature: got {temperature}, expected finite numbers of 0 or more")
    return [float(value) for value in torch.linspace(first, last, steps)]


def amused_guided_logits(
    model: TokenModel, cond: Cond, unconditional: Cond, *, scale: float = 10.0, axes: Sequence[int] | None = None
) -> LogitsFn:
    """A ``logits_fn`` that pushes away from the empty prompt: u + s (c - u); s of 1 or less means no guidance.

    (In the terms of ``maskgen.sampling.guidance`` that is a weight of s - 1.) Both halves go through one forward of 2 B
    rows.

    Args:
        model: see ``TokenModel``.
        cond: the prompts.
        unconditional: the same fields for the empty prompt, or for what is not wanted; one row an item.
        scale: s; 10 in the releases.
        axes: token grid, passed on to the model.

    Raises:
        ValueError: a negative scale, or a field that only one of the two conditions has.
    """
    if scale < 0:
        raise ValueError(f"guidance: got {scale}, expected 0 or more (1 or less: none)")
    if scale <= 1:
        return model_logits(model, cond, axes)
    both = Cond.cat([unconditional, cond])

    def logits_fn(tokens: Tensor, step: int) -> Tensor:
        without, wanted = model(tokens.repeat(2, 1, 1), both, axes).float().chunk(2)
        return without + scale * (wanted - without)

    return logits_fn


PUBLISHED_SAMPLING: dict[str, AmusedSampling] = {"amused-256": AmusedSampling(), "amused-512": AmusedSampling()}
"""Published name -> settings of the pipeline in diffusers."""
