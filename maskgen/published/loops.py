"""Which loop decides the tokens: maskgen's own, or that of the group whose weights are sampled.

Published numbers belong to a loop as much as to weights: Halton-MaskGIT decides places in a fixed order, 1d-tokenizer
ranks raw logits, MaskBit ramps its guidance by a power of a cosine, VampNet ranks all codebooks together, MAGVIT decides
what is known once more.
``Sampling.sampler`` names the loop; the other fields mean the same in all of them as far as the loop has them.

Shapes: B batch, N tokens, K codebooks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.published.halton.sampler import halton_order, rolled_orders, sample_halton
from maskgen.published.maskbit.sampler import MaskBitRamp, maskbit_guided_logits, sample_maskbit
from maskgen.published.onedtok.sampler import onedtok_guidance, sample_onedtok
from maskgen.published.vampnet.sampler import sample_vampnet
from maskgen.sampling.codebooks import sample_by_codebook
from maskgen.sampling.commit import commit_guided_logits, commit_logits, sample_commit
from maskgen.sampling.critics import critic_scores
from maskgen.sampling.filters import filtered_logits
from maskgen.sampling.guidance import GuidanceRamp, guided_logits, model_logits, self_guided_logits
from maskgen.sampling.loop import LogitsFn, SampleStep, sample
from maskgen.sampling.selectors.base import CriticFn
from maskgen.sampling.selectors.named import get_selector
from maskgen.sampling.settings import Sampling
from maskgen.sampling.speed.compiled import accelerated
from maskgen.sampling.speed.prediction import Prediction

__all__ = ["check_guidance", "decide"]

Callback = Callable[[SampleStep], None] | None

_MASKBIT_RAMPS: dict[GuidanceRamp, MaskBitRamp] = {
    "constant": "none",
    "linear": "linear",
    "cosine": "cosine",
    "power-cosine": "cosine",
}


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
    critic: MaskedTransformer | None = None,
    callback: Callback = None,
) -> torch.Tensor:
    """Decide the hidden tokens with the loop that ``sampling`` names; ``commit`` decides the others, too.

    Args:
        model: predicts tokens.
        cond: its conditions.
        tokens: long ``[B, N, K]``, the mask id at masked places.
        mask: bool ``[B, N, K]``.
        sampling: see ``Sampling``.
        axes: token grid.
        seeds: one integer an item.
        start_step: first step that is run; only maskgen's own loop can skip steps, the others run all.
        critic: scores the drawn tokens where ``sampling.select`` is ``critic``; for ``self-critic`` the model does.
        callback: sees each step.

    Returns:
        long ``[B, N, K]``.

    Raises:
        ValueError: guidance that the model was not trained for, or a selector without the model it needs.
    """
    check_guidance(model, sampling)
    model = accelerated(model, compiled=sampling.compile, bfloat16=sampling.bfloat16)
    if critic is not None:
        critic = accelerated(critic, compiled=sampling.compile, bfloat16=sampling.bfloat16)
    loops = {"halton": _halton, "onedtok": _onedtok, "maskbit": _maskbit, "vampnet": _vampnet, "codebook": _codebook}
    loops |= {"commit": _commit}
    if (loop := loops.get(sampling.sampler)) is not None:
        return loop(model, cond, tokens, mask, sampling, axes, seeds, callback)
    scores = _scores(model, critic, cond, sampling, axes)
    prediction = _guided(model, cond, sampling, axes, seeds)
    return sample(
        _filtered(prediction if sampling.reuse == 1 else prediction.reusing(sampling.reuse), sampling),
        tokens,
        mask,
        steps=sampling.steps,
        schedule=sampling.schedule,
        select=get_selector(sampling.select, axes=axes, critic=scores),
        temperature=sampling.temperature,
        choice_temperature=sampling.choice_temperature,
        seeds=seeds,
        start_step=start_step,
        callback=callback,
    )


def _filtered(logits_fn: LogitsFn, sampling: Sampling) -> LogitsFn:
    keep = sampling.keep()
    if keep is None:
        return logits_fn
    return logits_fn.filtered(keep) if isinstance(logits_fn, Prediction) else filtered_logits(logits_fn, keep)


def check_guidance(model: MaskedTransformer, sampling: Sampling) -> None:
    """Refuse guidance from a prediction that the model cannot make.

    Raises:
        ValueError: no class asked of a model that was trained without label dropout, or a class that it does not have.
    """
    if not sampling.guidance or sampling.sampler == "commit":  # which pushes away from other things than a class
        return
    if sampling.guidance_from == "unconditional" and not model.null_class:
        raise ValueError(
            f"guidance: got {sampling.guidance}, but this model has no unconditional mode (it was trained without label "
            "dropout); use 0, or push away from something else (guidance_from)"
        )
    label = sampling.negative_label
    if label is not None and not 0 <= label < model.num_classes:
        known = f"0 to {model.num_classes - 1}" if model.num_classes else "none, for this model has no classes"
        raise ValueError(f"negative_label: got {label}, expected {known}")


def _scores(
    model: MaskedTransformer, critic: MaskedTransformer | None, cond: Cond, sampling: Sampling, axes: Sequence[int]
) -> CriticFn | None:
    if sampling.select == "self-critic":
        return critic_scores(model, cond, axes)
    return None if critic is None else critic_scores(critic, cond, axes)


def _guided(
    model: MaskedTransformer, cond: Cond, sampling: Sampling, axes: Sequence[int], seeds: Sequence[int]
) -> Prediction:
    if not sampling.guidance:
        return model_logits(model, cond, axes)
    scale, steps, ramp = sampling.guidance, sampling.steps, sampling.guidance_ramp
    power, interval = sampling.guidance_power, sampling.guidance_interval
    if sampling.guidance_from == "self":
        return self_guided_logits(
            model,
            cond,
            scale=scale,
            steps=steps,
            seeds=seeds,
            mask_id=model.vocab_size,
            drop=sampling.guidance_drop,
            ramp=ramp,
            power=power,
            interval=interval,
            axes=axes,
        )
    against = None
    if sampling.negative_label is not None and cond.labels is not None:
        against = dataclasses.replace(cond, labels=torch.full_like(cond.labels, sampling.negative_label))
    return guided_logits(
        model,
        cond,
        scale=scale,
        steps=steps,
        ramp=ramp,
        power=power,
        interval=interval,
        against=against,
        axes=axes,
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
    scale = 1 / max(sampling.number("temperature"), 1e-3)
    return sample_halton(
        _filtered(_guided(model, cond, sampling, axes, seeds), sampling),
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
        randomize_temperature=sampling.number("choice_temperature"),
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
    """MaskBit; its ramp called "none" is a constant weight, and its "cosine" has an exponent."""
    logits_fn = maskbit_guided_logits(
        model,
        cond,
        scale=sampling.guidance,
        steps=sampling.steps,
        ramp=_MASKBIT_RAMPS[sampling.guidance_ramp],
        power=sampling.guidance_power,
        axes=axes,
    )
    return sample_maskbit(
        _filtered(logits_fn, sampling),
        tokens,
        mask,
        steps=sampling.steps,
        schedule="arccos",
        temperature=sampling.number("temperature"),
        annealed=sampling.annealed,
        choice_temperature=sampling.number("choice_temperature"),
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
        _filtered(_guided(model, cond, sampling, axes, seeds), sampling),
        tokens,
        mask,
        steps=sampling.steps,
        temperature=sampling.number("temperature"),
        mask_temperature=sampling.number("choice_temperature"),
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
    guided = [_guided(model, cond, sampling.override(steps=count), axes, seeds) for count in steps]
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
        select=get_selector(sampling.select, axes=axes),
        temperature=sampling.number("temperature"),
        anneal=sampling.annealed,
        choice_temperature=sampling.number("choice_temperature"),
        keep=sampling.keep(),
        callback=callback,
    )


def _commit(
    model: MaskedTransformer,
    cond: Cond,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    sampling: Sampling,
    axes: Sequence[int],
    seeds: Sequence[int],
    callback: Callback,
) -> torch.Tensor:
    """MAGVIT: what is not masked is a draft; guidance pushes away from the answer without draft, class and task."""
    logits_fn = commit_logits(model, cond, axes)
    if sampling.guidance:
        logits_fn = commit_guided_logits(
            model,
            cond,
            scale=sampling.guidance,
            steps=sampling.steps,
            ramp=sampling.guidance_ramp,
            power=sampling.guidance_power,
            interval=sampling.guidance_interval,
            axes=axes,
        )
    return sample_commit(
        logits_fn,
        tokens,
        ~mask,
        mask_id=model.vocab_size,
        steps=sampling.steps,
        schedule=sampling.schedule,
        temperature=sampling.number("temperature"),
        choice_temperature=sampling.number("choice_temperature"),
        keep=sampling.keep(),
        seeds=seeds,
        callback=callback,
    )
