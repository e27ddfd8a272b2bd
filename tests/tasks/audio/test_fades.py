"""Emptied gaps, and fades around them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskgen.tasks.audio.fades import fill_gap, gap_weights


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


def test_weights_around_a_gap() -> None:
    assert gap_weights(0, 3, 0).tolist() == [1, 1, 1]
    assert gap_weights(1, 2, 1).tolist() == pytest.approx([0.5, 1, 1, 0.5])
