"""Guidance as a wrapper around the model, not a flag of the sampler: c + w (c - u).

c is the model's prediction and u a weaker one, from which it is pushed away with weight w. What u is makes the kind:

- without the class: classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598);
- with another class, a negative label;
- with the same class, but fewer of the decided tokens: self-guidance.

Both halves go through one forward of 2 B rows; steps whose weight is 0 run the conditional half alone, which is exact
(``maskgen.sampling.speed.prediction``). w may change over the steps, and may be 0 outside an interval of them.

Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import torch

from maskgen.conditioning import Cond
from maskgen.noise import SeededNoise
from maskgen.sampling.speed.prediction import Prediction

__all__ = [
    "GuidanceRamp",
    "TokenModel",
    "guidance_weight",
    "guidance_weights",
    "guided_logits",
    "model_logits",
    "self_guided_logits",
]

GuidanceRamp = Literal["constant", "linear", "cosine", "power-cosine"]

_WEAKER = 4  # stream of the noise that hides decided tokens; the samplers use 1 to 3


class TokenModel(Protocol):
    """What guidance needs of a model."""

    def __call__(self, tokens: torch.Tensor, cond: Cond, axes: Sequence[int] | None = None) -> torch.Tensor:
        """Logits ``[B, N, K, V]`` of tokens ``[B, N, K]``."""
        ...


def model_logits(model: TokenModel, cond: Cond, axes: Sequence[int] | None = None) -> Prediction:
    """The plain ``logits_fn(tokens, step)`` of a model under fixed conditions."""
    return Prediction(model, cond, axes)


def guided_logits(
    model: TokenModel,
    cond: Cond,
    *,
    scale: float,
    steps: int,
    ramp: GuidanceRamp = "constant",
    power: float = 3.0,
    interval: tuple[float, float] = (0.0, 1.0),
    against: Cond | None = None,
    axes: Sequence[int] | None = None,
) -> Prediction:
    """A ``logits_fn`` that pushes away from the unconditional prediction, or from that for another class.

    Args:
        model: see ``TokenModel``; must have been trained with label dropout, unless ``against`` names classes.
        cond: the conditions.
        scale: largest weight w; 0 means no guidance.
        steps: number of sampling steps, for the ramp.
        ramp: see ``guidance_weight``.
        power: see ``guidance_weight``.
        interval: see ``guidance_weight``.
        against: conditions of the weaker half, with the same fields as ``cond``; ``cond.unconditional()`` if left out.
        axes: token grid, passed on to the model.

    Raises:
        ValueError: negative scale, unknown ramp, a power or an interval out of range, or ``against`` with other fields.
    """
    weights = guidance_weights(ramp, scale, steps, power, interval)
    return Prediction(model, cond, axes, against=cond.unconditional() if against is None else against, weights=weights)


def self_guided_logits(
    model: TokenModel,
    cond: Cond,
    *,
    scale: float,
    steps: int,
    seeds: Sequence[int],
    mask_id: int,
    drop: float = 0.3,
    ramp: GuidanceRamp = "constant",
    power: float = 3.0,
    interval: tuple[float, float] = (0.0, 1.0),
    axes: Sequence[int] | None = None,
) -> Prediction:
    """A ``logits_fn`` that pushes away from what the same model says when it sees fewer tokens, under the same conditions.

    The weaker half has each visible token hidden with probability ``drop``. This needs neither label dropout nor classes.
    The form c + w (c - u) with a weakened u of the same model is that of Hur et al. 2024 (arXiv 2410.13136, read in their
    code), who train a small module that smooths the input of u; hiding tokens instead needs no training and is ours. At a
    step with no visible token both halves are the same, and so is the result without guidance.

    Args:
        model: see ``TokenModel``.
        cond: the conditions of both halves.
        scale: see ``guided_logits``.
        steps: see ``guided_logits``.
        seeds: one integer an item; which tokens are hidden depends on it, and on the step, alone.
        mask_id: id of a hidden token (V for our models).
        drop: share in (0, 1].
        ramp: see ``guidance_weight``.
        power: see ``guidance_weight``.
        interval: see ``guidance_weight``.
        axes: token grid, passed on to the model.

    Raises:
        ValueError: see ``guided_logits``; ``drop`` out of range.
    """
    if not 0 < drop <= 1:
        raise ValueError(f"guidance drop: got {drop}, expected a share over 0, at most 1")
    weights = guidance_weights(ramp, scale, steps, power, interval)
    noise: list[SeededNoise] = []

    def weaker(tokens: torch.Tensor, step: int) -> torch.Tensor:
        if not noise:
            noise.append(SeededNoise(seeds, tokens.device))
        return tokens.masked_fill(noise[0].uniform(_WEAKER, step, tokens.shape) < drop, mask_id)

    return Prediction(model, cond, axes, against=cond, weights=weights, weaker=weaker)


def guidance_weight(
    ramp: str, scale: float, step: int, steps: int, power: float = 3.0, interval: tuple[float, float] = (0.0, 1.0)
) -> float:
    """Weight of one step t of T, at the progress r = t / (T - 1); a single step has r = 1.

    Args:
        ramp: ``constant`` w; ``linear`` w r; ``cosine`` w (1 - cos(pi r)) / 2; ``power-cosine`` w (1 - cos(pi r^p)) / 2,
            the shape of MaskBit and 1d-tokenizer, who take r = t / T.
        scale: w.
        step: t, from 0.
        steps: T.
        power: p of ``power-cosine``.
        interval: (a, b); the weight is 0 where r is outside [a, b] (Kynkaanniemi et al. 2024, arXiv 2404.07724; for masked
            models eMIGM, arXiv 2503.07197).

    Raises:
        ValueError: for an unknown ramp.
    """
    progress = step / (steps - 1) if steps > 1 else 1.0
    shapes = {
        "constant": 1.0,
        "linear": progress,
        "cosine": (1 - math.cos(math.pi * progress)) / 2,
        "power-cosine": (1 - math.cos(math.pi * progress**power)) / 2,
    }
    if ramp not in shapes:
        raise ValueError(
            f"guidance ramp: got {ramp!r}, expected 'constant', 'linear' or 'cosine', or 'power-cosine' with an exponent"
        )
    return scale * shapes[ramp] if interval[0] <= progress <= interval[1] else 0.0


def guidance_weights(
    ramp: str, scale: float, steps: int, power: float = 3.0, interval: tuple[float, float] = (0.0, 1.0)
) -> list[float]:
    """The weight of every step; arguments as of ``guidance_weight``.

    Raises:
        ValueError: negative scale, unknown ramp, a power or an interval out of range.
    """
    if not 0 <= scale < math.inf:
        raise ValueError(f"guidance: got {scale}, expected 0 (none) or more")
    if not 0 < power < math.inf:
        raise ValueError(f"guidance power: got {power}, expected a finite number over 0")
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(
            f"guidance interval: got {interval}, expected 0 <= first <= last <= 1, as shares of the progress"
        )
    return [guidance_weight(ramp, scale, step, steps, power, interval) for step in range(steps)]
