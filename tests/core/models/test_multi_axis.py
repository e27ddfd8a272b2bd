"""Multi-axis attention is full attention behind a mask, on any grid and any blocks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from maskgen.models.attention import AttentionBackend, attend
from maskgen.models.multi_axis import check_blocks, multi_axis_attend
from maskgen.models.positions import coordinates

# Sides of a block and numbers of blocks, an axis each.
AXES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3)


def drawn(batch: int, heads: int, places: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, heads, places, 4, generator=generator) for _ in range(3)]


def visible(grid: list[int], block: list[int], heads: int) -> Tensor:
    """Which position each head's positions see, bool ``[H, N, N]``, by the definition: same block, or same offset in it."""
    places, sides = coordinates(grid), torch.tensor(block)
    which, where = places // sides, places % sides
    within, across = ((x[:, None] == x).all(-1) for x in (which, where))
    return torch.stack([within] * (heads // 2) + [across] * (heads // 2))


@settings(max_examples=60, deadline=None)
@given(AXES, st.integers(1, 2), st.sampled_from([2, 4]), st.sampled_from(["sdpa", "eager"]), st.integers(0, 99))
def test_it_is_full_attention_behind_a_mask(
    axes: list[tuple[int, int]], batch: int, heads: int, backend: AttentionBackend, seed: int
) -> None:
    block, grid = [side for side, _ in axes], [side * count for side, count in axes]
    q, k, v = drawn(batch, heads, math.prod(grid), seed)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=visible(grid, block, heads))
    found = multi_axis_attend(q, k, v, grid, block, backend=backend)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_a_corner_sees() -> None:
    """Values are one for each place, so that weights can be read off: equal ones, for all queries are equal."""
    places = torch.eye(16)[None, None].expand(1, 2, 16, 16)
    same = torch.zeros(1, 2, 16, 16)
    within, across = multi_axis_attend(same, same, places, (4, 4), (2, 2))[0]
    assert within[0].nonzero().flatten().tolist() == [0, 1, 4, 5]
    assert across[0].nonzero().flatten().tolist() == [0, 2, 8, 10]
    assert torch.allclose(within.sum(-1), torch.ones(16))


def test_a_single_block_is_full_attention_for_half_of_the_heads() -> None:
    q, k, v = drawn(2, 4, 12)
    found = multi_axis_attend(q, k, v, (3, 4), (3, 4))
    torch.testing.assert_close(found[:, :2], attend(*(x[:, :2] for x in (q, k, v))))
    torch.testing.assert_close(found[:, 2:], v[:, 2:])  # each place is alone with itself
    torch.testing.assert_close(multi_axis_attend(q, k, v, (3, 4), (1, 1))[:, :2], v[:, :2])


def test_gradients_flow_and_dropout_drops() -> None:
    q, k, v = (x.requires_grad_() for x in drawn(1, 2, 8))
    multi_axis_attend(q, k, v, (2, 4), (2, 2)).square().sum().backward()
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in (q, k, v))
    torch.manual_seed(0)
    dropped = multi_axis_attend(q, k, v, (2, 4), (2, 2), dropout=0.5)
    assert not torch.allclose(dropped, multi_axis_attend(q, k, v, (2, 4), (2, 2)))


@pytest.mark.parametrize(
    ("heads", "block", "message"),
    [
        (3, (2, 2), "heads: got 3, expected an even number"),
        (0, (2, 2), "heads: got 0, expected an even number"),
        (2, (3, 2), r"block: got \(3, 2\), expected a divisor of each side of the grid \(4, 6\)"),
        (2, (0, 2), r"block: got \(0, 2\), expected a divisor"),
        (2, (2,), r"block: got \(2,\), expected a divisor"),
    ],
)
def test_sizes_that_cannot_be_are_refused(heads: int, block: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_blocks((4, 6), block, heads)
    with pytest.raises(ValueError, match=message):
        multi_axis_attend(*drawn(1, heads, 24), (4, 6), block)


def test_other_positions_than_those_of_the_grid_are_refused() -> None:
    q, k, v = drawn(1, 2, 24)
    with pytest.raises(ValueError, match=r"got 23 queries and 24 keys, expected one for each position of \(4, 6\)"):
        multi_axis_attend(q[:, :, 1:], k, v, (4, 6), (2, 2))
