"""Frechet and kernel distances: closed forms, torch-fidelity's functions on the same vectors, and streams of parts."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from maskgen.tasks.evaluation.metrics.base import bootstrap
from maskgen.tasks.evaluation.metrics.frechet import (
    Gaussian,
    Moments,
    frechet_distance,
    frechet_infinity,
    kernel_distance,
)

KERNEL = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}


def draws(count: int, width: int, seed: int, *, scale: float = 1.0, shift: float = 0.0, decay: float = 0.0) -> Tensor:
    """Correlated vectors; with ``decay`` their covariance falls off as that of a network's features."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(width) + 0.3 * torch.randn(width, width, generator=generator) / width**0.5
    spread = torch.arange(1, width + 1).float() ** -decay
    return (torch.randn(count, width, generator=generator) * spread) @ mixing * scale + shift


def gaussian(features: Tensor) -> Gaussian:
    moments = Moments(features.shape[1])
    moments.update(features)
    return moments.gaussian()


def fidelity(first: Tensor, second: Tensor) -> float:
    statistics = [fid_features_to_statistics(features) for features in (first, second)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def test_closed_form() -> None:
    """Commuting covariances: the sum of (root a - root b)^2, plus the shift of the means."""
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 1.0]).double()
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    first = Gaussian(mean=torch.zeros(3).double(), covariance=turn @ torch.diag(a) @ turn.T, count=10)
    second = Gaussian(mean=torch.tensor([0.0, 3.0, 4.0]).double(), covariance=turn @ torch.diag(b) @ turn.T, count=10)
    assert frechet_distance(first, second) == pytest.approx(25 + 1 + 0 + 4)
    assert frechet_distance(second, first) == pytest.approx(30)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-12)


def test_closed_form_of_a_singular_side() -> None:
    first = Gaussian(mean=torch.zeros(2).double(), covariance=torch.diag(torch.tensor([4.0, 0.0]).double()), count=3)
    second = Gaussian(mean=torch.zeros(2).double(), covariance=torch.eye(2).double(), count=3)
    assert frechet_distance(first, second) == pytest.approx(1 + 1)
    assert frechet_distance(second, first) == pytest.approx(1 + 1)


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_equals_torch_fidelity(decay: float) -> None:
    first, second = draws(900, 64, 0, decay=decay), draws(700, 64, 1, scale=1.2, shift=0.1, decay=decay)
    assert frechet_distance(gaussian(first), gaussian(second)) == pytest.approx(fidelity(first, second), rel=1e-5)


def test_equals_torch_fidelity_on_few_samples() -> None:
    """Both covariances are singular."""
    first, second = draws(40, 64, 0).double(), draws(50, 64, 1, shift=0.2).double()
    assert frechet_distance(gaussian(first), gaussian(second)) == pytest.approx(fidelity(first, second), rel=1e-5)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_moments_of_a_stream(shift: float) -> None:
    features = draws(5000, 12, 0).double() + shift
    whole = gaussian(features)
    expected = np.cov(features.numpy(), rowvar=False)
    np.testing.assert_allclose(whole.covariance.numpy(), expected, rtol=1e-9, atol=1e-9)
    first, second = Moments(12), Moments(12)
    for number, part in enumerate(features.split([1, 700, 4000, 299])):
        (first if number % 2 else second).update(part)
    first.merge(Moments.from_state(second.state()))
    first.merge(Moments(12))
    joined = first.gaussian()
    assert joined.count == 5000
    torch.testing.assert_close(joined.mean, features.mean(0), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(joined.covariance, whole.covariance, rtol=1e-9, atol=1e-9)


def test_infinity_takes_the_bias_out() -> None:
    reference = draws(40_000, 24, 0)
    samples = draws(400, 24, 0, shift=0.0)
    truth = frechet_distance(gaussian(draws(40_000, 24, 0)[20_000:]), gaussian(reference))
    plain = frechet_distance(gaussian(samples), gaussian(reference))
    found = frechet_infinity(samples, gaussian(reference), seed=3)
    assert abs(found.value - truth) < 0.35 * abs(plain - truth)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high
    assert found == frechet_infinity(samples, gaussian(reference), seed=3)
    assert found.note == "line through 10 points from 200 to 400 samples"


def test_kid_equals_torch_fidelity() -> None:
    first, second = draws(300, 16, 0), draws(260, 16, 1, shift=0.3)
    theirs = kid_features_to_metric(
        first, second, kid_subsets=20, kid_subset_size=100, rng_seed=2020, verbose=False, **KERNEL
    )
    ours = kernel_distance(first, second, subsets=20, size=100)
    assert ours.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    spread = theirs["kernel_inception_distance_std"]
    assert ours.high is not None
    assert ours.high - ours.value == pytest.approx(spread, rel=1e-4)


def test_kid_by_its_formula() -> None:
    """All samples in the one subset: the unbiased estimator, pair by pair."""
    x, y = draws(7, 3, 0).double(), draws(7, 3, 1, shift=1).double()

    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    pairs = [(i, j) for i in range(7) for j in range(7)]
    within = sum(kernel(s[i], s[j]) for s in (x, y) for i, j in pairs if i != j) / 42
    across = sum(kernel(x[i], y[j]) for i, j in pairs) / 49
    found = kernel_distance(x, y, subsets=1, size=1000)
    assert found.value == pytest.approx(within - 2 * across)
    assert found.note == "1 subset of 7 samples, seed 2020"


def test_kid_of_all_there_is_has_no_interval() -> None:
    """Every subset would be the same one: its spread of nothing is no interval."""
    x, y = draws(9, 3, 0), draws(9, 3, 1)
    found = kernel_distance(x, y)
    assert (found.low, found.high, found.interval) == (None, None, "")
    assert found.note == "1 subset of 9 samples, seed 2020"
    assert found.value == pytest.approx(kernel_distance(x, y, subsets=1, seed=5).value)
    assert kernel_distance(x, draws(12, 3, 1)).low is not None


def test_bootstrap() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap(values, draws=2000)
    assert found.value == pytest.approx(values.mean())
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert bootstrap([1.0, 1.0]).low == 1
    with pytest.raises(ValueError, match="bootstrap: got values of shape"):
        bootstrap([])


def test_mistakes() -> None:
    moments = Moments(3)
    moments.update(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"got 1 sample\(s\), which have no covariance; expected at least 2"):
        moments.gaussian()
    with pytest.raises(ValueError, match=r"got shape \(2, 4\), expected \[M, 3\]"):
        moments.update(torch.ones(2, 4))
    with pytest.raises(ValueError, match="not finite; is the network or one of the samples damaged"):
        moments.update(torch.full((2, 3), torch.nan))
    a, b = gaussian(draws(10, 3, 0)), gaussian(draws(10, 4, 0))
    with pytest.raises(ValueError, match="got 3 and 4 features, expected the same; both must come from one extractor"):
        frechet_distance(a, b)
    with pytest.raises(ValueError, match="expected at least 3 and twice as many samples"):
        frechet_infinity(draws(10, 3, 0), a)
    with pytest.raises(ValueError, match="KID: got subsets of 1 samples"):
        kernel_distance(draws(1, 3, 0), draws(5, 3, 0))
