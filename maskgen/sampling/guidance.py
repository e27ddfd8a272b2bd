"""Guidance as a wrapper around the model, not a flag of the sampler: c + w (c - u).

c is the model's prediction and u a weaker one, from which it is pushed away with weight w. What u is makes the kind:

- without the class: classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598);
- with another class, a negative label;
- with the same class, but fewer of the visible tokens: self-guidance.

Both halves go through one forward of 2 B rows; steps whose weight is 0 run the conditional half alone, which is exact. w may
change over the steps, and may be 0 outside an interval of them.

Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.noise import SeededNoise
from maskgen.sampling.layers import Layer
from maskgen.sampling.speed.forward import ModelLogits
from maskgen.sampling.speed.query import PartialLogits, Query

GuidanceRamp = Literal["constant", "linear", "cosine", "power-cosine"]

Weaker = Literal["unconditional", "label", "self"]

_WEAKER = 4  # stream of the noise that masks visible tokens; the samplers use 1 to 3


@dataclass(frozen=True, kw_only=True)
class Guidance(Layer):
    """How strongly, when, and away from what the prediction is pushed.

    The weight w of step t of T, at the progress r = t / (T - 1) (a single step has r = 1), is ``scale`` times the ramp:
    ``constant`` 1; ``linear`` r; ``cosine`` (1 - cos(pi r)) / 2; ``power-cosine`` (1 - cos(pi r^power)) / 2, the shape of
    MaskBit and 1d-tokenizer, who take r = t / T. It is 0 where r is outside the interval (Kynkaanniemi et al. 2024, arXiv
    2404.07724; for masked models eMIGM, arXiv 2503.07197).

    Attributes:
        scale: largest weight, 0 for none.
        ramp: how the weight grows over the steps.
        power: exponent of ``power-cosine``, and of ``cosine`` with the samplers ``onedtok`` and ``maskbit``; over 0.
        interval: (first, last), the part of the progress, in [0, 1], that is guided at all.
        against: what is pushed away from: the prediction without a class (``unconditional``), that for the class
            ``negative_label`` (``label``), or that of the same model which sees fewer tokens (``self``).
        negative_label: a class number, for ``against: label``.
        drop: share of the visible tokens, in (0, 1], that ``against: self`` masks.
    """

    scale: float = 0.0
    ramp: GuidanceRamp = "constant"
    power: float = 3.0
    interval: tuple[float, float] = (0.0, 1.0)
    against: Weaker = "unconditional"
    negative_label: int | None = None
    drop: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"guidance.scale: got {self.scale}, expected 0 (none) or more")
        if self.ramp not in get_args(GuidanceRamp):
            raise ValueError(
                f"guidance.ramp: got {self.ramp!r}, expected 'constant', 'linear' or 'cosine', or 'power-cosine' with an "
                "exponent"
            )
        if not 0 < self.power < math.inf:
            raise ValueError(f"guidance.power: got {self.power}, expected a finite number over 0")
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError(
                f"guidance.interval: got {self.interval}, expected 0 <= first <= last <= 1, as shares of the progress"
            )
        if self.against not in get_args(Weaker):
            raise ValueError(f"guidance.against: got {self.against!r}, expected 'unconditional', 'label' or 'self'")
        if (self.against == "label") == (self.negative_label is None):
            raise ValueError(
                f"guidance.negative_label: got {self.negative_label} with guidance.against {self.against!r}, expected a "
                "class number with 'label', and none with the others"
            )
        if not 0 < self.drop <= 1:
            raise ValueError(f"guidance.drop: got {self.drop}, expected a share over 0, at most 1")

    def weights(self, steps: int) -> list[float]:
        """W of every step."""
        return [self._weight(step / (steps - 1) if steps > 1 else 1.0) for step in range(steps)]

    def _weight(self, r: float) -> float:
        if not self.interval[0] <= r <= self.interval[1]:
            return 0.0
        if self.ramp in ("constant", "linear"):
            return self.scale * (1.0 if self.ramp == "constant" else r)
        return self.scale * ((1 - math.cos(math.pi * r ** (self.power if self.ramp == "power-cosine" else 1))) / 2)


class TokenModel(Protocol):
    """What guidance needs of a model."""

    def __call__(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        """Logits ``[B, N, K, V]`` of tokens ``[B, N, K]``."""
        ...


def model_logits(model: TokenModel, cond: Cond, axes: Sequence[int] | None = None) -> ModelLogits:
    """The plain ``logits_fn(tokens, step)`` of a model under fixed conditions."""
    return ModelLogits(model, cond, axes)


def guided_logits(
    model: TokenModel,
    cond: Cond,
    guidance: Guidance,
    *,
    steps: int,
    against: Cond | None = None,
    axes: Sequence[int] | None = None,
) -> PartialLogits:
    """A ``logits_fn`` that pushes away from the unconditional prediction, or from that for another class.

    Args:
        model: see ``TokenModel``; must have been trained with label dropout, unless ``against`` names classes.
        cond: the conditions.
        guidance: its ``weights``; what it pushes ``against`` is up to the caller.
        steps: number of sampling steps.
        against: conditions of the weaker half, with the same fields as ``cond``; ``cond.unconditional()`` if left out.
        axes: token grid, passed on to the model.

    Raises:
        ValueError: ``against`` with other fields.
    """
    weaker = cond.unconditional() if against is None else against
    return weighted_logits(model, cond, weaker, guidance.weights(steps), axes)


def self_guided_logits(
    model: TokenModel,
    cond: Cond,
    guidance: Guidance,
    *,
    steps: int,
    seeds: Sequence[int],
    mask_id: int,
    axes: Sequence[int] | None = None,
) -> PartialLogits:
    """A ``logits_fn`` that pushes away from what the same model says when it sees fewer tokens, under the same conditions.

    The weaker half has each visible token masked with probability ``guidance.drop``. This needs neither label dropout nor
    classes. The form c + w (c - u) with a weakened u of the same model is that of Hur et al. 2024 (arXiv 2410.13136, read in
    their code), who train a small module that smooths the input of u; masking tokens instead needs no training and is ours.
    At a step with no visible token both halves are the same, and so is the result without guidance.

    Args:
        model: see ``TokenModel``.
        cond: the conditions of both halves.
        guidance: its ``weights`` and ``drop``.
        steps: number of sampling steps.
        seeds: one integer an item; which tokens are masked depends on it, and on the step, alone.
        mask_id: V for our models.
        axes: token grid, passed on to the model.
    """
    noise: list[SeededNoise] = []

    def weaker(tokens: Tensor, step: int) -> Tensor:
        if not noise:
            noise.append(SeededNoise(seeds, tokens.device))
        return tokens.masked_fill(noise[0].uniform(_WEAKER, step, tokens.shape) < guidance.drop, mask_id)

    return _GuidedLogits(model, cond, cond, guidance.weights(steps), axes, weaker)


def weighted_logits(
    model: TokenModel, cond: Cond, against: Cond, weights: Sequence[float], axes: Sequence[int] | None = None
) -> PartialLogits:
    """C + w (c - u) with the weight of each step.

    Args:
        model: see ``TokenModel``.
        cond: conditions of c.
        against: conditions of u.
        weights: w of each step.
        axes: token grid, passed on to the model.

    Raises:
        ValueError: ``cond`` and ``against`` have different fields.
    """
    return _GuidedLogits(model, cond, against, weights, axes)


class _GuidedLogits(PartialLogits):
    """See ``weighted_logits``; u sees ``weaker(tokens, step)`` instead of the tokens, if that is given."""

    def __init__(
        self,
        model: TokenModel,
        cond: Cond,
        against: Cond,
        weights: Sequence[float],
        axes: Sequence[int] | None,
        weaker: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        self._conditional = ModelLogits(model, cond, axes)
        # What the empty prompt is has been used by now, and models do not look at it.
        self._both = ModelLogits(model, Cond.cat([replace(half, null=None) for half in (cond, against)]), axes)
        self._weights, self._weaker = weights, weaker

    @property
    def is_partial(self) -> bool:
        """See ``PartialLogits``."""
        return self._both.is_partial

    def check_reuse(self, every: int) -> None:
        """See ``PartialLogits``."""
        self._both.check_reuse(every)
        if self._weaker is not None:
            raise ValueError(f"reuse: got {every} with guidance that masks other tokens at every step; use 1 with it")

    def answer(self, tokens: Tensor, step: int, query: Query) -> Tensor:
        """See ``PartialLogits``."""
        if self._weights[step] == 0:
            return self._conditional.answer(tokens, step, query)
        seen = tokens if self._weaker is None else self._weaker(tokens, step)
        both = self._both.answer(torch.cat((tokens, seen)), step, query.doubled())
        conditional, weak = both.float().chunk(2)
        return conditional + self._weights[step] * (conditional - weak)
