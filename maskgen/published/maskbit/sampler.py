"""The sampler of MaskBit (Weber et al. 2024, arXiv 2409.16211; official ``sample``), as a pure function.

It differs from ``maskgen.sampling.sample`` in four ways: places are hidden **up to and including** the n-th least
confident (so ties hide more), counts come from a float32 ratio, an annealed softmax temperature may replace the fixed
one, and guidance grows over t / S. The K sub-tokens of all tokens are ranked together in both.

Shapes: B batch, N tokens, K sub-tokens, V ids of a sub-token (V itself is the id of a hidden one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from maskgen.conditioning import Cond
from maskgen.noise import Noise, SeededNoise, check_seeds
from maskgen.sampling.guidance import TokenModel
from maskgen.sampling.loop import LogitsFn, SampleStep

__all__ = [
    "MaskBitRamp",
    "MaskBitSchedule",
    "maskbit_counts",
    "maskbit_guided_logits",
    "maskbit_ratio",
    "maskbit_weight",
    "sample_maskbit",
]

MaskBitSchedule = Literal["arccos", "cosine", "linear", "square", "root"]

MaskBitRamp = Literal["none", "linear", "cosine"]

_SCHEDULES = ("arccos", "cosine", "linear", "square", "root")


@torch.no_grad()
def sample_maskbit(
    logits_fn: LogitsFn,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    *,
    steps: int,
    schedule: MaskBitSchedule = "arccos",
    temperature: float = 1.0,
    annealed: bool = False,
    choice_temperature: float = 4.5,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> torch.Tensor:
    """Decide all hidden sub-tokens in S = ``steps`` parallel steps.

    For each step t = 0 .. S - 1:

    1. predict logits and draw every hidden sub-token from softmax(logits / T); known ones keep their ids;
    2. ratio = (t + 1) / S; count = max(1, min(hidden now - 1, floor(hidden at the start x schedule(ratio)))), per row;
    3. confidence = log-probability of the draw + choice_temperature x (1 - ratio) x Gumbel noise;
    4. hide what is at or below the ``count``-th smallest confidence of the row and go on; the last draw is the result.

    Where the official code goes wrong, this does not: it takes the count of row 0 for all rows, and as soon as one place
    is left it hides everything again, known places included.

    Args:
        logits_fn: see ``maskgen.sampling.loop.LogitsFn``; with guidance, ``maskbit_guided_logits``.
        tokens: long ``[B, N, K]``, holding V at the masked places.
        mask: bool ``[B, N, K]``, True where a sub-token is to be decided. Rows may differ.
        steps: S, at least 1.
        schedule: see ``maskbit_ratio``.
        temperature: T, divides the logits; 0 takes the most likely.
        annealed: T = 0.5 + 0.8 (1 - ratio), whatever ``temperature`` says.
        choice_temperature: weight of the ranking noise at ratio 0 ("randomize_temperature").
        seeds: one integer an item: the item's sample depends on nothing else of the batch.
        noise: the source of randomness itself, instead of ``seeds``.
        callback: called after each step with a ``SampleStep``.

    Returns:
        long ``[B, N, K]`` without hidden sub-tokens.

    Raises:
        ValueError: shapes that do not fit, ``steps`` < 1, negative temperatures, an unknown schedule, neither or both of
            ``seeds`` and ``noise``.
    """
    _check(tokens, mask, steps, min(temperature, choice_temperature))
    maskbit_ratio(schedule, 0.5)
    if (noise is None) == (seeds is None):
        raise ValueError("sample_maskbit: give either seeds (one integer an item) or noise")
    source = noise or SeededNoise(check_seeds(seeds or [], len(tokens)), tokens.device)
    total = mask.flatten(1).sum(1)
    drawn = tokens
    for step in range(steps):
        rest = 1 - (step + 1) / steps
        current = torch.where(mask, tokens, drawn)
        logits = logits_fn(current, step).float()
        if logits.shape[:-1] != tokens.shape:
            raise ValueError(f"logits_fn returned {tuple(logits.shape)}, expected {tuple(tokens.shape)} and V")
        scale = 0.5 + 0.8 * rest if annealed else temperature
        if scale == 0:
            ids = logits.argmax(-1)
        else:
            logits = logits / scale
            ids = (logits + source.sample(step, logits.shape)).argmax(-1)
        log_probs = torch.log_softmax(logits, -1).gather(-1, ids[..., None]).squeeze(-1)
        drawn, log_probs = torch.where(mask, ids, current), log_probs.masked_fill(~mask, 0.0)
        confidence = log_probs + source.choice(step, mask.shape) * (choice_temperature * rest)
        counts = maskbit_counts(schedule, step, steps, total, mask.flatten(1).sum(1))
        mask = mask & _lowest(confidence.masked_fill(~mask, torch.inf), counts)
        if callback is not None:
            callback(SampleStep(step, steps, drawn, mask, log_probs))
    return drawn


def maskbit_counts(
    schedule: MaskBitSchedule, step: int, steps: int, total: torch.Tensor, unknown: torch.Tensor
) -> torch.Tensor:
    """How many places are hidden again after a step.

    Args:
        schedule: see ``maskbit_ratio``.
        step: t, from 0.
        steps: S.
        total: hidden places of each row when decoding began, ``[B]``.
        unknown: hidden places of each row now, ``[B]``.

    Returns:
        long ``[B]``: max(1, min(unknown - 1, floor(total x gamma))), in float32.
    """
    planned = torch.floor(maskbit_ratio(schedule, (step + 1) / steps).to(total.device) * total).long()
    return torch.minimum(planned, unknown - 1).clamp(min=1)


def maskbit_ratio(schedule: str, progress: float) -> torch.Tensor:
    """Share of the places that stays hidden, a float32 scalar in [1e-6, 1].

    Args:
        schedule: ``arccos`` acos(r) / (pi / 2), ``cosine`` cos(pi r / 2), ``linear`` 1 - r, ``square`` 1 - r^2 or ``root``
            1 - sqrt(r). All in float32: a last bit decides a token (cos(pi / 3) is a hair under 1 / 2).
        progress: r, share of the steps that is done.

    Raises:
        ValueError: for another schedule.
    """
    if schedule not in _SCHEDULES:
        raise ValueError(f"schedule: got {schedule!r}, expected one of {_SCHEDULES}")
    r = torch.tensor(progress, dtype=torch.float32)
    if schedule == "arccos":
        gamma = torch.acos(r) / (math.pi * 0.5)
    elif schedule == "cosine":
        gamma = torch.cos(r * math.pi * 0.5)
    else:
        gamma = 1 - r ** {"linear": 1.0, "square": 2.0, "root": 0.5}[schedule]
    return gamma.clamp(1e-6, 1.0)


def maskbit_guided_logits(
    model: TokenModel,
    cond: Cond,
    *,
    scale: float,
    steps: int,
    ramp: MaskBitRamp = "none",
    power: float = 4.0,
    axes: Sequence[int] | None = None,
) -> LogitsFn:
    """A ``logits_fn`` with MaskBit's guidance: c + w (c - u), both halves in one forward of 2 B rows.

    Args:
        model: a model with a null class.
        cond: the conditions; the unconditional half is ``cond.unconditional()``.
        scale: s, 0 for none. Steps of weight 0 run the conditional half alone, which is exact.
        steps: S.
        ramp: see ``maskbit_weight``.
        power: of the "cosine" ramp; 4.0 is the default of the official function.
        axes: token grid, passed on to the model.

    Raises:
        ValueError: negative scale or power, or an unknown ramp.
    """
    if scale < 0 or power < 0:
        raise ValueError(f"guidance scale and power: got {scale} and {power}, expected 0 or more")
    weights = [maskbit_weight(ramp, scale, step, steps, power) for step in range(steps)]
    both = Cond.cat([cond, cond.unconditional()])

    def logits_fn(tokens: torch.Tensor, step: int) -> torch.Tensor:
        if weights[step] == 0:
            return model(tokens, cond, axes)
        conditional, unconditional = model(tokens.repeat(2, 1, 1), both, axes).float().chunk(2)
        return conditional + weights[step] * (conditional - unconditional)

    return logits_fn


def maskbit_weight(ramp: str, scale: float, step: int, steps: int, power: float = 4.0) -> float:
    """Guidance weight of step t of S: ``none`` s; ``linear`` s t / S; ``cosine`` s (1 - cos(pi (t / S)^p)) / 2.

    The last step stays below s, for t / S never reaches 1.

    Raises:
        ValueError: for another ramp.
    """
    progress = step / steps
    if ramp == "none":
        return scale
    if ramp == "linear":
        return scale * progress
    if ramp == "cosine":
        return scale * (1 - math.cos(math.pi * progress**power)) / 2
    raise ValueError(f"guidance ramp: got {ramp!r}, expected 'none', 'linear' or 'cosine'")


def _lowest(confidence: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Bool ``[B, N, K]``: at or below the ``counts``-th smallest of the row (counts from 1), ties included."""
    ranked = confidence.flatten(1).sort(dim=-1).values
    return confidence <= ranked.gather(-1, counts[:, None] - 1)[..., None]


def _check(tokens: torch.Tensor, mask: torch.Tensor, steps: int, lowest_temperature: float) -> None:
    if tokens.ndim != 3 or tokens.dtype != torch.long or 0 in tokens.shape[1:]:
        raise ValueError(f"tokens: got {tokens.dtype} {tuple(tokens.shape)}, expected int64 [B, N, K], not empty")
    if mask.shape != tokens.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask: got {mask.dtype} {tuple(mask.shape)}, expected bool {tuple(tokens.shape)}")
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    if lowest_temperature < 0:
        raise ValueError(f"temperature and choice_temperature: got {lowest_temperature}, expected 0 or more")
