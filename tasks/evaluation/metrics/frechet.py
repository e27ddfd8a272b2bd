"""Distances of two sets of feature vectors: Frechet (FID, FVD, FAD), its limit for many samples, and KID.

Shapes: M samples, F features. Statistics are float64, whatever the features are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskgen.tasks.evaluation.metrics.base import Metric

_ROWS = 2048  # turned into float64 at a time: 32 MB of 2,048 features

_FEWEST = 5_000  # samples of the first point of the extrapolation, as in the paper


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Mean and covariance of feature vectors.

    Attributes:
        mean: float64 ``[F]``.
        covariance: float64 ``[F, F]``, divided by M - 1.
        count: M.
    """

    mean: Tensor
    covariance: Tensor
    count: int

    @property
    def width(self) -> int:
        """F."""
        return len(self.mean)


class Moments:
    """Mean and covariance of vectors that come some at a time and are not kept.

    Parts are joined by Chan, Golub and LeVeque (1983): each is centred by its own mean, so that large means do not swallow
    small variances.

    Args:
        width: F.
    """

    def __init__(self, width: int) -> None:
        self._count = 0
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)
        self._waiting: list[Tensor] = []  # small parts: joining one costs as much as a thousand rows of it

    @property
    def count(self) -> int:
        """Vectors so far."""
        return self._count + sum(map(len, self._waiting))

    def update(self, features: Tensor) -> None:
        """Add vectors ``[M, F]``.

        Raises:
            ValueError: another width, or values that are not finite.
        """
        check_features(features, len(self._mean))
        self._waiting.append(features.detach().cpu())
        if sum(map(len, self._waiting)) >= _ROWS:
            self._flush()

    def merge(self, other: Moments) -> None:
        """Add what another has seen."""
        self._flush()
        other._flush()
        self._join(other._count, other._mean, other._scatter)

    def state(self) -> dict[str, Tensor]:
        """Three tensors that ``from_state`` takes back."""
        self._flush()
        return {"count": torch.tensor(self._count), "mean": self._mean, "scatter": self._scatter}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Moments:
        """The moments that gave this ``state``."""
        moments = cls(len(state["mean"]))
        moments._count = int(state["count"])
        moments._mean, moments._scatter = state["mean"].clone(), state["scatter"].clone()
        return moments

    def gaussian(self) -> Gaussian:
        """Mean and covariance of all vectors so far.

        Raises:
            ValueError: fewer than two, which have no covariance.
        """
        self._flush()
        if self._count < 2:
            raise ValueError(
                f"features: got {self._count} sample(s), which have no covariance; expected at least 2, and more than there "
                "are features"
            )
        return Gaussian(mean=self._mean.clone(), covariance=self._scatter / (self._count - 1), count=self._count)

    def _flush(self) -> None:
        """Take in what waits."""
        if not self._waiting:
            return
        for part in torch.cat(self._waiting).split(_ROWS):
            rows = part.double()
            mean = rows.mean(0)
            rows = rows - mean
            self._join(len(rows), mean, rows.T @ rows)
        self._waiting.clear()

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if not count:
            return
        total = self._count + count
        shift = mean - self._mean
        self._scatter += scatter
        self._scatter += torch.outer(shift, shift) * (self._count * count / total)
        self._mean += shift * (count / total)
        self._count = total


def check_features(features: Tensor, width: int | None = None) -> None:
    """Refuse what are no feature vectors.

    Args:
        features: to look at.
        width: F that is expected; any if left out.

    Raises:
        ValueError: another shape than ``[M, F]``, another F, or values that are not finite.
    """
    if features.ndim != 2 or (width is not None and features.shape[1] != width):
        raise ValueError(
            f"features: got shape {tuple(features.shape)}, expected [M, {'F' if width is None else width}]"
        )
    if not torch.isfinite(features).all():
        raise ValueError("features: got values that are not finite; is the network or one of the samples damaged?")


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Frechet distance of two Gaussians (Heusel et al. 2017, arXiv 1706.08500, equation 6).

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)). With C1 = R R^T the last trace is the sum of the square roots of the
    eigenvalues of R^T C2 R, which is symmetric: no complex numbers, no added epsilon. R is the Cholesky factor; where C1 is
    singular, eigenvectors times roots of eigenvalues.

    Args:
        first: one.
        second: the other, of the same width.

    Raises:
        ValueError: two widths.
    """
    if first.width != second.width:
        raise ValueError(
            f"Frechet distance: got {first.width} and {second.width} features, expected the same; both must come from one "
            "extractor"
        )
    trace = _root_trace(_factor(first.covariance), second.covariance)
    return _distance(first, second, trace)


def frechet_infinity(features: Tensor, reference: Gaussian, *, points: int = 10, seed: int = 0) -> Metric:
    """The Frechet distance that infinitely many samples would have (Chong and Forsyth 2020, arXiv 1911.07023).

    The bias of the distance is linear in 1 / M. It is computed for ``points`` evenly spaced numbers of samples, drawn
    without replacement, and a line through them is read off at 1 / M = 0. The paper uses plain random draws for features and
    15 points from 5,000 up; with fewer than 10,000 samples the points begin at half of them.

    Args:
        features: ``[M, F]`` of the samples.
        reference: the other side, taken as it is: its own bias stays.
        points: how many.
        seed: of the draws.

    Returns:
        The intercept; its interval is two standard errors of the fit.

    Raises:
        ValueError: fewer than 3 points, or fewer samples than twice as many.
    """
    count = len(features)
    if points < 3 or count < 2 * points:
        raise ValueError(
            f"FID at infinity: got {points} points and {count} samples, expected at least 3 and twice as many samples"
        )
    check_features(features, reference.width)
    generator = torch.Generator().manual_seed(seed)
    counts = [round(number) for number in np.linspace(min(_FEWEST, count // 2), count, points)]
    factor = _factor(reference.covariance)
    found = []
    for number in counts:
        moments = Moments(reference.width)
        moments.update(features[torch.randperm(count, generator=generator)[:number]])
        part = moments.gaussian()
        found.append(_distance(reference, part, _root_trace(factor, part.covariance)))
    across = 1 / np.asarray(counts, dtype=np.float64)
    design = np.stack((np.ones_like(across), across), axis=1)
    solution, *_ = np.linalg.lstsq(design, np.asarray(found), rcond=None)
    rest = np.asarray(found) - design @ solution
    spread = float(rest @ rest) / (points - 2) * np.linalg.inv(design.T @ design)[0, 0]
    error = float(np.sqrt(spread))
    return Metric(
        value=float(solution[0]),
        count=count,
        low=float(solution[0]) - 2 * error,
        high=float(solution[0]) + 2 * error,
        interval="two standard errors of the intercept on both sides",
        note=f"line through {points} points from {counts[0]} to {count} samples",
    )


def kernel_distance(
    features: Tensor, reference: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> Metric:
    """Kernel Inception distance (Binkowski et al. 2018, arXiv 1801.01401): unbiased squared MMD with (x y / F + 1)^3.

    The mean over subsets; which samples are in a subset is drawn as torch-fidelity draws them, so that the number is the
    same for the same features and seed.

    Args:
        features: ``[M, F]`` of the samples.
        reference: ``[M', F]`` of real ones.
        subsets: how many.
        size: samples of each side in a subset; all, where there are fewer.
        seed: of the draws.

    Returns:
        The mean; its interval is one standard deviation of the subsets on both sides, as the field reports it. Where a
        subset is all there is, all subsets are the same, so there is one, and no interval.

    Raises:
        ValueError: fewer than two samples on a side, or two widths.
    """
    check_features(features)
    check_features(reference, features.shape[1])
    size = min(size, len(features), len(reference))
    if size < 2 or subsets < 1:
        raise ValueError(f"KID: got subsets of {size} samples, {subsets} of them; expected at least 2 and at least 1")
    whole = size == len(features) == len(reference)
    subsets = 1 if whole else subsets
    draw = np.random.RandomState(seed)  # torch-fidelity's generator
    found = np.empty(subsets)
    for number in range(subsets):
        x = features[torch.from_numpy(draw.choice(len(features), size, replace=False))].double()
        y = reference[torch.from_numpy(draw.choice(len(reference), size, replace=False))].double()
        within = (_off_diagonal(_kernel(x, x)) + _off_diagonal(_kernel(y, y))) / (size * (size - 1))
        found[number] = within - 2 * float(_kernel(x, y).mean())
    mean, spread = float(found.mean()), float(found.std())
    return Metric(
        value=mean,
        count=len(features),
        low=None if whole else mean - spread,
        high=None if whole else mean + spread,
        interval="" if whole else f"one standard deviation of {subsets} subsets on both sides",
        note=f"{subsets} subset{'' if whole else 's'} of {size} samples, seed {seed}",
    )


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _off_diagonal(matrix: Tensor) -> float:
    return float(matrix.sum() - matrix.diagonal().sum())


def _factor(covariance: Tensor) -> Tensor:
    """R with R R^T = covariance, ``[F, F]``."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()


def _root_trace(factor: Tensor, covariance: Tensor) -> float:
    """Trace of the square root of (factor factor^T) covariance."""
    values = torch.linalg.eigvalsh(factor.T @ covariance @ factor)
    return float(values.clamp(min=0).sqrt().sum())


def _distance(first: Gaussian, second: Gaussian, trace: float) -> float:
    shift = float((first.mean - second.mean).square().sum())
    return shift + float(first.covariance.trace() + second.covariance.trace()) - 2 * trace
