"""Melodies made from a seed."""

import pytest
import torch

from maskgen.tasks.melodies import Melodies


def clips(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    data = Melodies(count=12, held_out=6, seed=seed)
    train, test = data.train(), data.test()
    assert test is not None
    return (
        train.batch(range(len(train)), range(len(train)))["audio"],
        test.batch(range(len(test)), range(len(test)))["audio"],
    )


def test_sizes_range_and_seeds() -> None:
    train, test = clips()
    assert train.shape == (12, 1, 65536)
    assert test.shape == (6, 1, 65536)
    for sounds in (train, test):
        assert sounds.isfinite().all()
        assert sounds.abs().amax() <= 1
        assert sounds.square().mean((1, 2)).sqrt().min() > 0.01  # none is silent
    again, _ = clips()
    assert torch.equal(train, again)
    other, _ = clips(seed=1)
    assert not torch.equal(train, other)


def test_no_clip_twice() -> None:
    train, test = clips()
    both = torch.cat((train, test)).flatten(1)
    assert len(both.unique(dim=0)) == 18


def test_refusals() -> None:
    with pytest.raises(ValueError, match="count: got 0"):
        Melodies(count=0)
    with pytest.raises(ValueError, match="seconds: got 0.5, expected at least"):
        Melodies(seconds=0.5)
