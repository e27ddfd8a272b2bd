"""Spans as a selector, and decoding codebook by codebook.

Shapes: B batch, N = T frames, K codebooks, V codes, M places.
"""

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.noise import SeededNoise
from maskgen.sampling.codebooks import sample_by_codebook
from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.loop import SampleStep, sample
from maskgen.sampling.selectors.named import get_selector
from maskgen.sampling.selectors.spans import span_selector
from tests.selections import selection

V = 6


# Spans


def slow_spans(scores: list[float], mask: list[bool], count: int, length: int, overlap: bool, best: bool) -> list[bool]:
    """The rule once more: windows one by one, least confident first, while what they hide together fits."""
    width = min(length, len(mask))
    starts = range(len(mask) - width + 1) if overlap else range(0, len(mask), width)
    windows = []
    for start in starts:
        places = [place for place in range(start, min(start + width, len(mask))) if mask[place]]
        if places:
            values = [scores[place] for place in places]
            windows.append((max(values) if best else sum(values) / len(values), places))
    windows.sort(key=lambda window: window[0])
    hidden: set[int] = set()
    for number, (_, places) in enumerate(windows):
        if number and len(hidden | set(places)) > count:
            break
        hidden |= set(places)
    return [place in hidden for place in range(len(mask))]


@given(
    seed=st.integers(0, 2**32),
    places=st.integers(1, 20),
    length=st.integers(1, 5),
    share=st.floats(0, 1),
    kind=st.sampled_from(["", "-prod", "-stride1"]),
)
@example(seed=0, places=2, length=5, share=1.0, kind="")
def test_spans_against_one_window_at_a_time(seed: int, places: int, length: int, share: float, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = -torch.rand(3, places, generator=generator).double()
    mask = torch.rand(3, places, generator=generator) < torch.tensor([1.0, 0.6, 0.0])[:, None]
    counts = (mask.sum(1) * share).long().clamp(min=1)
    selector = get_selector(f"span{length}{kind}")
    found = selector.remask(selection(scores, mask, counts))
    for row in range(3):
        overlap, best = kind == "-stride1", not kind
        expected = slow_spans(scores[row].tolist(), mask[row].tolist(), int(counts[row]), length, overlap, best)
        assert found[row].tolist() == expected


@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["", "-prod", "-stride1"]))
def test_spans_of_one_place_are_the_confidence_order(seed: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, noise = torch.randn(2, 9, generator=generator), torch.randn(2, 9, generator=generator)
    mask = torch.rand(2, 9, generator=generator) < 0.8
    counts = (mask.sum(1) // 2).clamp(min=1)
    step = selection(scores, mask, counts, noise, 0.7)
    assert torch.equal(get_selector(f"span1{kind}").remask(step), get_selector("confidence").remask(step))


def test_counts_of_spans_are_those_of_magnet() -> None:
    """max(1, int(share x spans)) spans of three are hidden when all places were."""
    scores = -torch.rand(1, 30, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(1, 30, dtype=torch.bool)
    for percent in range(0, 100, 7):
        counts = torch.tensor([30 * percent // 100])
        found = span_selector(3).remask(selection(scores, everything, counts)).view(10, 3)
        assert torch.equal(found.all(1), found.any(1))
        assert int(found.any(1).sum()) == max(1, 10 * percent // 100)


@pytest.mark.parametrize("name", ["span", "span0", "span3-max", "span-3", "span03", "spans3"])
def test_names(name: str) -> None:
    with pytest.raises(ValueError, match="selector: got .*, expected one of 'confidence', .*, 'span<length>'"):
        get_selector(name)


def test_a_span_has_a_length() -> None:
    with pytest.raises(ValueError, match="span: got a length of 0"):
        span_selector(0)


# Codebook by codebook


def model(tokens: Tensor, step: int) -> Tensor:
    """Logits that depend on all visible tokens of the row and on the place."""
    rows, frames, codebooks = tokens.shape
    place = torch.arange(frames * codebooks).reshape(1, frames, codebooks, 1) + 1.0
    seen = tokens.double().sum((1, 2)).reshape(rows, 1, 1, 1)
    return 2 * torch.sin(place * (torch.arange(V) + 1) * 0.37 + seen).float()


def scene(rows: int = 3, frames: int = 7, codebooks: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, frames, codebooks, generator=generator) < torch.linspace(1, 0, rows)[:, None, None]
    tokens = torch.randint(V, mask.shape, generator=generator)
    return tokens.masked_fill(mask, V), mask


@given(
    seed=st.integers(0, 2**32),
    frames=st.integers(1, 8),
    steps=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    select=st.sampled_from(["span3", "span2-prod", "span3-stride1", "confidence"]),
)
def test_known_stay_and_coarse_come_first(seed: int, frames: int, steps: list[int], select: str) -> None:
    tokens, mask = scene(2, frames, len(steps), seed)
    looked: list[tuple[int, Tensor]] = []

    def watched(ids: Tensor, step: int) -> Tensor:
        looked.append((step, ids.clone()))
        return model(ids, step)

    seen: list[SampleStep] = []
    settings: dict[str, Any] = {"select": select, "seeds": [seed, 1], "callback": seen.append}
    done = sample_by_codebook(watched, tokens, mask, steps=steps, **settings)
    assert torch.equal(done[~mask], tokens[~mask])
    assert done.min() >= 0
    assert done.max() < V
    needed = [k for k in range(len(steps)) if mask[:, :, k].any()]
    assert [step for step, _ in looked] == [sum(steps[:k]) + i for k in needed for i in range(steps[k])]
    assert [(state.step, state.steps) for state in seen] == [(step, sum(steps)) for step, _ in looked]
    for step, ids in looked:
        k = next(k for k in range(len(steps)) if step < sum(steps[: k + 1]))
        assert torch.equal(ids[:, :, :k], done[:, :, :k])
        assert torch.equal(ids[:, :, k + 1 :], tokens[:, :, k + 1 :])
    for state in seen:
        assert not (state.mask & ~mask).any()
        assert torch.equal(state.tokens[~mask], tokens[~mask])


def test_an_item_depends_on_its_seed_alone() -> None:
    tokens, mask = scene()
    steps = (4, 2, 3)
    together = sample_by_codebook(model, tokens, mask, steps=steps, seeds=[4, 5, 6])
    for row in range(3):
        part = slice(row, row + 1)
        alone = sample_by_codebook(model, tokens[part], mask[part], steps=steps, seeds=[4 + row])
        assert torch.equal(alone, together[part])
    assert not torch.equal(sample_by_codebook(model, tokens, mask, steps=steps, seeds=[7, 8, 9]), together)


def test_one_codebook_is_the_plain_sampler() -> None:
    tokens, mask = scene(codebooks=1)
    settings: dict[str, Any] = {"select": "span3", "temperature": 0.8, "choice_temperature": 1.5, "seeds": [1, 2, 3]}
    expected = sample(
        lambda ids, step: model(ids, step) / 0.8, tokens, mask, steps=5, **{**settings, "temperature": 1.0}
    )
    assert torch.equal(sample_by_codebook(model, tokens, mask, steps=[5], **settings), expected)


class From(SeededNoise):
    """Seeded noise whose steps begin later."""

    first = 0

    def sample(self, step: int, shape: Any) -> Tensor:
        return super().sample(step + self.first, shape)

    def choice(self, step: int, shape: Any) -> Tensor:
        return super().choice(step + self.first, shape)


def test_every_codebook_has_its_own_noise() -> None:
    tokens = torch.full((1, 8, 2), V)
    done = sample_by_codebook(
        lambda ids, step: torch.zeros(*ids.shape, V), tokens, tokens == V, steps=(2, 2), seeds=[3]
    )
    parts = []
    for first in (0, 2):
        noise = From([3])
        noise.first = first
        part = tokens[:, :, :1]
        parts.append(
            sample(
                lambda ids, step: torch.zeros(*ids.shape, V),
                part,
                part == V,
                steps=2,
                select="span3",
                choice_temperature=0.0,
                noise=noise,
            )
        )
    assert torch.equal(done, torch.cat(parts, dim=2))
    assert not torch.equal(parts[0], parts[1])


def test_the_temperature_falls_and_comes_before_the_filter() -> None:
    """MAGNeT's 3.0 falls to its floor of 0.01 at the last step; the filter sees what the draw would."""
    tokens = torch.full((1, 6, 2), V)
    seen: list[Tensor] = []

    def keep(logits: Tensor) -> Tensor:
        seen.append(logits)
        return TokenFilter(top_p=0.9)(logits)

    logits = torch.randn(1, 6, 2, V, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"steps": (3, 2), "temperature": 3.0, "anneal": True, "keep": keep, "seeds": [0]}
    done = sample_by_codebook(lambda ids, step: logits, tokens, tokens == V, **settings)
    heats = [2.0, 1.0, 0.01, 1.5, 0.01]
    for found, heat, k in zip(seen, heats, (0, 0, 0, 1, 1), strict=True):
        torch.testing.assert_close(found, logits[:, :, k : k + 1] / heat)
    assert len(seen) == len(heats)
    # The last step of each codebook is as good as greedy for what is still hidden, and the filter is what was asked last.
    assert TokenFilter(top_p=0.9)(seen[2]).isfinite().sum(-1).eq(1).all()
    assert done.max() < V


def test_temperature_zero_is_greedy() -> None:
    tokens, mask = scene()
    logits = torch.randn(3, 7, 3, V, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"steps": (2, 2, 2), "temperature": 0.0, "anneal": True, "seeds": [0, 1, 2]}
    done = sample_by_codebook(lambda ids, step: logits, tokens, mask, **settings)
    assert torch.equal(done, torch.where(mask, logits.argmax(-1), tokens))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": (4, 2)}, r"steps: got \(4, 2\), expected 3 numbers"),
        ({"steps": (4, 0, 2)}, "steps: got 0"),
        ({"steps": ()}, "steps: got 0"),
        ({"select": "best"}, "selector: got 'best'"),
        ({"schedule": "best"}, "schedule: got 'best'"),
        ({"temperature": math.nan}, "temperature: got nan"),
        ({"choice_temperature": -1.0}, "choice_temperature: got -1.0"),
        ({"seeds": [1]}, "seeds: got 1, expected one for each of the 3"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    tokens, mask = scene()
    with pytest.raises(ValueError, match=message):
        sample_by_codebook(model, tokens, mask, **{"steps": (2, 2, 2), "seeds": [1, 2, 3], **change})


def test_logits_that_do_not_fit() -> None:
    tokens, mask = scene()
    with pytest.raises(ValueError, match=r"logits_fn returned \(3, 7, 1, 6\), expected \[B, N, K, V\]"):
        sample_by_codebook(lambda ids, step: torch.zeros(3, 7, 1, V), tokens, mask, steps=(1, 1, 1), seeds=[1, 2, 3])
