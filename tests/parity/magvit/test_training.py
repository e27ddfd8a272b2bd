"""COMMIT's training step against the official one: loss, its parts, gradients, one AdamW step, learning rate.

Official sequences [B, S] begin with a task prompt and a class. Shapes: B batch, N tokens.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.models.bert import BertTransformer
from maskgen.objectives import commit as commit_objective
from maskgen.objectives.commit import CommitModeling, CommitSettings
from maskgen.objectives.commit_masking import commit_example
from maskgen.objectives.loss import masked_cross_entropy
from maskgen.published.magvit import config_from, convert
from maskgen.training.optim.optimizers import OptimizerSettings, adamw, learning_rate
from tests.parity.support import check_count, check_kinds, files, load, metadata, own_set, recordings

STEP = files("magvit", "train_step.safetensors")[0]
GRADIENTS = recordings("magvit", "train_gradients*.safetensors")
RATES = [
    (path, name)
    for path in recordings("magvit", "lr_schedule*.safetensors")
    for name in sorted({key.split("/")[0] for key in load(path)})
]
TASKS = sorted({name.split("/")[0] for name in load(STEP) if name.endswith("/targets")})
STEPS = sorted(
    {name.split("/")[0].removeprefix("after_step_") for name in load(STEP) if name.startswith("after_step_")}
)
LOSS: dict[str, float] = {"atol": 5e-6, "rtol": 1e-6}  # losses of about 7; README: 5e-7 in the best case


@pytest.fixture(autouse=True)
def full_precision() -> None:
    torch.set_float32_matmul_precision("highest")


def model_from(params: dict[str, Tensor], settings: dict[str, Any]) -> BertTransformer:
    axes = settings["transformer"]["latent_shape"]
    config = config_from(params, vocab_size=settings["codebook"], axes=axes)
    model = BertTransformer(config).eval()
    model.load_state_dict(convert(params, config))
    return model


def official(stored: dict[str, Tensor], group: str) -> dict[str, Tensor]:
    prefix = f"{group}/"
    return {name.removeprefix(prefix): value.float() for name, value in stored.items() if name.startswith(prefix)}


class Step:
    """A recorded training step: the batch in our form and the mask that was sampled."""

    def __init__(self, task: str) -> None:
        self.settings, self.task = metadata(STEP), task
        self.stored = load(STEP)
        self.model = model_from(official(self.stored, "params"), self.settings)
        codes, none = self.model.vocab_size, self.model.vocab_size + self.model.num_classes
        tokens = self.get("inputs").long()
        known = self.stored.get(f"{task}/cond_mask", torch.zeros(1, 1, 1, 1)).bool().expand(tokens.shape)
        condition = self.stored.get(f"{task}/cond_inputs", tokens).long()
        prompt, classes = self.get("masked_inputs")[:, :2].long().unbind(1)
        grids = {"tokens": tokens, "condition": condition, "given": known}
        self.batch = {name: grid.flatten(1)[..., None] for name, grid in grids.items()}
        self.batch["task"] = -3 - prompt
        self.batch["labels"] = torch.where(classes == none, NO_LABEL, classes - codes)
        self.hidden = self.sequence("segment_ids").bool() | (self.sequence("masked_inputs") == -1)
        mode = "replace" if task == "latent_frame_prediction" else "commit"
        self.modeling = CommitModeling(
            self.model, CommitSettings(condition_mode=mode, label_smoothing=self.settings["label_smoothing"])
        )

    def get(self, name: str) -> Tensor:
        return self.stored[f"{self.task}/{name}"]

    def sequence(self, name: str) -> Tensor:
        """A recorded sequence without its prefix, ``[B, N, 1]``."""
        return self.get(name)[:, 2:, None]

    def loss(self, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Our loss under the recorded mask."""
        monkeypatch.setattr(commit_objective, "commit_mask", lambda known, **settings: self.hidden)
        return self.modeling.loss("model", {"model": self.model}, self.batch, 0)


def test_recordings_are_found() -> None:
    check_count("magvit", TASKS, 6)
    check_kinds("magvit", STEPS, {"frame_prediction"})
    assert set(STEPS) <= set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_loss_and_its_parts(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(task)
    with torch.no_grad():
        loss, terms = step.loss(monkeypatch)
    torch.testing.assert_close(loss, step.get("metric_token_loss")[0], **LOSS)
    assert torch.equal(step.get("metric_token_loss"), step.get("metric_total_loss"))
    for ours, theirs in (("refine", "refine"), ("mask", "mask"), ("reconstruct", "recons")):
        total, count = step.get(f"part_{theirs}_sum").sum(), step.get(f"part_{theirs}_count").sum()
        torch.testing.assert_close(terms[ours], total / count.clamp(min=1), **LOSS)


@pytest.mark.parametrize("task", TASKS)
def test_example_and_cost_of_every_token(task: str) -> None:
    step = Step(task)
    mode, codes = step.modeling.settings.condition_mode, step.model.vocab_size
    grids = (step.batch["tokens"], step.batch["condition"], step.batch["given"], step.hidden)
    example = commit_example(*grids, mask_id=codes, mode=mode)
    shown = example.inputs.tokens
    assert torch.equal(shown.masked_fill(shown == codes, -1), step.sequence("masked_inputs").long())
    assert torch.equal(example.targets, step.sequence("targets").long())
    assert torch.equal(example.weights.float(), step.sequence("weights"))
    assert not step.get("weights")[:, :2].any()  # the prefix costs nothing
    with torch.no_grad():
        logits = step.model(shown, Cond(labels=step.batch["labels"], task=step.batch["task"]))
    smoothing = step.settings["label_smoothing"]
    cost = F.cross_entropy(logits[:, :, 0].mT, example.targets[..., 0], label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(cost[..., None], step.sequence("token_ce"), atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("task", STEPS)
def test_one_step_of_the_optimiser(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's first step is a sign: where the gradient is rounding only, either sign is right."""
    step = Step(task)
    settings = step.settings
    optimizer = adamw(
        step.model,
        OptimizerSettings(
            lr=settings["lr"],
            betas=(settings["beta1"], settings["beta2"]),
            weight_decay=settings["weight_decay"],
            warmup_steps=0,
        ),
    )
    loss, _ = step.loss(monkeypatch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(step.model.parameters(), settings["max_grad_norm"])
    norm = torch.stack([parameter.grad.norm() for parameter in step.model.parameters()]).norm()
    torch.testing.assert_close(norm, step.get("metric_grad_norm")[0], atol=1e-5, rtol=0)
    optimizer.step()
    expected = convert(official(step.stored, f"after_step_{task}"), step.model.config)
    before = convert(official(step.stored, "params"), step.model.config)
    compared = 0
    for name, parameter in step.model.named_parameters():
        clear = parameter.grad.abs() > 1e-5
        torch.testing.assert_close(
            parameter.detach()[clear],
            expected[name][clear],
            atol=1e-6,
            rtol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )
        moved = (expected[name] - before[name]).abs()[clear]
        compared += int((moved > settings["lr"] / 2).sum())
    weights = sum(parameter.numel() for parameter in step.model.parameters())
    assert compared > (0.93 if own_set("magvit") else 0.5) * weights  # rows of the table that nothing reads do not move


@pytest.mark.parametrize("path", GRADIENTS, ids=lambda path: path.stem)
def test_gradients_of_every_parameter(path: Path) -> None:
    """Recorded without the condition clip, so from the recorded inputs instead of through the objective."""
    stored, settings = load(path), metadata(path)
    model = model_from(official(stored, "params"), settings)
    ids = stored["masked_inputs"].long()
    rows = torch.where(ids < 0, ids + model.word_embedding.num_embeddings, ids)
    logits = model.table_logits(rows, settings["codebook"])[:, model.prefix :]
    targets, weights = stored["targets"][:, model.prefix :].long(), stored["weights"][:, model.prefix :].bool()
    loss = masked_cross_entropy(logits, targets, weights, label_smoothing=settings["label_smoothing"])
    torch.testing.assert_close(loss.detach(), stored["metric_token_loss"][0], **LOSS)
    loss.backward()
    expected = convert(official(stored, "grad"), model.config)
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(expected)
    for name, parameter in parameters.items():
        torch.testing.assert_close(
            parameter.grad, expected[name], atol=2e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(("path", "name"), RATES, ids=lambda value: getattr(value, "stem", value))
def test_learning_rate(path: Path, name: str) -> None:
    """Ours is one step ahead while it warms up, so that no step goes by at rate 0, and ends where theirs starts anew."""
    stored = load(path)
    warmup, cycle = stored[f"{name}/warmup_cycle"].tolist()
    settings = OptimizerSettings(lr=float(stored[f"{name}/lr"].max()), warmup_steps=warmup)
    for step, expected in zip(stored[f"{name}/steps"].tolist(), stored[f"{name}/lr"].tolist(), strict=True):
        if step == 0:
            assert expected == 0
        elif step == cycle:
            assert expected == pytest.approx(learning_rate(settings, warmup, cycle), rel=1e-5)
        else:
            ours = learning_rate(settings, step - 1 if step < warmup else step, cycle)
            assert ours == pytest.approx(expected, rel=1e-5, abs=1e-13)
