"""Prompts: what each keeps, what it does at the edges, and that an item's draw depends on its seed alone.

Shapes: B batch, N = T frames, K codebooks.
"""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.published.vampnet.prompt import PromptNoise, VampPrompt
from maskgen.sampling import prompts

SHAPE = (2, 9, 3)


def kept(mask: Tensor) -> list[int]:
    """Frames that row 0 keeps in all codebooks; those of the others are the same or the test is wrong."""
    given_frames = ~mask[0, :, 0]
    assert torch.equal(mask[0], ~given_frames[:, None].expand_as(mask[0]))
    return given_frames.nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("prefix", "suffix", "expected"),
    [(0, 0, []), (2, 0, [0, 1]), (0, 2, [7, 8]), (1, 1, [0, 8]), (5, 6, list(range(9))), (20, 0, list(range(9)))],
)
def test_inpaint(prefix: int, suffix: int, expected: list[int]) -> None:
    assert kept(prompts.inpaint_mask(SHAPE, prefix, suffix)) == expected


@given(frames=st.integers(1, 30), period=st.integers(0, 9), width=st.integers(1, 8), shift=st.integers(-3, 12))
def test_periodic_one_frame_at_a_time(frames: int, period: int, width: int, shift: int) -> None:
    still: set[int] = set()
    for centre in range(0, frames, period) if period else ():
        still |= set(range(max(0, centre - width // 2), min(frames - 1, centre + width // 2) + 1))
    expected = sorted((frame + shift) % frames for frame in still)
    assert kept(prompts.periodic_mask((1, frames, 2), period, width, shift)) == expected


def test_periods_and_shifts_of_each_item() -> None:
    mask = prompts.periodic_mask((3, 7, 2), torch.tensor([2, 3, 0]), shift=torch.tensor([0, 1, 5]))
    assert torch.equal(mask[:1], prompts.periodic_mask((1, 7, 2), 2))
    assert torch.equal(mask[1:2], prompts.periodic_mask((1, 7, 2), 3, shift=1))
    assert mask[2].all()


@given(factor=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_stretch(factor: int, seed: int) -> None:
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) < 0.5
    longer = prompts.stretch_mask(mask, factor)
    assert longer.shape == (2, 9 * factor, 3)
    assert torch.equal(longer[:, ::factor], mask)
    for offset in range(1, factor):
        assert longer[:, offset::factor].all()


def test_onsets_and_beats() -> None:
    assert kept(prompts.onset_mask(SHAPE, [0, 5], 1)) == [0, 4, 5]
    assert kept(prompts.onset_mask(SHAPE, [1, 8], 2)) == [0, 1, 2, 6, 7, 8]
    assert kept(prompts.onset_mask(SHAPE, [], 2)) == []
    assert kept(prompts.beat_mask(SHAPE, [0, 5])) == [0, 1, 5, 6]
    assert kept(prompts.beat_mask(SHAPE, [0, 5, 8], before=1, after=1)) == [0, 4, 5, 7, 8]
    uniforms = torch.linspace(0, 0.99, 9).expand(2, 9)
    assert kept(prompts.beat_mask(SHAPE, [0, 5], thin=0.35, uniforms=uniforms)) == [0, 1, 5]
    assert kept(prompts.beat_mask(SHAPE, [0, 5], thin=1.0, uniforms=uniforms)) == []


@given(seed=st.integers(0, 2**32), count=st.integers(0, 4))
def test_codebooks(seed: int, count: int) -> None:
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) < 0.5
    given_first, hidden_last = prompts.keep_codebooks(mask, count), prompts.mask_codebooks(mask, count)
    assert not given_first[:, :, :count].any()
    assert torch.equal(given_first[:, :, count:], mask[:, :, count:])
    assert hidden_last[:, :, count:].all()
    assert torch.equal(hidden_last[:, :, :count], mask[:, :, :count])


def test_hidden_frames() -> None:
    mask = torch.zeros(2, 4, 2, dtype=torch.bool)
    hidden = prompts.mask_frames(mask, torch.tensor([[1, 1], [0, 3]]))
    assert hidden[:, :, 0].tolist() == [[False, True, False, False], [True, False, False, True]]
    assert torch.equal(hidden[:, :, 0], hidden[:, :, 1])
    assert torch.equal(prompts.mask_frames(mask, torch.zeros(2, 0, dtype=torch.long)), mask)


def test_shares_of_random_masks() -> None:
    uniforms = prompts.seeded_uniforms((2, 4000, 1), [1, 2])
    linear = prompts.linear_mask(uniforms, torch.tensor([0.2, 1.0]))
    assert linear[0].float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert linear[1].all()


# Draws


def test_uniforms_depend_on_the_items_seed_and_the_draw() -> None:
    both = prompts.seeded_uniforms((2, 5, 3), [7, 8])
    assert torch.equal(prompts.seeded_uniforms((1, 5, 3), [8]), both[1:])
    assert not torch.equal(prompts.seeded_uniforms((2, 5, 3), [7, 8], stream=1), both)
    assert both.min() > 0
    assert both.max() < 1


@given(
    seeds=st.lists(st.integers(0, 2**62), min_size=2, max_size=3),
    period=st.integers(0, 8),
    dropout=st.floats(0, 1),
    share=st.floats(0, 1),
)
def test_prompts_of_an_item_do_not_depend_on_the_batch(
    seeds: list[int], period: int, dropout: float, share: float
) -> None:
    prompt = VampPrompt(period=period, dropout=dropout, masked_share=share, mask_from=2, onset_width=1)
    together = prompt.noise((len(seeds), 12, 3), seeds)
    assert ((together.shift >= 0) & (together.shift < max(1, period))).all()
    assert together.dropped.shape == (len(seeds), int(12 * dropout))
    assert ((together.dropped >= 0) & (together.dropped < 12)).all()
    masks = prompt.mask(together, onsets=[4])
    for row, seed in enumerate(seeds):
        alone = prompt.mask(prompt.noise((1, 12, 3), [seed]), onsets=[4])
        assert torch.equal(alone[0], masks[row])


def test_shifts_take_every_value() -> None:
    draws = VampPrompt(period=5).noise((60, 4, 1), range(60))
    assert set(draws.shift.tolist()) == set(range(5))


def test_later_rules_of_a_prompt_win() -> None:
    """Kept by the period, hidden by dropout, kept again as a coarse codebook, hidden as a fine one."""
    draws = PromptNoise(tokens=torch.zeros(1, 6, 4), shift=torch.tensor([0]), dropped=torch.tensor([[0]]))
    mask = VampPrompt(period=2, keep=1, mask_from=3).mask(draws)
    assert not mask[0, :, 0].any()
    assert mask[0, :, 1].tolist() == [True, True, False, True, False, True]
    assert torch.equal(mask[0, :, 1], mask[0, :, 2])
    assert mask[0, :, 3].all()


# Errors


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("inpaint_mask", [(2, 0, 3)], r"shape \(2, 0, 3\), expected \(B, N, K\)"),
        ("inpaint_mask", [(2, 3)], r"shape \(2, 3\)"),
        ("inpaint_mask", [SHAPE, -1, 0], "prefix and suffix: got -1 and 0"),
        ("periodic_mask", [SHAPE, -1], "period -1"),
        ("periodic_mask", [SHAPE, 2, 0], "width 0"),
        ("stretch_mask", [torch.ones(1, 2, 1, dtype=torch.bool), 0], "factor: got 0"),
        ("onset_mask", [SHAPE, [1], 0], "onset width: got 0"),
        ("beat_mask", [SHAPE, [1], -1, 2], "before and after: got -1 and 2"),
        ("linear_mask", [torch.zeros(SHAPE), 1.5], "share: got 1.5"),
        ("linear_mask", [torch.zeros(SHAPE), torch.tensor([0.1, -0.1])], "share: got"),
        ("seeded_uniforms", [SHAPE, [1]], "seeds: got 1"),
        ("seeded_uniforms", [SHAPE, [1, 2], -1], "stream: got -1"),
    ],
)
def test_errors(name: str, arguments: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(prompts, name)(*arguments)


def test_thinning_needs_numbers() -> None:
    with pytest.raises(ValueError, match="thin: got 0.5 without uniforms"):
        prompts.beat_mask(SHAPE, [1], thin=0.5)
    with pytest.raises(ValueError, match="thin: got 2.0"):
        prompts.beat_mask(SHAPE, [1], thin=2.0, uniforms=torch.zeros(2, 9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prefix": -1}, "prefix: got -1"),
        ({"mask_from": -1}, "mask_from: got -1"),
        ({"width": 0}, "width: got 0"),
        ({"dropout": 1.5}, "dropout: got 1.5"),
        ({"masked_share": -0.1}, "masked_share: got -0.1"),
    ],
)
def test_prompts_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VampPrompt(**change)
