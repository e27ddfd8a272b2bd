"""How Halton-MaskGIT was sampled (Besnier et al. 2025, arXiv 2503.17076; valeoai/Halton-MaskGIT).

``sample_halton`` decides positions in a fixed order that spreads over the grid: the points of the Halton sequence, base 2
for rows and base 3 for columns. Guidance wraps the model (``maskgen.sampling.guidance.guided_logits``, with ramp
``constant``), and so does top-k (``maskgen.sampling.filters.filtered_logits``). What the official code calls a softmax
temperature multiplies the logits; it is ``logit_scale`` here.

Better than official here: tokens that are given stay (there they are written over); the order covers every grid
(there six cells of 64 x 64 are never decided, since 10,000 points do not reach them); any number of steps and of images
works (there one image loses its batch axis).

Shapes: B batch, N tokens, V vocabulary (V itself is the mask id), H W token grid; one codebook.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.noise import Noise, SeededNoise, check_seeds
from maskgen.sampling.checks import check_logits, check_numbers, check_sampling
from maskgen.sampling.loop import LogitsFn, SampleStep
from maskgen.sampling.selectors.halton import halton_cells

_START = 3  # stream of the noise that no sampler uses


@dataclass(frozen=True, kw_only=True)
class HaltonSampling:
    """Settings of one decoding.

    Attributes:
        steps: number of forward passes, at least 1.
        logit_scale: what multiplies the logits at the first and the last step (official: ``sm_temp_min``, ``sm_temp_max``).
        scale_power: exponent of that ramp (``temp_pow``).
        warmup: in so many first steps the scale is halved (``temp_warmup``).
    """

    steps: int = 32
    logit_scale: tuple[float, float] = (1.0, 1.0)
    scale_power: float = 1.0
    warmup: int = 0

    def __post_init__(self) -> None:
        check_numbers(logit_scale=min(self.logit_scale), scale_power=self.scale_power, warmup=self.warmup)


def halton_order(axes: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """``maskgen.sampling.selectors.halton.halton_cells`` of a grid of two axes: the official order, complete on every grid.

    Args:
        axes: (H, W).
        device: where the order is wanted.

    Returns:
        long ``[H W]``: row-major indices of cells, first to last.

    Raises:
        ValueError: not two positive axes.
    """
    if len(axes) != 2 or min(axes) < 1:
        raise ValueError(f"axes: got {tuple(axes)}, expected two positive numbers, rows and columns")
    return halton_cells(axes).to(device)


def rolled_orders(order: Tensor, seeds: Sequence[int]) -> Tensor:
    """The order with another start for each item (official option ``randomize``), depending on its seed alone.

    Args:
        order: long ``[N]``.
        seeds: one integer an item.

    Returns:
        long ``[B, N]``.
    """
    listed = check_seeds(seeds, len(seeds))
    start = SeededNoise(listed, order.device).uniform(_START, 0, (len(listed), 1)).double() * len(order)
    return order[(torch.arange(len(order), device=order.device) + start.long()) % len(order)]


def halton_decided(total: Tensor, step: int, steps: int) -> Tensor:
    """How many of each row's masked tokens ``sample_halton`` has decided after ``step`` (from 0) of ``steps``.

    Args:
        total: masked tokens when decoding began, long ``[B]``.
        step: t, from 0.
        steps: S.

    Returns:
        long ``[B]``: int((1 - arccos((t + 1) / S) / (pi / 2)) total) in float32, at least t + 1 and at most total.
    """
    share = 1 - torch.arccos(torch.tensor((step + 1) / steps)) / (math.pi * 0.5)
    decided = (share.float().to(total.device) * total.float()).long().clamp(min=step + 1)
    return torch.minimum(decided, total)


@torch.no_grad()
def sample_halton(
    logits_fn: LogitsFn,
    tokens: Tensor,
    mask: Tensor,
    settings: HaltonSampling,
    *,
    order: Tensor,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> Tensor:
    """Decide all masked tokens in a fixed order; other arguments, result and errors as of ``maskgen.sampling.sample``.

    For each step t = 0 .. S - 1:

    1. predict logits for all positions and multiply them by the step's scale;
    2. sample a token for every masked position from their softmax;
    3. keep those at the next positions of the order, up to ``halton_decided``; given tokens are passed over.

    Args:
        logits_fn: see ``LogitsFn``.
        tokens: long ``[B, N, 1]``.
        mask: bool ``[B, N, 1]``.
        settings: see ``HaltonSampling``.
        order: long ``[N]`` or ``[B, N]``, each row a permutation of the positions; see ``halton_order``,
            ``rolled_orders``.
        seeds: one integer an item.
        noise: instead of ``seeds``; only its ``sample`` is used.
        callback: sees each step.

    Raises:
        ValueError: several codebooks, or an order that is no permutation, besides.
    """
    steps = settings.steps
    source = check_sampling(tokens, mask, steps, seeds, noise)
    if tokens.shape[2] != 1:
        raise ValueError(f"tokens: got {tuple(tokens.shape)}, expected one codebook, [B, N, 1]")
    start = mask.flatten(1)
    turn = _turns(start, order)
    scales = torch.linspace(*settings.logit_scale, steps) ** settings.scale_power
    guess = tokens
    for step in range(steps):
        current = torch.where(mask, tokens, guess)
        scale = float(scales[step]) * (0.5 if step < settings.warmup else 1.0)
        logits = check_logits(logits_fn(current, step), tokens) * scale
        guess = torch.where(mask, source.sample(step, logits.shape).add_(logits).argmax(-1), current)
        before = mask
        mask = (start & (turn >= halton_decided(start.sum(1), step, steps)[:, None])).view_as(mask)
        if callback is not None:
            log_probs = logits.gather(-1, guess[..., None]).squeeze(-1) - logits.logsumexp(-1)
            callback(SampleStep(step, steps, guess, mask, log_probs.masked_fill(~before, 0.0)))
    return guess


def _turns(mask: Tensor, order: Tensor) -> Tensor:
    """For each position its turn among the masked ones of its row, ``[B, N]``; given positions get some turn, too.

    Raises:
        ValueError: an order that is no permutation of the positions.
    """
    rows = order.expand(len(mask), -1) if order.ndim == 1 else order
    positions = torch.arange(mask.shape[1], device=order.device)
    if rows.shape != mask.shape or not torch.equal(rows.sort(dim=1).values, positions.expand_as(rows)):
        raise ValueError(
            f"order: got {order.dtype} {tuple(order.shape)}, expected every position from 0 to {mask.shape[1] - 1} once, "
            f"[N] or [B, N] for tokens of {tuple(mask.shape)}"
        )
    turns = mask.gather(1, rows).long().cumsum(1) - 1
    return torch.empty_like(turns).scatter_(1, rows, turns)
