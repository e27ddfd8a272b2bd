"""Where an edit by aMUSEd's loop begins: image to image hides a part of a picture's tokens and skips the first steps.

The published pipeline (diffusers) reads a strength of 1.0, which should decide everything anew, as the end of the
schedule: it hides nothing, and its loop then changes one token a step. A strength too small for one step gives the picture
back without a word. Here strength 1 hides everything, and any strength runs at least one step; ``official`` brings both
back.

Shapes: B batch, N tokens, K codebooks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskgen.noise import SeededNoise
from maskgen.published.amused.sampler import share_left
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.settings import AmusedChoices, Sampling

_HIDE = 5  # stream of the noise that hides tokens at the start; the samplers and guidance use 1 to 4

_DEFAULTS = Sampling(sampler="amused", steps=12, choice_temperature=2.0, guidance=Guidance(scale=9.0))

OFFICIAL: dict[str, Sampling] = {
    "text-to-image": _DEFAULTS.override(amused=AmusedChoices(counts="all", rehides=True)),
    "image-to-image": _DEFAULTS.override(amused=AmusedChoices(counts="all", rehides=True)),
    "inpainting": _DEFAULTS.override(schedule="linear", amused=AmusedChoices(counts="batch", rehides=True)),
}
"""Task -> the settings of the published pipelines with all they do to given tokens; guidance 9 is their s = 10."""


def first_step(steps: int, strength: float, *, official: bool = False) -> int:
    """The first step k of S that an edit runs: S - n with n = floor(S x strength), at least 1.

    Args:
        steps: S.
        strength: in [0, 1].
        official: n may be 0, so that S comes back and there is nothing to run.

    Raises:
        ValueError: ``strength`` outside [0, 1], or 0 where a step must be run.
    """
    if not (0 if official else 1e-9) <= strength <= 1:
        raise ValueError(
            f"strength: got {strength}, expected a number over 0 (little is changed), at most 1 (all is new)"
        )
    return steps - (int(steps * strength) if official else max(1, int(steps * strength)))


def share_hidden(schedule: str, first: int, steps: int, *, official: bool = False) -> Tensor:
    """Share of the tokens that image to image hides before step ``first`` of ``steps``, a float32 scalar.

    Args:
        schedule: see ``maskgen.published.amused.sampler.share_left``.
        first: see ``first_step``.
        steps: S.
        official: nothing is hidden before step 0.
    """
    return share_left(schedule, steps if official and first == 0 else first, steps)


def hidden_places(share: Tensor | float, shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Which tokens an edit hides: each by itself with probability ``share``, by the seed of its item.

    Args:
        share: see ``share_hidden``.
        shape: (B, N, K).
        seeds: one integer an item.

    Returns:
        bool ``[B, N, K]``; at share 1 all.
    """
    share = torch.as_tensor(share)
    return SeededNoise(seeds, share.device).uniform(_HIDE, 0, shape) < share
