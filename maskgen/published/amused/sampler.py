"""aMUSEd's decoding loop (AmusedScheduler of diffusers; Patil et al. 2024, arXiv 2401.01808).

It differs from ``maskgen.sampling.sample`` in three ways: the weight of the ranking noise runs from one number to another
instead of falling with the share of the work left; the schedule counts all tokens, not those masked at the start; and a
``starting_mask_ratio`` scales it, for editing.

Shapes: B batch, N tokens, K codebooks, V vocabulary (V is the mask id), M = N x K tokens of a row.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.noise import Noise
from maskgen.sampling.checks import check_logits, check_sampling
from maskgen.sampling.guidance import TokenModel, model_logits
from maskgen.sampling.loop import LogitsFn, SampleStep
from maskgen.sampling.selectors.ranking import mask_least_confident

LAST_TEMPERATURE = 0.01  # where a single ranking temperature falls to


@dataclass(frozen=True, kw_only=True)
class AmusedSampling:
    """Settings of one decoding; the defaults are the published ones.

    Attributes:
        steps: forward passes, at least 1; twice as many rows with guidance.
        schedule: ``cosine`` or ``linear``.
        temperature: weight of the ranking noise at the first and the last step; one number means (number, 0.01).
        guidance: s of u + s (c - u), see ``amused_guided_logits``.
        starting_mask_ratio: share of the tokens that is masked at the start, in (0, 1]; scales the schedule. As in the
            scheduler it is not taken from the mask, so give it when only a part is to be painted.
    """

    steps: int = 12
    schedule: str = "cosine"
    temperature: float | tuple[float, float] = (2.0, 0.0)
    guidance: float = 10.0
    starting_mask_ratio: float = 1.0

    def __post_init__(self) -> None:
        _check_schedule(self.schedule, self.starting_mask_ratio)
        ranking_temperatures(self.temperature, self.steps)


@torch.no_grad()
def sample_amused(
    logits_fn: LogitsFn,
    tokens: Tensor,
    mask: Tensor,
    settings: AmusedSampling,
    *,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> Tensor:
    """Decide all masked tokens; arguments but ``settings``, result and errors as of ``maskgen.sampling.sample``.

    For each step k = 0 .. steps - 1:

    1. predict logits for all positions and sample every masked token from the softmax; given tokens keep their ids;
    2. after the last step that is the result; before, ``amused_mask_counts`` says how many are masked again;
    3. confidence = log-probability of the sampled token + temperature[k] x Gumbel noise;
    4. remask the least confident, strictly below the cut-off.

    The published scheduler gives visible tokens the logarithm of the largest float as confidence (88.7), not infinity, and
    masks a token of a row in which nothing is masked. So noise of a weight above 4 or so, or a row without a masked token,
    makes it change given tokens. Here given tokens are never masked; apart from that the results are the same.
    """
    steps = settings.steps
    source = check_sampling(tokens, mask, steps, seeds, noise)
    weights = ranking_temperatures(settings.temperature, steps)
    guess = tokens
    for step in range(steps):
        current = torch.where(mask, tokens, guess)  # ``tokens`` holds the mask id wherever anything can be masked
        logits = check_logits(logits_fn(current, step), tokens)
        guess = torch.where(mask, source.sample(step, logits.shape).add_(logits).argmax(-1), current)
        # The published order of operations: softmax, then the logarithm.
        ids = torch.where(mask, guess, 0)[..., None]  # given ids are the caller's and need not be columns
        log_probs = logits.softmax(-1).gather(-1, ids).squeeze(-1).log().masked_fill(~mask, 0.0)
        if step + 1 < steps:
            flat = mask.flatten(1)
            ratio = settings.starting_mask_ratio
            counts = amused_mask_counts(settings.schedule, step, steps, flat.shape[1], flat.sum(1), ratio)
            confidence = log_probs.flatten(1) + weights[step] * source.choice(step, mask.shape).flatten(1)
            mask = mask_least_confident(confidence, flat, counts).view_as(mask)
        else:
            mask = torch.zeros_like(mask)
        if callback is not None:
            callback(SampleStep(step, steps, guess, mask, log_probs))
    return guess


def amused_mask_counts(
    schedule: str, step: int, steps: int, total: int, masked: Tensor, starting_mask_ratio: float = 1.0
) -> Tensor:
    """How many tokens are masked again after a step: max(1, min(masked - 1, floor(total x ratio))), in float32.

    With r = (step + 1) / steps the ratio is starting_mask_ratio times cos(r pi / 2) or 1 - r. All of it is float32 with r
    rounded once, so that floors fall on the published side: cos(pi / 3) x 256 gives 127.

    Args:
        schedule: ``cosine`` or ``linear``.
        step: counted from 0.
        steps: how many there are.
        total: M, masked or not.
        masked: how many tokens of each row are masked now, ``[B]``.
        starting_mask_ratio: in (0, 1].

    Returns:
        long ``[B]``.

    Raises:
        ValueError: an unknown schedule, or a ratio outside (0, 1].
    """
    _check_schedule(schedule, starting_mask_ratio)
    ratio = torch.tensor(step + 1) / steps
    left = torch.cos(ratio * (math.pi / 2)) if schedule == "cosine" else 1 - ratio
    planned = torch.floor(total * (starting_mask_ratio * left)).to(masked.device)
    return torch.minimum(masked - 1, planned.long()).clamp(min=1)


def ranking_temperatures(temperature: float | tuple[float, float], steps: int) -> list[float]:
    """Weight of the ranking noise at each step: evenly from the first to the second number; one number v means (v, 0.01).

    Raises:
        ValueError: ``steps`` < 1, or a number that is negative or not finite.
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
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


def _check_schedule(schedule: str, starting_mask_ratio: float) -> None:
    if schedule not in ("cosine", "linear"):
        raise ValueError(f"schedule: got {schedule!r}, expected 'cosine' or 'linear', the two of aMUSEd")
    if not 0 < starting_mask_ratio <= 1:
        raise ValueError(f"starting_mask_ratio: got {starting_mask_ratio}, expected 0 < ratio <= 1")


PUBLISHED_SAMPLING: dict[str, AmusedSampling] = {"amused-256": AmusedSampling(), "amused-512": AmusedSampling()}
"""Published name -> settings of the pipeline in diffusers."""
