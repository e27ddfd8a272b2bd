"""VampNet's sampler beyond the recorded runs: counts, rows that differ, one ranking over codebooks, seeds, errors.

Shapes: B batch, N = T frames, K codebooks, V codes.
"""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.noise import SeededNoise
from maskgen.published.vampnet.sampler import VampNetSampling, sample_vampnet, vampnet_counts
from maskgen.sampling.filters import TokenFilter, filtered_logits
from maskgen.sampling.loop import SampleStep
from maskgen.testing import OracleModel
from tests.selections import call

V = 7


def model(tokens: Tensor, step: int) -> Tensor:
    """Logits that depend on all visible tokens of the row and on the place."""
    rows, frames, codebooks = tokens.shape
    place = torch.arange(frames * codebooks).reshape(1, frames, codebooks, 1) + 1.0
    seen = tokens.double().sum((1, 2)).reshape(rows, 1, 1, 1) + step
    return 2 * torch.sin(place * (torch.arange(V) + 1) * 0.37 + seen).float()


def scene(rows: int = 3, frames: int = 5, codebooks: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, frames, codebooks, generator=generator) < torch.linspace(1, 0, rows)[:, None, None]
    tokens = torch.randint(V, mask.shape, generator=generator)
    return tokens.masked_fill(mask, V), mask


@given(total=st.integers(0, 400), steps=st.integers(1, 40))
def test_counts_fall_to_zero_and_always_decide_something(total: int, steps: int) -> None:
    totals = unknown = torch.tensor([total])
    for step in range(steps):
        count = vampnet_counts(totals, unknown, step, steps)
        if step < steps - 1:
            planned = math.floor(math.cos(math.pi * (step + 1) / steps / 2) * total + 1e-4)
            assert count.item() in (max(1, min(unknown.item() - 1, planned - around)) for around in (0, 1))
            assert count < unknown or unknown <= 1
        else:
            assert count == 0
        unknown = count


@given(seed=st.integers(0, 2**32), steps=st.integers(1, 12), frames=st.integers(1, 6), codebooks=st.integers(1, 3))
def test_known_stay_all_is_decided_and_counts_are_kept(seed: int, steps: int, frames: int, codebooks: int) -> None:
    tokens, mask = scene(3, frames, codebooks, seed)
    seen: list[SampleStep] = []
    done = sample_vampnet(model, tokens, mask, VampNetSampling(steps=steps), seeds=[seed, 1, 2], callback=seen.append)
    assert torch.equal(done[~mask], tokens[~mask])
    assert done.min() >= 0
    assert done.max() < V
    total = unknown = mask.flatten(1).sum(1)
    for step, state in enumerate(seen):
        unknown = vampnet_counts(total, unknown, step, steps)
        if frames * codebooks > 1:  # a lone cell has no other to be less sure than
            assert torch.equal(state.mask.flatten(1).sum(1), torch.minimum(unknown, total))
        assert not (state.mask & ~mask).any()
    assert not seen[-1].mask.any()


def test_an_item_depends_on_its_seed_alone() -> None:
    tokens, mask = scene()
    together = sample_vampnet(model, tokens, mask, VampNetSampling(steps=6), seeds=[4, 5, 6])
    for row in range(3):
        part = slice(row, row + 1)
        assert torch.equal(
            sample_vampnet(model, tokens[part], mask[part], VampNetSampling(steps=6), seeds=[4 + row]), together[part]
        )
    assert not torch.equal(sample_vampnet(model, tokens, mask, VampNetSampling(steps=6), seeds=[7, 8, 9]), together)


def test_batch_counts_let_an_item_depend_on_its_batch() -> None:
    tokens, mask = scene()
    seen: list[SampleStep] = []
    sample_vampnet(
        model, tokens, mask, VampNetSampling(steps=6, batch_counts=True), seeds=[4, 5, 6], callback=seen.append
    )
    total = mask.flatten(1).sum(1)
    unknown = total
    for step, state in enumerate(seen):
        unknown = vampnet_counts(total.sum().expand(3), unknown, step, 6)
        assert torch.equal(state.mask.flatten(1).sum(1)[0], unknown[0])
    alone = sample_vampnet(model, tokens[:1], mask[:1], VampNetSampling(steps=6, batch_counts=True), seeds=[4])
    assert torch.equal(alone, sample_vampnet(model, tokens[:1], mask[:1], VampNetSampling(steps=6), seeds=[4]))


def test_one_ranking_over_all_codebooks() -> None:
    """A sure fine codebook is decided before an unsure coarse one."""
    logits = torch.zeros(1, 4, 2, V)
    logits[:, :, 1, 3] = 20.0
    seen: list[SampleStep] = []
    hidden = torch.full((1, 4, 2), V)
    settings = VampNetSampling(steps=2, mask_temperature=0.0)
    sample_vampnet(lambda tokens, step: logits, hidden, hidden == V, settings, seeds=[0], callback=seen.append)
    # floor(8 cos(pi / 4)) = 5 cells; the sure ones tie with the cut, and ties are kept.
    assert [int(state.mask.sum()) for state in seen] == [4, 0]
    assert not seen[0].mask[:, :, 1].any()


def test_temperature_zero_is_greedy_without_noise() -> None:
    tokens, mask = scene()
    answer = torch.randint(V, tokens.shape, generator=torch.Generator().manual_seed(1))
    oracle = OracleModel(answer, V, certainty=0.1)
    found = [
        sample_vampnet(
            lambda ids, step: oracle(ids), tokens, mask, VampNetSampling(steps=3, temperature=0.0), seeds=[seed, 1, 2]
        )
        for seed in range(3)
    ]
    assert all(torch.equal(done, torch.where(mask, answer, tokens)) for done in found)


class Counting(SeededNoise):
    """Counts the draws."""

    draws = 0

    def sample(self, step: int, shape: Any) -> Tensor:
        self.draws += 1
        return super().sample(step, shape)


@pytest.mark.parametrize(("cutoff", "draws"), [(1.0, 8), (0.4, 4), (0.5, 5), (0.0, 1)])
def test_sample_cutoff(cutoff: float, draws: int) -> None:
    tokens, mask = scene()
    noise = Counting([1, 2, 3])
    sample_vampnet(model, tokens, mask, VampNetSampling(steps=8, sample_cutoff=cutoff), noise=noise)
    assert noise.draws == draws


def test_a_filter_works() -> None:
    """The official typical filter changed nothing; here only classes that it keeps are drawn."""
    tokens, mask = scene()
    keep = TokenFilter(typical_mass=0.2, typical_min_tokens=1)
    allowed: list[Tensor] = []

    def watched(ids: Tensor, step: int) -> Tensor:
        logits = filtered_logits(model, keep)(ids, step)
        allowed.append(logits.isfinite())
        return logits

    seen: list[SampleStep] = []
    done = sample_vampnet(watched, tokens, mask, VampNetSampling(steps=4), seeds=[1, 2, 3], callback=seen.append)
    before = mask
    for state, classes in zip(seen, allowed, strict=True):
        assert classes.gather(-1, state.tokens.clamp(max=V - 1)[..., None])[..., 0][before].all()
        before = state.mask
    assert not torch.equal(done, sample_vampnet(model, tokens, mask, VampNetSampling(steps=4), seeds=[1, 2, 3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: got 0"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"mask_temperature": math.inf}, "mask_temperature: got inf"),
        ({"sample_cutoff": -0.1}, "sample_cutoff: got -0.1"),
        ({"seeds": None}, "either seeds"),
        ({"seeds": [1]}, "seeds: got 1, expected one for each of the 3"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    tokens, mask = scene()
    prompt = {"logits_fn": model, "tokens": tokens, "mask": mask}
    with pytest.raises(ValueError, match=message):
        call(sample_vampnet, VampNetSampling, **prompt, **{"steps": 2, "seeds": [1, 2, 3], **change})
