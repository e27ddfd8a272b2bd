"""Where samples lie among real ones: precision and recall, density and coverage, nearest neighbours.

Distances are Euclidean and computed some rows at a time in float64. Shapes: M samples, R real ones, F features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskgen.tasks.evaluation.metrics.base import Metric, bootstrap
from maskgen.tasks.evaluation.metrics.frechet import check_features

_BLOCK = 1024  # rows of a block of distances

_SLACK = 1e-9  # a point on the rim of a ball is in it, however its distance was rounded

_ROUNDING = 1e-12  # of a squared distance, as a share of the squared norms it is made of


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How far samples and real data cover each other, for one number k of neighbours.

    Attributes:
        k: neighbours that make the radius of a ball.
        precise: bool ``[M]``: the sample lies in the ball of some real one.
        recalled: bool ``[R]``: the real one lies in the ball of some sample.
        density: float ``[M]``: in how many balls of real ones the sample lies, over k.
        covered: bool ``[R]``: some sample lies in the ball of the real one.
    """

    k: int
    precise: NDArray[np.bool_]
    recalled: NDArray[np.bool_]
    density: NDArray[np.float64]
    covered: NDArray[np.bool_]

    def metrics(self, *, draws: int = 1000, seed: int = 0) -> dict[str, Metric]:
        """``precision``, ``recall``, ``density`` and ``coverage``, each a mean over its samples; the balls stay as they are.

        Args:
            draws: of the bootstrap.
            seed: of the draws.
        """
        note = f"{self.k} neighbours, {len(self.precise)} samples, {len(self.covered)} real ones"
        each = {"precision": self.precise, "recall": self.recalled, "density": self.density, "coverage": self.covered}
        return {name: bootstrap(values, draws=draws, seed=seed, note=note) for name, values in each.items()}


def overlap(features: Tensor, reference: Tensor, ks: Sequence[int] = (3,)) -> list[Overlap]:
    """Improved precision and recall, density and coverage.

    The ball of a point reaches to its k-th nearest neighbour on its own side, itself not counted.

    * precision: share of samples in the ball of some real one; recall: the same with the sides exchanged (Kynkäänniemi et
      al. 2019, arXiv 1904.06991, equations 1 to 3; usually k = 3);
    * density: mean number of real balls that a sample lies in, over k; coverage: share of real ones with some sample in
      their ball (Naeem et al. 2020, arXiv 2002.09797, equations 5 and 6; usually k = 5).

    Args:
        features: ``[M, F]`` of the samples.
        reference: ``[R, F]`` of real ones.
        ks: numbers of neighbours.

    Returns:
        One for each k, of the same distances.

    Raises:
        ValueError: two widths, a k below 1, or not more samples than neighbours on a side.
    """
    check_features(features)
    check_features(reference, features.shape[1])
    most, fewest = max(ks, default=0), min(len(features), len(reference))
    if not ks or min(ks) < 1 or fewest <= most:
        raise ValueError(
            f"precision and recall: got {len(features)} samples, {len(reference)} real ones and {list(ks)} neighbours; "
            "expected 1 or more neighbours, and more samples than neighbours on both sides"
        )
    made, real = _centred(features, reference)
    columns = [k - 1 for k in ks]
    real_radii, made_radii = (_radii(points, most)[:, columns] for points in (real, made))
    precise = torch.zeros(len(ks), len(made), dtype=torch.bool)
    recalled, covered = (torch.zeros(len(ks), len(real), dtype=torch.bool) for _ in range(2))
    inside = torch.zeros(len(ks), len(made), dtype=torch.float64)
    for rows, distances in _blocks(real, made):
        for number in range(len(ks)):
            near_real = distances <= real_radii[rows, number, None]
            precise[number] |= near_real.any(0).cpu()
            inside[number] += near_real.sum(0).cpu()
            covered[number, rows] = near_real.any(1).cpu()
            recalled[number, rows] = (distances <= made_radii[None, :, number]).any(1).cpu()
    return [
        Overlap(
            k=k,
            precise=precise[number].numpy(),
            recalled=recalled[number].numpy(),
            density=(inside[number] / k).numpy(),
            covered=covered[number].numpy(),
        )
        for number, k in enumerate(ks)
    ]


def nearest(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """The real sample nearest to each, the first of equally near ones.

    Args:
        features: ``[M, F]``.
        reference: ``[R, F]``.

    Returns:
        Its distance, float64 ``[M]``, and its place in ``reference``, long ``[M]``.

    Raises:
        ValueError: two widths, or nothing on a side.
    """
    check_features(features)
    check_features(reference, features.shape[1])
    if not len(features) or not len(reference):
        raise ValueError(f"nearest: got {len(features)} samples and {len(reference)} real ones, expected some of each")
    made, real = _centred(features, reference)
    places = torch.cat([distances.argmin(1).cpu() for _, distances in _blocks(made, real)])
    # Once more, exactly: products that cancel leave a copy at a distance of 1e-8 instead of 0.
    return (features.double().cpu() - reference.double().cpu()[places]).square().sum(1).sqrt(), places


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Whether samples are copies of what the model was trained on.

    Attributes:
        generated: median distance of a sample to the nearest training one.
        held_out: the same for held-out real ones; copies would be far nearer.
        share: of samples that are nearer to a training one than the nearest hundredth of the held-out ones.
    """

    generated: float
    held_out: float
    share: float


def copies(features: Tensor, held_out: Tensor, reference: Tensor) -> Copies:
    """How near samples are to the training data, beside how near real data are that the model has not seen.

    Args:
        features: ``[M, F]`` of the samples.
        held_out: ``[H, F]`` of real ones that were not trained on.
        reference: ``[R, F]`` of the training data.

    Raises:
        ValueError: two widths, or nothing on a side.
    """
    made, kept = (nearest(side, reference)[0].numpy() for side in (features, held_out))
    return Copies(
        generated=float(np.median(made)),
        held_out=float(np.median(kept)),
        share=float((made < np.quantile(kept, 0.01)).mean()),
    )


def _centred(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 around the mean of the reference: large norms would cost digits of small distances."""
    made, real = features.detach().double(), reference.detach().double()
    centre = real.mean(0)
    return made - centre, real - centre


def _blocks(rows: Tensor, columns: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances, some rows at a time."""
    norms = columns.square().sum(1)
    for first in range(0, len(rows), _BLOCK):
        part = rows[first : first + _BLOCK]
        squares = part.square().sum(1)[:, None] + norms
        yield slice(first, first + len(part)), squares.addmm_(part, columns.T, alpha=-2).clamp_(min=0)


def _radii(points: Tensor, most: int) -> Tensor:
    """Squared distance to the 1st ... ``most``-th neighbour, ``[M, most]``."""
    found = []
    for rows, distances in _blocks(points, points):
        own = torch.arange(rows.start, rows.stop, device=points.device)
        distances[own - rows.start, own] = torch.inf
        found.append(distances.topk(most, dim=1, largest=False, sorted=True).values)
    return torch.cat(found) * (1 + _SLACK) + _ROUNDING * points.square().sum(1).mean()
