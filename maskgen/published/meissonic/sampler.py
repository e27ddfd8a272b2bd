"""Decoding with Meissonic: aMUSEd's loop, ``sample_amused``, with a model that is told the time (arXiv 2410.08261).

Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence

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


def meissonic_logits(
    model: TokenModel,
    cond: Cond,
    unconditional: Cond | None = None,
    *,
    steps: int,
    scale: float = 9.0,
    axes: Sequence[int] | None = None,
) -> LogitsFn:
    """A ``logits_fn`` that tells the model the time of each step and pushes away from the empty prompt: u + s (c - u).

    The time at step k is steps - 1 - k. Where a loop skips its first steps, as image to image does, k counts them too, so
    that the last step always has time 0.

    Args:
        model: a ``MeissonicTransformer``.
        cond: the prompts, with ``micro`` from ``micro_conditions``.
        unconditional: the same fields for the empty or a negative prompt; ``cond.unconditional()`` if left out. Not used
            at a scale of 1 or less.
        steps: S, how many the loop counts.
        scale: s, see ``amused_guided_logits``; 9 in text to image.
        axes: token grid, passed on to the model.

    Raises:
        ValueError: see ``amused_guided_logits`` and ``with_time``; or the loop counts more steps than told.
    """
    weaker = unconditional if unconditional is not None else cond if scale <= 1 else cond.unconditional()

    def logits_fn(tokens: Tensor, step: int) -> Tensor:
        if not 0 <= step < steps:
            raise ValueError(
                f"step: got {step}, expected 0 to {steps - 1}; give meissonic_logits the steps of the loop"
            )
        halves = (dataclasses.replace(with_time(half, steps - 1 - step), null=None) for half in (cond, weaker))
        return amused_guided_logits(model, *halves, scale=scale, axes=axes)(tokens, step)

    return logits_fn
