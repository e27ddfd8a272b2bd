"""Cosines of pictures and captions, and R-precision, on vectors whose answer is known."""

import numpy as np
import pytest
import torch

from maskgen.tasks.evaluation.metrics.retrieval import cosines, nearest_captions

COUNT = 1000
CAPTIONS = [f"caption {number}" for number in range(COUNT)]


def vectors(count: int = COUNT, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_right_pairs_and_shuffled_ones() -> None:
    texts = vectors()
    right, among = nearest_captions(texts, texts, CAPTIONS)
    assert among == 100
    assert right.mean() == 1.0
    wrong, _ = nearest_captions(vectors(seed=1), texts, CAPTIONS)
    assert wrong.mean() == pytest.approx(1 / 100, abs=0.01)
    wrong, _ = nearest_captions(vectors(seed=1), texts, CAPTIONS, among=4)
    assert wrong.mean() == pytest.approx(1 / 4, abs=0.05)


def test_as_written_out() -> None:
    pictures, texts = vectors(40, 2), vectors(40, 3)
    found, among = nearest_captions(pictures, texts, CAPTIONS[:40])  # all others are taken
    assert among == 40
    assert found.tolist() == [float((picture @ texts.T).argmax() == row) for row, picture in enumerate(pictures)]
    assert cosines(3 * pictures, texts) == pytest.approx((pictures * texts).sum(1).numpy(), abs=1e-6)


def test_equal_captions_do_not_compete() -> None:
    captions = ["a", "b"] * 20
    texts = vectors(2)[torch.arange(40) % 2]
    found, among = nearest_captions(texts, texts, captions)
    assert among == 2
    assert found.mean() == 1.0


def test_what_cannot_be_told_apart_is_a_guess() -> None:
    same = vectors(1).expand(30, -1)
    found, among = nearest_captions(same, same, CAPTIONS[:30], among=10)
    assert among == 10
    assert found == pytest.approx(np.full(30, 0.1))


def test_too_few() -> None:
    with pytest.raises(ValueError, match="got 1 different caption"):
        nearest_captions(vectors(3), vectors(3), ["a"] * 3)
