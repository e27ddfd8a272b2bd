"""Decoding one codebook after the other, coarse to fine, as SoundStorm and MAGNeT do.

The codebooks of a residual quantizer build on each other: the second corrects what the first leaves. SoundStorm (Borsos
et al. 2023, arXiv 2305.09636) and MAGNeT (Ziv et al. 2024, arXiv 2401.04577) therefore decide the first codebook for all
frames, then the second, and so on, each with the masked sampler: many steps for the first, few for the others. VampNet
ranks the tokens of all codebooks together instead (``maskgen.published.vampnet.sampler``).

MAGNeT's setting is ``steps=(20, 10, 10, 10), select="span3", temperature=3.0, anneal=True, keep=TokenFilter(top_p=0.9)``;
SoundStorm's is ``steps=(16, 1, 1, ...), select="confidence"``. Three things are not MAGNeT's: counts are those of
``maskgen.sampling.sample`` (MAGNeT's n steps plan as our n - 1 and spend one more on a single span); confidence is that of
the distribution sampled from, thus after the filter (there before it); and given tokens of later codebooks are seen.

Shapes: B batch, N = T frames, K codebooks, V vocabulary (V itself is the mask id).
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from maskgen.noise import Noise
from maskgen.sampling.checks import check_logits, check_numbers, check_sampling
from maskgen.sampling.loop import LogitsFn, SampleStep, sample
from maskgen.sampling.selectors.base import Selector

_COLDEST = 0.01  # MAGNeT's floor of the annealed temperature


@torch.no_grad()
def sample_by_codebook(
    logits_fn: LogitsFn,
    tokens: Tensor,
    mask: Tensor,
    *,
    steps: Sequence[int],
    seeds: Sequence[int],
    schedule: str = "cosine",
    select: str | Selector = "span3",
    temperature: float = 1.0,
    anneal: bool = False,
    choice_temperature: float = 0.0,
    keep: Callable[[Tensor], Tensor] | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> Tensor:
    """Decide all masked tokens, codebook by codebook.

    For each codebook k = 0 .. K - 1 that has masked tokens:

    1. the model sees codebooks before k decided, and masked tokens of the later ones masked; given tokens are always seen;
    2. its logits for codebook k are divided by the temperature, then filtered by ``keep``;
    3. ``maskgen.sampling.sample`` decides the masked tokens of codebook k in ``steps[k]`` steps.

    Args:
        logits_fn: see ``LogitsFn``; its ``step`` counts through all codebooks, those without masked tokens included.
        tokens: see ``sample``.
        mask: see ``sample``.
        steps: forward passes for each codebook, K numbers of at least 1.
        seeds: see ``sample``.
        schedule: see ``sample``; counts are planned for each codebook from its own masked tokens.
        select: see ``maskgen.sampling.sample``; one without a critic, which would see a single codebook.
        temperature: divides the logits; 0 takes the most likely token.
        anneal: let the temperature fall over the n steps of a codebook: max(0.01, temperature (n - i - 1) / n) at step i.
        choice_temperature: weight of the ranking noise; MAGNeT has none.
        keep: filter of the logits ``[B, N, 1, V]`` of a codebook, such as a ``maskgen.sampling.filters.TokenFilter``.
        callback: called after each step with a ``SampleStep`` of the whole grid, in which later codebooks are still masked.

    Returns:
        long ``[B, N, K]`` without masked tokens.

    Raises:
        ValueError: shapes that do not fit, not K numbers of steps, negative temperatures, an unknown schedule or selector,
            seeds that are not one an item.
    """
    source = check_sampling(tokens, mask, min(steps, default=0), seeds, None)
    check_numbers(temperature=temperature, choice_temperature=choice_temperature)
    if len(steps) != tokens.shape[2]:
        raise ValueError(
            f"steps: got {tuple(steps)}, expected {tokens.shape[2]} numbers, one for each codebook, such as (20, 10, 10, 10)"
        )
    done = tokens.clone()
    for k, first in enumerate(accumulate(steps[:-1], initial=0)):
        part = slice(k, k + 1)
        if bool(mask[:, :, part].any()):
            watch = None if callback is None else _whole_grid(callback, done, mask, part, first, sum(steps))
            done[:, :, part] = sample(
                _one_codebook(logits_fn, done, part, first, _temperatures(temperature, anneal, steps[k]), keep),
                tokens[:, :, part],
                mask[:, :, part],
                steps=steps[k],
                schedule=schedule,
                select=select,
                temperature=float(temperature > 0),
                choice_temperature=choice_temperature,
                noise=_Later(source, first),
                callback=watch,
            )
    return done


class _Later:
    """Noise whose steps begin at ``first``, so that every codebook has its own."""

    def __init__(self, noise: Noise, first: int) -> None:
        self._noise, self._first = noise, first

    def sample(self, step: int, shape: Sequence[int]) -> Tensor:
        return self._noise.sample(self._first + step, shape)

    def choice(self, step: int, shape: Sequence[int]) -> Tensor:
        return self._noise.choice(self._first + step, shape)


def _temperatures(temperature: float, anneal: bool, steps: int) -> list[float]:
    """What divides the logits at each step of a codebook; temperature 0 leaves them, for an argmax."""
    if temperature == 0:
        return [1.0] * steps
    return [max(_COLDEST, temperature * (steps - i - 1) / steps) if anneal else temperature for i in range(steps)]


def _one_codebook(
    logits_fn: LogitsFn,
    done: Tensor,
    part: slice,
    first: int,
    temperatures: Sequence[float],
    keep: Callable[[Tensor], Tensor] | None,
) -> LogitsFn:
    """The ``logits_fn`` of one codebook ``[B, N, 1]`` among the others, which stand in ``done``."""

    def of_codebook(tokens: Tensor, step: int) -> Tensor:
        grid = done.clone()
        grid[:, :, part] = tokens
        logits = check_logits(logits_fn(grid, first + step), grid)[:, :, part] / temperatures[step]
        return logits if keep is None else keep(logits)

    return of_codebook


def _whole_grid(
    callback: Callable[[SampleStep], None], done: Tensor, mask: Tensor, part: slice, first: int, steps: int
) -> Callable[[SampleStep], None]:
    """A callback for the steps of one codebook that shows the whole grid."""

    def watch(seen: SampleStep) -> None:
        tokens, masked, confidence = done.clone(), mask.clone(), torch.zeros(mask.shape, device=mask.device)
        masked[:, :, : part.start] = False
        tokens[:, :, part], masked[:, :, part], confidence[:, :, part] = seen.tokens, seen.mask, seen.confidence
        callback(SampleStep(first + seen.step, steps, tokens, masked, confidence))

    return watch
