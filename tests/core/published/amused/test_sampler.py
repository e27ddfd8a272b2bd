"""aMUSEd's sampler: its counts and noise, and where it keeps given tokens that the published rule loses.

Shapes: B batch, N tokens.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from maskgen.noise import SeededNoise
from maskgen.published.amused.sampler import (
    PUBLISHED_SAMPLING,
    AmusedSampling,
    amused_mask_counts,
    ranking_temperatures,
    sample_amused,
)
from maskgen.published.amused.transformer import PUBLISHED
from maskgen.sampling.loop import SampleStep
from tests.selections import call


def fixed_logits(count: int, places: int, seed: int = 0) -> Callable[[Tensor, int], Tensor]:
    table = torch.randn(count, places, 1, 9, generator=torch.Generator().manual_seed(seed)) * 2
    return lambda tokens, step: table


def hidden_at(*places: int, count: int = 1, total: int = 12) -> tuple[Tensor, Tensor]:
    """Tokens (id 9 is hidden) and mask with the same places to decide in each row."""
    mask = torch.zeros(count, total, 1, dtype=torch.bool)
    mask[:, list(places)] = True
    return torch.arange(total).remainder(9)[None, :, None].repeat(count, 1, 1).masked_fill(mask, 9), mask


def official_loop(tokens: Tensor, logits: Tensor, steps: int, start: float, noise: SeededNoise) -> Tensor:
    """The published rule written out: what is hidden is what has the mask's id, and a known place counts log(max)."""
    for step in range(steps):
        unknown = tokens == 9
        drawn = torch.where(unknown, (logits + noise.sample(step, logits.shape)).argmax(-1), tokens)
        if step + 1 == steps:
            return drawn
        left = torch.cos(torch.tensor(step + 1) / steps * math.pi / 2)  # float32, so that 12 cos(pi / 3) is 5
        count = (unknown.flatten(1).sum(1) - 1).clamp(max=int((tokens[0].numel() * left).floor())).clamp(min=1)
        chosen = logits.softmax(-1).gather(-1, drawn[..., None])[..., 0]
        confidence = torch.where(unknown, chosen, torch.finfo(torch.float32).max).log()
        weight = start * (1 - step / (steps - 1))
        confidence = (confidence + weight * noise.choice(step, confidence.shape)).flatten(1)
        cut = confidence.sort(-1).values.gather(-1, count[:, None])
        tokens = torch.where((confidence < cut).view_as(drawn), 9, drawn)
    return tokens


def test_usual_noise_gives_what_the_published_rule_gives() -> None:
    tokens, mask = hidden_at(*range(2, 12), count=4)
    logits_fn = fixed_logits(4, 12)
    ours = sample_amused(logits_fn, tokens, mask, AmusedSampling(steps=5), seeds=[1, 2, 3, 4])
    theirs = official_loop(tokens, logits_fn(tokens, 0), 5, 2.0, SeededNoise([1, 2, 3, 4]))
    assert torch.equal(ours, theirs)
    assert len(ours.unique(dim=0)) == 4


def test_given_tokens_stay_where_the_published_rule_loses_them() -> None:
    """Noise of weight 60 beats log(float max) = 88.7 there, so given tokens are hidden and drawn again."""
    tokens, mask = hidden_at(0, 1, 2, 3, count=6)
    logits_fn = fixed_logits(6, 12)
    seeds = list(range(6))
    theirs = official_loop(tokens, logits_fn(tokens, 0), 6, 60.0, SeededNoise(seeds))
    assert not torch.equal(theirs[:, 4:], tokens[:, 4:])
    ours = sample_amused(logits_fn, tokens, mask, AmusedSampling(steps=6, temperature=(60.0, 0.0)), seeds=seeds)
    assert torch.equal(ours[:, 4:], tokens[:, 4:])
    assert (ours < 9).all()


def test_a_row_without_hidden_tokens_stays_where_the_published_rule_changes_it() -> None:
    """At least one place is hidden at each step there, even in a row that is complete."""
    tokens, mask = hidden_at(*range(12), count=2)
    tokens[0], mask[0] = torch.arange(12).remainder(9)[:, None], False
    logits_fn = fixed_logits(2, 12)
    theirs = official_loop(tokens, logits_fn(tokens, 0), 6, 2.0, SeededNoise([0, 1]))
    assert not torch.equal(theirs[0], tokens[0])
    ours = sample_amused(logits_fn, tokens, mask, AmusedSampling(steps=6), seeds=[0, 1])
    assert torch.equal(ours[0], tokens[0])
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_counts_follow_the_schedule_and_all_is_decided(schedule: str, steps: int) -> None:
    tokens, mask = hidden_at(*range(12), count=3)
    states: list[SampleStep] = []
    result = sample_amused(
        fixed_logits(3, 12),
        tokens,
        mask,
        AmusedSampling(steps=steps, schedule=schedule),
        seeds=[5, 6, 7],
        callback=states.append,
    )
    hidden = torch.full((3,), 12)
    for state in states:
        assert (state.step, state.steps) == (states.index(state), steps)
        last = state.step == steps - 1
        hidden = torch.zeros(3) if last else amused_mask_counts(schedule, state.step, steps, 12, hidden)
        assert torch.equal(state.mask.flatten(1).sum(1).float(), hidden.float())
        assert (state.tokens < 9).all()
    assert len(states) == steps
    assert torch.equal(result, states[-1].tokens)


def test_an_item_depends_on_its_seed_only() -> None:
    tokens, mask = hidden_at(*range(12), count=3)
    table = fixed_logits(1, 12)(tokens, 0)
    together = sample_amused(
        lambda seen, step: table.repeat(len(seen), 1, 1, 1), tokens, mask, AmusedSampling(steps=4), seeds=[3, 8, 3]
    )
    alone = sample_amused(lambda seen, step: table, tokens[:1], mask[:1], AmusedSampling(steps=4), seeds=[8])
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])


def test_starting_ratio_scales_the_schedule() -> None:
    unknown = torch.tensor([16, 16, 3, 0])
    assert amused_mask_counts("linear", 1, 4, 16, unknown).tolist() == [8, 8, 2, 1]
    assert amused_mask_counts("linear", 1, 4, 16, unknown, 0.5).tolist() == [4, 4, 2, 1]


def test_every_release_has_its_settings_and_they_are_the_defaults() -> None:
    assert PUBLISHED_SAMPLING.keys() == PUBLISHED.keys()
    tokens, mask = hidden_at(*range(12))
    plain = sample_amused(fixed_logits(1, 12), tokens, mask, AmusedSampling(), seeds=[4])
    for chosen in PUBLISHED_SAMPLING.values():
        named = {"steps": chosen.steps, "schedule": chosen.schedule, "temperature": chosen.temperature}
        assert named == {"steps": 12, "schedule": "cosine", "temperature": (2.0, 0.0)}
        assert chosen.guidance == 10.0
        assert torch.equal(sample_amused(fixed_logits(1, 12), tokens, mask, chosen, seeds=[4]), plain)


def test_ranking_temperatures() -> None:
    assert ranking_temperatures((2.0, 0.0), 5) == [2.0, 1.5, 1.0, 0.5, 0.0]
    assert ranking_temperatures(1.5, 3) == pytest.approx([1.5, 0.755, 0.01])
    assert ranking_temperatures(1.5, 1) == [1.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: got 0, expected at least 1"),
        ({"schedule": "arccos", "steps": 1}, "schedule: got 'arccos', expected 'cosine' or 'linear'"),
        ({"starting_mask_ratio": 0.0, "steps": 1}, "starting_mask_ratio: got 0.0"),
        ({"temperature": (2.0, -1.0)}, r"temperature: got \(2.0, -1.0\)"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"temperature": math.nan}, "temperature: got nan"),
        ({"seeds": None}, "give either seeds"),
        ({"noise": SeededNoise([0])}, "give either seeds"),
        ({"seeds": [1, 2]}, "seeds: got 2, expected one for each of the 1 items"),
        ({"tokens": torch.zeros(1, 12)}, r"tokens: got torch.float32 \(1, 12\)"),
        ({"mask": torch.zeros(1, 12, 1)}, r"mask: got torch.float32 \(1, 12, 1\), expected bool"),
        ({"logits_fn": fixed_logits(1, 11)}, r"logits_fn returned \(1, 11, 1, 9\), expected \[B, N, K, V\]"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, object], message: str) -> None:
    tokens, mask = hidden_at(*range(12))
    given: dict[str, object] = {"logits_fn": fixed_logits(1, 12), "tokens": tokens, "mask": mask, "seeds": [0]}
    with pytest.raises(ValueError, match=message):
        call(sample_amused, AmusedSampling, **(given | changes))
