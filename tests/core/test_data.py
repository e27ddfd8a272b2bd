"""The stream of training batches, and the float32 settings."""

import contextlib
import itertools
from collections.abc import Sequence
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import maskgen.precision
from maskgen import precision
from maskgen.data import Batch, OrderedSource, TensorSource, draw_numbers, item_seed, training_batches
from maskgen.precision import Linear, fast_matmul, linear_gelu, linear_swiglu


class Recorder:
    """A source whose batches say which examples and seeds were asked for."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        return {"index": torch.tensor(list(indices)), "seed": torch.tensor(list(seeds))}


def stream(size: int, **settings: int) -> list[list[tuple[int, int]]]:
    """(example, seed) pairs of each batch."""
    batches = training_batches(Recorder(size), **settings)  # type: ignore[arg-type]
    return [list(zip(batch["index"].tolist(), batch["seed"].tolist(), strict=True)) for batch in batches]


@given(
    size=st.integers(1, 20),
    share=st.integers(1, 4),
    world=st.sampled_from([1, 2, 3, 4]),
    seed=st.integers(0, 100),
    start=st.integers(0, 9),
)
def test_any_number_of_processes_and_any_start_see_the_same_batches(
    size: int, share: int, world: int, seed: int, start: int
) -> None:
    batch = share * world
    whole = stream(size, batch_size=batch, seed=seed, stop=10)
    ranks = [stream(size, batch_size=batch, seed=seed, start=start, stop=10, rank=r, world=world) for r in range(world)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == whole[start:]


@given(size=st.integers(1, 20), batch=st.integers(1, 7), seed=st.integers(0, 100))
def test_every_example_comes_once_an_epoch(size: int, batch: int, seed: int) -> None:
    count = 3 * size
    flat = list(chain(*stream(size, batch_size=batch, seed=seed, stop=-(-count // batch))))[:count]
    epochs = [[example for example, _ in flat[i : i + size]] for i in range(0, count, size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({seed for _, seed in flat}) == count  # augmentation differs from epoch to epoch
    if size > 7:
        assert epochs[0] != epochs[1] != epochs[2]
        assert epochs[0] != list(range(size))


class Backwards(Recorder):
    """A source with an order of its own."""

    def order(self, seed: int) -> torch.Tensor:
        return (torch.arange(self.size).flip(0) + seed) % self.size


@given(size=st.integers(1, 20), start=st.integers(0, 9), seed=st.integers(0, 100))
def test_a_source_may_have_an_order_of_its_own(size: int, start: int, seed: int) -> None:
    assert isinstance(Backwards(size), OrderedSource)
    assert not isinstance(Recorder(size), OrderedSource)

    def examples(start: int) -> list[int]:
        batches = training_batches(Backwards(size), batch_size=4, seed=seed, start=start, stop=10)
        return [example for batch in batches for example in batch["index"].tolist()]

    whole = examples(0)
    assert examples(start) == whole[4 * start :]
    for first in range(0, 40 - size + 1, size):
        epoch = whole[first : first + size]
        assert sorted(epoch) == list(range(size))
        assert all((before - after) % size == 1 % size for before, after in itertools.pairwise(epoch))


def test_other_seeds_give_other_orders() -> None:
    assert stream(30, batch_size=30, seed=0, stop=1) != stream(30, batch_size=30, seed=1, stop=1)


def test_worker_processes_change_nothing() -> None:
    settings = {"batch_size": 4, "seed": 3, "start": 2, "stop": 9}
    assert stream(11, **settings, workers=2) == stream(11, **settings)


def test_the_global_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    stream(11, batch_size=4, seed=3, stop=9)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_halves_of_a_batch_are_the_batch() -> None:
    """Gradient accumulation draws the same examples in smaller batches."""
    halves, whole = stream(13, batch_size=3, seed=1, stop=8), stream(13, batch_size=6, seed=1, stop=4)
    assert [a + b for a, b in zip(halves[::2], halves[1::2], strict=True)] == whole


def test_mistakes_in_a_stream() -> None:
    with pytest.raises(ValueError, match="training data: got 0 examples, expected at least one"):
        training_batches(Recorder(0), batch_size=2, seed=0, stop=1)
    with pytest.raises(ValueError, match="batch_size: got 5, expected a positive multiple of the 2 processes"):
        training_batches(Recorder(3), batch_size=5, seed=0, stop=1, world=2)
    with pytest.raises(ValueError, match="batch_size: got 0"):
        training_batches(Recorder(3), batch_size=0, seed=0, stop=1)


@given(seed=st.integers(0, 2**63 - 1), position=st.integers(0, 2**40))
def test_item_seeds_are_seeds(seed: int, position: int) -> None:
    assert 0 <= item_seed(seed, position) < 1 << 63
    assert item_seed(seed, position) != item_seed(seed, position + 1)


def test_item_seeds_are_spread_out() -> None:
    seeds = torch.tensor([item_seed(s, p) for s in range(20) for p in range(200)])
    assert len(seeds.unique()) == len(seeds)
    for bit in (0, 1, 31, 61, 62):
        share = float(((seeds >> bit) & 1).float().mean())
        assert abs(share - 0.5) < 4 * 0.5 / len(seeds) ** 0.5


def test_tensor_source() -> None:
    source = TensorSource(tokens=torch.arange(10).view(5, 2), labels=torch.arange(5))
    assert len(source) == 5
    batch = source.batch([3, 0, 3], [0, 0, 0])
    assert batch["tokens"].tolist() == [[6, 7], [0, 1], [6, 7]]
    assert batch["labels"].tolist() == [3, 0, 3]


@pytest.mark.parametrize("sizes", [{}, {"a": 0}, {"a": 3, "b": 2}])
def test_tensor_source_needs_equal_lengths(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"TensorSource: got lengths \{.*\}, expected the same positive length"):
        TensorSource(**{name: torch.zeros(size) for name, size in sizes.items()})


def test_fast_matmul_in_two_threads_leaves_nothing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that came first may leave first."""
    monkeypatch.setattr("maskgen.precision._medium_is_float32", lambda: False)
    first, second = fast_matmul(), fast_matmul()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert not precision._fast


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_fast_matmul_gives_the_setting_back(before: str) -> None:
    torch.set_float32_matmul_precision(before)
    with fast_matmul():
        pass
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(RuntimeError, match="inside"), fast_matmul():
        raise RuntimeError("inside")
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(("exact", "inside"), [(True, "medium"), (False, "highest")])
def test_fast_matmul_is_used_where_it_is_exact(monkeypatch: pytest.MonkeyPatch, exact: bool, inside: str) -> None:
    monkeypatch.setattr(maskgen.precision, "_medium_is_float32", lambda: exact)
    torch.set_float32_matmul_precision("highest")
    with fast_matmul():
        assert torch.get_float32_matmul_precision() == inside
    with fast_matmul("cuda"):
        assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision("high")  # the user's own choice stays
    with fast_matmul():
        assert torch.get_float32_matmul_precision() == "high"


def test_products_inside_are_float32() -> None:
    a, b = torch.randn(200, 300), torch.randn(300, 100)
    exact = a.double() @ b.double()
    with fast_matmul():
        product = a @ b
    assert float((product - exact).norm() / exact.norm()) < 1e-6


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_fast_layers_equal_float64(rows: int, bias: bool) -> None:
    layer, x = Linear(40, 96, bias=bias), torch.randn(2, rows, 40)
    exact = torch.nn.functional.linear(
        x.double(), *(None if p is None else p.double() for p in (layer.weight, layer.bias))
    )
    gelu = torch.nn.functional.gelu(exact, approximate="tanh")
    gate, up = exact.chunk(2, dim=-1)
    with torch.no_grad(), fast_matmul():
        torch.testing.assert_close(layer(x).double(), exact, atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(linear_gelu(layer, x).double(), gelu, atol=2e-6, rtol=2e-6)
        if not bias:
            swiglu = torch.nn.functional.silu(gate) * up
            torch.testing.assert_close(linear_swiglu(layer, x).double(), swiglu, atol=2e-6, rtol=2e-6)


def test_fast_layers_have_the_same_gradients() -> None:
    layer, found = Linear(8, 12, bias=False), []
    for inside in (contextlib.nullcontext(), fast_matmul()):
        x = torch.linspace(-2, 2, 24).view(3, 8).requires_grad_()
        layer.zero_grad()
        with inside:
            weights = (torch.linspace(-1, 3, 36).view(3, 12), torch.linspace(2, -1, 18).view(3, 6))
            results = (linear_gelu(layer, x), linear_swiglu(layer, x))
            total = sum((result * weight).sum() for result, weight in zip(results, weights, strict=True))
            assert isinstance(total, torch.Tensor)
            total.backward()  # type: ignore[no-untyped-call]
            linear_swiglu(layer, x).sum().backward()  # a gradient without strides
        assert layer.weight.grad is not None
        assert x.grad is not None
        found.append((layer.weight.grad.clone(), x.grad))
    torch.testing.assert_close(found[0], found[1])


def test_fast_layers_follow_autocast() -> None:
    layer, x = Linear(8, 12, bias=False), torch.randn(3, 8)
    with torch.no_grad(), fast_matmul(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == linear_gelu(layer, x).dtype == linear_swiglu(layer, x).dtype == torch.bfloat16


def test_some_of_many_are_drawn_over_all() -> None:
    """The case behind it: 520 pictures of one class, then 520 of another."""
    assert draw_numbers(5, 8) == draw_numbers(5, 5) == [0, 1, 2, 3, 4]
    assert draw_numbers(0, 3) == []
    found = draw_numbers(1040, 512)
    assert found == draw_numbers(1040, 512) == sorted(set(found))
    assert len(found) == 512
    assert 200 < sum(number < 520 for number in found) < 312
