"""Validation: the same examples every time, of all that are held out."""

import pytest
import torch
from torch import Tensor

from maskgen.data import Batch, TensorSource
from maskgen.objectives.validation import fixed_validation


def validated(late: int) -> tuple[float, float]:
    """Two classes one after the other; the loss is the mean token, the accuracy the share of the late class."""
    tokens = torch.zeros(1040, 2, 1, dtype=torch.long)
    tokens[520:] = late
    source = TensorSource(tokens=tokens, labels=torch.arange(1040) // 520)

    def mask(batch: Batch, generator: torch.Generator) -> Tensor:
        return torch.rand(batch["tokens"].shape, generator=generator) < 0.5

    def forward(batch: Batch, masked: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        assert len(rows) == len(masked) == len(batch["labels"]) <= 64
        return batch["tokens"].float().mean(), batch["labels"].float().mean()

    return fixed_validation(source, torch.device("cpu"), mask, forward)


def test_every_class_counts() -> None:
    (loss, share), (other, _) = validated(1), validated(5)
    assert 0.4 < share < 0.6
    assert loss == pytest.approx(share)
    assert other == pytest.approx(5 * loss)
