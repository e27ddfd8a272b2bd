"""Each group's loop through the pipeline: the settings reach it, known tokens stay, seeds decide."""

import math
from typing import Any

import pytest
import torch

from maskgen.conditioning import Cond
from maskgen.published.amused.sampler import AmusedSampling, sample_amused
from maskgen.published.halton.sampler import HaltonSampling, halton_order, rolled_orders, sample_halton
from maskgen.published.maskbit.sampler import MaskBitSampling, maskbit_guided_logits, sample_maskbit
from maskgen.published.onedtok.sampler import OneDTokSampling, onedtok_guided_logits, sample_onedtok
from maskgen.published.openmuse import openmuse_guided_logits
from maskgen.sampling.guidance import Guidance, guided_logits
from maskgen.sampling.settings import AmusedChoices, Sampling
from maskgen.tasks.conditions.request import Request
from maskgen.tasks.pipeline import Pipeline
from tests.selections import flat_sampling
from tests.support import tiny_pipeline

LOOPS = ("maskgit", "halton", "onedtok", "maskbit", "amused", "openmuse")
LABELS, SEEDS = [1, 2, 3], [5, 6, 7]


def scene(pipe: Pipeline) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of three items and a mask that differs from row to row; the last row has nothing hidden."""
    generator = torch.Generator().manual_seed(0)
    places = math.prod(pipe.axes)
    tokens = torch.randint(0, pipe.tokenizer.vocab_size, (3, places, 1), generator=generator)
    mask = torch.rand(3, places, 1, generator=generator) < torch.tensor([0.9, 0.3, 0.0])[:, None, None]
    return tokens, mask


def settings(loop: str, **changes: object) -> Sampling:
    return flat_sampling(**{"sampler": loop, "steps": 5, "guidance": 1.5, **changes})


@pytest.mark.parametrize("loop", LOOPS)
def test_known_tokens_stay_and_all_are_decided(loop: str) -> None:
    pipe = tiny_pipeline()
    tokens, mask = scene(pipe)
    done = pipe.fill(tokens, mask, Request(cond=pipe.cond(LABELS), seeds=SEEDS, sampling=settings(loop)))
    assert torch.equal(done[~mask], tokens[~mask])
    assert done.min() >= 0
    assert done.max() < pipe.tokenizer.vocab_size


@pytest.mark.parametrize("loop", LOOPS)
def test_an_item_does_not_depend_on_its_batch(loop: str) -> None:
    pipe = tiny_pipeline()
    tokens, mask = scene(pipe)
    together = pipe.fill(tokens, mask, Request(cond=pipe.cond(LABELS), seeds=SEEDS, sampling=settings(loop)))
    alone = pipe.fill(
        tokens[1:2], mask[1:2], Request(cond=pipe.cond(LABELS[1:2]), seeds=SEEDS[1:2], sampling=settings(loop))
    )
    assert torch.equal(together[1:2], alone)


def test_the_loops_differ() -> None:
    pipe = tiny_pipeline()
    tokens, mask = scene(pipe)
    chosen = [settings(loop, guidance_ramp="linear") for loop in LOOPS]  # open-muse's ramps are all that is its own
    results = [pipe.fill(tokens, mask, Request(cond=pipe.cond(LABELS), seeds=SEEDS, sampling=one)) for one in chosen]
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


@pytest.mark.parametrize("ramp", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("loop", ["halton", "onedtok", "maskbit"])
def test_the_settings_are_those_of_the_loop(loop: str, ramp: str) -> None:
    pipe = tiny_pipeline()
    model = pipe.transformer
    tokens, mask = scene(pipe)
    hidden = tokens.masked_fill(mask, model.vocab_size)
    cond, guidance = Cond(labels=torch.tensor(LABELS)), Guidance(scale=1.5, ramp=ramp, power=2.0)  # type: ignore[arg-type]
    if loop == "halton":
        guided = guided_logits(model, cond, guidance, steps=5)
        orders = rolled_orders(halton_order(pipe.axes), SEEDS)
        halton = HaltonSampling(steps=5, logit_scale=(1.0, 1.2))
        expected = sample_halton(guided, hidden, mask, halton, order=orders, seeds=SEEDS)
    elif loop == "onedtok":
        guided = onedtok_guided_logits(model, cond, guidance, steps=5)
        onedtok = OneDTokSampling(steps=5, randomize_temperature=3.0, anneal=True)
        expected = sample_onedtok(guided, hidden, mask, onedtok, seeds=SEEDS)
    else:
        guided = maskbit_guided_logits(model, cond, guidance, steps=5)
        maskbit = MaskBitSampling(steps=5, annealed=True, choice_temperature=3.0)
        expected = sample_maskbit(guided, hidden, mask, maskbit, seeds=SEEDS)
    chosen = settings(loop, guidance_ramp=ramp, guidance_power=2.0, annealed=True, choice_temperature=3.0)
    assert torch.equal(pipe.fill(tokens, mask, Request(cond=pipe.cond(LABELS), seeds=SEEDS, sampling=chosen)), expected)


@pytest.mark.parametrize("loop", ["amused", "openmuse"])
def test_the_settings_of_amuseds_loop(loop: str) -> None:
    pipe = tiny_pipeline()
    model = pipe.transformer
    tokens, mask = scene(pipe)
    hidden = tokens.masked_fill(mask, model.vocab_size)
    cond, guidance = Cond(labels=torch.tensor(LABELS)), Guidance(scale=1.5, ramp="linear")
    guided = (guided_logits if loop == "amused" else openmuse_guided_logits)(model, cond, guidance, steps=5)
    for changes, own in (
        ({}, AmusedSampling(steps=5, temperature=(4.5, 0.0), starting_mask_ratio="row")),
        (
            {"schedule": "linear", "choice_temperature": "linear:2,1", "amused": {"counts": "batch", "rehides": True}},
            AmusedSampling(
                steps=5, schedule="linear", temperature=(2.0, 1.0), starting_mask_ratio="batch", rehides=True
            ),
        ),
        ({"amused": {"counts": "all"}}, AmusedSampling(steps=5, temperature=(4.5, 0.0))),
    ):
        chosen = settings(loop, guidance_ramp="linear", **changes)
        for start in (0, 2):
            request = Request(cond=pipe.cond(LABELS), seeds=SEEDS, sampling=chosen)
            done = pipe.fill(tokens, mask, request, start_step=start)
            assert torch.equal(done, sample_amused(guided, hidden, mask, own, seeds=SEEDS, start_step=start))


def test_a_temperature_of_amuseds_loop() -> None:
    pipe = tiny_pipeline()
    tokens, mask = scene(pipe)
    results = [
        pipe.fill(
            tokens,
            mask,
            Request(
                cond=pipe.cond(LABELS), seeds=seeds, sampling=settings("amused", temperature=0, choice_temperature=0)
            ),
        )
        for seeds in (SEEDS, [8, 9, 10])
    ]
    assert torch.equal(*results)  # nothing is left to chance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": "linear:1,0"}, "temperature: got 'linear:1,0', which works with the sampler 'maskgit' only"),
        (
            {"amused": AmusedChoices(counts="row"), "select": "critic"},
            "select: 'critic' works with the sampler 'maskgit'",
        ),
    ],
)
def test_what_amuseds_loop_has_not_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(sampler="amused", **changes)


def test_counts_are_named() -> None:
    with pytest.raises(ValueError, match="amused.counts: got 'rows', expected 'row', 'batch' or 'all'"):
        AmusedChoices(counts="rows")  # type: ignore[arg-type]


def test_a_schedule_that_amused_has_not_is_refused() -> None:
    pipe = tiny_pipeline()
    tokens, mask = scene(pipe)
    request = Request(cond=pipe.cond(LABELS), seeds=SEEDS, sampling=settings("amused", schedule="arccos"))
    with pytest.raises(ValueError, match="schedule: got 'arccos', expected 'cosine' or 'linear', the two of aMUSEd"):
        pipe.fill(tokens, mask, request)


def test_an_unknown_loop_is_refused() -> None:
    with pytest.raises(ValueError, match="sampler: got 'euler', expected 'maskgit', 'halton', 'onedtok' or 'maskbit'"):
        Sampling(sampler="euler")
