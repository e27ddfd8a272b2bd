"""Token filters: what they keep, on distributions whose answer is known, and in any order of the classes.

Shapes: B batch, N tokens, K codebooks, V codes.
"""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.sampling.filters import TokenFilter, filtered_logits, top_k, top_p, typical

SHARES = st.floats(0.01, 1.0)
SEEDS = st.integers(0, 2**32)


def random_logits(seed: int, codes: int = 12, rows: int = 3) -> Tensor:
    return 3 * torch.randn(rows, codes, generator=torch.Generator().manual_seed(seed))


def kept(logits: Tensor) -> list[int]:
    return torch.nonzero(logits.isfinite())[:, -1].tolist()


PROBS = torch.tensor([0.5, 0.05, 0.25, 0.2])


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [0]), (2, [0, 2]), (3, [0, 2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_top_k(k: int, expected: list[int]) -> None:
    assert kept(top_k(PROBS.log(), k)) == expected


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.1, [0]), (0.49, [0]), (0.51, [0, 2]), (0.8, [0, 2, 3]), (0.96, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3])],
)
def test_top_p_includes_the_class_that_exceeds(p: float, expected: list[int]) -> None:
    assert kept(top_p(PROBS.log(), p)) == expected


def test_typical_may_leave_out_the_most_likely() -> None:
    """Entropy 1.16 nats: 0.25 has 1.39, 0.2 has 1.61, 0.5 has 0.69, 0.05 has 3.0 nats of surprise."""
    distance = (-PROBS.log() - -(PROBS * PROBS.log()).sum()).abs()
    assert distance.argsort().tolist() == [2, 3, 0, 1]
    assert kept(typical(PROBS.log(), 0.2)) == [2]
    assert kept(typical(PROBS.log(), 0.3)) == [2, 3]
    assert kept(typical(PROBS.log(), 0.2, min_tokens=3)) == [0, 2, 3]
    assert kept(typical(PROBS.log(), 0.2, min_tokens=99)) == [0, 1, 2, 3]
    assert kept(typical(PROBS.log(), 1.0)) == [0, 1, 2, 3]


@given(seed=SEEDS, share=SHARES, least=st.integers(1, 14))
def test_typical_against_one_class_at_a_time(seed: int, share: float, least: int) -> None:
    logits = random_logits(seed).double()
    for row, found in zip(logits.tolist(), typical(logits, share, least), strict=True):
        top = max(row)
        weights = [math.exp(value - top) for value in row]
        probs = [weight / sum(weights) for weight in weights]
        entropy = -sum(p * math.log(p) for p in probs)
        ranked = sorted(range(len(row)), key=lambda v: abs(-math.log(probs[v]) - entropy))
        expected: list[int] = []
        while len(expected) < len(row) and (len(expected) < least or sum(probs[v] for v in expected) < share):
            expected.append(ranked[len(expected)])
        assert kept(found) == sorted(expected)


FILTERS = [
    TokenFilter(top_k=3),
    TokenFilter(top_p=0.7),
    TokenFilter(typical_mass=0.4, typical_min_tokens=2),
    TokenFilter(typical_mass=0.8, typical_min_tokens=1, top_k=4, top_p=0.6),
]


@pytest.mark.parametrize("keep", FILTERS)
@given(seed=SEEDS)
def test_filters_do_not_see_the_order_of_classes_and_keep_something(keep: TokenFilter, seed: int) -> None:
    logits = random_logits(seed)
    order = torch.randperm(logits.shape[-1], generator=torch.Generator().manual_seed(seed))
    found = keep(logits)
    assert torch.equal(keep(logits[:, order]), found[:, order])
    assert torch.equal(found[found.isfinite()], logits[found.isfinite()])
    assert (found.isfinite().sum(-1) >= 1).all()
    assert (found.isfinite().sum(-1) < logits.shape[-1]).any()


@pytest.mark.parametrize("keep", FILTERS)
def test_equals_stay_together(keep: TokenFilter) -> None:
    assert torch.equal(keep(torch.zeros(2, 8)), torch.zeros(2, 8))


@pytest.mark.parametrize("keep", FILTERS)
def test_what_is_left_out_stays_out(keep: TokenFilter) -> None:
    logits = random_logits(5).masked_fill(torch.arange(12) % 2 == 0, -torch.inf)
    assert (keep(logits)[:, ::2] == -torch.inf).all()
    assert keep(logits).isfinite().any(-1).all()


def test_order_of_the_filters() -> None:
    logits = random_logits(9)
    every = TokenFilter(typical_mass=0.8, typical_min_tokens=1, top_k=4, top_p=0.6)
    assert torch.equal(every(logits), top_p(top_k(typical(logits, 0.8), 4), 0.6))
    assert torch.equal(TokenFilter()(logits), logits)


def test_filtered_logits_wrap_a_model() -> None:
    logits = random_logits(2).bfloat16().reshape(1, 3, 1, 12)
    wrapped = filtered_logits(lambda tokens, step: logits + step, TokenFilter(top_k=2))
    assert wrapped(torch.zeros(1, 3, 1, dtype=torch.long), 3).dtype == torch.float32
    assert torch.equal(wrapped(torch.zeros(1, 3, 1, dtype=torch.long), 3), top_k((logits + 3).float(), 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 0}, "top_k: got 0, expected at least 1"),
        ({"top_p": 0.0}, "top_p: got 0.0, expected a share over 0"),
        ({"top_p": math.nan}, "top_p: got nan"),
        ({"typical_mass": 1.5}, "typical_mass: got 1.5"),
        ({"typical_min_tokens": 0}, "typical_min_tokens: got 0"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenFilter(**change)


def test_the_functions_check_too() -> None:
    logits = torch.zeros(4)
    with pytest.raises(ValueError, match="top_k"):
        top_k(logits, 0)
    with pytest.raises(ValueError, match="top_p"):
        top_p(logits, 1.1)
    with pytest.raises(ValueError, match="typical_mass"):
        typical(logits, 0.0)
    with pytest.raises(ValueError, match="typical_min_tokens"):
        typical(logits, 0.5, 0)
