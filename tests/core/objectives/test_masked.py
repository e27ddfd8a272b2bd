"""Masked modelling: it learns, its loss curve stays what it was, and its settings are checked."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.data import TensorSource
from maskgen.objectives.loss import masked_cross_entropy
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from maskgen.objectives.masking import random_mask
from maskgen.sampling.guidance import model_logits
from maskgen.sampling.loop import sample
from tests.core.toys import FAMILIES, fit, transformer

# Loss of 20 steps, seed 42. To write it anew after a change that is meant to move it:
#   python -m pytest tests/core/objectives/test_masked.py -k golden --no-header -rP
# prints the curves; copy them here and say in the changelog why they moved.
GOLDEN = {
    "bert": [
        *[2.3778, 2.38041, 2.33731, 2.33953, 2.26962, 2.2345, 2.20123, 2.22819, 2.13711, 2.08176],
        *[2.09366, 2.05327, 2.04493, 2.01546, 2.00612, 1.97743, 1.95025, 1.84811, 1.90924, 1.8964],
    ],
    "modern": [
        *[2.3979, 2.3942, 2.38117, 2.37244, 2.34449, 2.32913, 2.29746, 2.31676, 2.28353, 2.26376],
        *[2.28023, 2.30105, 2.23014, 2.30766, 2.2177, 2.15635, 2.1966, 2.32639, 2.18362, 2.16855],
    ],
}


def four_pictures() -> TensorSource:
    """Four different grids, one a class."""
    generator = torch.Generator().manual_seed(9)
    return TensorSource(tokens=torch.randint(11, (4, 12, 1), generator=generator), labels=torch.arange(4))


@pytest.mark.parametrize("family", FAMILIES)
def test_overfits_one_batch_and_sampling_restores_it(tmp_path: Path, family: str) -> None:
    source = four_pictures()
    model = transformer(family, width=64, **({"mlp_width": 128} if family == "bert" else {}))
    objective = MaskedModeling(model, MaskingSettings(label_smoothing=0.0, label_dropout=0.0), held_out=source)
    fit(objective, source, tmp_path, steps=300, optimizer={"lr": 5e-3, "warmup_steps": 20, "decay": "cosine"})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.02 < 1 < losses[0]
    answer, labels = source.tensors["tokens"], source.tensors["labels"]
    mask = torch.ones_like(answer, dtype=torch.bool)
    model.eval()
    found = sample(
        model_logits(model, Cond(labels=labels)),
        answer.masked_fill(mask, 11),
        mask,
        steps=4,
        temperature=0,
        seeds=range(4),
    )
    assert torch.equal(found, answer)
    half = mask.clone()
    half[:, ::2] = False
    kept = sample(model_logits(model, Cond(labels=labels)), answer.masked_fill(half, 11), half, steps=3, seeds=range(4))
    assert (kept == answer).float().mean() > 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_loss_curve(tmp_path: Path, family: str) -> None:
    objective = MaskedModeling(transformer(family), MaskingSettings())
    fit(objective, four_pictures(), tmp_path, steps=20, log_every=1, optimizer={"lr": 3e-3, "warmup_steps": 5})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [line["loss"] for line in lines]
    print(family, [round(value, 5) for value in curve])
    assert curve == pytest.approx(GOLDEN[family], rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_first_loss_is_that_of_knowing_nothing(family: str) -> None:
    model = transformer(family)
    objective = MaskedModeling(model, MaskingSettings(label_smoothing=0.0))
    loss, terms = objective.loss("model", {"model": model}, four_pictures().tensors, 0)
    assert loss.item() == pytest.approx(math.log(11), rel=0.02)
    assert 0 <= float(terms["accuracy"]) <= 1


def test_label_dropout_hides_about_its_share_of_labels() -> None:
    model = transformer("modern")
    seen: list[torch.Tensor] = []

    def watched(tokens: torch.Tensor, cond: Cond) -> torch.Tensor:
        assert cond.labels is not None
        seen.append(cond.labels)
        return model(tokens, cond)

    objective = MaskedModeling(model, MaskingSettings(label_dropout=0.25))
    batch = {"tokens": torch.zeros(2000, 12, 1, dtype=torch.long), "labels": torch.full((2000,), 3)}
    objective.loss("model", {"model": watched}, batch, 0)  # type: ignore[dict-item]
    share = float((seen[0] == NO_LABEL).float().mean())
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2000)
    assert set(seen[0].unique().tolist()) == {NO_LABEL, 3}


def test_loss_follows_its_settings() -> None:
    """The same mask and formula, written out from the parts."""
    model = transformer("bert").eval()
    settings = MaskingSettings(
        schedule="linear", min_ratio=0.4, label_smoothing=0.2, label_dropout=0.0, normalize="batch", unmasked_weight=0.1
    )
    batch = dict(four_pictures().tensors)
    torch.manual_seed(3)
    loss, _ = MaskedModeling(model, settings).loss("model", {"model": model}, batch, 0)
    torch.manual_seed(3)
    mask = random_mask((4, 12, 1), schedule="linear", min_ratio=0.4)
    logits = model(batch["tokens"].masked_fill(mask, 11), Cond(labels=batch["labels"]))
    expected = masked_cross_entropy(
        logits, batch["tokens"], mask, label_smoothing=0.2, normalize="batch", unmasked_weight=0.1
    )
    assert torch.equal(loss, expected)


def test_validation_is_the_same_each_time_and_leaves_the_random_state_alone() -> None:
    model = transformer("bert").eval()
    objective = MaskedModeling(model, MaskingSettings(), held_out=four_pictures())
    state = torch.get_rng_state()
    first = objective.validate(model, torch.device("cpu"))
    second = objective.validate(model, torch.device("cpu"))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert first["score"] == pytest.approx(math.log(11), rel=0.02)
    assert MaskedModeling(model, MaskingSettings()).validate(model, torch.device("cpu")) == {}


def test_validation_averages_over_all_held_out_examples() -> None:
    """70 examples take two parts of unequal size."""
    model = transformer("modern")
    tokens = torch.randint(11, (70, 12, 1))
    objective = MaskedModeling(model, MaskingSettings(), held_out=TensorSource(tokens=tokens))
    with torch.no_grad():
        model.head.bias.copy_(torch.linspace(-2, 2, 11))
    numbers = objective.validate(model, torch.device("cpu"))
    mask = random_mask(tokens.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(tokens.masked_fill(mask, 11), Cond())
    assert numbers["score"] == pytest.approx(float(masked_cross_entropy(logits, tokens, mask)), rel=1e-5)


def test_units_and_show() -> None:
    calls: list[Any] = []
    model = transformer("modern")
    objective = MaskedModeling(model, MaskingSettings(), show=lambda *given: calls.append(given))
    assert objective.units({"tokens": torch.zeros(3, 12, 2)}) == 72
    objective.show(model, Path("here"), 7)
    assert calls == [(model, Path("here"), 7)]


def test_label_dropout_needs_a_null_class() -> None:
    model = transformer("bert", null_class=False)
    with pytest.raises(ValueError, match="label_dropout: got 0.1, but the model has no null class"):
        MaskedModeling(model, MaskingSettings())
    MaskedModeling(model, MaskingSettings(label_dropout=0.0))


@pytest.mark.parametrize("name", ["min_ratio", "label_smoothing", "label_dropout", "unmasked_weight"])
@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_settings_are_shares(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}: got {value}, expected a number in \[0, 1\]"):
        MaskingSettings(**{name: value})  # type: ignore[arg-type]


def test_schedule_is_checked_early() -> None:
    with pytest.raises(ValueError, match="schedule: got 'nope'"):
        MaskingSettings(schedule="nope")
