"""Seeded noise: the hash itself, its distribution, and what it depends on."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskgen.noise import SeededNoise, check_seeds, sample_noise

WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(word: int) -> int:
    """SplitMix64's finaliser in plain integers."""
    word &= WORD
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & WORD
    return word ^ (word >> 31)


def reference(seed: int, stream: int, step: int, count: int) -> list[float]:
    key = mix(mix(mix(seed + GOLDEN) + (step + 1) * GOLDEN) + stream * GOLDEN)
    halves: list[int] = []
    for index in range(1, (count + 1) // 2 + 1):
        word = mix(key + index * GOLDEN)
        halves += [word & 0xFFFFFFFF, word >> 32]
    return [((half >> 9) + 0.5) / (1 << 23) for half in halves[:count]]


@given(seed=st.integers(0, 2**63 - 1), stream=st.integers(0, 5), step=st.integers(0, 10_000), count=st.integers(1, 40))
def test_equals_splitmix_in_plain_integers(seed: int, stream: int, step: int, count: int) -> None:
    found = SeededNoise([seed]).uniform(stream, step, (1, count))[0]
    assert found.double().tolist() == [
        float(torch.tensor(x, dtype=torch.float32)) for x in reference(seed, stream, step, count)
    ]


@pytest.mark.parametrize("piece", [2, 6, 64])
@pytest.mark.parametrize("shape", [(2, 5, 1, 7), (3, 4, 2, 3), (1, 1, 1, 65), (2, 3)])
def test_pieces_are_parts_of_the_whole(piece: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of odd and even length, which begin at even and odd numbers, longer and shorter than a piece."""
    monkeypatch.setattr("maskgen.noise._PIECE", piece)
    noise, count = SeededNoise([11, 5, 2**63 - 1][: shape[0]]), math.prod(shape[1:])
    uniform = noise.uniform(1, 3, shape).flatten(1)
    for seed, row in zip([11, 5, 2**63 - 1], uniform.double().tolist(), strict=False):
        assert row == torch.tensor(reference(seed, 1, 3, count), dtype=torch.float32).tolist()
    places = torch.tensor([[shape[1] - 1, 0]]).expand(shape[0], -1) % shape[1]
    whole = noise.sample(3, shape)
    torch.testing.assert_close(whole.flatten(1).double(), -(-uniform.double().log()).log(), atol=1e-6, rtol=1e-6)
    rows = torch.arange(shape[0])[:, None]
    assert torch.equal(sample_noise(noise, 3, shape, places), whole[rows, places])


def test_known_answer_of_the_finaliser() -> None:
    """First outputs of SplitMix64 seeded with 1234567, as published with the generator."""
    outputs = [mix(1234567 + (i + 1) * GOLDEN) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_gumbel_is_the_transform_of_the_uniform() -> None:
    noise = SeededNoise([5, 6])
    for stream, draw, shape in ((1, noise.sample, (2, 3, 2, 4)), (2, noise.choice, (2, 3, 2))):
        uniform = noise.uniform(stream, 7, shape).double()
        torch.testing.assert_close(draw(7, shape), -(-uniform.log()).log().float())
        assert torch.isfinite(draw(7, shape)).all()


def test_uniform_distribution() -> None:
    """Mean, variance, bins and neighbours of 200,000 numbers, each to five standard deviations."""
    count = 200_000
    values = SeededNoise([3]).uniform(1, 0, (1, count))[0].double()
    assert values.min() > 0
    assert values.max() < 1
    assert abs(float(values.mean()) - 0.5) < 5 / math.sqrt(12 * count)
    assert abs(float(values.var()) - 1 / 12) < 5 / math.sqrt(180 * count)
    bins = torch.histc(values, bins=50, min=0, max=1)
    chi2 = float(((bins - count / 50) ** 2 / (count / 50)).sum())
    assert abs(chi2 - 49) < 5 * math.sqrt(2 * 49)
    for lag in (1, 2):
        pairs = (values[:-lag] - 0.5) * (values[lag:] - 0.5)
        assert abs(float(pairs.mean())) < 5 / (12 * math.sqrt(count))


def test_neighbouring_seeds_steps_and_streams_are_unrelated() -> None:
    seeds, steps, count = range(40), range(10), 50
    noise = SeededNoise(list(seeds))
    rows = torch.cat([noise.uniform(stream, step, (40, count)) for stream in (1, 2) for step in steps]).double()
    assert len(rows.unique(dim=0)) == len(rows)
    centred = rows - 0.5
    related = (centred @ centred.T / (count / 12)).fill_diagonal_(0)
    assert related.abs().max() < 6 / math.sqrt(count)
    assert abs(float(related.mean())) < 5 / (len(rows) * math.sqrt(count))


@given(seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5), step=st.integers(0, 20))
def test_an_item_sees_the_same_numbers_in_any_batch(seeds: list[int], step: int) -> None:
    shape = (3, 2, 4)
    whole = SeededNoise(seeds).sample(step, (len(seeds), *shape))
    backwards = SeededNoise(seeds[::-1]).sample(step, (len(seeds), *shape))
    assert torch.equal(backwards.flip(0), whole)
    for i, seed in enumerate(seeds):
        assert torch.equal(SeededNoise([seed]).sample(step, (1, *shape))[0], whole[i])


def test_a_shorter_item_sees_the_beginning() -> None:
    long, short = SeededNoise([8]).uniform(1, 2, (1, 9)), SeededNoise([8]).uniform(1, 2, (1, 4))
    assert torch.equal(long[:, :4], short)


def test_drawing_twice_gives_the_same_in_new_memory() -> None:
    noise = SeededNoise([1, 2])
    first = noise.sample(0, (2, 3))
    kept = first.clone()
    first.zero_()
    assert torch.equal(noise.sample(0, (2, 3)), kept)


def test_the_batch_must_fit_the_seeds() -> None:
    with pytest.raises(ValueError, match="noise: got a batch of 3, expected 2, one item a seed"):
        SeededNoise([1, 2]).choice(0, (3, 4))


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seeds: got {seed}, expected 0 <= seed < 2\^63"):
        SeededNoise([seed])


@pytest.mark.parametrize("seed", [1.0, "1", None, True])
def test_seeds_are_integers(seed: object) -> None:
    with pytest.raises(TypeError, match=r"seeds: got .*, expected integers"):
        check_seeds([seed], 1)  # type: ignore[list-item]


def test_seeds_may_be_any_sequence_of_integers() -> None:
    assert check_seeds(range(3), 3) == [0, 1, 2]
    assert check_seeds(torch.tensor([4, 5]), 2) == [4, 5]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seeds: got 3, expected one for each of the 2 items"):
        check_seeds(range(3), 2)
