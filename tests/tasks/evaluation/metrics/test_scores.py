"""Inception score, classifiers, masked tokens: torch-fidelity, closed forms, models that know or know nothing."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_fidelity.metric_isc import isc_features_to_metric

from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.tasks.evaluation.metrics.scores import (
    accuracy,
    check_classes,
    classifier_scores,
    inception_score,
    masked_scores,
    per_class_accuracy,
    read_classes,
    within_class_variance,
)
from maskgen.testing import OracleModel, UniformModel
from tests.support import tiny_pipeline

Samples = tuple[np.ndarray, np.ndarray]


def logits(count: int, classes: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


def test_inception_score_equals_torch_fidelity() -> None:
    found, theirs = inception_score(logits(203, 9)), isc_features_to_metric(logits(203, 9))
    assert found.value == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert found.high - found.value == pytest.approx(theirs["inception_score_std"], rel=1e-9)


def test_inception_score_in_closed_form() -> None:
    sure = 100 * torch.eye(5).repeat(4, 1)  # each class as often, no doubt: the number of classes
    assert inception_score(sure, splits=1).value == pytest.approx(5)
    assert inception_score(sure[:1].repeat(20, 1), splits=2).value == pytest.approx(1)  # always the same
    assert inception_score(torch.zeros(20, 5), splits=2).value == pytest.approx(1)  # never a clue


def test_inception_score_of_adm() -> None:
    """Parts of a size, in the order given, the last one shorter."""
    rows = logits(25, 4)
    found = inception_score(rows, split_size=10, shuffle_seed=None)
    each = [inception_score(part, splits=1, shuffle_seed=None).value for part in rows.split(10)]
    assert found.value == pytest.approx(np.mean(each))
    assert found.note == "3 splits of up to 10 samples, in the order given"
    with pytest.raises(ValueError, match=r"Inception score: got logits \(3, 4\) for 10 splits"):
        inception_score(rows[:3])


def test_accuracy() -> None:
    labels = np.array([0, 0, 1, 1, 1, 3])
    guesses = np.array([0, 1, 1, 1, 0, 3])
    found = accuracy(guesses, labels)
    assert found.value == pytest.approx(4 / 6)
    assert 0 <= found.low < found.value < found.high <= 1
    assert per_class_accuracy(guesses, labels, 4) == [0.5, pytest.approx(2 / 3), None, 1.0]
    check_classes(labels, "these")
    with pytest.raises(ValueError, match=r"CAS: these have 1 class\(es\), expected at least 2"):
        check_classes(labels[:2], "these")


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


def test_reading_classes() -> None:
    (features, labels), (others, truth) = blobs(80, 0), blobs(40, 1)
    found = read_classes((features, labels), [others, others[::-1]], strength=10.0)
    assert found[0].tolist() == truth.tolist()
    assert found[1].tolist() == truth[::-1].tolist()
    noisy = np.where(np.arange(80) < 8, (labels + 1) % 4, labels)
    loose, strict = (read_classes((features, noisy), [features], strength=c)[0] for c in (0.1, 1e6))
    assert (strict == noisy).mean() > (loose == noisy).mean()
    with pytest.raises(ValueError, match=r"CAS: the real samples have 1 class\(es\)"):
        read_classes((features, labels * 0), [others])


def test_a_single_class_is_refused() -> None:
    features, labels = blobs(80, 2)
    with pytest.raises(ValueError, match=r"CAS: the generated samples have 1 class\(es\), expected at least 2"):
        classifier_scores(blobs(80, 0), blobs(40, 1), (features[labels == 1], labels[labels == 1]))


def test_variance_in_closed_form() -> None:
    features = np.array([[0.0, 0.0], [2.0, 0.0], [5.0, 1.0], [5.0, 5.0]])
    # Class 0: variance 1 along the first axis. Class 7: variance 4 along the second.
    assert within_class_variance(features, np.array([0, 0, 7, 7])) == pytest.approx((1 + 4) / 2)
    assert within_class_variance(features + 100, np.array([0, 0, 7, 7])) == pytest.approx(2.5)
    assert within_class_variance(3 * features, np.array([0, 0, 7, 7])) == pytest.approx(9 * 2.5)
    assert within_class_variance(features[[0, 2]], np.array([0, 7])) == 0


class Knowing(MaskedTransformer):
    """Wraps a model of ``maskgen.testing``; notes how many positions are masked."""

    def __init__(self, inner: OracleModel | UniformModel) -> None:
        super().__init__()
        self.inner, self.vocab_size, self.num_codebooks = inner, inner.vocab_size, 2
        self.num_classes, self.null_class = 0, False
        self.masked: list[int] = []
        self.place = nn.Parameter(torch.zeros(1))  # says where it is

    def forward(self, tokens: Tensor, cond: Cond, axes: object = None) -> Tensor:
        self.masked += (tokens == self.vocab_size).flatten(1).sum(1).tolist()
        return self.inner(tokens)


def test_masked_tokens_in_closed_form() -> None:
    answer = torch.randint(0, 8, (20, 2), generator=torch.Generator().manual_seed(0))
    tokens = answer.expand(5, -1, -1)
    knows, guesses = Knowing(OracleModel(answer, 8)), Knowing(UniformModel(8))
    for score in masked_scores(knows, tokens, ratios=(0.1, 1.0), batch_size=2):
        assert score.accuracy.value == 1
        assert score.loss.value == pytest.approx(0, abs=1e-6)
    assert knows.masked == [4] * 5 + [40] * 5
    for score in masked_scores(guesses, tokens, ratios=(0.01, 0.5)):
        assert score.loss.value == pytest.approx(math.log(8))
    assert guesses.masked == [1] * 5 + [20] * 5


def test_masked_tokens_do_not_depend_on_the_batch() -> None:
    pipe = tiny_pipeline()
    tokens = torch.randint(0, 32, (7, 64, 1), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(7) % 10
    one, all_at_once = (
        masked_scores(pipe.transformer, tokens, labels, ratios=(0.3, 0.8), batch_size=size, seed=4) for size in (1, 7)
    )
    for a, b in zip(one, all_at_once, strict=True):
        assert a.loss.value == pytest.approx(b.loss.value, rel=1e-5)
        assert a.accuracy.value == pytest.approx(b.accuracy.value)
    other = masked_scores(pipe.transformer, tokens, labels, ratios=(0.3, 0.8), seed=5)
    assert other[0].loss.value != pytest.approx(one[0].loss.value, rel=1e-5)
    with pytest.raises(ValueError, match=r"masked tokens: got 7 examples and ratios \[0.0\]"):
        masked_scores(pipe.transformer, tokens, ratios=(0.0,))
