"""The sampler and the guidance of 1d-tokenizer: what they guarantee, and where the published loop does not."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.noise import SeededNoise
from maskgen.published.onedtok.imagebert import ImageBert, ImageBertConfig
from maskgen.published.onedtok.sampler import (
    OneDTokSampling,
    onedtok_counts,
    onedtok_guided_logits,
    onedtok_weights,
    sample_onedtok,
)
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.loop import SampleStep
from tests.selections import call


def test_guidance_weights() -> None:
    assert onedtok_weights(Guidance(scale=3.0, ramp="constant", power=1.0), 4) == [3.0] * 4
    assert onedtok_weights(Guidance(scale=3.0, ramp="linear", power=1.0), 4) == [0.0, 0.75, 1.5, 2.25]
    cosine = onedtok_weights(Guidance(scale=5.0, ramp="power-cosine", power=1.0), 4)
    assert cosine == pytest.approx([0.0, 2 - math.sqrt(2), 2.0, 2 + math.sqrt(2)])
    assert onedtok_weights(Guidance(scale=5.0, ramp="power-cosine", power=2.0), 4)[2] == pytest.approx(cosine[1])
    same = onedtok_weights(Guidance(scale=5.0, ramp="cosine", power=1.0), 4)
    assert same == cosine


def test_guidance_pushes_away_from_no_class() -> None:
    model = ImageBert(ImageBertConfig(vocab_size=7, num_classes=3, axes=(6,), width=16, layers=1, heads=2, mlp_width=8))
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    tokens = torch.randint(8, (3, 6, 1), generator=torch.Generator().manual_seed(1))
    cond = Cond(labels=torch.tensor([0, 1, 2]))
    conditional, unconditional = model(tokens, cond), model(tokens, cond.unconditional())
    expected = {
        "constant": conditional + 3 * (conditional - unconditional),
        "linear": conditional + 1.5 * (conditional - unconditional),
        "power-cosine": unconditional + 2 * (conditional - unconditional),
    }
    for decay, logits in expected.items():
        guided = onedtok_guided_logits(model, cond, Guidance(scale=3.0, ramp=decay, power=1.0), steps=4)  # type: ignore[arg-type]
        torch.testing.assert_close(guided(tokens, 2), logits, atol=1e-4, rtol=1e-4)
        if decay != "constant":
            assert torch.equal(guided(tokens, 0), conditional)


class Case:
    """Random tokens, some hidden, and logits that depend on the place, the token there and the one before."""

    def __init__(self, seed: int, rows: int, places: int, codes: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.mask = torch.rand(rows, places, 1, generator=generator) < 1.3 * torch.rand(rows, 1, 1, generator=generator)
        known = torch.randint(codes, (rows, places, 1), generator=generator)
        self.tokens = known.masked_fill(self.mask, codes)
        self.codes = codes
        self.places = torch.randn(places, 1, codes, generator=generator)
        self.table = torch.randn(codes + 1, codes, generator=generator)
        self.seeds = [seed + 11 * row for row in range(rows)]

    def logits(self, tokens: Tensor, step: int) -> Tensor:
        return self.places + self.table[tokens] + 0.7 * self.table[tokens.roll(1, dims=1)]


CASES = st.builds(Case, st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 8), st.integers(2, 5))


@given(CASES, st.integers(1, 11), st.booleans())
def test_sampler_guarantees(case: Case, steps: int, anneal: bool) -> None:
    done: list[SampleStep] = []
    inputs: list[Tensor] = []

    def watched(tokens: Tensor, step: int) -> Tensor:
        inputs.append(tokens)
        return case.logits(tokens, step)

    before = case.tokens.clone()
    out = sample_onedtok(
        watched,
        case.tokens,
        case.mask,
        OneDTokSampling(steps=steps, anneal=anneal),
        seeds=case.seeds,
        callback=done.append,
    )
    assert torch.equal(case.tokens, before)
    assert torch.equal(out[~case.mask], case.tokens[~case.mask])
    assert out.max() < case.codes
    total = case.mask.sum((1, 2))
    mask = case.mask
    for step, (seen, given_in) in enumerate(zip(done, inputs, strict=True)):
        assert torch.equal(given_in == case.codes, mask)
        counts = onedtok_counts(total, mask.sum((1, 2)), step, steps)
        expected = torch.zeros_like(total) if step == steps - 1 else torch.minimum(counts, mask.sum((1, 2)))
        assert torch.equal(seen.mask.sum((1, 2)), expected)
        assert not (seen.mask & ~mask).any()
        assert torch.equal(seen.confidence == 0, ~mask)
        mask = seen.mask
    for row, seed in enumerate(case.seeds):
        alone = sample_onedtok(
            case.logits, case.tokens[[row]], case.mask[[row]], OneDTokSampling(steps=steps, anneal=anneal), seeds=[seed]
        )
        assert torch.equal(alone, out[[row]])


def official_generate(
    logits_fn: Callable[[Tensor, int], Tensor], ids: Tensor, mask_id: int, steps: int, heat: float, noise: SeededNoise
) -> tuple[Tensor, list[Tensor]]:
    """The published loop in plain words, with its one count for the whole batch; all inputs and the result."""
    seen = []
    for step in range(steps):
        seen.append(ids.clone())
        known = ids != mask_id
        ratio = (step + 1) / steps
        logits = logits_fn(ids, step)
        drawn = (logits + heat * (1 - ratio) * noise.sample(step, logits.shape)).argmax(-1)
        picked = logits.gather(-1, drawn[..., None])[..., 0].masked_fill(known, math.inf)
        drawn = torch.where(known, ids, drawn)
        picked = (picked + heat * (1 - ratio) * noise.choice(step, ids.shape))[..., 0]
        count = min(int((~known[0]).sum()) - 1, math.floor(ids.shape[1] * math.acos(ratio) / (math.pi / 2)))
        cut = picked.sort(dim=1).values[:, max(1, count) - 1]
        ids = drawn if step == steps - 1 else torch.where((picked <= cut[:, None])[..., None], mask_id, drawn)
    return ids, seen


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
def test_from_scratch_it_is_the_official_loop(seed: int, rows: int, places: int, steps: int) -> None:
    case = Case(seed, rows, places, 5)
    hidden = torch.full_like(case.tokens, 5)
    ours: list[Tensor] = []

    def watched(tokens: Tensor, step: int) -> Tensor:
        ours.append(tokens)
        return case.logits(tokens, step)

    out = sample_onedtok(
        watched, hidden, hidden == 5, OneDTokSampling(steps=steps, randomize_temperature=2.0), seeds=case.seeds
    )
    expected, inputs = official_generate(case.logits, hidden, 5, steps, 2.0, SeededNoise(case.seeds))
    assert torch.equal(out, expected)
    assert torch.equal(torch.stack(ours), torch.stack(inputs))


def test_given_tokens_stay_where_the_official_loop_loses_them() -> None:
    """Row 0 hides 8 of 8 places and row 1 two of them: one count for both makes row 1 hide its given tokens."""
    case = Case(3, 2, 8, 5)
    tokens = torch.arange(16).view(2, 8, 1) % 5
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[0], mask[1, :2] = True, True
    tokens = tokens.masked_fill(mask, 5)
    lost, inputs = official_generate(case.logits, tokens, 5, 6, 4.5, SeededNoise(case.seeds))
    assert (inputs[1][1] == 5).sum() > 2
    assert not torch.equal(lost[1, 2:], tokens[1, 2:])
    out = sample_onedtok(case.logits, tokens, mask, OneDTokSampling(steps=6), seeds=case.seeds)
    assert torch.equal(out[1, 2:], tokens[1, 2:])
    assert torch.equal(
        out[:1], sample_onedtok(case.logits, tokens[:1], mask[:1], OneDTokSampling(steps=6), seeds=case.seeds[:1])
    )


def test_counts_are_rounded_in_float64() -> None:
    totals = torch.arange(1, 3000)
    in_float32 = 0
    for steps in (2, 6, 8, 12):
        for step in range(steps):
            share = math.acos((step + 1) / steps) / (math.pi * 0.5)
            expected = [max(1, math.floor(total * share)) for total in totals.tolist()]
            assert onedtok_counts(totals, totals + 1, step, steps).tolist() == expected
            rough = torch.arccos(torch.tensor((step + 1) / steps)) / (math.pi * 0.5) * totals.float()
            in_float32 += int((rough.floor() != torch.floor(totals.double() * share)).sum())
    assert in_float32 > 0


def test_no_noise_is_greedy_and_ties_are_all_hidden() -> None:
    hidden = torch.full((1, 4, 1), 3)
    masks: list[list[int]] = []
    flat = torch.tensor([1.0, 2.0, 0.0]).expand(1, 4, 1, 3)
    out = sample_onedtok(
        lambda tokens, step: flat,
        hidden,
        hidden == 3,
        OneDTokSampling(steps=3, randomize_temperature=0.0),
        seeds=[5],
        callback=lambda seen: masks.append(seen.mask.flatten().int().tolist()),
    )
    assert out.flatten().tolist() == [1, 1, 1, 1]
    assert masks == [[1] * 4, [1] * 4, [0] * 4]


def test_annealing_sharpens_the_logits() -> None:
    """0.5 + 0.8 (1 - r): the same noise on divided logits, thus a division by hand gives the same sample."""
    case = Case(8, 2, 6, 5)
    hidden = torch.full_like(case.tokens, 5)
    temperatures = [0.5 + 0.8 * (1 - (step + 1) / 4) for step in range(4)]
    annealed = sample_onedtok(case.logits, hidden, hidden == 5, OneDTokSampling(steps=4, anneal=True), seeds=case.seeds)
    by_hand = sample_onedtok(
        lambda tokens, step: case.logits(tokens, step) / temperatures[step],
        hidden,
        hidden == 5,
        OneDTokSampling(steps=4),
        seeds=case.seeds,
    )
    assert torch.equal(annealed, by_hand)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.zeros(2, 3)}, "expected int64"),
        ({"mask": torch.zeros(2, 3, 2, dtype=torch.bool)}, "as the tokens"),
        ({"steps": 0}, "steps: got 0"),
        ({"randomize_temperature": -1.0}, "randomize_temperature: got -1.0"),
        ({"seeds": None}, "give either seeds"),
        ({"noise": SeededNoise([1, 2])}, "give either seeds"),
        ({"seeds": [1]}, "expected one for each of the 2 items"),
    ],
)
def test_sampler_errors(changes: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {
        "tokens": torch.full((2, 3, 1), 4),
        "mask": torch.ones(2, 3, 1, dtype=torch.bool),
        "seeds": [1, 2],
    }
    with pytest.raises(ValueError, match=message):
        call(
            sample_onedtok,
            OneDTokSampling,
            logits_fn=lambda tokens, step: torch.zeros(2, 3, 1, 4),
            **(settings | changes),
        )
