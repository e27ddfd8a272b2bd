"""Melodies made from a seed."""

import pytest
import torch

from maskgen.tasks.data.audio.melodies import Melodies


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


def test_test_clips_do_not_depend_on_the_number_of_training_clips() -> None:
    few, many = (Melodies(count=count, held_out=4).test().tensors["audio"] for count in (1, 9))
    assert torch.equal(few, many)


def test_tempi_and_the_repeating_bar() -> None:
    for units in (5, 7):
        audio = Melodies(count=1, held_out=4, tempi=(units,)).test().tensors["audio"]
        bar = units * 8 * 512
        again, other = audio[..., bar:], audio[..., bar // 2 :]
        # Only the hiss differs one bar later; half a bar later it is another tune.
        assert (again - audio[..., :-bar]).square().mean().sqrt() < 0.006
        assert (other - audio[..., : -bar // 2]).square().mean().sqrt() > 0.05


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"tempi: got \(\), expected one or more positive"):
        Melodies(tempi=())
    with pytest.raises(ValueError, match="count: got 0"):
        Melodies(count=0)
    with pytest.raises(ValueError, match="seconds: got 0.5, expected at least"):
        Melodies(seconds=0.5)
