"""The order of the Halton sequence on any grid, and as a selector."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.published.halton.sampler import halton_order
from maskgen.sampling.loop import SampleStep, sample
from maskgen.sampling.selectors.halton import halton_cells
from maskgen.sampling.selectors.named import get_selector
from tests.core.sampling.cases import TableModel, grid
from tests.core.sampling.reference import halton_path


@given(axes=st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_the_halton_path_is_the_sequence_and_covers_the_grid(axes: list[int]) -> None:
    if math.prod(axes) > 60:
        axes = axes[:2]
    assert halton_cells(axes).tolist() == halton_path(axes)


@pytest.mark.parametrize("axes", [(64, 64), (1, 1), (3, 50), (500,), (5, 16, 16), (2, 3, 4, 5)])
def test_every_cell_is_covered_once(axes: tuple[int, ...]) -> None:
    cells = halton_cells(axes)
    assert torch.equal(cells.sort().values, torch.arange(math.prod(axes)))
    if len(axes) == 2:
        assert torch.equal(cells, halton_order(axes))


def decided_after_each_step(axes: tuple[int, ...], mask: Tensor, seeds: list[int], steps: int) -> list[list[set[int]]]:
    """Per row, the places that are decided after each step of the order ``halton``."""
    tokens = torch.where(mask, 5, 0)
    seen: list[SampleStep] = []
    model = TableModel(mask.shape[1], mask.shape[2], 5, 0)
    options = {"schedule": "linear", "select": get_selector("halton", axes=axes), "callback": seen.append}
    sample(model, tokens, mask, steps=steps, seeds=seeds, **options)
    kept = [(mask & ~step.mask).flatten(1) for step in seen]
    return [[set(step[row].nonzero().flatten().tolist()) for step in kept] for row in range(len(mask))]


def test_halton_starts_elsewhere_for_each_item_and_passes_known_cells_over() -> None:
    axes = (4, 6)
    mask = torch.ones(12, 24, 1, dtype=torch.bool)
    mask[6:, ::3] = False
    path = halton_path(axes)
    starts = set()
    for row, decided in enumerate(decided_after_each_step(axes, mask, list(range(12)), steps=24)):
        (first,) = decided[0]
        begin = path.index(first)
        rolled = [cell for cell in path[begin:] + path[:begin] if mask[row, cell, 0]]
        assert all(places == set(rolled[: len(places)]) for places in decided)
        assert len(decided[-1]) == len(rolled) - 1  # the last place is still hidden before the last draw
        starts.add(begin)
    assert len(starts) > 6


def test_halton_decides_the_codebooks_of_a_cell_one_after_the_other() -> None:
    (decided,) = decided_after_each_step((2, 3), torch.ones(1, 6, 3, dtype=torch.bool), [4], steps=18)
    path = halton_path((2, 3))
    begin = path.index(min(decided[0]) // 3)
    order = [3 * cell + k for cell in path[begin:] + path[:begin] for k in range(3)]
    assert all(places == set(order[: len(places)]) for places in decided)


def test_halton_wants_its_own_grid() -> None:
    tokens, mask = grid([-1, -1, -1, -1])
    chosen = get_selector("halton", axes=(3, 1))
    with pytest.raises(ValueError, match=r"halton: got 4 tokens a row, which do not fill the grid \(3, 1\)"):
        sample(TableModel(4, 1, 5, 0), tokens, mask, steps=2, seeds=[0], select=chosen)
    with pytest.raises(ValueError, match=r"axes: got \(2, 0\), expected 1 to 6 positive numbers"):
        get_selector("halton", axes=(2, 0))
    with pytest.raises(ValueError, match="axes: got "):
        get_selector("halton", axes=())
