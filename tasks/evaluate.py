"""How good generated images are, judged by classifiers and distances that need no downloaded network.

Everything works on small feature vectors; ``pixel_features`` makes them from images. Shapes: M samples, F features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

__all__ = ["classifier_scores", "neighbour_distances", "pixel_features", "within_class_variance"]

Features = NDArray[np.float64]
Labels = NDArray[np.int64]


def pixel_features(images: torch.Tensor, side: int = 8) -> Features:
    """Grey images averaged down to ``side`` x ``side`` and flattened.

    Args:
        images: float ``[M, 3, H, W]`` in [0, 1].
        side: pixels along each axis.

    Returns:
        ``[M, side * side]`` in [0, 1].
    """
    small: Features = F.adaptive_avg_pool2d(images.mean(1, keepdim=True), side).flatten(1).double().numpy()
    return small


def classifier_scores(
    real: tuple[Features, Labels], test: tuple[Features, Labels], generated: tuple[Features, Labels]
) -> dict[str, float]:
    """Classification accuracy score and label agreement (Ravuri and Vinyals 2019, arXiv 1905.10887).

    One classifier (scikit-learn's SVC with its defaults) is trained on the real training samples and
    one on the generated samples; both are tested on the real test samples.

    Args:
        real: features ``[M, F]`` and labels ``[M]`` of the training samples.
        test: of the test samples.
        generated: of the generated samples, with the labels they were asked for.

    Returns:
        ``cas``: accuracy of the classifier trained on generated samples; ``cas_real``: of the one trained on real samples;
        ``label_agreement``: share of generated samples that the real classifier reads as the asked class. All in [0, 1].
    """
    on_real, on_generated = _fit(real), _fit(generated)
    return {
        "cas": float(on_generated.score(*test)),
        "cas_real": float(on_real.score(*test)),
        "label_agreement": float(on_real.score(*generated)),
    }


def within_class_variance(features: Features, labels: Labels) -> float:
    """Variance around the class mean, summed over features and averaged over classes."""
    return float(np.mean([features[labels == label].var(axis=0).sum() for label in np.unique(labels)]))


def neighbour_distances(features: Features, reference: Features) -> Features:
    """Euclidean distance of each sample to its nearest neighbour in ``reference``, ``[M]``."""
    from sklearn.neighbors import NearestNeighbors

    found: Features = NearestNeighbors(n_neighbors=1).fit(reference).kneighbors(features)[0][:, 0]
    return found


def _fit(samples: tuple[Features, Labels]) -> Any:
    from sklearn.svm import SVC

    return SVC().fit(*samples)
