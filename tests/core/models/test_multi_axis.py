"""Multi-axis attention is full attention behind a mask, on any grid and any blocks."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from maskgen.conditioning import Cond
from maskgen.models.attention import AttentionBackend, attend
from maskgen.models.context import CoarseConfig, ContextConfig
from maskgen.models.flops import forward_flops
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.models.multi_axis import check_blocks, multi_axis_attend, multi_axis_seen
from maskgen.models.partial import FeatureMemory
from maskgen.models.positions import coordinates
from tests.core.toys import shaken

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


@settings(max_examples=30, deadline=None)
@given(AXES, st.sampled_from([2, 4]))
def test_what_some_positions_see(axes: list[tuple[int, int]], heads: int) -> None:
    block, grid = [side for side, _ in axes], [side * count for side, count in axes]
    at = torch.randint(math.prod(grid), (2, 5), generator=torch.Generator().manual_seed(0))
    expected = visible(grid, block, heads)[:, at].transpose(0, 1)
    assert torch.equal(multi_axis_seen(at, grid, block, heads), expected)


def modern(axes: tuple[int, ...] = (4, 6), block: tuple[int, ...] = (2, 3), **changes: Any) -> ModernTransformer:
    config = {
        "vocab_size": 9,
        "num_classes": 0,
        "axes": axes,
        "width": 32,
        "layers": 3,
        "heads": 4,
        "multi_axis": block,
    }
    torch.manual_seed(0)
    return shaken(ModernTransformer(ModernConfig(**{**config, **changes})))  # type: ignore[return-value]


@torch.no_grad()
def test_a_transformer_computes_some_positions_exactly() -> None:
    model, draw = modern(), torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 10, (3, 24, 1), generator=draw)
    whole, prepared = model(tokens, Cond()), model.prepare(Cond(), tokens)
    full = modern(block=())
    full.load_state_dict(model.state_dict())
    assert (full(tokens, Cond()) - whole).abs().max() > 0.01
    at = torch.tensor([[1, 23], [0, 7], [12, 12]])
    rows = torch.arange(3)[:, None]
    torch.testing.assert_close(model.logits_at(tokens, prepared), whole)
    torch.testing.assert_close(model.logits_at(tokens, prepared, at), whole[rows, at], atol=1e-4, rtol=1e-4)
    memory = FeatureMemory()
    model.logits_at(tokens, prepared, memory=memory)
    memory.positions = torch.tensor([[3, 1, 23], [7, 0, 2], [12, 5, 6]])
    again = model.logits_at(tokens, prepared, memory=memory)
    torch.testing.assert_close(again, whole[rows, memory.positions], atol=1e-4, rtol=1e-4)
    some = model.logits_at(tokens, prepared, torch.tensor([[2], [1], [0]]), memory)
    torch.testing.assert_close(some, again[rows, torch.tensor([[2], [1], [0]])], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_transformer_takes_other_grids_that_its_blocks_divide() -> None:
    model = modern()
    assert model(torch.zeros(1, 24, 1, dtype=torch.long), Cond(), (8, 3)).shape == (1, 24, 1, 9)
    with pytest.raises(ValueError, match=r"block: got \(2, 3\), expected a divisor of each side of the grid \(6, 4\)"):
        model(torch.zeros(1, 24, 1, dtype=torch.long), Cond(), (6, 4))
    with pytest.raises(ValueError, match=r"expected a divisor of each side of the grid \(4, 6\)"):
        modern(block=(3, 3))
    with pytest.raises(ValueError, match="heads: got 1, expected an even number"):
        modern(heads=1)


@pytest.mark.parametrize("block", [(), (2, 3)])
def test_operations_of_a_second_stage(block: tuple[int, ...]) -> None:
    told = ContextConfig(every=2, coarse=CoarseConfig(vocab_size=5, axes=(2, 3), layers=2))
    model = modern(block=block, context=told, attention="eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 24, 1, dtype=torch.long), Cond(coarse=torch.zeros(2, 6, 1, dtype=torch.long)))
    assert forward_flops(model, 2) == counter.get_total_flops()
