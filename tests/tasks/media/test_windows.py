"""Windows over long signals, and their joining, for sound (the last axis) and video (the third last)."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.tasks.media.windows import Piece, blend, cosine_fade, linear_fade, stitch, windows


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def faded(blocks: Iterable[Piece]) -> Iterable[Piece]:
    return stitch(blocks, weights=linear_fade, axis=-3)


def joined(blocks: list[tuple[int, Tensor]]) -> Tensor:
    place, pieces = blocks[0][0], []
    for start, piece in faded(iter(blocks)):
        assert start == place
        place += piece.shape[-3]
        pieces.append(piece)
    return torch.cat(pieces, dim=-3)


@given(total=st.integers(1, 60), half=st.integers(1, 8), data=st.data())
def test_windows_cover_a_clip(total: int, half: int, data: st.DataObject) -> None:
    size, overlap = 2 * half, data.draw(st.integers(0, half))
    found = windows(total, size, overlap)
    assert found[0][0] == 0
    assert found[-1][1] == total
    assert all(stop - start == min(size, total) for start, stop in found)
    for (_, stop), (start, _) in pairwise(found):
        assert stop - start >= overlap
    clip = noise(1, total, 2, 2)
    whole = joined([(start, clip[:, start:stop]) for start, stop in found])
    torch.testing.assert_close(whole, clip)  # what agrees stays as it is


def test_windows_refuse() -> None:
    for overlap in (-1, 8):
        with pytest.raises(ValueError, match=f"overlap: got {overlap}, expected 0 to 7"):
            windows(20, 8, overlap)


def test_a_linear_fade_over_the_whole_overlap() -> None:
    one, other = torch.zeros(2, 3, 8, 1, 1), torch.ones(2, 3, 8, 1, 1)
    found = joined([(0, one), (4, other)])[0, 0, :, 0, 0]
    assert found.tolist() == [0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert joined([(5, one), (13, other)])[0, 0, :, 0, 0].tolist() == [0] * 8 + [1] * 8
    assert list(faded([])) == []


def test_no_more_than_two_clips_are_held() -> None:
    taken = []

    def blocks() -> list[tuple[int, Tensor]]:
        for start in range(0, 40, 4):
            taken.append(start)
            yield start, torch.full((1, 8, 1, 1), float(start))  # type: ignore[misc]

    pieces = faded(blocks())  # type: ignore[arg-type]
    for number, (start, piece) in enumerate(pieces):
        assert start == 4 * number
        assert piece.shape[-3] == (4 if number < 9 else 8)
        assert len(taken) <= number + 2


def test_blocks_that_do_not_fit() -> None:
    block = torch.zeros(1, 8, 1, 1)
    for blocks in ([(0, block), (9, block)], [(4, block), (3, block)], [(0, block), (2, block[:, :3])]):
        with pytest.raises(ValueError, match="expected the second to begin within the first or right after it"):
            joined(blocks)


@given(length=st.integers(1, 500))
def test_a_fade_is_symmetric_and_never_0_or_1(length: int) -> None:
    weight = cosine_fade(length)
    assert weight.shape == (length,)
    assert ((weight > 0) & (weight < 1)).all()
    assert (weight.diff() > 0).all()
    assert torch.allclose(weight + weight.flip(0), torch.ones(length))


def test_an_empty_fade_is_empty() -> None:
    assert cosine_fade(0).shape == linear_fade(0).shape == (0,)


def test_blend_is_exact_where_the_weight_is_0_or_1() -> None:
    old, new = torch.tensor([0.1, torch.nan, 0.3]), torch.tensor([torch.nan, 0.2, 0.7])
    mixed = blend(old, new, torch.tensor([0.0, 1.0, 0.5]))
    assert torch.equal(mixed, torch.tensor([0.1, 0.2, 0.5]))
    assert blend(old.double(), new, torch.tensor([0.0, 1.0, 0.5])).dtype == torch.float64


@given(
    steps=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=0, max_size=6), fade=st.integers(0, 8)
)
def test_stitched_blocks_of_one_sound_are_that_sound(steps: list[tuple[int, int]], fade: int) -> None:
    sound = torch.rand(2, 200, generator=torch.Generator().manual_seed(len(steps)))
    spans = [(5, 15)]
    for back, on in steps:
        spans.append((max(spans[-1][1] - back, spans[-1][0]), spans[-1][1] + on))
    pieces = list(stitch(((start, sound[:, start:stop]) for start, stop in spans if stop > start), width=fade))
    place = spans[0][0]
    for start, piece in pieces:
        assert start == place
        assert torch.allclose(piece, sound[:, start : start + piece.shape[1]], atol=1e-6)
        place += piece.shape[1]
    assert place == spans[-1][1]


def test_a_join_lies_in_the_middle_of_the_overlap() -> None:
    zeros, ones = torch.zeros(10), torch.ones(10)
    joined = torch.cat([piece for _, piece in stitch([(0, zeros), (4, ones)], width=0)])
    assert joined.tolist() == [0] * 7 + [1] * 7
    soft = torch.cat([piece for _, piece in stitch([(0, zeros), (4, ones)], width=2)])
    assert soft.tolist() == pytest.approx([0.0] * 6 + cosine_fade(2).tolist() + [1.0] * 6)
    assert list(stitch([], width=3)) == []


@pytest.mark.parametrize("second", [11, 20])
def test_a_hole_is_refused(second: int) -> None:
    with pytest.raises(ValueError, match="right after it"):
        list(stitch([(0, torch.zeros(10)), (second, torch.zeros(10))], width=0))


def test_a_block_that_ends_early_is_refused() -> None:
    with pytest.raises(ValueError, match="not to end before it"):
        list(stitch([(0, torch.zeros(10)), (2, torch.zeros(3))], width=0))
