"""Each group's loop through the pipeline: the settings reach it, known tokens stay, seeds decide."""

import math

import pytest
import torch

from maskgen.conditioning import Cond
from maskgen.published.halton.sampler import HaltonSampling, halton_order, rolled_orders, sample_halton
from maskgen.published.maskbit.sampler import MaskBitSampling, maskbit_guided_logits, sample_maskbit
from maskgen.published.onedtok.sampler import OneDTokSampling, onedtok_guided_logits, sample_onedtok
from maskgen.sampling.guidance import Guidance, guided_logits
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.request import Request
from maskgen.tasks.pipeline import Pipeline
from tests.selections import flat_sampling
from tests.support import tiny_pipeline

LOOPS = ("maskgit", "halton", "onedtok", "maskbit")
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
    results = [
        pipe.fill(tokens, mask, Request(cond=pipe.cond(LABELS), seeds=SEEDS, sampling=settings(loop))) for loop in LOOPS
    ]
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


def test_an_unknown_loop_is_refused() -> None:
    with pytest.raises(ValueError, match="sampler: got 'euler', expected 'maskgit', 'halton', 'onedtok' or 'maskbit'"):
        Sampling(sampler="euler")
