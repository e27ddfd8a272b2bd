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


def timed_logits(logits_of: Callable[[Cond], LogitsFn], cond: Cond, steps: int) -> LogitsFn:
    """A ``logits_fn`` that tells the model the time of each step: steps - 1 - k at step k.

    Where a loop skips its first steps, as image to image does, k counts them too: the last step always has time 0.

    Args:
        logits_of: makes the ``logits_fn`` under the conditions of one step; any guidance may be in it.
        cond: conditions with ``micro`` from ``micro_conditions``.
        steps: how many the loop counts.

    Raises:
        ValueError: see ``with_time``; in the loop, if it counts more steps than told.
    """
    with_time(cond, 0)

    def logits_fn(tokens: Tensor, step: int) -> Tensor:
        if not 0 <= step < steps:
            raise ValueError(f"step: got {step}, expected 0 to {steps - 1}; give the steps that the loop has")
        return logits_of(with_time(cond, steps - 1 - step))(tokens, step)

    return logits_fn


def meissonic_logits(
    model: TokenModel,
    cond: Cond,
    unconditional: Cond | None = None,
    *,
    steps: int,
    scale: float = 9.0,
    axes: Sequence[int] | None = None,
) -> LogitsFn:
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
