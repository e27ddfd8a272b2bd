"""The decoding loop of lucidrains' Muse: against the published rule written out, and what ours adds to it.

Shapes: B batch, N tokens.
"""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.noise import SeededNoise
from maskgen.published.muse.sampler import (
    MuseSampling,
    kept_codes,
    muse_counts,
    muse_critic_scores,
    muse_guided_logits,
    sample_muse,
)
from maskgen.published.muse.transformer import MuseCritic, without_text
from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from tests.core.published.muse.toys import BASE, CASES, conditions, model_of, tokens_of
from tests.selections import call

MASK = 9  # the mask id; N = 12


def logits_of(tokens: Tensor, step: int) -> Tensor:
    """Fixed numbers that depend on what is visible in the row."""
    table = torch.randn(MASK + 1, 12, 1, MASK, generator=torch.Generator().manual_seed(3))
    return 2 * table[tokens[:, :, 0].sum(1) % (MASK + 1)]


def masked(count: int, places: range = range(12)) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(count, 12, 1, dtype=torch.bool)
    mask[:, list(places)] = True
    return torch.arange(12).remainder(MASK)[None, :, None].repeat(count, 1, 1).masked_fill(mask, MASK), mask


def official_loop(count: int, steps: int, temperature: float, threshold: float, noise: SeededNoise) -> Tensor:
    """The published rule: everything is masked at the start, and the most surprising tokens again."""
    ids, scores = torch.full((count, 12), MASK), torch.zeros(count, 12)
    for step, t in enumerate(torch.linspace(0, 1, steps)):
        hide = max(int((torch.cos(t * math.pi * 0.5) * 12).item()), 1)
        ids = ids.scatter(1, scores.topk(hide, dim=-1).indices, MASK)
        logits = logits_of(ids[..., None], step)[:, :, 0]
        values, places = logits.topk(math.ceil((1 - threshold) * MASK), dim=-1)
        kept = torch.full_like(logits, -torch.inf).scatter(2, places, values)
        now = temperature * ((steps - 1 - step) / steps)
        drawn = (kept / max(now, 1e-10) + noise.sample(step, kept.shape)).argmax(-1)
        open_places = ids == MASK
        ids = torch.where(open_places, drawn, ids)
        scores = 1 - logits.softmax(-1).gather(2, drawn[..., None])[..., 0]
        scores = scores.masked_fill(~open_places, -1e5)
    return ids


@pytest.mark.parametrize(("steps", "temperature", "threshold"), [(1, 1.0, 0.9), (5, 1.0, 0.6), (18, 0.7, 0.3)])
def test_is_the_published_rule(steps: int, temperature: float, threshold: float) -> None:
    seeds = list(range(6))
    settings = MuseSampling(steps=steps, temperature=temperature, filter=TokenFilter(top_k=kept_codes(MASK, threshold)))
    ours = sample_muse(logits_of, *masked(6), settings, seeds=seeds)
    assert torch.equal(ours[..., 0], official_loop(6, steps, temperature, threshold, SeededNoise(seeds)))


def test_settings_come_from_those_of_all_loops() -> None:
    flat = Sampling(sampler="maskgit", steps=7, temperature=0.5, choice_temperature=2.0, filter=TokenFilter(top_k=3))
    made = MuseSampling.of(flat)
    assert made == MuseSampling(steps=7, temperature=0.5, critic_noise=2.0, filter=TokenFilter(top_k=3))


def test_kept_codes_are_counted_in_float64() -> None:
    assert [kept_codes(size) for size in (10, 32, 65536)] == [1, 4, 6554]
    assert kept_codes(32, 0.6) == 13


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("with_critic", [False, True])
def test_given_tokens_stay_and_all_is_decided(steps: int, with_critic: bool) -> None:
    tokens, mask = masked(3, range(2, 10))
    mask[2] = False
    tokens[2] = tokens[2].clamp(max=MASK - 1)
    states: list[SampleStep] = []
    result = sample_muse(
        logits_of,
        tokens,
        mask,
        MuseSampling(steps=steps),
        critic=(lambda tokens, step: -tokens.float()) if with_critic else None,
        seeds=[1, 2, 3],
        callback=states.append,
    )
    assert torch.equal(result[~mask], tokens[~mask])
    assert (result < MASK).all()
    for state in states[:-1]:
        counts = muse_counts(state.step + 1, steps, mask.flatten(1).sum(1)) * mask.flatten(1).any(1)
        assert torch.equal(state.mask.flatten(1).sum(1), counts)
        assert not (state.mask & ~mask).any()
    assert not states[-1].mask.any()
    assert torch.equal(states[-1].tokens, result)


def test_a_critic_may_change_what_was_sampled() -> None:
    """Without one a token that was kept is never masked again."""
    tokens, mask = masked(4)
    wishes = torch.randn(6, 4, 12, 1, generator=torch.Generator().manual_seed(1))

    def reopened(critic: object) -> bool:
        states: list[SampleStep] = []
        sample_muse(
            logits_of,
            tokens,
            mask,
            MuseSampling(steps=6),
            critic=critic,  # type: ignore[arg-type]
            seeds=[1, 2, 3, 4],
            callback=states.append,
        )
        pairs = itertools.pairwise(states)
        return any(bool((later.mask & ~before.mask).any()) for before, later in pairs)

    assert not reopened(None)
    assert reopened(lambda tokens, step: wishes[step])


def test_the_critic_ranks_with_its_noise() -> None:
    tokens, mask = masked(2)
    noise = SeededNoise([5, 6])
    states: list[SampleStep] = []
    settings = MuseSampling(steps=4, critic_noise=3.0)
    scores = torch.linspace(0, 1, 12)[None, :, None].expand(2, -1, -1)
    sample_muse(logits_of, tokens, mask, settings, critic=lambda t, s: scores, noise=noise, callback=states.append)
    uniform = torch.exp(-torch.exp(-noise.choice(0, mask.shape)))
    assert 0 < uniform.min() < uniform.max() < 1
    wrong = -scores + (uniform - 0.5) * 3.0 * 3 / 4
    hidden = torch.zeros_like(mask).scatter(
        1, wrong.topk(int(muse_counts(1, 4, torch.tensor(12))), dim=1).indices, True
    )
    assert torch.equal(states[0].mask, hidden)


def test_an_item_depends_on_its_seed_only() -> None:
    together = sample_muse(logits_of, *masked(3), MuseSampling(steps=5), seeds=[4, 9, 4])
    alone = sample_muse(logits_of, *masked(1), MuseSampling(steps=5), seeds=[9])
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])


@torch.no_grad()
@pytest.mark.parametrize("name", ["base", "super-resolution"])
def test_guidance_pushes_away_from_no_text(name: str) -> None:
    config = CASES[name]
    model, tokens, cond = model_of(config), tokens_of(config), conditions(config)
    logits_fn = muse_guided_logits(model, cond, [0.0, 2.0])
    wanted, weak = model(tokens, cond), model(tokens, without_text(cond))
    torch.testing.assert_close(logits_fn(tokens, 0), wanted)
    torch.testing.assert_close(logits_fn(tokens, 1), wanted + 2 * (wanted - weak), atol=1e-5, rtol=1e-5)
    unmasked = dataclasses.replace(cond, context_mask=None)
    torch.testing.assert_close(muse_guided_logits(model, unmasked, [0.0, 2.0])(tokens, 1), logits_fn(tokens, 1))


@torch.no_grad()
@pytest.mark.parametrize("name", ["base", "self-conditioned"])
def test_a_negative_prompt_takes_the_place_of_no_text(name: str) -> None:
    """The original raises a TypeError there."""
    model, tokens, cond = model_of(CASES[name]), tokens_of(BASE), conditions(BASE)
    other = conditions(BASE, seed=8)
    against = dataclasses.replace(cond, null=Cond(context=other.context, context_mask=other.context_mask))
    wanted, weak = model(tokens, cond), model(tokens, other)
    guided = muse_guided_logits(model, against, [1.5])(tokens, 0)
    torch.testing.assert_close(guided, wanted + 1.5 * (wanted - weak), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_features_of_the_conditional_half_go_into_both_of_the_next_step() -> None:
    config = CASES["self-conditioned"]
    model, tokens, cond = model_of(config), tokens_of(config), conditions(config)
    features = model.features(tokens, cond)
    wanted, weak = (model.outputs(model.features(tokens, half, None, features)) for half in (cond, without_text(cond)))
    for weights in ([2.0, 2.0], [0.0, 2.0]):
        logits_fn = muse_guided_logits(model, cond, weights)
        first = logits_fn(tokens, 0)
        torch.testing.assert_close(logits_fn(tokens, 1), wanted + 2 * (wanted - weak), atol=1e-5, rtol=1e-5)
        assert torch.equal(logits_fn(tokens, 0), first), "the first step begins anew"
    assert not torch.allclose(wanted, model(tokens, cond), atol=1e-3)


@torch.no_grad()
def test_critic_scores_are_guided() -> None:
    critic, tokens, cond = model_of(BASE, MuseCritic), tokens_of(BASE, masked=False), conditions(BASE)
    wrong = [critic.outputs(critic.features(tokens, half))[..., 0] for half in (cond, without_text(cond))]
    scores = muse_critic_scores(critic, cond, [2.0])(tokens, 0)
    torch.testing.assert_close(-scores, wrong[1] + 3 * (wrong[0] - wrong[1]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: got 0, expected at least 1"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"critic_noise": math.nan}, "critic_noise: got nan"),
        ({"seeds": [1]}, "seeds: got 1, expected one for each of the 2 items"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, object], message: str) -> None:
    tokens, mask = masked(2)
    given: dict[str, object] = {"logits_fn": logits_of, "tokens": tokens, "mask": mask, "seeds": [0, 1]}
    with pytest.raises(ValueError, match=message):
        call(sample_muse, MuseSampling, **(given | changes))
