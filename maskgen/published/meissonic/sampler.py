"""Decoding with Meissonic: aMUSEd's loop, ``sample_amused``, with a model that is told the time (arXiv 2410.08261).

Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.published.amused.sampler import AmusedSampling, amused_guided_logits
from maskgen.published.amused.transformer import MICRO_CONDITIONS
from maskgen.sampling.guidance import TokenModel
from maskgen.sampling.loop import LogitsFn
from maskgen.sampling.speed.query import PartialLogits, Query

PUBLISHED_SAMPLING: dict[str, AmusedSampling] = {"meissonic-1024": AmusedSampling(steps=48, guidance=9.0)}
"""Published name -> settings of the text-to-image pipeline; image to image and inpainting keep aMUSEd's 12 steps and 10."""


def with_time(cond: Cond, time: float | Tensor) -> Cond:
    """The conditions with a time behind the five numbers of ``cond.micro``, in place of one that is there.

    Args:
        cond: ``micro`` is ``[B, 5]`` or ``[B, 6]``.
        time: one for all rows, or ``[B]``. Steps still to come in sampling; 1000 x the share of masked tokens in the
            published training script.

    Raises:
        ValueError: ``micro`` is missing or of another width.
    """
    micro = cond.micro
    if micro is None or micro.ndim != 2 or micro.shape[1] not in (MICRO_CONDITIONS, MICRO_CONDITIONS + 1):
        raise ValueError(
            f"cond.micro: got {None if micro is None else tuple(micro.shape)}, expected [B, {MICRO_CONDITIONS}]; give "
            "micro_conditions()"
        )
    # float32 whatever the five are in: half types round times
    column = torch.as_tensor(time, dtype=torch.float32, device=micro.device).expand(len(micro))
    return dataclasses.replace(cond, micro=torch.cat((micro[:, :MICRO_CONDITIONS].float(), column[:, None]), dim=1))


def timed_logits(logits_of: Callable[[Cond], LogitsFn], cond: Cond, steps: int) -> PartialLogits:
    """A ``logits_fn`` that tells the model the time of each step: steps - 1 - k at step k.

    Where a loop skips its first steps, as image to image does, k counts them too: the last step always has time 0.

    Args:
        logits_of: makes the ``logits_fn`` under the conditions of one step; any guidance may be in it.
        cond: conditions with ``micro`` from ``micro_conditions``.
        steps: how many the loop counts.

    Raises:
        ValueError: see ``with_time``; in the loop, if it counts more steps than told.
    """
    return _TimedLogits(logits_of, cond, steps)


class _TimedLogits(PartialLogits):
    """See ``timed_logits``; it answers for all positions."""

    is_partial = False

    def __init__(self, logits_of: Callable[[Cond], LogitsFn], cond: Cond, steps: int) -> None:
        with_time(cond, 0)  # what is wrong with it shows before the loop
        self._logits_of, self._cond, self._steps = logits_of, cond, steps

    def check_reuse(self, every: int) -> None:
        """See ``PartialLogits``."""
        raise ValueError(f"reuse: got {every}, but a Meissonic computes all positions or none; use 1 with this model")

    def answer(self, tokens: Tensor, step: int, query: Query) -> Tensor:
        """See ``PartialLogits``."""
        if not 0 <= step < self._steps:
            raise ValueError(f"step: got {step}, expected 0 to {self._steps - 1}; give the steps that the loop has")
        return self._logits_of(with_time(self._cond, self._steps - 1 - step))(tokens, step)


def meissonic_logits(
    model: TokenModel,
    cond: Cond,
    unconditional: Cond | None = None,
    *,
    steps: int,
    scale: float = 9.0,
    axes: Sequence[int] | None = None,
) -> PartialLogits:
    """``timed_logits`` with the published guidance, u + s (c - u), see ``amused_guided_logits``.

    Args:
        model: a ``MeissonicTransformer``.
        cond: the prompts, with ``micro`` from ``micro_conditions``.
        unconditional: context and pooled vector of the empty or a negative prompt; those of ``cond.null`` if left out.
        steps: how many the loop counts.
        scale: s; 9 in text to image, 1 or less for no guidance.
        axes: token grid, passed on to the model.

    Raises:
        ValueError: see ``timed_logits`` and ``amused_guided_logits``; guidance without anything to push away from.
    """
    weaker = cond if scale <= 1 else cond.unconditional() if unconditional is None else unconditional

    def logits_of(timed: Cond) -> LogitsFn:
        halves = (dataclasses.replace(half, micro=timed.micro, null=None) for half in (cond, weaker))
        return amused_guided_logits(model, *halves, scale=scale, axes=axes)

    return timed_logits(logits_of, cond, steps)
