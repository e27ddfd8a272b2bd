"""COMMIT's training masks: counts, blocks, frames, and where a condition may be hidden."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.objectives.commit_masking import (
    ConditionMode,
    block_scores,
    commit_example,
    commit_mask,
    late_frames_first,
)

AXES = (4, 2, 6)
MODES: tuple[ConditionMode, ...] = ("commit", "keep", "replace", "ignore")


def region(rows: int = 6, codebooks: int = 1, share: float = 0.4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, math.prod(AXES), codebooks, generator=generator) < share


def mask(known: Tensor, seed: int = 1, **settings: object) -> Tensor:
    return commit_mask(known, axes=AXES, generator=torch.Generator().manual_seed(seed), **settings)  # type: ignore[arg-type]


@given(
    seed=st.integers(0, 999),
    codebooks=st.integers(1, 2),
    mode=st.sampled_from(MODES),
    schedule=st.sampled_from(["cosine", "uniform"]),
)
def test_counts_and_places(seed: int, codebooks: int, mode: ConditionMode, schedule: str) -> None:
    """The first draw is the ratio; floor(places x ratio) are hidden, at least one, in ``keep`` and ``replace`` elsewhere."""
    known = region(codebooks=codebooks, seed=seed)
    hidden = mask(known, seed, mode=mode, schedule=schedule)
    drawn = torch.rand(1, generator=torch.Generator().manual_seed(seed))
    gamma = torch.cos(drawn * math.pi / 2) if schedule == "cosine" else 1 - drawn
    apart = mode in ("keep", "replace")
    places = (~known).flatten(1).sum(1) if apart else torch.full((len(known),), known[0].numel())
    assert torch.equal(hidden.flatten(1).sum(1), (places * gamma).floor().clamp(min=1).long())
    assert not (apart and (hidden & known).any())


def test_ratios_of_the_batch_or_of_each_row() -> None:
    known = region(rows=40, share=0)
    assert len(set(mask(known).flatten(1).sum(1).tolist())) == 1
    assert len(set(mask(known, ratios="row").flatten(1).sum(1).tolist())) > 15
    assert len({tuple(row) for row in mask(known).flatten(1).tolist()}) == 40  # but other places in each row


def test_a_row_that_is_all_condition() -> None:
    known = torch.ones_like(region())
    assert not mask(known, mode="keep").any()
    assert mask(known, mode="commit").any()


def test_all_places_are_hidden_equally_often() -> None:
    counts = sum(mask(region(rows=1, share=0), seed).float() for seed in range(1500))
    assert counts.flatten().std() < 2.5 * math.sqrt(1500 / 4)  # a fair coin's spread is sqrt(n / 4)


@pytest.mark.parametrize("block", [(2, 2, 2), (1, 2, 3), (4, 1, 1)])
def test_block_scores_one_place_at_a_time(block: tuple[int, int, int]) -> None:
    """Written out: each place of the grown grid is looked at alone."""
    generator = torch.Generator().manual_seed(3)
    scores, ties = (torch.rand(2, math.prod(AXES), 2, generator=generator) for _ in range(2))
    offsets = list(itertools.product(*map(range, block)))[::-1]
    found = block_scores(scores, AXES, block, offsets, ties)
    for b, k in itertools.product(range(2), range(2)):
        line = scores[b, :, k].view(AXES)
        grown = {
            place: float(line[tuple(max(0, at - side + 1) for at, side in zip(place, block, strict=True))])
            for place in itertools.product(*(range(size + side - 1) for size, side in zip(AXES, block, strict=True)))
        }
        for offset in offsets:
            for corner in itertools.product(*(range(0, size, side) for size, side in zip(AXES, block, strict=True))):
                inside = [
                    tuple(o + c + i for o, c, i in zip(offset, corner, step, strict=True))
                    for step in itertools.product(*map(range, block))
                ]
                mean = sum(grown[place] for place in inside) / len(inside)
                grown |= dict.fromkeys(inside, mean)
        expected = torch.tensor(
            [
                grown[tuple(at + side - 1 for at, side in zip(place, block, strict=True))]
                for place in itertools.product(*map(range, AXES))
            ]
        )
        torch.testing.assert_close(found[b, :, k], expected + 1e-3 * ties[b, :, k], atol=1e-6, rtol=0)


def test_blocks_of_one_change_nothing_but_ties() -> None:
    scores = torch.rand(2, 48, 1)
    assert torch.equal(block_scores(scores, AXES, (1, 1, 1), [(0, 0, 0)], torch.zeros_like(scores)), scores)


def test_blocks_hide_neighbours_together() -> None:
    known = region(rows=200, share=0)

    def together(hidden: Tensor) -> float:
        grid = hidden.view(-1, *AXES)
        return float((grid[..., 1:] == grid[..., :-1]).float().mean())

    assert together(mask(known, block=(2, 2, 3))) > together(mask(known)) + 0.1


def test_frame_by_frame_hides_later_frames_first() -> None:
    known = region(rows=50, share=0)
    hidden = mask(known, ratios="row", frame_by_frame=True).view(50, AXES[0], -1)
    counts = hidden.sum(2)
    assert ((counts[:, 1:] == 12) | (counts[:, :-1] == 0)).all()
    assert len({tuple(row) for row in counts.tolist()}) > 20
    scores = late_frames_first(torch.rand(3, 48, 2) * 7 + 2, AXES).view(3, AXES[0], -1)
    frames = torch.arange(AXES[0])
    assert torch.equal(scores.amax(2).ceil(), (1.0 - frames).expand(3, -1))
    assert scores[0].max() <= 1
    assert scores.min() >= -3


def test_the_example_of_each_mode() -> None:
    """Four places: hidden and known, hidden, known, neither."""
    tokens, condition = torch.tensor([[[1], [2], [3], [4]]]), torch.tensor([[[5], [6], [7], [8]]])
    known = torch.tensor([[[True], [False], [True], [False]]])
    for mode, hides, shown, targets, weights in (
        ("commit", [1, 1, 0, 0], [5, 9, 3, 4], [1, 2, 3, 4], [1, 1, 1, 1]),
        ("ignore", [1, 1, 0, 0], [9, 9, 3, 4], [1, 2, 3, 4], [1, 1, 1, 1]),
        ("keep", [0, 1, 0, 0], [1, 9, 3, 4], [1, 2, 3, 4], [0, 1, 0, 1]),
        ("replace", [0, 1, 0, 0], [5, 9, 7, 4], [5, 2, 7, 4], [0, 1, 0, 1]),
    ):
        hidden = torch.tensor(hides).bool().view(1, 4, 1)
        example = commit_example(tokens, condition, known, hidden, mask_id=9, mode=mode)  # type: ignore[arg-type]
        assert example.inputs.tokens.flatten().tolist() == shown, mode
        assert example.targets.flatten().tolist() == targets, mode
        assert example.weights.flatten().int().tolist() == weights, mode
        only = commit_example(tokens, condition, known, hidden, mask_id=9, mode=mode, loss_on="masked")  # type: ignore[arg-type]
        assert torch.equal(only.weights, hidden), mode
        assert example.inputs.segments.flatten().tolist() == ([1, 0, 0, 0] if mode == "commit" else [0] * 4), mode


@pytest.mark.parametrize("block", [(2, 2), (3, 2, 2), (0, 1, 1), (2, 2, 4)])
def test_blocks_that_do_not_fit(block: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"block: got .*, expected one size an axis, dividing the grid \(4, 2, 6\)"):
        mask(region(), block=block)
