"""Classifier-free guidance as a wrapper around the model, not a flag of the sampler (Ho and Salimans 2022, 2207.12598).

Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch

from maskgen.conditioning import Cond

__all__ = ["GuidanceRamp", "TokenModel", "guidance_weight", "guided_logits", "model_logits"]

GuidanceRamp = Literal["constant", "linear", "cosine"]


class TokenModel(Protocol):
    """What guidance needs of a model."""

    def __call__(self, tokens: torch.Tensor, cond: Cond, axes: Sequence[int] | None = None) -> torch.Tensor:
        """Logits ``[B, N, K, V]`` of tokens ``[B, N, K]``."""
        ...


def model_logits(
    model: TokenModel, cond: Cond, axes: Sequence[int] | None = None
) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """The plain ``logits_fn(tokens, step)`` of a model under fixed conditions."""
    return lambda tokens, step: model(tokens, cond, axes)


def guided_logits(
    model: TokenModel,
    cond: Cond,
    *,
    scale: float,
    steps: int,
    ramp: GuidanceRamp = "constant",
    axes: Sequence[int] | None = None,
) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """A ``logits_fn`` that pushes away from the unconditional prediction: c + w (c - u).

    Both halves go through one forward of 2 B rows; steps whose weight is 0 run the conditional half alone, which is exact.

    Args:
        model: see ``TokenModel``; must have been trained with label dropout.
        cond: the conditions; the unconditional half is ``cond.without_labels()``.
        scale: largest weight w; 0 means no guidance.
        steps: number of sampling steps, for the ramp.
        ramp: see ``guidance_weight``.
        axes: token grid, passed on to the model.

    Raises:
        ValueError: negative scale or unknown ramp.
    """
    if scale < 0:
        raise ValueError(f"guidance: got {scale}, expected 0 (none) or more")
    weights = [guidance_weight(ramp, scale, step, steps) for step in range(steps)]
    both = Cond.cat([cond, cond.without_labels()])

    def logits_fn(tokens: torch.Tensor, step: int) -> torch.Tensor:
        if weights[step] == 0:
            return model(tokens, cond, axes)
        conditional, unconditional = model(tokens.repeat(2, 1, 1), both, axes).float().chunk(2)
        return conditional + weights[step] * (conditional - unconditional)

    return logits_fn


def guidance_weight(ramp: str, scale: float, step: int, steps: int) -> float:
    """Weight of one step: ``constant`` w; ``linear`` w t / (T - 1); ``cosine`` w (1 - cos(pi t / (T - 1))) / 2.

    Raises:
        ValueError: for an unknown ramp.
    """
    progress = step / (steps - 1) if steps > 1 else 1.0
    if ramp == "constant":
        return scale
    if ramp == "linear":
        return scale * progress
    if ramp == "cosine":
        return scale * (1 - math.cos(math.pi * progress)) / 2
    raise ValueError(f"guidance ramp: got {ramp!r}, expected 'constant', 'linear' or 'cosine'")
