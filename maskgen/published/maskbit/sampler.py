"""The sampler of MaskBit (Weber et al. 2024, arXiv 2409.16211; official ``sample``), as a pure function.

It differs from ``maskgen.sampling.sample`` in four ways: tokens are remasked **up to and including** the n-th least
confident (so ties mask more), counts come from a float32 ratio, an annealed softmax temperature may replace the fixed
one, and guidance grows over t / S. The K sub-tokens of all tokens are ranked together in both.

Shapes: B batch, N tokens, K sub-tokens, V ids of a sub-token (V itself is the mask id).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.noise import Noise
from maskgen.sampling.checks import check_logits, check_numbers, check_sampling
from maskgen.sampling.guidance import Guidance, TokenModel, weighted_logits
from maskgen.sampling.loop import LogitsFn, SampleStep
from maskgen.sampling.selectors.ranking import mask_lowest

MaskBitSchedule = Literal["arccos", "cosine", "linear", "square", "root"]


@dataclass(frozen=True, kw_only=True)
class MaskBitSampling:
    """Settings of one decoding.

    Attributes:
        steps: S, at least 1.
        schedule: see ``maskbit_ratio``.
        temperature: T, divides the logits; 0 takes the most likely.
        annealed: T = 0.5 + 0.8 (1 - ratio), whatever ``temperature`` says.
        choice_temperature: weight of the ranking noise at ratio 0 ("randomize_temperature").
    """

    steps: int = 64
    schedule: MaskBitSchedule = "arccos"
    temperature: float = 1.0
    annealed: bool = False
    choice_temperature: float = 4.5

    def __post_init__(self) -> None:
        maskbit_ratio(self.schedule, 0.5)
        check_numbers(temperature=self.temperature, choice_temperature=self.choice_temperature)


@torch.no_grad()
def sample_maskbit(
    logits_fn: LogitsFn,
    tokens: Tensor,
    mask: Tensor,
    settings: MaskBitSampling,
    *,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> Tensor:
    """Decide all masked sub-tokens; arguments but ``settings``, result and errors as of ``maskgen.sampling.sample``.

    For each step t = 0 .. S - 1:

    1. predict logits and sample every masked sub-token from softmax(logits / T); given ones keep their ids;
    2. ratio = (t + 1) / S; count = max(1, min(masked now - 1, floor(masked at the start x schedule(ratio)))), per row;
    3. confidence = log-probability of the sample + choice_temperature x (1 - ratio) x Gumbel noise;
    4. remask what is at or below the ``count``-th smallest confidence of the row and go on; the last sample is the result.

    Where the official code goes wrong, this does not: it takes the count of row 0 for all rows, and as soon as one token
    is left it masks everything again, given ones included.
    """
    steps = settings.steps
    source = check_sampling(tokens, mask, steps, seeds, noise)
    total = mask.flatten(1).sum(1)
    guess = tokens
    for step in range(steps):
        rest = 1 - (step + 1) / steps
        current = torch.where(mask, tokens, guess)
        logits = check_logits(logits_fn(current, step), tokens)
        temperature = 0.5 + 0.8 * rest if settings.annealed else settings.temperature
        if temperature == 0:
            ids = logits.argmax(-1)
        else:
            logits = logits / temperature
            ids = (logits + source.sample(step, logits.shape)).argmax(-1)
        log_probs = torch.log_softmax(logits, -1).gather(-1, ids[..., None]).squeeze(-1)
        guess, log_probs = torch.where(mask, ids, current), log_probs.masked_fill(~mask, 0.0)
        confidence = log_probs + source.choice(step, mask.shape) * (settings.choice_temperature * rest)
        counts = maskbit_counts(settings.schedule, step, steps, total, mask.flatten(1).sum(1))
        mask = mask_lowest(confidence, mask, counts)
        if callback is not None:
            callback(SampleStep(step, steps, guess, mask, log_probs))
    return guess


def maskbit_counts(schedule: MaskBitSchedule, step: int, steps: int, total: Tensor, masked: Tensor) -> Tensor:
    """How many sub-tokens are masked again after a step.

    Args:
        schedule: see ``maskbit_ratio``.
        step: t, from 0.
        steps: S.
        total: masked ones of each row when decoding began, ``[B]``.
        masked: those of each row now, ``[B]``.

    Returns:
        long ``[B]``: max(1, min(masked - 1, floor(total x gamma))), in float32.
    """
    planned = torch.floor(maskbit_ratio(schedule, (step + 1) / steps).to(total.device) * total).long()
    return torch.minimum(planned, masked - 1).clamp(min=1)


def maskbit_ratio(schedule: str, progress: float) -> Tensor:
    """Share of the sub-tokens that stays masked, a float32 scalar in [1e-6, 1].

    Args:
        schedule: ``arccos`` acos(r) / (pi / 2), ``cosine`` cos(pi r / 2), ``linear`` 1 - r, ``square`` 1 - r^2 or ``root``
            1 - sqrt(r). All in float32: a last bit decides a token (cos(pi / 3) is a hair under 1 / 2).
        progress: r, share of the steps that is done.

    Raises:
        ValueError: for another schedule.
    """
    if schedule not in get_args(MaskBitSchedule):
        raise ValueError(f"schedule: got {schedule!r}, expected one of {get_args(MaskBitSchedule)}")
    r = torch.tensor(progress, dtype=torch.float32)
    if schedule == "arccos":
        gamma = torch.acos(r) / (math.pi * 0.5)
    elif schedule == "cosine":
        gamma = torch.cos(r * math.pi * 0.5)
    else:
        gamma = 1 - r ** {"linear": 1.0, "square": 2.0, "root": 0.5}[schedule]
    return gamma.clamp(1e-6, 1.0)


def maskbit_weights(guidance: Guidance, steps: int) -> list[float]:
    """Guidance weight of every step t of S.

    ``constant`` s (officially "none"); ``linear`` s t / S; ``cosine``, and ``power-cosine`` as well,
    s (1 - cos(pi (t / S)^power)) / 2. The last step stays below s, for t / S never reaches 1.
    """
    scale = guidance.scale
    if guidance.ramp == "constant":
        return [scale] * steps
    if guidance.ramp == "linear":
        return [scale * (step / steps) for step in range(steps)]
    return [scale * (1 - math.cos(math.pi * (step / steps) ** guidance.power)) / 2 for step in range(steps)]


def maskbit_guided_logits(
    model: TokenModel, cond: Cond, guidance: Guidance, *, steps: int, axes: Sequence[int] | None = None
) -> LogitsFn:
    """A ``logits_fn`` with ``maskbit_weights``; see ``maskgen.sampling.guidance.guided_logits``."""
    return weighted_logits(model, cond, cond.unconditional(), maskbit_weights(guidance, steps), axes)
