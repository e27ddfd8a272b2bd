"""The training loop: learning rate, averaging, logs, files, and stopping for a reason."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from maskgen.checkpoint import load_module
from maskgen.training.optim.optimizers import OptimizerSettings, adamw, learning_rate
from maskgen.training.settings import TrainSettings
from tests.core.toys import Line, LineConfig, LineObjective, fit, points, transformer


def log_lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_learning_rate_closed_forms() -> None:
    flat = OptimizerSettings(lr=2.0, warmup_steps=4, decay="constant")
    assert [learning_rate(flat, step, 100) for step in (0, 1, 3, 4, 99)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    cosine = OptimizerSettings(lr=2.0, warmup_steps=10, decay="cosine", final_lr_ratio=0.1)
    assert learning_rate(cosine, 10, 110) == pytest.approx(2.0)
    assert learning_rate(cosine, 60, 110) == pytest.approx(2.0 * 0.55)
    assert learning_rate(cosine, 35, 110) == pytest.approx(2.0 * (0.1 + 0.9 * (0.5 + math.sqrt(0.5) / 2)))
    assert learning_rate(cosine, 110, 110) == pytest.approx(0.2)
    assert learning_rate(OptimizerSettings(lr=1.0, warmup_steps=0), 0, 10) == 1.0
    falling = [learning_rate(cosine, step, 110) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


def test_a_plain_step_is_adamw(tmp_path: Path) -> None:
    """Three steps of the trainer equal three steps written out, at the scheduled learning rate."""
    source, objective = points(), LineObjective()
    changes = {"steps": 3, "optimizer": {"lr": 0.1, "warmup_steps": 2, "decay": "cosine", "weight_decay": 0.1}}
    trainer = fit(objective, source, tmp_path / "run", **changes)
    twin = Line(LineConfig())
    decayed, plain = [twin.layer.weight], [twin.layer.bias]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=0.1, betas=(0.9, 0.96)
    )
    batches = trainer._batches(0)
    for rate in (0.05, 0.1, 0.1):
        batch = next(batches)
        (twin(batch["x"]) - batch["y"]).square().mean().backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(objective.model.state_dict(), twin.state_dict(), atol=1e-6, rtol=1e-6)


def test_decay_takes_matrices_and_leaves_embeddings_norms_and_biases() -> None:
    for family in ("bert", "modern"):
        model = transformer(family)
        decayed, plain = adamw(model, OptimizerSettings(weight_decay=0.3)).param_groups
        assert decayed["weight_decay"] == 0.3
        assert plain["weight_decay"] == 0.0
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        assert len(decayed["params"]) + len(plain["params"]) == len(names)
        assert not [
            name for p in decayed["params"] if "embedding" in (name := names[id(p)]) or "bias" in name or p.ndim < 2
        ]
        assert all("embedding" in names[id(p)] or p.ndim < 2 for p in plain["params"])


@pytest.mark.parametrize("decay", [0.3, 0.999, 0.0])
def test_averages_warm_up(tmp_path: Path, decay: float) -> None:
    """After update n the average keeps min(decay, (1 + n) / (10 + n)) of itself; the first one copies."""
    history: list[torch.Tensor] = []
    objective = LineObjective()
    objective.hook = lambda step: history.append(objective.model.layer.weight.detach().clone())
    trainer = fit(objective, points(), tmp_path, steps=5, ema_decay=decay, optimizer={"lr": 0.5})
    history.append(objective.model.layer.weight.detach().clone())
    average = history[1]
    for n, value in enumerate(history[2:], start=1):
        keep = min(decay, (1 + n) / (10 + n))
        average = keep * average + (1 - keep) * value
    torch.testing.assert_close(trainer.ema.module.layer.weight, average)
    assert torch.equal(average, history[-1]) == (decay == 0)


def test_a_run_leaves_its_files(tmp_path: Path) -> None:
    objective = LineObjective(scores=[3.0, 1.0, 2.0])
    trainer = fit(objective, points(), tmp_path, log_every=2, validate_every=2, show_every=3, checkpoint_every=2)
    lines = log_lines(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    assert {line["step"]: line["validation/score"] for line in lines if "validation/score" in line} == {
        2: 3,
        4: 1,
        6: 2,
    }
    assert all(line["lr"] == 1e-2 and line["tokens_per_second"] > 0 for line in lines if "loss" in line)
    assert objective.shown == [3, 6]
    exported = load_module(tmp_path, Line)
    assert torch.equal(exported.layer.weight, trainer.ema.module.layer.weight)
    best = load_module(tmp_path / "best", Line)
    assert not torch.equal(best.layer.weight, exported.layer.weight)
    assert trainer.state.best_score == 1.0
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found == ["step-00000004", "step-00000006"]  # keep_last is 2; nothing temporary stays


def test_best_holds_the_weights_of_the_best_validation(tmp_path: Path) -> None:
    objective = LineObjective(scores=[3.0, 1.0, 2.0])
    fit(objective, points(), tmp_path / "long", validate_every=2)
    short = fit(LineObjective(), points(), tmp_path / "short", steps=4)
    best = load_module(tmp_path / "long" / "best", Line)
    assert torch.equal(best.layer.weight, short.ema.module.layer.weight)


def test_log_holds_means_of_the_interval(tmp_path: Path) -> None:
    fit(LineObjective(), points(), tmp_path / "each", log_every=1)
    fit(LineObjective(), points(), tmp_path / "pairs", log_every=2)
    each = [line["loss"] for line in log_lines(tmp_path / "each")]
    pairs = [line["loss"] for line in log_lines(tmp_path / "pairs")]
    assert pairs == pytest.approx([(a + b) / 2 for a, b in zip(each[::2], each[1::2], strict=True)], rel=1e-6)


@pytest.mark.parametrize("keep", [1, 3])
def test_keep_last_prunes(tmp_path: Path, keep: int) -> None:
    fit(LineObjective(), points(), tmp_path, checkpoint_every=1, keep_last=keep)
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found == [f"step-{step:08d}" for step in range(7 - keep, 7)]


def test_two_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    one, two = LineObjective(), LineObjective()
    fit(one, points(), tmp_path / "one", batch_size=8)
    fit(two, points(), tmp_path / "two", batch_size=8, accumulation=2)
    torch.testing.assert_close(one.model.state_dict(), two.model.state_dict(), atol=1e-5, rtol=1e-5)
    assert not torch.equal(one.model.layer.weight, torch.ones(1, 3))


def test_the_logged_loss_is_the_mean_over_micro_batches(tmp_path: Path) -> None:
    for name, parts in (("one", 1), ("two", 2)):
        fit(LineObjective(), points(), tmp_path / name, batch_size=8, accumulation=parts, log_every=1)
    one, two = ([line["loss"] for line in log_lines(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)


def test_log_lines_after_the_last_checkpoint_are_forgotten_on_resume(tmp_path: Path) -> None:
    def crash(step: int) -> None:
        if step == 5:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fit(LineObjective(hook=crash), points(), tmp_path, steps=8, log_every=1, checkpoint_every=3)
    fit(LineObjective(), points(), tmp_path, steps=8, log_every=1, checkpoint_every=3)
    assert [line["step"] for line in log_lines(tmp_path)] == list(range(1, 9))


def test_tensorboard_writes_an_event_file(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(LineObjective(), points(), tmp_path, steps=2, log_every=1, tracker="tensorboard")
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    logged = [line["loss"] for line in log_lines(tmp_path)]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(logged, rel=1e-6)


def test_the_matmul_setting_is_given_back(tmp_path: Path) -> None:
    before = torch.get_float32_matmul_precision()
    fit(LineObjective(), points(), tmp_path, steps=1)
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: got 0, expected at least 1"),
        ({"accumulation": 0}, "accumulation: got 0"),
        ({"keep_last": 0}, "keep_last: got 0"),
        ({"log_every": 0}, "log_every: got 0"),
        ({"batch_size": 5, "accumulation": 2}, "batch_size 5 must be a multiple of accumulation 2"),
        ({"ema_decay": 1.0}, "ema_decay: got 1.0, expected 0 <= decay < 1"),
    ],
)
def test_settings_are_checked(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"lr": 0.0}, {"warmup_steps": -1}, {"weight_decay": -0.1}, {"grad_clip": -1.0}])
def test_optimizer_settings_are_checked(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="optimizer: got lr"):
        OptimizerSettings(**change)  # type: ignore[arg-type]
