"""COMMIT's objective: it learns, decoding restores what it learned, its parts add up, its settings are checked."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.data import TensorSource
from maskgen.objectives.commit import CommitModeling, CommitSettings, commit_loss
from maskgen.objectives.commit_masking import commit_example, commit_mask
from maskgen.objectives.loss import masked_cross_entropy
from maskgen.sampling.commit import CommitInputs, Prompt, commit_logits, sample_commit
from tests.core.objectives.clips import V, four_clips
from tests.core.toys import FAMILIES, fit, transformer


def cond(source: TensorSource) -> Cond:
    return Cond(labels=source.tensors["labels"], task=source.tensors["task"])


@pytest.mark.parametrize("family", FAMILIES)
def test_overfits_one_batch_and_decoding_restores_it(tmp_path: Path, family: str) -> None:
    """The drafts tell two of the clips apart, the classes the others; every place is predicted, the known ones too."""
    source = four_clips()
    model = transformer(family, width=64, num_tasks=5, **({"mlp_width": 128} if family == "bert" else {}))
    objective = CommitModeling(model, CommitSettings(label_smoothing=0.0), held_out=source)
    fit(
        objective,
        source,
        tmp_path,
        steps=180,
        log_every=10,
        optimizer={"lr": 5e-3, "warmup_steps": 20, "decay": "cosine"},
    )
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert losses[-1]["loss"] < 0.05 < 1 < losses[0]["loss"]
    assert losses[-1]["accuracy"] == 1
    assert {"refine", "mask", "reconstruct"} <= set(losses[-1])
    answer, draft, known = (source.tensors[name] for name in ("tokens", "condition", "given"))
    assert (draft != answer)[known].sum() > 2
    final = sample_commit(
        commit_logits(model.eval(), cond(source)), draft, known, mask_id=V, steps=4, temperature=0, seeds=range(4)
    )
    assert torch.equal(final, answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_first_loss_is_that_of_knowing_nothing(family: str) -> None:
    model = transformer(family, num_tasks=5)
    loss, terms = CommitModeling(model, CommitSettings()).loss("model", {"model": model}, four_clips().tensors, 0)
    assert loss.item() == pytest.approx(math.log(V), rel=0.02)
    assert set(terms) == {"refine", "mask", "reconstruct", "accuracy"}
    for name in ("refine", "mask"):
        assert float(terms[name]) == pytest.approx(math.log(V), rel=0.05)


def test_loss_follows_its_settings() -> None:
    """The same mask and formula, written out from the parts."""
    model = transformer("bert", num_tasks=5).eval()
    settings = CommitSettings(
        schedule="uniform", ratios="row", condition_mode="replace", loss_on="masked", label_smoothing=0.2, block=(1, 2)
    )
    batch = four_clips().tensors
    torch.manual_seed(3)
    loss, _ = CommitModeling(model, settings).loss("model", {"model": model}, batch, 0)
    torch.manual_seed(3)
    known = batch["given"]
    hidden = commit_mask(known, axes=(3, 4), schedule="uniform", ratios="row", mode="replace", block=(1, 2))
    targets = torch.where(known, batch["condition"], batch["tokens"])
    logits = model(targets.masked_fill(hidden, V), cond(four_clips()))
    torch.testing.assert_close(loss, masked_cross_entropy(logits, targets, hidden, label_smoothing=0.2))


def test_parts_of_the_loss() -> None:
    """Three kinds of places with costs of their own: a mean over all, and one over each kind."""
    tokens = torch.zeros(2, 4, 1, dtype=torch.long)
    hidden = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).bool()[..., None]
    known = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0]]).bool()[..., None]
    kind = torch.where(~hidden, 2, torch.where(known, 0, 1)).squeeze(2)
    cost = torch.tensor([1.0, 2.0, 4.0])[kind] + torch.arange(4) / 10
    logits = torch.zeros(2, 4, 1, 2)
    logits[..., 1] = (cost.exp() - 1).log()[..., None]  # so that -log softmax of id 0 is the cost
    example = commit_example(tokens, tokens, known, hidden, mask_id=2)
    loss, terms = commit_loss(logits, example)
    assert loss.item() == pytest.approx(float(cost.mean()), rel=1e-5)
    for number, name in enumerate(("refine", "mask", "reconstruct")):
        assert terms[name].item() == pytest.approx(float(cost[kind == number].mean()), rel=1e-5), name
    only_hidden = commit_example(tokens, tokens, known, hidden, mask_id=2, loss_on="masked")
    rows = [float(cost[row][hidden[row, :, 0]].mean()) for row in range(2)]
    assert commit_loss(logits, only_hidden)[0].item() == pytest.approx(sum(rows) / 2, rel=1e-5)
    free = commit_example(tokens, tokens, torch.zeros_like(known), hidden, mask_id=2)
    assert commit_loss(logits, free)[1]["refine"] == 0
    assert not commit_loss(logits, free)[1]["accuracy"].requires_grad


class Watched:
    """A model that keeps what it is called with."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls = model, []

    def __call__(self, tokens: Tensor, given: Cond) -> Tensor:
        self.calls.append((tokens, given))
        return self.model(tokens, given)


def test_condition_dropout_makes_rows_of_full_generation() -> None:
    model = transformer("modern", num_tasks=5)
    watched = Watched(model)
    source = four_clips(500)
    settings = CommitSettings(condition_dropout=0.25, ratios="row", loss_on="masked")
    torch.manual_seed(0)
    CommitModeling(model, settings).loss("model", {"model": watched}, source.tensors, 0)  # type: ignore[dict-item]
    ((tokens, given),) = watched.calls
    batch = source.tensors
    was = batch["task"] != Prompt.FULL_GENERATION
    dropped = was & (given.task == Prompt.FULL_GENERATION)
    share = float(dropped.sum() / was.sum())
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 1000)
    # A draft is shown in the other rows only, and labels go in the same share of rows.
    shown = ((tokens != batch["tokens"]) & (tokens != V)).flatten(1).any(1)
    assert shown[was & ~dropped].float().mean() > 0.5
    assert not shown[dropped].any()
    labelled = batch["labels"] != NO_LABEL
    kept = given.labels[labelled] == batch["labels"][labelled]
    assert abs(float((~kept).float().mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 1000)
    assert set(given.labels[labelled][~kept].tolist()) == {NO_LABEL}
    assert torch.equal(batch["task"], four_clips(500).tensors["task"])  # the batch itself is left alone


def test_a_model_of_one_task_does_not_look_at_task_ids() -> None:
    model = transformer("bert")
    watched, batch = Watched(model), four_clips().tensors
    CommitModeling(model, CommitSettings()).loss("model", {"model": watched}, batch, 0)  # type: ignore[dict-item]
    assert watched.calls[0][1].task is None


def test_a_batch_without_condition_is_full_generation() -> None:
    model = transformer("bert")
    batch = {"tokens": four_clips().tensors["tokens"]}
    _, terms = CommitModeling(model, CommitSettings()).loss("model", {"model": model}, batch, 0)
    assert terms["refine"] == 0
    assert terms["mask"] > 1


def test_several_codebooks(tmp_path: Path) -> None:
    """Ours: cells of all codebooks are hidden and ranked together."""
    model = transformer("modern", num_codebooks=3)
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(V, (2, 12, 3), generator=generator)
    known = torch.arange(12).view(1, 12, 1) < torch.tensor([4, 0]).view(2, 1, 1)
    source = TensorSource(tokens=tokens, condition=(tokens + 1) % V, given=known.expand(2, 12, 3))
    objective = CommitModeling(model, CommitSettings(label_smoothing=0.0))
    assert objective.units(source.tensors) == 72
    fit(objective, source, tmp_path, steps=180, batch_size=2, optimizer={"lr": 1e-2, "warmup_steps": 20})
    final = sample_commit(
        commit_logits(model.eval(), Cond()),
        source.tensors["condition"],
        source.tensors["given"],
        mask_id=V,
        steps=5,
        temperature=0,
        choice_temperature=0,
        seeds=range(2),
    )
    assert (final[0] == tokens[0]).float().mean() > 0.95


def test_validation_is_the_same_each_time_and_leaves_the_random_state_alone() -> None:
    model = transformer("bert", num_tasks=5).eval()
    objective = CommitModeling(model, CommitSettings(), held_out=four_clips())
    state = torch.get_rng_state()
    first = objective.validate(model, torch.device("cpu"))
    assert first == objective.validate(model, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert first["score"] == pytest.approx(math.log(V), rel=0.03)
    assert CommitModeling(model, CommitSettings()).validate(model, torch.device("cpu")) == {}


def test_validation_averages_over_all_held_out_examples() -> None:
    """72 examples take two parts of unequal size; each row has a ratio of its own, and hidden places alone are scored."""
    model, source = transformer("modern", num_tasks=5), four_clips(18)
    with torch.no_grad():
        model.head.bias.copy_(torch.linspace(-2, 2, V))
        numbers = CommitModeling(model, CommitSettings(), held_out=source).validate(model, torch.device("cpu"))
        batch = source.tensors
        generator = torch.Generator().manual_seed(0)
        hidden = commit_mask(batch["given"], axes=(3, 4), ratios="row", generator=generator)
        shown = torch.where(batch["given"], batch["condition"], V)
        logits = model(torch.where(hidden, shown, batch["tokens"]), cond(source))
    expected = masked_cross_entropy(logits, batch["tokens"], hidden)
    assert numbers["score"] == pytest.approx(float(expected), rel=1e-5)
    assert len(set(hidden.flatten(1).sum(1).tolist())) > 5


def test_show() -> None:
    calls: list[Any] = []
    model = transformer("modern")
    objective = CommitModeling(model, CommitSettings(), show=lambda *given: calls.append(given))
    objective.show(model, Path("here"), 7)
    assert calls == [(model, Path("here"), 7)]
    CommitModeling(model, CommitSettings()).show(model, Path("here"), 8)
    assert len(calls) == 1


def test_inputs_belong_together() -> None:
    inputs = CommitInputs(torch.tensor([[[3]]]), torch.tensor([[[True]]]), torch.tensor([[[True]]]), V)
    assert (int(inputs.unconditional), int(inputs.segments)) == (V, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "nope"}, "schedule: got 'nope'"),
        ({"ratios": "each"}, "ratios: got 'each', expected one of 'batch', 'row'"),
        (
            {"condition_mode": "prefix"},
            "condition_mode: got 'prefix', expected one of 'commit', 'keep', 'replace', 'ignore'",
        ),
        ({"loss_on": "mask"}, "loss_on: got 'mask', expected one of 'all', 'masked'"),
        ({"label_smoothing": 1.5}, r"label_smoothing: got 1.5, expected a number in \[0, 1\]"),
        ({"condition_dropout": -0.1}, r"condition_dropout: got -0.1, expected a number in \[0, 1\]"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CommitSettings(**change)


def test_what_the_model_cannot_do_is_said_at_once() -> None:
    strict = transformer("bert", null_class=False)
    with pytest.raises(ValueError, match="condition_dropout: got 0.5, but the model has no null class"):
        CommitModeling(strict, CommitSettings(condition_dropout=0.5))
    CommitModeling(strict, CommitSettings())
    for block in ((2, 2), (3,), (3, 0)):
        with pytest.raises(
            ValueError, match=r"block: got \(.*\), expected one size an axis, dividing the grid \(3, 4\)"
        ):
            CommitModeling(strict, CommitSettings(block=block))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("given", r"batch: got \['condition', 'labels', 'task', 'tokens'\]; expected both 'condition' and 'given'"),
        ("condition", "expected both 'condition' and 'given', or neither"),
        ("task", "this model has tasks and needs 'task', one id a row"),
    ],
)
def test_incomplete_batches(missing: str, message: str) -> None:
    model = transformer("modern", num_tasks=5)
    batch = {name: value for name, value in four_clips().tensors.items() if name != missing}
    with pytest.raises(ValueError, match=message):
        CommitModeling(model, CommitSettings()).loss("model", {"model": model}, batch, 0)
