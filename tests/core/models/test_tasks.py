"""Tasks in both families of transformers, and MAGVIT's segments: tables, prefixes, old configs, errors."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.checkpoint import load_module, save_module
from maskgen.conditioning import NO_LABEL, Cond
from maskgen.models.base import MaskedTransformer
from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.published.magvit import MagvitTransformer
from maskgen.sampling.commit import CommitInputs, Prompt, sample_commit
from maskgen.training.optim.optimizers import OptimizerSettings, adamw
from tests.core.toys import FAMILIES, shaken, transformer

TASKS = len(Prompt)


def tokens(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(12, (count, 12, 1), generator=torch.Generator().manual_seed(seed))


def segmented(**changes: Any) -> MagvitTransformer:
    torch.manual_seed(0)
    plain = {"vocab_size": 11, "num_classes": 4, "axes": (3, 4), "width": 32, "layers": 2, "heads": 4, "mlp_width": 64}
    model = MagvitTransformer(BertConfig(**{**plain, "num_tasks": TASKS, "null_class": True, **changes}))
    shaken(model)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_tasks_matter_and_none_is_the_first(family: str) -> None:
    model = shaken(transformer(family, num_tasks=TASKS))
    assert model.num_tasks == TASKS
    ids = tokens()
    found = [model(ids, Cond(task=torch.full((3,), int(prompt)))) for prompt in Prompt]
    assert all((a - b).abs().max() > 1e-2 for i, a in enumerate(found) for b in found[:i])
    assert torch.equal(model(ids, Cond()), found[Prompt.FULL_GENERATION])
    mixed = model(ids, Cond(task=torch.tensor([4, 0, 2])))
    for row, task in enumerate((4, 0, 2)):
        torch.testing.assert_close(mixed[row], found[task][row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_matter_beside_tasks(family: str) -> None:
    model = shaken(transformer(family, num_tasks=TASKS))
    task = torch.full((3,), 2)
    found = [model(tokens(), Cond(task=task, labels=torch.full((3,), label))) for label in (0, 3, NO_LABEL)]
    assert all((a - b).abs().max() > 1e-2 for i, a in enumerate(found) for b in found[:i])
    assert torch.equal(model(tokens(), Cond(task=task)), found[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_task(family: str) -> None:
    model = shaken(transformer(family, num_tasks=TASKS)).train()
    model(tokens(TASKS), Cond(task=torch.arange(TASKS))).square().sum().backward()
    if isinstance(model, BertTransformer):
        rows = model.word_embedding.weight.grad[model.mask_row - 2 - torch.arange(TASKS)]
    else:
        assert isinstance(model, ModernTransformer)
        assert model.task_embedding is not None
        rows = model.task_embedding.weight.grad
    assert (rows.abs().amax(1) > 1e-2).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_one_task_refuses_task_ids(family: str) -> None:
    model = transformer(family)
    assert model.num_tasks == 0
    with pytest.raises(ValueError, match="task: got task ids, but this model knows a single task"):
        model(tokens(), Cond(task=torch.zeros(3, dtype=torch.long)))


@pytest.mark.parametrize("family", FAMILIES)
def test_task_ids_come_one_a_row(family: str) -> None:
    with pytest.raises(ValueError, match=r"task: got \(2,\), expected one task id for each of the 3 rows"):
        transformer(family, num_tasks=TASKS)(tokens(), Cond(task=torch.zeros(2, dtype=torch.long)))


@pytest.mark.parametrize(("kind", "number"), [(BertConfig, -1), (BertConfig, 13), (ModernConfig, -1)])
def test_numbers_of_tasks(kind: type, number: int) -> None:
    with pytest.raises(ValueError, match=f"num_tasks: got {number}, expected 0"):
        kind(num_tasks=number)


@pytest.mark.parametrize(
    ("classes", "null", "tasks", "prefix", "rows"),
    [
        (1000, False, 0, 1, 1024 + 1000 + 1),  # MaskGIT
        (0, False, 0, 0, 1024 + 1),
        (101, True, 0, 1, 1024 + 102 + 1),  # MAGVIT: UCF-101, BAIR frame prediction, BAIR multi-task
        (0, True, 0, 1, 1024 + 1 + 1),
        (0, True, 5, 2, 1024 + 1 + 16),
        (0, False, 5, 1, 1024 + 16),
    ],
)
def test_table_and_sequence_of_the_bert_family(classes: int, null: bool, tasks: int, prefix: int, rows: int) -> None:
    config = BertConfig(num_classes=classes, null_class=null, num_tasks=tasks, axes=(2, 3), width=4, heads=1, layers=1)
    model = BertTransformer(config)
    assert (model.prefix, model.position_embedding.num_embeddings) == (prefix, prefix + 6)
    assert (model.word_embedding.num_embeddings, model.mask_row) == (rows, rows - 1)
    ids = torch.tensor([[0, 5, 1024, 7, 1023, 1024]])[..., None]
    cond = Cond(labels=torch.tensor([0]) if classes else None, task=torch.tensor([3]) if tasks else None)
    expected = [rows - 6] if tasks else []  # official id -6
    expected += [1024] if classes or null else []  # the first class, or with no class at all the row for none
    assert model.table_ids(ids, cond).tolist() == [[*expected, 0, 5, rows - 1, 7, 1023, rows - 1]]
    assert model(ids, cond).shape == (1, 6, 1, 1024)


def test_no_class_is_the_row_after_the_classes() -> None:
    model = transformer("bert", num_tasks=TASKS)
    ids = model.table_ids(tokens(2), Cond(labels=torch.tensor([NO_LABEL, 3]), task=torch.tensor([0, 4])))
    assert ids[:, :2].tolist() == [[model.mask_row - 2, 11 + 4], [model.mask_row - 6, 11 + 3]]


@pytest.mark.parametrize("family", FAMILIES)
def test_configs_and_weights_from_before_tasks(family: str, tmp_path: Path) -> None:
    """A folder written without the new key loads, and its model is the one it was."""
    model = shaken(transformer(family))
    assert not [name for name in model.state_dict() if "task" in name]
    save_module(model, tmp_path)
    path = tmp_path / "config.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    assert described["config"].pop("num_tasks") == 0
    path.write_text(json.dumps(described), encoding="utf-8")
    loaded = load_module(tmp_path, MaskedTransformer)
    assert asdict(loaded.config) == asdict(model.config)
    assert torch.equal(loaded(tokens(), Cond()), model(tokens(), Cond()))


@pytest.mark.parametrize("kind", [*FAMILIES, "segmented"])
def test_models_with_tasks_come_back_from_disk(kind: str, tmp_path: Path) -> None:
    model = segmented() if kind == "segmented" else shaken(transformer(kind, num_tasks=TASKS))
    save_module(model, tmp_path)
    loaded = load_module(tmp_path, MaskedTransformer)
    assert type(loaded) is type(model)
    cond = Cond(task=torch.tensor([4, 0, 2]))
    assert torch.equal(loaded(tokens(), cond), model(tokens(), cond))


def test_task_and_segment_tables_are_not_decayed() -> None:
    modern = transformer("modern", num_tasks=TASKS)
    assert isinstance(modern, ModernTransformer)
    for model, table in ((modern, modern.task_embedding), (made := segmented(), made.segment_embedding)):
        assert isinstance(table, nn.Embedding)
        plain = adamw(model, OptimizerSettings()).param_groups[1]
        assert plain["weight_decay"] == 0
        assert any(parameter is table.weight for parameter in plain["params"])


def test_segments_mark_grid_places_and_never_the_prefix() -> None:
    model = segmented()
    ids, cond = tokens(), Cond(task=torch.tensor([4, 0, 2]))
    segments = (torch.arange(36).view(3, 12, 1) % 3 == 0).long()
    plain, marked = model(ids, cond), model(ids, cond, segments=segments)
    assert (plain - marked).abs().max() > 1e-2
    assert torch.equal(model(ids, cond, segments=torch.zeros_like(segments)), plain)
    rows = model.table_ids(ids, cond)
    whole = torch.cat((torch.zeros(3, 2, dtype=torch.long), segments[..., 0]), dim=1)
    assert torch.equal(model.segment_logits(rows, whole, 11)[:, 2:, None], marked)
    with torch.no_grad():
        model.segment_embedding.weight.zero_()
    torch.testing.assert_close(model(ids, cond, segments=segments), model.table_logits(rows, 11)[:, 2:, None])


def test_decoding_with_segments() -> None:
    model = segmented()
    seen: list[Tensor] = []

    def logits_fn(inputs: CommitInputs, step: int) -> Tensor:
        seen.append(inputs.segments)
        return model(inputs.tokens, Cond(task=torch.ones(2, dtype=torch.long)), segments=inputs.segments)

    known = (torch.arange(12) < 4).view(1, 12, 1).repeat(2, 1, 1)
    final = sample_commit(logits_fn, tokens(2) % 11, known, mask_id=11, steps=3, seeds=[1, 2])
    assert final.max() < 11
    assert torch.equal(seen[0].bool(), known)
    assert seen[-1].sum() < seen[0].sum()
