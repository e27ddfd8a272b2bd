"""Rows that are alike run once, rows in which all is hidden are known from then on, large batches run in pieces."""

from typing import Any

import pytest
import torch
from torch import Tensor

import maskgen.sampling.speed.prediction as prediction_module
from maskgen.conditioning import NO_LABEL, Cond
from maskgen.models.base import PartialTransformer
from maskgen.sampling.guidance import guided_logits, model_logits
from maskgen.sampling.loop import sample
from maskgen.sampling.speed import first_step
from maskgen.sampling.speed.first_step import forget, known_rows, row_kinds, weights_state
from tests.core.sampling.speed.scenes import LABELS, Watched, decode, model_of, scene


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(model_of("bert", (3, 4), 1), monkeypatch)


def test_the_first_step_runs_each_kind_of_row_once(watched: Watched) -> None:
    decode(watched.model, "free", steps=2)
    assert [rows for rows, _ in watched.asked] == [2, 4]
    watched.asked.clear()
    decode(watched.model, "same", steps=2)
    assert [rows for rows, _ in watched.asked] == [2, 4]
    watched.asked.clear()
    decode(watched.model, "edit", steps=2)
    assert [rows for rows, _ in watched.asked] == [4, 4]


def test_all_that_have_no_class_share_a_row(watched: Watched) -> None:
    decode(watched.model, "free", {"scale": 1.0}, steps=2)
    assert [rows for rows, _ in watched.asked] == [3, 8]  # two classes, and that row


def test_rows_in_which_all_is_hidden_are_kept_from_their_second_call_on(watched: Watched) -> None:
    for _ in range(2):
        watched.asked.clear()
        decode(watched.model, "free", {"scale": 1.0}, steps=2)
        assert [rows for rows, _ in watched.asked] == [3, 8]
    watched.asked.clear()
    decode(watched.model, "free", steps=2)
    assert [rows for rows, _ in watched.asked] == [4]
    watched.asked.clear()
    prediction = guided_logits(watched.model, Cond(labels=torch.tensor([2, 1])), scale=1.0, steps=2)
    sample(prediction, torch.full((2, 12, 1), 11), torch.ones(2, 12, 1, dtype=torch.bool), steps=2, seeds=[1, 2])
    assert [rows for rows, _ in watched.asked] == [1, 4]  # class 2 is new
    watched.asked.clear()
    with torch.no_grad():
        watched.model.head.bias.mul_(1.0)  # as a step of training, or loading, would
    for _ in range(2):
        decode(watched.model, "free", steps=2)
        assert [rows for rows, _ in watched.asked] == [2, 4]
        watched.asked.clear()
    decode(watched.model, "free", steps=2)
    assert [rows for rows, _ in watched.asked] == [4]
    watched.asked.clear()
    watched.model.head.bias.data.add_(1e-3)  # which leaves no trace in torch's count of changes
    decode(watched.model, "free", steps=2)
    assert [rows for rows, _ in watched.asked] == [2, 4]
    watched.model.head.bias.data.sub_(1e-3)


def test_what_is_known_changes_no_id(watched: Watched) -> None:
    model, cond, (tokens, mask) = watched.model, Cond(labels=torch.tensor(LABELS)), scene((3, 4), 1, 0, "free")
    options: dict[str, Any] = {"steps": 3, "seeds": [4, 5, 6, 7]}
    ids = sample(guided_logits(model, cond, scale=1.0, steps=3), tokens, mask, **options)
    assert torch.equal(ids, sample(guided_logits(model, cond, scale=1.0, steps=3), tokens, mask, **options))
    asked = len(watched.asked)
    assert torch.equal(ids, sample(guided_logits(model, cond, scale=1.0, steps=3), tokens, mask, **options))
    assert len(watched.asked) == asked + 2
    with torch.no_grad():
        model.head_bias[3] += 9.0
    try:
        assert not torch.equal(ids, sample(guided_logits(model, cond, scale=1.0, steps=3), tokens, mask, **options))
    finally:
        with torch.no_grad():
            model.head_bias[3] -= 9.0


def test_little_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_step, "_MOST_BYTES", 100)
    monkeypatch.setattr(first_step, "_MOST_MET", 2)
    model = model_of("bert", (3, 4), 1)
    forget(model)
    with torch.no_grad():
        known = known_rows(model)
        for key, numbers in ((b"a", 10), (b"b", 10), (b"c", 26)):
            known.put(key, torch.zeros(numbers))
        assert known.get(b"c") is None  # larger than all that may be kept
        assert known.get(b"a") is not None
        known_rows(model).put(b"d", torch.zeros(10))
        assert [known.get(key) is not None for key in (b"a", b"b", b"d")] == [True, False, True]
        assert [known.meets(key) for key in (b"a", b"b", b"a", b"c", b"a", b"b")] == [
            False,
            False,
            True,
            False,
            False,
            False,
        ]
        assert known_rows(model).meets(b"b")


def test_nothing_is_known_where_a_forward_is_more_than_its_weights() -> None:
    model = model_of("bert", (3, 4), 1)
    forget(model)

    def is_known() -> bool:
        return known_rows(model).get(b"a") is not None

    with torch.no_grad():
        for _ in range(2):
            known_rows(model).put(b"a", torch.zeros(1))
        assert is_known()
        hook = model.register_forward_hook(lambda *seen: None)
        assert not is_known()
        hook.remove()
        assert is_known()
    assert not is_known()  # gradients would be lost
    with torch.inference_mode():
        assert weights_state(torch.nn.Linear(1, 1)) is None
        layer = torch.nn.Linear(1, 1)
        for _ in range(2):
            known_rows(layer).put(b"a", torch.zeros(1))
        assert known_rows(layer).get(b"a") is None


def test_large_batches_run_in_pieces(monkeypatch: pytest.MonkeyPatch, watched: Watched) -> None:
    expected = sample_of(watched.model)
    assert torch.equal(sample_of(watched.model), expected)
    watched.asked.clear()
    monkeypatch.setattr(prediction_module, "_PIECE_BYTES", 3 * 12 * 4 * watched.model.config.mlp_width)
    assert torch.equal(sample_of(watched.model), expected)
    assert [rows for rows, _ in watched.asked] == [2, 2, 2, 2]
    watched.asked.clear()
    monkeypatch.setattr(prediction_module, "_PIECE_BYTES", 1)  # less than a row
    assert torch.equal(sample_of(watched.model), expected)
    assert [rows for rows, _ in watched.asked] == [1] * 8


def sample_of(model: PartialTransformer) -> Tensor:
    """Three steps, of which the first is known from earlier calls."""
    tokens, mask = scene((3, 4), 1, 0, "free")
    return sample(model_logits(model, Cond(labels=torch.tensor(LABELS))), tokens, mask, steps=3, seeds=[4, 5, 6, 7])


def test_rows_are_the_same_where_tokens_and_conditions_are() -> None:
    tokens = torch.tensor([1, 2, 1, 1, 1, 2])[:, None, None].expand(-1, 3, 1)
    context = torch.zeros(6, 2, 2)
    context[3, 1, 1] = 0.5
    cond = Cond(labels=torch.tensor([4, 4, 4, 4, NO_LABEL, 4]), context=context, context_mask=context[..., 0] == 0)
    found = row_kinds(tokens, cond, 2)
    assert found is not None
    assert (found.first, found.of) == ([0, 1, 3, 4], [0, 1, 0, 2, 3, 1])
    assert found.hidden == [False, True, False, False]
    alone = row_kinds(tokens[2:3], cond.map(lambda part: part[2:3]), 2)
    assert alone is not None
    assert alone.keys == found.keys[:1]
    for other in (cond.unconditional(), Cond(labels=cond.labels), Cond(task=cond.labels)):
        told = row_kinds(tokens[:1], other.map(lambda part: part[:1]), 2)
        assert told is not None
        assert told.keys != found.keys[:1]
    elsewhere = row_kinds(tokens, cond, 2, axes=(3, 1))
    assert elsewhere is not None
    assert elsewhere.of == found.of
    assert not set(elsewhere.keys) & set(found.keys)
    everyone = row_kinds(tokens[:1].expand(3, -1, -1), Cond(), 2)
    assert everyone is not None
    assert everyone.first == [0]
