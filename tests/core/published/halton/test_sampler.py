"""Halton orders and their sampler: what it guarantees, and where the published code does not."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.noise import SeededNoise
from maskgen.published.halton.sampler import HaltonSampling, halton_decided, halton_order, rolled_orders, sample_halton
from maskgen.sampling.loop import SampleStep
from tests.selections import call

# Orders


def van_der_corput(point: int, base: int) -> Fraction:
    value, place = Fraction(0), Fraction(1, base)
    while point:
        value, point, place = value + point % base * place, point // base, place / base
    return value


@given(st.integers(1, 12), st.integers(1, 12))
def test_order_by_exact_fractions(height: int, width: int) -> None:
    cells: dict[int, None] = {}
    point = 0
    while len(cells) < height * width:
        point += 1
        row, column = int(van_der_corput(point, 2) * height), int(van_der_corput(point, 3) * width)
        cells.setdefault(row * width + column)
    assert halton_order((height, width)).tolist() == list(cells)


@given(st.integers(1, 90), st.integers(1, 90))
@example(64, 64)
@example(1, 256)
@example(256, 1)
@example(128, 243)
def test_every_grid_is_covered(height: int, width: int) -> None:
    order = halton_order((height, width))
    assert torch.equal(order.sort().values, torch.arange(height * width))


@pytest.mark.parametrize("axes", [(4,), (4, 4, 4), (0, 4)])
def test_orders_are_of_two_axes(axes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected two positive numbers"):
        halton_order(axes)


def test_rolled_orders() -> None:
    order = halton_order((4, 5))
    rolled = rolled_orders(order, range(40))
    assert rolled.shape == (40, 20)
    starts = [order.tolist().index(int(row[0])) for row in rolled]
    for start, row in zip(starts, rolled, strict=True):
        assert torch.equal(row, order.roll(-start))
    assert len(set(starts)) > 10
    assert torch.equal(rolled_orders(order, [7])[0], rolled[7])


# Counts


@given(st.integers(0, 600), st.integers(1, 70))
def test_counts_rise_to_all(total: int, steps: int) -> None:
    decided = [int(halton_decided(torch.tensor([total]), step, steps)) for step in range(steps)]
    assert decided == sorted(decided)
    assert decided[-1] == total
    assert all(count >= min(step + 1, total) for step, count in enumerate(decided))


@pytest.mark.parametrize("steps", [2, 6, 12, 32])
def test_counts_of_many_rows_at_once(steps: int) -> None:
    """The official expression, one number at a time."""
    totals = torch.arange(1, 1200)
    for step in range(steps):
        share = 1 - torch.arccos(torch.tensor((step + 1) / steps)) / (math.pi * 0.5)
        expected = [min(max(step + 1, int(share * total)), total) for total in totals.tolist()]
        assert halton_decided(totals, step, steps).tolist() == expected


# Sampler


class Case:
    """Random tokens, some hidden, and logits that depend on the place, the token there and the one before."""

    def __init__(self, seed: int, rows: int, height: int, width: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.codes, shape = 5, (rows, height * width, 1)
        self.mask = torch.rand(shape, generator=generator) < 1.3 * torch.rand(rows, 1, 1, generator=generator)
        self.tokens = torch.randint(5, shape, generator=generator).masked_fill(self.mask, 5)
        self.places = torch.randn(shape[1], 1, 6, generator=generator)
        self.table = torch.randn(6, 6, generator=generator)
        self.seeds = [seed + 11 * row for row in range(rows)]
        self.order = halton_order((height, width))
        self.inputs: list[Tensor] = []

    def logits(self, tokens: Tensor, step: int) -> Tensor:
        self.inputs.append(tokens)
        return (self.places + self.table[tokens] + 0.7 * self.table[tokens.roll(1, dims=1)])[..., :5]


CASES = st.builds(Case, st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))


def run(case: Case, rows: list[int], steps: int, **more: Any) -> Tensor:
    seeds = [case.seeds[row] for row in rows]
    orders = rolled_orders(case.order, seeds)
    settings = HaltonSampling(steps=steps)
    return sample_halton(case.logits, case.tokens[rows], case.mask[rows], settings, order=orders, seeds=seeds, **more)


@given(case=CASES, steps=st.integers(1, 18))
def test_sampler_guarantees(case: Case, steps: int) -> None:
    case.inputs.clear()
    done: list[SampleStep] = []
    rows = list(range(len(case.tokens)))
    out = run(case, rows, steps=steps, callback=done.append)
    inputs = list(case.inputs)
    assert torch.equal(out[~case.mask], case.tokens[~case.mask])
    assert out.max() < case.codes
    total, mask = case.mask.sum((1, 2)), case.mask
    for step, (seen, given_in) in enumerate(zip(done, inputs, strict=True)):
        assert torch.equal(given_in == case.codes, mask)
        assert torch.equal(seen.mask.sum((1, 2)), total - halton_decided(total, step, steps))
        assert not (seen.mask & ~mask).any()
        assert torch.equal(seen.confidence[~mask], torch.zeros_like(seen.confidence[~mask]))
        mask = seen.mask
    for row in rows:
        assert torch.equal(run(case, [row], steps=steps), out[[row]])


def test_places_are_decided_in_the_given_order() -> None:
    case = Case(1, 2, 3, 4)
    mask = torch.ones_like(case.mask)
    mask[1, case.order[::2]] = False  # given tokens are passed over
    tokens = torch.where(mask, 5, torch.zeros_like(case.tokens))
    masks: list[Tensor] = []
    sample_halton(
        case.logits,
        tokens,
        mask,
        HaltonSampling(steps=12),
        order=case.order,
        seeds=[1, 2],
        callback=lambda seen: masks.append(seen.mask),
    )
    for row, expected in ((0, case.order), (1, case.order[1::2])):
        before, decided = mask[row, :, 0], []
        for after in masks:
            decided += [set((before & ~after[row, :, 0]).nonzero().flatten().tolist())]
            before = after[row, :, 0]
        place = 0
        for cells in decided:
            assert cells == set(expected[place : place + len(cells)].tolist())
            place += len(cells)
        assert place == len(expected)


def test_given_tokens_stay_where_the_published_sampler_writes_over_them() -> None:
    """The published loop writes its draws at the next places of the order, whatever stands there."""
    case = Case(5, 2, 4, 4)
    mask = torch.zeros_like(case.mask)
    mask[:, :5] = True
    tokens = torch.where(mask, 5, torch.arange(16).view(1, 16, 1) % 5)
    noise, codes, known = SeededNoise([1, 2]), tokens.clone(), 0
    for step in range(4):
        drawn = (case.logits(codes, step) + noise.sample(step, (2, 16, 1, 5))).argmax(-1)
        upto = int(halton_decided(torch.tensor([16]), step, 4))
        codes[:, case.order[known:upto]] = drawn[:, case.order[known:upto]]
        known = upto
    assert (codes != tokens)[~mask].sum() > 5
    out = sample_halton(case.logits, tokens, mask, HaltonSampling(steps=4), order=case.order, seeds=[1, 2])
    assert torch.equal(out[~mask], tokens[~mask])


def test_the_published_order_of_64_leaves_cells_and_is_refused() -> None:
    order = halton_order((64, 64))
    hidden = torch.full((1, 4096, 1), 2)
    out = sample_halton(
        lambda tokens, step: torch.zeros(1, 4096, 1, 2),
        hidden,
        hidden == 2,
        HaltonSampling(steps=3),
        order=order,
        seeds=[1],
    )
    assert out.max() < 2
    with pytest.raises(ValueError, match="expected every position from 0 to 4095 once"):
        sample_halton(
            lambda tokens, step: out, hidden, hidden == 2, HaltonSampling(steps=3), order=order[:4090], seeds=[1]
        )


def test_logit_scale_power_and_warmup() -> None:
    """The ramp 1 .. 3 squared is 1, 4, 9; half of it in one step of warm-up."""
    case = Case(2, 2, 3, 3)
    hidden = torch.full_like(case.tokens, 5)
    scaled = sample_halton(
        case.logits,
        hidden,
        hidden == 5,
        HaltonSampling(steps=3, logit_scale=(1.0, 3.0), scale_power=2.0, warmup=1),
        order=case.order,
        seeds=[1, 2],
    )
    by_hand = sample_halton(
        lambda tokens, step: case.logits(tokens, step) * (0.5, 4.0, 9.0)[step],
        hidden,
        hidden == 5,
        HaltonSampling(steps=3),
        order=case.order,
        seeds=[1, 2],
    )
    assert torch.equal(scaled, by_hand)
    plain = sample_halton(case.logits, hidden, hidden == 5, HaltonSampling(steps=3), order=case.order, seeds=[1, 2])
    assert not torch.equal(scaled, plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.zeros(2, 4, 2, dtype=torch.long), "mask": torch.ones(2, 4, 2).bool()}, "one codebook"),
        ({"tokens": torch.zeros(2, 4)}, "expected int64"),
        ({"steps": 0}, "steps: got 0"),
        ({"logit_scale": (-1.0, 1.0)}, "logit_scale: got -1.0"),
        ({"warmup": -1}, "warmup: got -1"),
        ({"seeds": None}, "give either seeds"),
        ({"order": torch.zeros(4, dtype=torch.long)}, "expected every position from 0 to 3 once"),
        ({"order": torch.arange(4).expand(3, 4)}, "expected every position from 0 to 3 once"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {
        "tokens": torch.full((2, 4, 1), 3),
        "mask": torch.ones(2, 4, 1, dtype=torch.bool),
        "order": torch.arange(4),
        "seeds": [1, 2],
    }
    with pytest.raises(ValueError, match=message):
        call(
            sample_halton,
            HaltonSampling,
            logits_fn=lambda tokens, step: torch.zeros(2, 4, 1, 3),
            **(settings | changes),
        )
