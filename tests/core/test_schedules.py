"""Schedules: ends, order, closed forms, counts."""

import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskgen.schedules import get_schedule, mask_counts

NAMES = ["cosine", "arccos", "uniform", "linear", "square", "cubic", "sqrt", "pow1.7", "pow4", "log", "exp"]


def gamma(name: str, ratio: float | torch.Tensor, total: float = 256) -> torch.Tensor:
    ratio = torch.as_tensor(ratio, dtype=torch.float64)
    return get_schedule(name)(ratio, torch.full_like(ratio, total))


@pytest.mark.parametrize("name", NAMES)
def test_falls_from_one_to_nothing(name: str) -> None:
    values = gamma(name, torch.linspace(0, 1, 257))
    assert values.dtype == torch.float32
    assert float(values[0]) == pytest.approx(1.0, abs=0.005)  # exp begins at 1 - 1 / N
    assert float(values[-1]) == pytest.approx(1e-6)
    assert (values.diff() <= 0).all()
    assert values.min() >= 1e-6
    assert values.max() <= 1


@pytest.mark.parametrize(
    ("name", "ratio", "expected"),
    [
        ("cosine", 0.5, math.sqrt(0.5)),
        ("cosine", 1 / 3, math.sqrt(0.75)),
        ("arccos", 0.5, 2 / 3),
        ("uniform", 0.3, 0.7),
        ("linear", 0.3, 0.7),
        ("square", 0.5, 0.75),
        ("cubic", 0.5, 0.875),
        ("sqrt", 0.25, 0.5),
        ("pow2.5", 0.25, 1 - 0.25**2.5),
        ("log", 0.5, 1 / 8),
        ("log", 0.001, 1.0),
        ("exp", 0.5, 1 - 1 / 16),
    ],
)
def test_closed_forms(name: str, ratio: float, expected: float) -> None:
    assert float(gamma(name, ratio)) == pytest.approx(expected, rel=1e-6)


def test_names_of_the_paper_are_powers() -> None:
    ratios = torch.rand(50, dtype=torch.float64)
    for name, power in (
        ("uniform", "pow1"),
        ("linear", "pow1"),
        ("square", "pow2"),
        ("cubic", "pow3"),
        ("sqrt", "pow0.5"),
    ):
        assert torch.equal(gamma(name, ratios), gamma(power, ratios))


def test_log_and_exp_depend_on_the_number_of_tokens_of_each_row() -> None:
    total = torch.tensor([4.0, 16.0, 256.0])
    half = torch.tensor(0.5)
    torch.testing.assert_close(get_schedule("log")(half, total), torch.tensor([1 / 2, 1 / 4, 1 / 8]))
    torch.testing.assert_close(get_schedule("exp")(half, total), torch.tensor([1 / 2, 3 / 4, 15 / 16]))


def test_log_of_one_token_is_a_number() -> None:
    assert float(gamma("log", 1.0, total=1)) == pytest.approx(1e-6)
    assert float(gamma("log", 0.5, total=1)) == 1.0


def test_powers_keep_the_last_bit() -> None:
    """A float32 count decides a token: 1 - (k^3) (c^3) of the float32 c = 1 / 7 is rounded once behind the powers."""
    part = numpy.float32(1) / numpy.float32(7)
    exact = 1 - 5.0**3 * float(part * part * part)
    assert float(get_schedule("cubic").at_step(4, 7, torch.tensor([8]))) == float(numpy.float32(exact))


@pytest.mark.parametrize("name", ["cosin", "", "pow", "powx", "pow0", "pow-1", "pow1e3", "COSINE", "pow2.5 "])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"schedule: got '.*', expected 'cosine', 'arccos', .* 'pow<P>' .* 'log' or 'exp'"
    ):
        get_schedule(name)


@given(name=st.sampled_from(NAMES), steps=st.integers(1, 200), part=st.floats(0, 1, exclude_max=True))
def test_steps_follow_the_curve(name: str, steps: int, part: float) -> None:
    step, total = int(part * steps), torch.tensor([1, 2, 256])
    expected = get_schedule(name)(torch.tensor((step + 1) / steps, dtype=torch.float64), total).expand(3)
    torch.testing.assert_close(get_schedule(name).at_step(step, steps, total).expand(3), expected, atol=2e-6, rtol=0)


@given(name=st.sampled_from(NAMES), ratio=st.floats(0, 1), total=st.integers(2, 2000), decided=st.floats(0, 1))
def test_counts_leave_one_and_decide_one(name: str, ratio: float, total: int, decided: float) -> None:
    unknown = max(1, round(total * (1 - decided)))
    share = get_schedule(name)(torch.tensor(ratio), torch.tensor([total]))
    count = int(mask_counts(share, torch.tensor([total]), torch.tensor([unknown]))[0])
    assert 1 <= count <= max(1, unknown - 1)
    assert count <= max(1, total * float(gamma(name, ratio, total)) + 1e-3)


def test_official_count_at_two_thirds_is_one_below_half() -> None:
    """cos(pi / 3) in float32 is a hair under 1/2."""
    total = torch.tensor([256, 1024])
    for step, steps in ((7, 12), (1, 3), (5, 9), (15, 24)):
        assert (step + 1) * 3 == 2 * steps
        assert mask_counts(get_schedule("cosine").at_step(step, steps, total), total, total).tolist() == [127, 511]
