"""Digits that move: the same for the same seed, never across the border, in one piece."""

import pickle
import random
import sys
import time

import pytest
import torch
from torch import Tensor

from maskgen.data import training_batches
from maskgen.tasks.data.images.digits import Digits
from maskgen.tasks.data.video.moving_digits import DigitClips, MovingDigits


@pytest.fixture(scope="module")
def data() -> MovingDigits:
    return MovingDigits()


def corners(video: Tensor) -> list[list[tuple[int, int]]]:
    """Upper left of the lit pixels of every frame."""
    lit = video[:, 0] > 0
    return [[(int(f.any(1).nonzero()[0]), int(f.any(0).nonzero()[0])) for f in clip] for clip in lit]


def test_what_a_batch_holds(data: MovingDigits) -> None:
    assert (data.modality, data.key, data.size, data.frame_rate) == ("video", "video", (16, 32, 32), None)
    assert data.class_names == Digits().class_names
    assert (len(data.train()), len(data.test())) == (1437, 360)
    batch = data.train().batch([0, 5, 9], [1, 2, 3])
    assert set(batch) == {"video", "labels"}
    assert (batch["video"].shape, batch["video"].dtype) == ((3, 3, 16, 32, 32), torch.float32)
    assert batch["video"].min() == 0
    assert 0.8 < batch["video"].max() <= 1
    assert batch["video"].is_contiguous()
    assert torch.equal(batch["video"][:, 0], batch["video"][:, 2])


def test_every_frame_shows_the_whole_digit(data: MovingDigits) -> None:
    digits = Digits(16)
    for source, small in ((data.train(), digits.train()), (data.test(), digits.test())):
        indices = list(range(0, len(source), 37))
        batch, images = source.batch(indices, indices), small.batch(indices, indices)
        assert torch.equal(batch["labels"], images["labels"])
        total = images["images"][:, 0].sum((1, 2))
        torch.testing.assert_close(batch["video"][:, 0].sum((2, 3)), total[:, None].expand(-1, 16))


def test_digits_move_straight_and_bounce(data: MovingDigits) -> None:
    """Each axis by itself: steps of a constant size, rounded, that turn round at the border and nowhere else."""
    source = data.train()
    count, turned = 64, 0
    for index, seed in zip(range(count), range(count), strict=True):
        (digit, (row, column, down, across)), *_ = source._draw(index, seed)
        assert digit == index
        assert 1 <= (down**2 + across**2) ** 0.5 <= 2
        plain = []
        for _ in range(16):
            plain.append((round(row), round(column)))
            row, column = row + down, column + across
            if not 0 <= row <= 16:
                row, down, turned = -row if row < 0 else 32 - row, -down, turned + 1
            if not 0 <= column <= 16:
                column, across, turned = -column if column < 0 else 32 - column, -across, turned + 1
        video = source.batch([index], [seed])["video"]
        found, first = corners(video)[0], plain[0]
        offset = found[0][0] - first[0], found[0][1] - first[1]
        assert found == [(top + offset[0], left + offset[1]) for top, left in plain]
    assert turned > count / 2


def test_digits_on_a_grid() -> None:
    source = MovingDigits(digit_size=20, grid=4).train()
    ways, starts = set(), set()
    for seed in range(100):
        ((_, (row, column, down, across)),) = source._draw(7, seed)
        starts.add((row, column))
        ways.add((down, across))
        places = torch.tensor(corners(source.batch([7], [seed])["video"])[0])
        assert (places[1:] - places[:-1]).abs().sum(1).eq(1).all(), "one pixel, along one axis"
        assert ((places[::4] - places[0]) % 4 == 0).all(), "on the grid every 4 frames"
    assert ways == {(0, 1), (0, -1), (1, 0), (-1, 0)}
    assert starts == {(row, column) for row in (0, 4, 8, 12) for column in (0, 4, 8, 12)}


def test_index_and_seed_alone_decide(data: MovingDigits) -> None:
    source = data.train()
    together = source.batch([3, 8, 3, 3], [5, 6, 7, 5])["video"]
    alone = [source.batch([index], [seed])["video"][0] for index, seed in ((3, 5), (8, 6), (3, 7), (3, 5))]
    assert torch.equal(together, torch.stack(alone))
    assert torch.equal(together[0], together[3])
    assert not torch.equal(together[0], together[2])
    again = pickle.loads(pickle.dumps(MovingDigits())).train().batch([3], [5])["video"][0]
    assert torch.equal(again, together[0])
    assert not torch.equal(MovingDigits(seed=1).train().batch([3], [5])["video"][0], together[0])
    random.seed(9)
    torch.manual_seed(9)
    assert torch.equal(source.batch([3], [5])["video"][0], together[0])


def test_test_clips_are_fixed(data: MovingDigits) -> None:
    source = data.test()
    assert torch.equal(source.batch([0, 1], [2, 3])["video"], source.batch([0, 1], [4, 5])["video"])
    kept, held_out = (
        {tuple(image.flatten().tolist()) for image in half._images} for half in (data.train(), data.test())
    )
    assert not kept & held_out


def test_streams_of_batches(data: MovingDigits) -> None:
    stream = training_batches(data.train(), batch_size=4, seed=0, stop=2)
    assert [batch["video"].shape for batch in stream] == [(4, 3, 16, 32, 32)] * 2


def test_several_digits_and_other_sizes() -> None:
    data = MovingDigits(frames=3, size=20, digits=2, digit_size=8)
    assert data.class_names == ()
    batch = data.train().batch([4, 5], [1, 2])
    assert set(batch) == {"video"}
    assert batch["video"].shape == (2, 3, 3, 20, 20)
    both = MovingDigits(digits=2).train().batch([4], [1])["video"]
    assert (both > 0).sum() > 1.2 * (MovingDigits().train().batch([4], [1])["video"] > 0).sum()
    assert both.max() <= 1
    assert MovingDigits(labels=False).class_names == ()
    assert set(MovingDigits(labels=False).test().batch([0], [0])) == {"video"}


def test_overlapping_digits_show_the_brighter_pixel() -> None:
    data = MovingDigits(digits=2, size=17)
    source = data.train()
    images, places = source._images[:2], [source._draw(4, seed) for seed in range(30)]
    assert images.shape == (2, 16, 16)
    assert len({clip[1][0] for clip in places}) > 10
    batch = source.batch([4] * 30, range(30))["video"]
    assert batch.max() <= 1
    one = source._images[4].sum()
    assert (batch[:, 0].sum((2, 3)) >= one - 1e-3).all()


def test_it_is_fast(data: MovingDigits) -> None:
    source, seconds = data.train(), []
    for attempt in range(5):
        begun = time.perf_counter()
        source.batch(range(64), range(64 * attempt, 64 * attempt + 64))
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.2  # 8 ms on one idle core


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"frames": 0}, {"digits": 0}, {"digit_size": 32}, {"digit_size": 7}):
        with pytest.raises(ValueError, match="expected 1 or more frames and digits, and a digit of at least 8 pixels"):
            MovingDigits(**wrong)
    for grid in (-1, 3):
        with pytest.raises(ValueError, match=f"got grid {grid}, size 32, digit_size 16; expected 0, or a divisor of"):
            MovingDigits(grid=grid)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "maskgen\[demo\]"'):
        MovingDigits()


def test_sources_have_one_kind(data: MovingDigits) -> None:
    assert isinstance(data.train(), DigitClips)
    assert isinstance(data.test(), DigitClips)
