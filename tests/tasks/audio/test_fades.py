"""Emptied gaps, fades and joins of overlapping blocks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskgen.tasks.audio.fades import blend, fade_in, fill_gap, gap_weights, stitch


@given(total=st.integers(1, 40), ends=st.tuples(st.integers(0, 40), st.integers(0, 40)), channels=st.integers(1, 2))
def test_a_filled_gap_forgets_what_stood_in_it(total: int, ends: tuple[int, int], channels: int) -> None:
    start, stop = sorted(min(end, total) for end in ends)
    waveform = torch.rand(channels, total, generator=torch.Generator().manual_seed(total)) + 1
    damaged = waveform.clone()
    damaged[:, start:stop] = torch.nan
    filled = fill_gap(damaged, start, stop)
    assert torch.equal(filled, fill_gap(waveform, start, stop))
    assert torch.equal(filled[:, :start], waveform[:, :start])
    assert torch.equal(filled[:, stop:], waveform[:, stop:])
    if stop - start < total:
        kept = torch.cat((waveform[:, :start], waveform[:, stop:]), dim=1)
        inside = filled[:, start:stop]
        assert (inside >= kept.amin(1, keepdim=True) - 1e-5).all()
        assert (inside <= kept.amax(1, keepdim=True) + 1e-5).all()
    else:
        assert not filled.any()


def test_the_mirror_images_by_hand() -> None:
    sound = torch.tensor([[1.0, 2.0, 9.0, 9.0, 9.0, 9.0, 9.0]])
    assert fill_gap(sound, 2, 7).tolist() == [[1, 2, 2, 1, 1, 2, 2]]
    assert fill_gap(sound.flip(1), 0, 5).tolist() == [[2, 2, 1, 1, 2, 2, 1]]
    both = fill_gap(torch.tensor([[4.0, 0.0, 0.0, 8.0]]), 1, 3)
    assert both.tolist() == [[4, 5, 7, 8]]  # 3/4 x 4 + 1/4 x 8, 1/4 x 4 + 3/4 x 8


@given(length=st.integers(1, 500))
def test_a_fade_is_symmetric_and_never_0_or_1(length: int) -> None:
    weight = fade_in(length)
    assert weight.shape == (length,)
    assert ((weight > 0) & (weight < 1)).all()
    assert (weight.diff() > 0).all()
    assert torch.allclose(weight + weight.flip(0), torch.ones(length))


def test_an_empty_fade_is_empty() -> None:
    assert fade_in(0).shape == (0,)
    assert gap_weights(0, 3, 0).tolist() == [1, 1, 1]
    assert gap_weights(1, 2, 1).tolist() == pytest.approx([0.5, 1, 1, 0.5])


def test_blend_is_exact_where_the_weight_is_0_or_1() -> None:
    old, new = torch.tensor([0.1, torch.nan, 0.3]), torch.tensor([torch.nan, 0.2, 0.7])
    mixed = blend(old, new, torch.tensor([0.0, 1.0, 0.5]))
    assert torch.equal(mixed, torch.tensor([0.1, 0.2, 0.5]))
    assert blend(old.double(), new, torch.tensor([0.0, 1.0, 0.5])).dtype == torch.float64


@given(
    steps=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=0, max_size=6),
    fade=st.integers(0, 8),
)
def test_stitched_blocks_of_one_sound_are_that_sound(steps: list[tuple[int, int]], fade: int) -> None:
    sound = torch.rand(2, 200, generator=torch.Generator().manual_seed(len(steps)))
    spans = [(5, 15)]
    for back, on in steps:
        spans.append((max(spans[-1][1] - back, spans[-1][0]), spans[-1][1] + on))
    pieces = list(stitch(((start, sound[:, start:stop]) for start, stop in spans if stop > start), fade))
    place = spans[0][0]
    for start, piece in pieces:
        assert start == place
        assert torch.allclose(piece, sound[:, start : start + piece.shape[1]], atol=1e-6)
        place += piece.shape[1]
    assert place == spans[-1][1]


def test_a_join_lies_in_the_middle_of_the_overlap() -> None:
    zeros, ones = torch.zeros(10), torch.ones(10)
    joined = torch.cat([piece for _, piece in stitch([(0, zeros), (4, ones)], 0)])
    assert joined.tolist() == [0] * 7 + [1] * 7
    soft = torch.cat([piece for _, piece in stitch([(0, zeros), (4, ones)], 2)])
    assert soft.tolist() == pytest.approx([0.0] * 6 + fade_in(2).tolist() + [1.0] * 6)
    assert list(stitch([], 3)) == []


@pytest.mark.parametrize("second", [11, 20])
def test_a_hole_is_refused(second: int) -> None:
    with pytest.raises(ValueError, match="right after it"):
        list(stitch([(0, torch.zeros(10)), (second, torch.zeros(10))], 0))


def test_a_block_that_ends_early_is_refused() -> None:
    with pytest.raises(ValueError, match="not to end before it"):
        list(stitch([(0, torch.zeros(10)), (2, torch.zeros(3))], 0))
