"""Frames on the caller's time axis, windows, and how much of the surroundings a model hears."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskgen.tasks.audio.source import Grid, MemorySound, plan_gap
from maskgen.tasks.media.windows import windows


@given(total=st.integers(1, 300), size=st.integers(1, 40), share=st.floats(0, 0.99))
def test_windows_cover_everything_and_overlap(total: int, size: int, share: float) -> None:
    overlap = int(share * size)
    spans = windows(total, size, overlap)
    assert spans[0][0] == 0
    assert spans[-1][1] == total
    assert all(stop - start == min(size, total) for start, stop in spans)
    for (start, stop), (following, _) in itertools.pairwise(spans):
        assert start < following <= stop - overlap


def test_windows_by_hand() -> None:
    assert windows(10, 4, 1) == [(0, 4), (3, 7), (6, 10)]
    assert windows(11, 4, 1) == [(0, 4), (3, 7), (6, 10), (7, 11)]
    assert windows(3, 4, 1) == [(0, 3)]
    assert windows(2, 1, 0) == [(0, 1), (1, 2)]


@pytest.mark.parametrize("overlap", [-1, 4, 9])
def test_windows_that_never_end_are_refused(overlap: int) -> None:
    with pytest.raises(ValueError, match=f"overlap: got {overlap}, expected 0 to 3"):
        windows(10, 4, overlap)


@given(
    rate=st.integers(1, 192_000),
    codec_rate=st.integers(1, 96_000),
    hop=st.integers(1, 1024),
    frame=st.integers(0, 10**7),
)
def test_frames_lie_within_half_a_sample(rate: int, codec_rate: int, hop: int, frame: int) -> None:
    exact = Fraction(frame * hop * rate, codec_rate)
    assert abs(Grid(7, Fraction(hop * rate, codec_rate)).sample(frame) - 7 - exact) <= Fraction(1, 2)


@given(
    length=st.integers(1, 5000),
    start=st.integers(0, 5000),
    size=st.integers(1, 3000),
    hop=st.fractions(1, 60, max_denominator=30),
    window=st.integers(1, 60),
    context=st.none() | st.integers(0, 80),
)
def test_a_planned_gap(length: int, start: int, size: int, hop: Fraction, window: int, context: int | None) -> None:
    start = min(start, length)
    stop = start + size
    grid, before, inside, after = plan_gap((start, stop), length, hop, window, context)
    assert grid.origin >= 0
    assert min(before, after) >= 0
    assert inside == math.ceil(size / hop) >= 1
    assert abs(grid.origin + before * hop - start) <= Fraction(1, 2), "the gap begins with a frame"
    assert grid.sample(before + inside) >= stop, "and is covered by its frames"
    if after:
        assert grid.origin + (before + inside + after - 1) * hop < length + 1, "the last frame has sound"
    if context is not None:
        assert max(before, after) <= context
    if 4 * (window - inside) >= window:
        assert before + inside + after <= window
        sound = math.floor(start / hop) + math.ceil(max((length - start) / hop - inside, 0))
        if context is None:
            assert before + after == min(window - inside, sound), "all the context there is"


def test_the_surroundings_are_shared_evenly_or_go_where_sound_is() -> None:
    assert plan_gap((500, 600), 1000, Fraction(10), 30)[1:] == (10, 10, 10)
    assert plan_gap((0, 100), 1000, Fraction(10), 30)[1:] == (0, 10, 20)
    assert plan_gap((900, 1000), 1000, Fraction(10), 30)[1:] == (20, 10, 0)
    assert plan_gap((300, 700), 1000, Fraction(10), 30)[1:] == (15, 40, 15)
    assert plan_gap((500, 600), 1000, Fraction(10), 30, 3)[1:] == (3, 10, 3)


def test_a_waveform_as_a_source() -> None:
    sound = torch.rand(2, 10)
    source = MemorySound(sound, 8000)
    assert (source.sample_rate, source.channels, source.frames) == (8000, 2, 10)
    assert torch.equal(source.read(3, 4), sound[:, 3:7])
    with pytest.raises(ValueError, match="NaN"):
        MemorySound(torch.full((1, 3), torch.nan), 8000)
