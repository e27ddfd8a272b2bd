"""Which loop decides the tokens: maskgen's own, or that of the group whose weights are sampled.

Published numbers belong to a loop as much as to weights: Halton-MaskGIT decides places in a fixed order, 1d-tokenizer
ranks raw logits, MaskBit ramps its guidance by a power of a cosine, VampNet ranks all codebooks together.
``Sampling.sampler`` names the loop; the other fields mean the same in all of them as far as the loop has them.

Shapes: B batch, N tokens, K codebooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from maskgen.codebook_order import sample_by_codebook
from maskgen.conditioning import Cond
from maskgen.filters import filtered_logits
from maskgen.guidance import guided_logits, model_logits
from maskgen.published.halton_sampler import halton_order, rolled_orders, sample_halton
from maskgen.published.maskbit_sampler import maskbit_guided_logits, sample_maskbit
from maskgen.published.onedtok_sampler import onedtok_guidance, sample_onedtok
from maskgen.published.vampnet_sampler import sample_vampnet
from maskgen.sampler import LogitsFn, SampleStep, sample
from maskgen.tasks.sampling import Sampling
from maskgen.transformer import MaskedTransformer

__all__ = ["decide"]

Callback = Callable[[SampleStep], None] | None


def decide(
    model: MaskedTransformer,
    cond: Cond,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    *,
    sampling: Sampling,
    axes: Sequence[int],
    seeds: Sequence[int],
    start_step: int = 0,
    callback: Callback = None,
) -> torch.Tensor:
    """Decide the hidden tokens with the loop that ``sampling`` names.

    Args:
        model: predicts tokens.
        cond: its conditions.
        tokens: long ``[B, N, K]``, the mask id at masked places.
        mask: bool ``[B, N, K]``.
        sampling: see ``Sampling``.
        axes: token grid.
        seeds: one integer an item.
        start_step: first step that is run; only maskgen's own loop can skip steps, the others run all.
        callback: sees each step.

    Returns:
        long ``[B, N, K]``.
    """
    loops = {"halton": _halton, "onedtok": _onedtok, "maskbit": _maskbit, "vampnet": _vampnet, "codebook": _codebook}
    if (loop := loops.get(sampling.sampler)) is not None:
        return loop(model, cond, tokens, mask, sampling, axes, seeds, callback)
    return sample(
        _filtered(_guided(model, cond, sampling, axes), sampling),
        tokens,
        mask,
        steps=sampling.steps,
        schedule=sampling.schedule,
        select=sampling.select,
        temperature=sampling.temperature,
        choice_temperature=sampling.choice_temperature,
        seeds=seeds,
        start_step=start_step,
        callback=callback,
    )


def _filtered(logits_fn: LogitsFn, sampling: Sampling) -> LogitsFn:
    keep = sampling.keep()
    return logits_fn if keep is None else filtered_logits(logits_fn, keep)


def _guided(model: MaskedTransformer, cond: Cond, sampling: Sampling, axes: Sequence[int]) -> LogitsFn:
    if not sampling.guidance:
        return model_logits(model, cond, axes)
    return guided_logits(
        model, cond, scale=sampling.guidance, steps=sampling.steps, ramp=sampling.guidance_ramp, axes=axes
    )


def _halton(
    model: MaskedTransformer,
    cond: Cond,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    sampling: Sampling,
    axes: Sequence[int],
    seeds: Sequence[int],
    callback: Callback,
) -> torch.Tensor:
    """Halton-MaskGIT: c + w (c - u) at every step, logits scaled from 1 to 1.2, each item's order rolled by its seed."""
    orders = rolled_orders(halton_order(axes, tokens.device), seeds)
    scale = 1 / max(sampling.temperature, 1e-3)
    return sample_halton(
        _filtered(_guided(model, cond, sampling, axes), sampling),
        tokens,
        mask,
        orders,
        steps=sampling.steps,
        logit_scale=(scale, 1.2 * scale),
        seeds=seeds,
        callback=callback,
    )


def _onedtok(
    model: MaskedTransformer,
    cond: Cond,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    sampling: Sampling,
    axes: Sequence[int],
    seeds: Sequence[int],
    callback: Callback,
) -> torch.Tensor:
    """1d-tokenizer (ImageBert, UViTBert)."""
    ramp = sampling.guidance_ramp
    logits_fn = onedtok_guidance(
        model,
        cond,
        scale=sampling.guidance,
        steps=sampling.steps,
        decay="power-cosine" if ramp == "cosine" else ramp,
        power=sampling.guidance_power,
        axes=axes,
    )
    return sample_onedtok(
        _filtered(logits_fn, sampling),
        tokens,
        mask,
        steps=sampling.steps,
        randomize_temperature=sampling.choice_temperature,
        anneal=sampling.annealed,
        seeds=seeds,
        callback=callback,
    )


def _maskbit(
    model: MaskedTransformer,
    cond: Cond,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    sampling: Sampling,
    axes: Sequence[int],
    seeds: Sequence[int],
    callback: Callback,
) -> torch.Tensor:
    """MaskBit; its ramp called "none" is a constant weight."""
    ramp = sampling.guidance_ramp
    logits_fn = maskbit_guided_logits(
        model,
        cond,
        scale=sampling.guidance,
        steps=sampling.steps,
        ramp="none" if ramp == "constant" else ramp,
        power=sampling.guidance_power,
        axes=axes,
    )
    return sample_maskbit(
        _filtered(logits_fn, sampling),
        tokens,
        mask,
        steps=sampling.steps,
        schedule="arccos",
        temperature=sampling.temperature,
        annealed=sampling.annealed,
        choice_temperature=sampling.choice_temperature,
        seeds=seeds,
        callback=callback,
    )


def _vampnet(
    model: MaskedTransformer,
    cond: Cond,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    sampling: Sampling,
    axes: Sequence[int],
    seeds: Sequence[int],
    callback: Callback,
) -> torch.Tensor:
    """VampNet: all codebooks in one ranking."""
    return sample_vampnet(
        _filtered(_guided(model, cond, sampling, axes), sampling),
        tokens,
        mask,
        steps=sampling.steps,
        temperature=sampling.temperature,
        mask_temperature=sampling.choice_temperature,
        sample_cutoff=sampling.sample_cutoff,
        batch_counts=sampling.batch_counts,
        seeds=seeds,
        callback=callback,
    )


def _codebook(
    model: MaskedTransformer,
    cond: Cond,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    sampling: Sampling,
    axes: Sequence[int],
    seeds: Sequence[int],
    callback: Callback,
) -> torch.Tensor:
    """Codebook by codebook, as MAGNeT and SoundStorm; the guidance ramps anew with each."""
    steps = sampling.codebook_steps or (sampling.steps,) * tokens.shape[2]
    guided = [_guided(model, cond, sampling.override(steps=count), axes) for count in steps]
    turns = [(logits_fn, step) for logits_fn, count in zip(guided, steps, strict=True) for step in range(count)]

    def logits_fn(seen: torch.Tensor, step: int) -> torch.Tensor:
        of_codebook, own_step = turns[step]
        return of_codebook(seen, own_step)

    return sample_by_codebook(
        logits_fn,
        tokens,
        mask,
        steps=steps,
        seeds=seeds,
        schedule=sampling.schedule,
        select=sampling.select,
        temperature=sampling.temperature,
        anneal=sampling.annealed,
        choice_temperature=sampling.choice_temperature,
        keep=sampling.keep(),
        callback=callback,
    )
