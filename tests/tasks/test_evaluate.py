"""Measures of generated images: what they say about perfect, wrong and copied samples, and in closed form."""

import numpy as np
import pytest
import torch

from maskgen.tasks.evaluate import classifier_scores, neighbour_distances, pixel_features, within_class_variance

Samples = tuple[np.ndarray, np.ndarray]


def blobs(count: int, seed: int, spread: float = 0.3) -> Samples:
    """Four well separated classes in the plane."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    centres = np.array([[0, 0], [4, 0], [0, 4], [4, 4]], dtype=float)
    return centres[labels] + spread * draw.standard_normal((count, 2)), labels


def test_good_samples_score_like_real_ones() -> None:
    scores = classifier_scores(blobs(80, 0), blobs(40, 1), blobs(80, 2))
    assert scores == {"cas": 1.0, "cas_real": 1.0, "label_agreement": 1.0}


def test_wrong_labels_score_low() -> None:
    features, labels = blobs(80, 2)
    scores = classifier_scores(blobs(80, 0), blobs(40, 1), (features, (labels + 1) % 4))
    assert scores == {"cas": 0.0, "cas_real": 1.0, "label_agreement": 0.0}
    shuffled = np.random.default_rng(3).permutation(labels)
    scores = classifier_scores(blobs(80, 0), blobs(40, 1), (features, shuffled))
    assert scores["cas_real"] == 1.0
    assert scores["label_agreement"] == pytest.approx(np.mean(shuffled == labels))
    assert scores["cas"] < 0.7


def test_the_test_samples_decide() -> None:
    features, labels = blobs(40, 1)
    wrong = np.where(np.arange(40) < 10, (labels + 1) % 4, labels)
    scores = classifier_scores(blobs(80, 0), (features, wrong), blobs(80, 2))
    assert scores == {"cas": 0.75, "cas_real": 0.75, "label_agreement": 1.0}


def test_a_missing_class_costs_its_share() -> None:
    features, labels = blobs(80, 2)
    kept = labels != 3
    scores = classifier_scores(blobs(80, 0), blobs(40, 1), (features[kept], labels[kept]))
    assert scores == {"cas": 0.75, "cas_real": 1.0, "label_agreement": 1.0}


def test_variance_in_closed_form() -> None:
    features = np.array([[0.0, 0.0], [2.0, 0.0], [5.0, 1.0], [5.0, 5.0]])
    # Class 0: variance 1 along the first axis. Class 7: variance 4 along the second.
    assert within_class_variance(features, np.array([0, 0, 7, 7])) == pytest.approx((1 + 4) / 2)
    assert within_class_variance(features + 100, np.array([0, 0, 7, 7])) == pytest.approx(2.5)
    assert within_class_variance(3 * features, np.array([0, 0, 7, 7])) == pytest.approx(9 * 2.5)
    assert within_class_variance(features[[0, 2]], np.array([0, 7])) == 0


def test_neighbour_distances() -> None:
    reference = np.array([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]])
    found = neighbour_distances(np.array([[3.0, 4.0], [0.0, 1.0], [13.0, 4.0]]), reference)
    assert found.tolist() == pytest.approx([0, 1, 5])


def test_pixel_features() -> None:
    images = torch.zeros(2, 3, 16, 16)
    images[0, :, :2, :2] = 1  # one cell of 8 x 8
    images[1, 0, 2:4, 4:6] = 1  # one cell, one channel
    features = pixel_features(images)
    assert features.shape == (2, 64)
    assert features.dtype == np.float64
    assert (features[0, 0], features[0].sum()) == (1, 1)
    assert features[1, 8 + 2] == pytest.approx(1 / 3)
    assert features[1].sum() == pytest.approx(1 / 3)
    assert pixel_features(images, side=4).shape == (2, 16)
