"""Precision, recall, density, coverage against their defining formulas; nearest neighbours."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_prc import calculate_precision_recall_full

import maskgen.tasks.evaluation.metrics.manifold
from maskgen.tasks.evaluation.metrics.manifold import copies, nearest, overlap


def draws(count: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def brute_force(made: Tensor, real: Tensor, k: int) -> dict[str, list[float]]:
    """The definitions, pair by pair."""

    def distance(a: Tensor, b: Tensor) -> float:
        return float((a.double() - b.double()).square().sum().sqrt())

    def radius(points: Tensor, index: int) -> float:
        return sorted(distance(points[index], other) for j, other in enumerate(points) if j != index)[k - 1]

    real_radii = [radius(real, index) for index in range(len(real))]
    made_radii = [radius(made, index) for index in range(len(made))]
    inside = [[distance(y, x) <= r for x, r in zip(real, real_radii, strict=True)] for y in made]
    recalled = [any(distance(x, y) <= r for y, r in zip(made, made_radii, strict=True)) for x in real]
    return {
        "precise": [any(row) for row in inside],
        "recalled": recalled,
        "density": [sum(row) / k for row in inside],
        "covered": [any(row[index] for row in inside) for index in range(len(real))],
    }


@pytest.mark.parametrize("block", [7, 1024])
def test_brute_force(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maskgen.tasks.evaluation.metrics.manifold, "_BLOCK", block)
    made, real = draws(23, 4, 0, 0.5), draws(31, 4, 1)
    for found in overlap(made, real, (1, 3, 5)):
        expected = brute_force(made, real, found.k)
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(found, name), values, err_msg=f"{name}, k = {found.k}")
        assert 0 < np.mean(expected["precise"]) <= 1


def test_equals_torch_fidelity() -> None:
    made, real = draws(200, 6, 0, 0.4), draws(150, 6, 1)
    (found,) = overlap(made, real, (3,))
    precision, recall = calculate_precision_recall_full(made, real, 3)
    metrics = found.metrics(draws=50)
    assert metrics["precision"].value == pytest.approx(precision, abs=1e-6)
    assert metrics["recall"].value == pytest.approx(recall, abs=1e-6)
    assert metrics["precision"].low < metrics["precision"].value < metrics["precision"].high
    assert metrics["recall"].count == 150


def test_copies_and_strangers() -> None:
    real = draws(60, 5, 0, 100.0)  # far from zero: products must not swallow the distances
    (copied,) = overlap(real.clone(), real, (5,))
    assert copied.precise.all()
    assert copied.recalled.all()
    assert copied.covered.all()
    # Each copy lies in the balls of its original and of those that have it among their five nearest.
    assert copied.density.mean() == pytest.approx((60 + 60 * 5) / (5 * 60))
    (strange,) = overlap(real + 1000, real, (5,))
    assert not strange.precise.any()
    assert not strange.covered.any()
    assert strange.density.sum() == 0


def test_nearest() -> None:
    reference = torch.tensor([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]])
    distances, places = nearest(torch.tensor([[3.0, 4.0], [0.0, 1.0], [13.0, 4.0]]), reference)
    assert distances.tolist() == [0, 1, 5]
    assert places.tolist() == [1, 0, 2]
    far = 1e4 + torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    assert nearest(far, far)[0].tolist() == [0] * 50  # a copy is at distance 0, not at the rounding of large products


def test_copies() -> None:
    """By the definition: medians of nearest distances, and the share below the held-out ones' first hundredth."""
    trained, kept = draws(80, 3, 0).double(), draws(50, 3, 1).double()
    made = torch.cat((trained[:10] + 1e-6, draws(30, 3, 2).double()))
    found = copies(made, kept, trained)
    near, floor = (torch.cdist(side, trained).min(1).values.numpy() for side in (made, kept))
    assert found.generated == pytest.approx(np.median(near))
    assert found.held_out == pytest.approx(np.median(floor))
    assert found.share == np.mean(near < np.quantile(floor, 0.01))
    assert 0.25 <= found.share < 0.5
    assert copies(kept, kept, trained).share <= 0.02


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="got 4 samples, 9 real ones and \\[3, 5\\] neighbours; expected 1 or more"):
        overlap(draws(4, 2, 0), draws(9, 2, 1), (3, 5))
    with pytest.raises(ValueError, match=r"got shape \(9, 3\), expected \[M, 2\]"):
        overlap(draws(9, 2, 0), draws(9, 3, 1))
    with pytest.raises(ValueError, match="got 0 samples and 2 real ones, expected some of each"):
        nearest(draws(0, 2, 0), draws(2, 2, 0))
