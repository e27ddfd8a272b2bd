"""Which loop decides the tokens: maskgen's own, or that of the group whose weights are sampled.

Published numbers belong to a loop as much as to weights: Halton-MaskGIT decides positions in a fixed order, 1d-tokenizer
ranks raw logits, MaskBit ramps its guidance by a power of a cosine, aMUSEd lets its noise fall from one number to another,
VampNet ranks all codebooks together, MAGVIT decides given tokens once more.
``Sampling.sampler`` names the loop; the other fields mean the same in all of them as far as the loop has them.

Shapes: B batch, N tokens, K codebooks.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.published.amused.sampler import AmusedSampling, sample_amused
from maskgen.published.halton.sampler import HaltonSampling, halton_order, rolled_orders, sample_halton
from maskgen.published.maskbit.sampler import MaskBitSampling, maskbit_guided_logits, sample_maskbit
from maskgen.published.meissonic.sampler import timed_logits
from maskgen.published.meissonic.transformer import MeissonicTransformer
from maskgen.published.muse.sampler import MuseSampling, muse_critic_scores, muse_guided_logits, sample_muse
from maskgen.published.onedtok.sampler import OneDTokSampling, onedtok_guided_logits, sample_onedtok
from maskgen.published.openmuse import openmuse_guided_logits
from maskgen.published.vampnet.sampler import VampNetSampling, sample_vampnet
from maskgen.sampling.codebooks import sample_by_codebook
from maskgen.sampling.commit import commit_guided_logits, commit_logits, sample_commit
from maskgen.sampling.critics import critic_scores
from maskgen.sampling.filters import filtered_logits
from maskgen.sampling.guidance import guided_logits, model_logits, self_guided_logits
from maskgen.sampling.loop import LogitsFn, SampleStep, sample
from maskgen.sampling.selectors.base import CriticFn
from maskgen.sampling.selectors.named import get_selector
from maskgen.sampling.settings import Loop, Sampling
from maskgen.sampling.speed.compiled import accelerated
from maskgen.sampling.speed.query import PartialLogits


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What is to be decided, by which model; all loops take this and ``Sampling``.

    Attributes:
        model: predicts tokens.
        cond: its conditions.
        tokens: long ``[B, N, K]``, the mask id at masked positions.
        mask: bool ``[B, N, K]``.
        axes: token grid.
        seeds: one integer an item.
        start_step: first step that is run; only ``maskgit``, ``amused`` and ``openmuse`` can skip steps, the others run all.
        critic: scores the sampled tokens where ``Sampling.select`` is ``critic``; for ``self-critic`` the model does.
        callback: sees each step.
    """

    model: MaskedTransformer
    cond: Cond
    tokens: Tensor
    mask: Tensor
    axes: Sequence[int]
    seeds: Sequence[int]
    start_step: int = 0
    critic: MaskedTransformer | None = None
    callback: Callable[[SampleStep], None] | None = None

    @property
    def prompt(self) -> tuple[Tensor, Tensor]:
        """Tokens and mask."""
        return self.tokens, self.mask


def decide(decoding: Decoding, sampling: Sampling) -> Tensor:
    """Decide the masked tokens with the loop that ``sampling`` names; ``commit`` decides the others, too.

    Returns:
        long ``[B, N, K]``.

    Raises:
        ValueError: guidance that the model was not trained for, or a selector without the model it needs.
    """
    check_guidance(decoding.model, sampling)
    fast = {"compiled": sampling.speed.compile, "bfloat16": sampling.speed.bfloat16}
    critic = None if decoding.critic is None else accelerated(decoding.critic, **fast)
    made = replace(decoding, model=accelerated(decoding.model, **fast), critic=critic)
    return _LOOPS[sampling.sampler](made, sampling)


def check_guidance(model: MaskedTransformer, sampling: Sampling) -> None:
    """Refuse guidance from a prediction that the model cannot make.

    Raises:
        ValueError: no class asked of a model that was trained without label dropout, or a class that it does not have.
    """
    guidance = sampling.guidance
    if not guidance.scale or sampling.sampler == "commit":  # which pushes away from other things than a class
        return
    if guidance.against == "unconditional" and not (model.null_class or model.takes_text):
        raise ValueError(
            f"guidance: got {guidance.scale}, but this model has no unconditional mode (it was trained without label "
            "dropout); use 0, or push away from something else (guidance.against)"
        )
    label = guidance.negative_label
    if label is not None and not 0 <= label < model.num_classes:
        classes = f"0 to {model.num_classes - 1}" if model.num_classes else "none, for this model has no classes"
        raise ValueError(f"guidance.negative_label: got {label}, expected {classes}")


def _critic_scores(d: Decoding, sampling: Sampling) -> CriticFn | None:
    if sampling.select == "self-critic":
        return critic_scores(d.model, d.cond, d.axes)
    return None if d.critic is None else critic_scores(d.critic, d.cond, d.axes)


def _guided(d: Decoding, sampling: Sampling) -> PartialLogits:
    """The model's logits with maskgen's own guidance; Meissonic is told the time of each step."""
    if isinstance(d.model, MeissonicTransformer):
        return timed_logits(lambda cond: _guided_step(replace(d, cond=cond), sampling), d.cond, sampling.steps)
    return _guided_step(d, sampling)


def _guided_step(d: Decoding, sampling: Sampling) -> PartialLogits:
    guidance, steps = sampling.guidance, sampling.steps
    if not guidance.scale:
        return model_logits(d.model, d.cond, d.axes)
    if guidance.against == "self":
        mask_id = d.model.vocab_size
        return self_guided_logits(d.model, d.cond, guidance, steps=steps, seeds=d.seeds, mask_id=mask_id, axes=d.axes)
    against = None
    if guidance.negative_label is not None and d.cond.labels is not None:
        against = dataclasses.replace(d.cond, labels=torch.full_like(d.cond.labels, guidance.negative_label))
    return guided_logits(d.model, d.cond, guidance, steps=steps, against=against, axes=d.axes)


def _maskgit(d: Decoding, sampling: Sampling) -> Tensor:
    return sample(
        filtered_logits(_guided(d, sampling).reusing(sampling.speed.reuse), sampling.filter),
        *d.prompt,
        steps=sampling.steps,
        schedule=sampling.schedule,
        select=get_selector(sampling.select, axes=d.axes, critic=_critic_scores(d, sampling)),
        temperature=sampling.temperature,
        choice_temperature=sampling.choice_temperature,
        seeds=d.seeds,
        start_step=d.start_step,
        callback=d.callback,
    )


def _halton(d: Decoding, sampling: Sampling) -> Tensor:
    """Halton-MaskGIT: c + w (c - u) at every step, logits scaled from 1 to 1.2, each item's order rolled by its seed."""
    orders = rolled_orders(halton_order(d.axes, d.tokens.device), d.seeds)
    scale = 1 / max(sampling.number("temperature"), 1e-3)
    settings = HaltonSampling(steps=sampling.steps, logit_scale=(scale, 1.2 * scale))
    logits_fn = filtered_logits(_guided(d, sampling), sampling.filter)
    return sample_halton(logits_fn, *d.prompt, settings, order=orders, seeds=d.seeds, callback=d.callback)


def _onedtok(d: Decoding, sampling: Sampling) -> Tensor:
    """1d-tokenizer (ImageBert, UViTBert)."""
    logits_fn = onedtok_guided_logits(d.model, d.cond, sampling.guidance, steps=sampling.steps, axes=d.axes)
    temperature = sampling.number("choice_temperature")
    settings = OneDTokSampling(steps=sampling.steps, randomize_temperature=temperature, anneal=sampling.annealed)
    return sample_onedtok(
        filtered_logits(logits_fn, sampling.filter), *d.prompt, settings, seeds=d.seeds, callback=d.callback
    )


def _maskbit(d: Decoding, sampling: Sampling) -> Tensor:
    logits_fn = maskbit_guided_logits(d.model, d.cond, sampling.guidance, steps=sampling.steps, axes=d.axes)
    settings = MaskBitSampling(
        steps=sampling.steps,
        temperature=sampling.number("temperature"),
        annealed=sampling.annealed,
        choice_temperature=sampling.number("choice_temperature"),
    )
    return sample_maskbit(
        filtered_logits(logits_fn, sampling.filter), *d.prompt, settings, seeds=d.seeds, callback=d.callback
    )


def _amused(d: Decoding, sampling: Sampling) -> Tensor:
    """aMUSEd, Meissonic."""
    return _sample_amused(_guided(d, sampling), d, sampling)


def _openmuse(d: Decoding, sampling: Sampling) -> Tensor:
    """open-muse: aMUSEd's loop, with guidance that may grow from none at all."""
    guidance, steps = sampling.guidance, sampling.steps
    if not guidance.scale:
        return _amused(d, sampling)
    return _sample_amused(openmuse_guided_logits(d.model, d.cond, guidance, steps=steps, axes=d.axes), d, sampling)


def _sample_amused(logits_fn: LogitsFn, d: Decoding, sampling: Sampling) -> Tensor:
    return sample_amused(
        _sharper(filtered_logits(logits_fn, sampling.filter), sampling.number("temperature")),
        *d.prompt,
        AmusedSampling.of(sampling),
        seeds=d.seeds,
        start_step=d.start_step,
        callback=d.callback,
    )


def _sharper(logits_fn: LogitsFn, temperature: float) -> LogitsFn:
    """Logits over a temperature, for a loop without one."""
    if temperature == 1:
        return logits_fn
    return lambda tokens, step: logits_fn(tokens, step) / max(temperature, 1e-3)


def _muse(d: Decoding, sampling: Sampling) -> Tensor:
    """Lucidrains' Muse, with self-conditioning where the model has it, and its token critic with ``select: critic``."""
    weights = sampling.guidance.weights(sampling.steps)
    logits_fn = muse_guided_logits(d.model, d.cond, weights, axes=d.axes)
    critic = None
    if d.critic is not None and sampling.select == "critic":
        critic = muse_critic_scores(d.critic, d.cond, weights, axes=d.axes)
    settings = MuseSampling.of(sampling)
    return sample_muse(logits_fn, *d.prompt, settings, critic=critic, seeds=d.seeds, callback=d.callback)


def _vampnet(d: Decoding, sampling: Sampling) -> Tensor:
    """VampNet: all codebooks in one ranking."""
    logits_fn = filtered_logits(_guided(d, sampling), sampling.filter)
    settings = VampNetSampling.of(sampling)
    return sample_vampnet(logits_fn, *d.prompt, settings, seeds=d.seeds, callback=d.callback)


def _codebook(d: Decoding, sampling: Sampling) -> Tensor:
    """Codebook by codebook, as MAGNeT and SoundStorm; the guidance ramps anew with each."""
    steps = sampling.codebook_steps or (sampling.steps,) * d.tokens.shape[2]
    guided = [_guided(d, sampling.override(steps=count)) for count in steps]
    turns = [(logits_fn, step) for logits_fn, count in zip(guided, steps, strict=True) for step in range(count)]

    def logits_fn(seen: Tensor, step: int) -> Tensor:
        of_codebook, own_step = turns[step]
        return of_codebook(seen, own_step)

    return sample_by_codebook(
        logits_fn,
        *d.prompt,
        steps=steps,
        schedule=sampling.schedule,
        select=get_selector(sampling.select, axes=d.axes),
        temperature=sampling.number("temperature"),
        anneal=sampling.annealed,
        choice_temperature=sampling.number("choice_temperature"),
        keep=sampling.filter,
        seeds=d.seeds,
        callback=d.callback,
    )


def _commit(d: Decoding, sampling: Sampling) -> Tensor:
    """MAGVIT: what is not masked is a draft; guidance pushes away from the answer without draft, class and task."""
    logits_fn = commit_logits(d.model, d.cond, d.axes)
    if sampling.guidance.scale:
        logits_fn = commit_guided_logits(d.model, d.cond, sampling.guidance, steps=sampling.steps, axes=d.axes)
    return sample_commit(
        logits_fn,
        d.tokens,
        ~d.mask,
        mask_id=d.model.vocab_size,
        steps=sampling.steps,
        schedule=sampling.schedule,
        temperature=sampling.number("temperature"),
        choice_temperature=sampling.number("choice_temperature"),
        keep=sampling.filter,
        seeds=d.seeds,
        callback=d.callback,
    )


_LOOPS: dict[Loop, Callable[[Decoding, Sampling], Tensor]] = {
    "maskgit": _maskgit,
    "halton": _halton,
    "onedtok": _onedtok,
    "maskbit": _maskbit,
    "amused": _amused,
    "openmuse": _openmuse,
    "muse": _muse,
    "vampnet": _vampnet,
    "codebook": _codebook,
    "commit": _commit,
}
