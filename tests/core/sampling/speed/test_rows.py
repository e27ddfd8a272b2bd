"""Rows that are equal run once, large batches run in chunks."""

from typing import Any

import pytest
import torch
from torch import Tensor

import maskgen.sampling.speed.forward as forward_module
from maskgen.conditioning import NO_LABEL, Cond
from maskgen.models.base import PartialTransformer
from maskgen.sampling.guidance import model_logits
from maskgen.sampling.loop import sample
from maskgen.sampling.speed.rows import unique_rows
from tests.core.sampling.speed.scenes import LABELS, Watched, decode, model_of, scene


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(model_of("bert", (3, 4), 1), monkeypatch)


def test_the_first_step_runs_each_kind_of_row_once(watched: Watched) -> None:
    for kind, rows in (("free", [2, 4]), ("same", [2, 4]), ("edit", [4, 4])):
        watched.forwards.clear()
        decode(watched.model, kind, steps=2)
        assert [count for count, _ in watched.forwards] == rows


def test_all_that_have_no_class_share_a_row(watched: Watched) -> None:
    for _ in range(2):  # nothing is kept between calls
        watched.forwards.clear()
        decode(watched.model, "free", {"scale": 1.0}, steps=2)
        assert [rows for rows, _ in watched.forwards] == [3, 8]  # two classes, and that row


def test_large_batches_run_in_chunks(monkeypatch: pytest.MonkeyPatch, watched: Watched) -> None:
    expected = sample_of(watched.model)
    watched.forwards.clear()
    monkeypatch.setattr(forward_module, "_CHUNK_BYTES", 3 * 12 * 4 * watched.model.config.mlp_width)
    assert torch.equal(sample_of(watched.model), expected)
    assert [rows for rows, _ in watched.forwards] == [2, 2, 2, 2, 2]
    watched.forwards.clear()
    monkeypatch.setattr(forward_module, "_CHUNK_BYTES", 1)  # less than a row
    assert torch.equal(sample_of(watched.model), expected)
    assert [rows for rows, _ in watched.forwards] == [1] * 10


def sample_of(model: PartialTransformer) -> Tensor:
    """Three steps of four rows, of which the first has two unique ones."""
    tokens, mask = scene((3, 4), 1, 0, "free")
    return sample(model_logits(model, Cond(labels=torch.tensor(LABELS))), tokens, mask, steps=3, seeds=[4, 5, 6, 7])


def kinds(tokens: Tensor, cond: Cond) -> tuple[Any, Any] | None:
    found = unique_rows(tokens, cond)
    return None if found is None else (found.first.tolist(), found.kind.tolist())


def test_rows_are_the_same_where_tokens_and_conditions_are() -> None:
    tokens = torch.tensor([1, 2, 1, 1, 1, 2])[:, None, None].expand(-1, 3, 1)
    context = torch.zeros(6, 2, 2)
    context[3, 1, 1] = 0.5
    cond = Cond(labels=torch.tensor([4, 4, 4, 4, NO_LABEL, 4]), context=context, context_mask=context[..., 0] == 0)
    assert kinds(tokens, cond) == ([0, 1, 3, 4], [0, 1, 0, 2, 3, 1])
    assert kinds(tokens[:2], cond.map(lambda part: part[:2])) is None  # all differ
    assert kinds(tokens[:1].expand(3, -1, -1), Cond()) == ([0], [0, 0, 0])
    assert kinds(tokens[:1].expand(3, -1, -1), Cond(task=torch.tensor([1, 2, 1]))) == ([0, 1], [0, 1, 0])
    assert kinds(tokens.to("meta"), Cond()) is None
