"""Which task an example is for: how often in the official list, and by seed."""

import math

import pytest
import torch

from maskgen.objectives.multitask import draw_tasks, task_counts


@pytest.mark.parametrize(
    ("weights", "counts"),
    [([1.0], [100]), ([2.0], [200]), ([1, 1], [100, 100]), ([1, 0.25], [400, 100]), ([0.3, 0.1], [300, 100])],
)
def test_counts(weights: list[float], counts: list[int]) -> None:
    assert task_counts(weights) == counts


def test_draws_follow_the_weights() -> None:
    weights, count = [1.0, 3.0, 0.5, 0.5], 4000
    drawn = draw_tasks(weights, range(count))
    shares = drawn.bincount(minlength=4) / count
    expected = torch.tensor(weights) / 5
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt()).all()


def test_a_draw_depends_on_its_seed_only() -> None:
    seeds = [5, 9, 123456789, 0]
    whole = draw_tasks([1] * 50, seeds)
    assert torch.equal(draw_tasks([1] * 50, seeds[::-1]), whole.flip(0))
    assert [int(draw_tasks([1] * 50, [seed])) for seed in seeds] == whole.tolist()
    assert len(set(whole.tolist())) > 2


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1], [math.inf], [math.nan, 1]])
def test_weights_are_positive_numbers(weights: list[float]) -> None:
    for call in (lambda: task_counts(weights), lambda: draw_tasks(weights, [1])):
        with pytest.raises(ValueError, match=r"task weights: got \[.*\], expected at least one, all positive numbers"):
            call()


def test_seeds_are_checked() -> None:
    with pytest.raises(ValueError, match="seeds: got -1"):
        draw_tasks([1, 1], [-1])
