"""How Halton-MaskGIT was sampled (Besnier et al. 2025, arXiv 2503.17076; valeoai/Halton-MaskGIT): two samplers.

``sample_halton`` decides places in a fixed order that spreads over the grid: the points of the Halton sequence, base 2 for
rows and base 3 for columns. ``sample_halton_confidence`` is the baseline of the paper: the most confident places first.
Guidance wraps the model: ``maskgen.sampling.guidance.guided_logits``, with ramp ``constant`` for the first and
``linear`` for the second. What the official code calls a softmax temperature multiplies the logits; it is
``logit_scale`` here.

Better than official here: tokens that are given stay (there both samplers write over them); the order covers every grid
(there six cells of 64 x 64 are never decided, since 10,000 points do not reach them); any number of steps and of images
works (there one step divides by zero, and one image loses its batch axis).

Shapes: B batch, N tokens, V vocabulary (V itself is the id of a hidden token), H W token grid; one codebook.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from maskgen.noise import Noise, SeededNoise, check_seeds
from maskgen.sampling.checks import check_sampling
from maskgen.sampling.loop import LogitsFn, SampleStep
from maskgen.sampling.selectors.halton import halton_cells
from maskgen.sampling.selectors.named import hide_least_confident

__all__ = [
    "HaltonSchedule",
    "confidence_known",
    "halton_known",
    "halton_order",
    "rolled_orders",
    "sample_halton",
    "sample_halton_confidence",
]

HaltonSchedule = Literal["arccos", "cosine", "linear", "square", "root"]

_START = 3  # stream of the noise that no sampler uses


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


def halton_known(total: Tensor, step: int, steps: int) -> Tensor:
    """How many of each row's hidden tokens ``sample_halton`` has decided after ``step`` (from 0) of ``steps``.

    Args:
        total: hidden tokens when decoding began, long ``[B]``.
        step: t, from 0.
        steps: S.

    Returns:
        long ``[B]``: int((1 - arccos((t + 1) / S) / (pi / 2)) total) in float32, at least t + 1 and at most total.
    """
    share = 1 - torch.arccos(torch.tensor((step + 1) / steps)) / (math.pi * 0.5)
    return _at_least(share, total, step)


def confidence_known(schedule: str, total: Tensor, step: int, steps: int) -> Tensor:
    """How many of each row's hidden tokens ``sample_halton_confidence`` has decided after ``step`` of ``steps``.

    Args:
        schedule: ``arccos`` 1 - arccos(r) / (pi / 2), ``cosine`` 1 - cos(pi r / 2), ``linear`` r, ``square`` r^2 or ``root``
            sqrt(r).
        total: hidden tokens when decoding began, long ``[B]``.
        step: t, from 0; r = t / (S - 1).
        steps: S.

    Returns:
        long ``[B]``: int(schedule(r) total) in float32, at least t + 1 and at most total; all at the last step.

    Raises:
        ValueError: unknown schedule.
    """
    r = torch.linspace(0, 1, steps)[step]
    shares: dict[str, Callable[[], Tensor]] = {
        "arccos": lambda: 1 - torch.arccos(r) / (math.pi * 0.5),
        "cosine": lambda: 1 - torch.cos(r * math.pi * 0.5),
        "linear": lambda: r,
        "square": lambda: r**2,
        "root": lambda: torch.sqrt(r),
    }
    if schedule not in shares:
        raise ValueError(f"schedule: got {schedule!r}, expected one of {sorted(shares)}")
    # With one step r is 0 and the official code decides a single token; rounding may also miss the last one.
    return total if step == steps - 1 else _at_least(shares[schedule](), total, step)


def _at_least(share: Tensor, total: Tensor, step: int) -> Tensor:
    known = (share.float().to(total.device) * total.float()).long().clamp(min=step + 1)
    return torch.minimum(known, total)


@torch.no_grad()
def sample_halton(
    logits_fn: LogitsFn,
    tokens: Tensor,
    mask: Tensor,
    order: Tensor,
    *,
    steps: int = 32,
    logit_scale: tuple[float, float] = (1.0, 1.0),
    scale_power: float = 1.0,
    warmup: int = 0,
    top_k: int = 0,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> Tensor:
    """Decide all hidden tokens in a fixed order of places, in ``steps`` parallel steps.

    For each step t = 0 .. S - 1:

    1. predict logits for all places and multiply them by the step's scale;
    2. draw a token for every hidden place from their softmax;
    3. keep the draws at the next places of the order, up to ``halton_known`` places; known tokens are passed over.

    Args:
        logits_fn: see ``LogitsFn``; its V columns are all that can be drawn.
        tokens: long ``[B, N, 1]``, holding the mask id V at the masked places.
        mask: bool ``[B, N, 1]``, True where a token is to be decided. Rows may differ; an all-False row comes back as it is.
        order: long ``[N]`` or ``[B, N]``, each row a permutation of the places; see ``halton_order``, ``rolled_orders``.
        steps: number of forward passes, at least 1.
        logit_scale: what multiplies the logits at the first and the last step (official: ``sm_temp_min``, ``sm_temp_max``).
        scale_power: exponent of that ramp (``temp_pow``).
        warmup: in so many first steps the scale is halved (``temp_warmup``).
        top_k: draw from the so many most likely tokens only; 0 means from all.
        seeds: one integer an item: the item's sample depends on nothing else of the batch.
        noise: the source of randomness itself, instead of ``seeds``; only its ``sample`` is used.
        callback: called after each step with a ``SampleStep``.

    Returns:
        long ``[B, N, 1]`` without hidden tokens.

    Raises:
        ValueError: shapes that do not fit, an order that is no permutation, ``steps`` < 1, negative numbers, neither or both
            of ``seeds`` and ``noise``.
    """
    numbers = {"logit_scale": min(logit_scale), "scale_power": scale_power, "warmup": warmup, "top_k": top_k}
    source = check_sampling(tokens, mask, steps, seeds, noise, **numbers)
    hidden, turn = _one_codebook(tokens, mask), _turns(mask.flatten(1), order)
    scales = torch.linspace(*logit_scale, steps) ** scale_power
    drawn = tokens
    for step in range(steps):
        current = torch.where(mask, tokens, drawn)
        logits = logits_fn(current, step).float() * (float(scales[step]) * (0.5 if step < warmup else 1.0))
        if 0 < top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
        drawn = torch.where(mask, source.sample(step, logits.shape).add_(logits).argmax(-1), current)
        before = mask
        mask = (hidden & (turn >= halton_known(hidden.sum(1), step, steps)[:, None])).view_as(mask)
        if callback is not None:
            callback(SampleStep(step, steps, drawn, mask, _log_probs(logits, drawn).masked_fill(~before, 0.0)))
    return drawn


@torch.no_grad()
def sample_halton_confidence(
    logits_fn: LogitsFn,
    tokens: Tensor,
    mask: Tensor,
    *,
    steps: int = 12,
    schedule: HaltonSchedule = "arccos",
    logit_scale: float = 1.0,
    choice_temperature: float = 4.5,
    official: bool = False,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> Tensor:
    """Decide all hidden tokens, the most confident first, in ``steps`` parallel steps.

    For each step t = 0 .. S - 1:

    1. predict logits for all places and draw a token for every hidden one from the softmax of logits x logit_scale;
    2. confidence = log-probability of the draw + choice_temperature x Gumbel noise x (1 - t / (S - 1)), in float64;
    3. keep the most confident draws, so that ``confidence_known`` of the hidden tokens are decided.

    Args:
        logits_fn: see ``LogitsFn``; its columns are all that can be drawn.
        tokens: long ``[B, N, 1]``, holding the mask id at the masked places.
        mask: bool ``[B, N, 1]``, True where a token is to be decided.
        steps: number of forward passes, at least 1.
        schedule: see ``confidence_known``.
        logit_scale: multiplies the logits (official: ``sm_temp``).
        choice_temperature: weight of the noise on the confidence at the first step (``r_temp``); 0 is official "no".
        official: repeat what the published numbers were made with, from an all-hidden grid: decided tokens are drawn
            anew at every step, and ``logits_fn`` gives V + 1 columns: the last one is the mask, and where it is drawn the
            place counts as hidden again. At the end it becomes V - 1.
        seeds: one integer an item: the item's sample depends on nothing else of the batch.
        noise: the source of randomness itself, instead of ``seeds``.
        callback: called after each step with a ``SampleStep``.

    Returns:
        long ``[B, N, 1]`` without hidden tokens.

    Raises:
        ValueError: shapes that do not fit, ``steps`` < 1, negative numbers, an unknown schedule, given tokens with
            ``official``, neither or both of ``seeds`` and ``noise``.
    """
    numbers = {"logit_scale": logit_scale, "choice_temperature": choice_temperature}
    source = check_sampling(tokens, mask, steps, seeds, noise, **numbers)
    total = _one_codebook(tokens, mask).sum(1)
    if official and not bool(mask.all()):
        raise ValueError("official: the published sampler loses given tokens; hide all of them or leave official out")
    drawn = tokens
    for step in range(steps):
        current = torch.where(mask, tokens, drawn)
        logits = logits_fn(current, step).float() * logit_scale
        fresh = source.sample(step, logits.shape).add_(logits).argmax(-1)
        drawn = fresh if official else torch.where(mask, fresh, current)
        log_probs = _log_probs(logits, fresh).masked_fill(~mask, 0.0)
        heat = choice_temperature * (1 - step / (steps - 1)) if steps > 1 else 0.0
        ranked = log_probs.double()
        if heat:
            ranked = ranked + heat * source.choice(step, mask.shape).double()
        counts = total - confidence_known(schedule, total, step, steps)
        mask = hide_least_confident(ranked.flatten(1), mask.flatten(1), counts).view_as(mask)
        if official:
            mask = mask | (fresh == logits.shape[-1] - 1)
        if callback is not None:
            callback(SampleStep(step, steps, drawn, mask, log_probs))
    return drawn.clamp(max=logits.shape[-1] - 2) if official else drawn


def _turns(hidden: Tensor, order: Tensor) -> Tensor:
    """For each place its turn among the hidden ones of its row, ``[B, N]``; known places get some turn, too.

    Raises:
        ValueError: an order that is no permutation of the places.
    """
    rows = order.expand(len(hidden), -1) if order.ndim == 1 else order
    places = torch.arange(hidden.shape[1], device=order.device)
    if rows.shape != hidden.shape or not torch.equal(rows.sort(dim=1).values, places.expand_as(rows)):
        raise ValueError(
            f"order: got {order.dtype} {tuple(order.shape)}, expected every place from 0 to {hidden.shape[1] - 1} once, "
            f"[N] or [B, N] for tokens of {tuple(hidden.shape)}"
        )
    turns = hidden.gather(1, rows).long().cumsum(1) - 1
    return torch.empty_like(turns).scatter_(1, rows, turns)


def _log_probs(logits: Tensor, drawn: Tensor) -> Tensor:
    return logits.gather(-1, drawn[..., None]).squeeze(-1) - logits.logsumexp(-1)


def _one_codebook(tokens: Tensor, mask: Tensor) -> Tensor:
    if tokens.shape[2] != 1:
        raise ValueError(f"tokens: got {tuple(tokens.shape)}, expected one codebook, [B, N, 1]")
    return mask.flatten(1)
