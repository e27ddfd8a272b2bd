"""A run that was interrupted, by whatever, ends where an uninterrupted one ends: bit for bit."""

import errno
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import maskgen.training.state
from maskgen.data import TensorSource
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from maskgen.training.run import Interrupted
from tests.core.toys import FAMILIES, LineObjective, equal, fit, points, transformer, weights


class CrashError(Exception):
    """The machine went away."""


class CrashingModeling(MaskedModeling):
    """Masked modelling that raises at one step, like a process killed there."""

    crash_at: int | None = None

    def loss(self, network: str, modules: Any, batch: Any, step: int) -> Any:
        if step == self.crash_at:
            raise CrashError
        return super().loss(network, modules, batch, step)


def modeling(family: str, dropout: float = 0.1, crash_at: int | None = None) -> CrashingModeling:
    objective = CrashingModeling(transformer(family, dropout=dropout), MaskingSettings())
    objective.crash_at = crash_at
    return objective


def tokens() -> TensorSource:
    generator = torch.Generator().manual_seed(5)
    return TensorSource(
        tokens=torch.randint(11, (12, 12, 1), generator=generator), labels=torch.randint(4, (12,), generator=generator)
    )


def test_a_checkpoint_of_before_goes_on(tmp_path: Path) -> None:
    """The guard had another word for its longest streak of skipped steps."""
    changes = {"checkpoint_every": 2}
    whole = fit(modeling("modern"), tokens(), tmp_path / "whole", **changes)
    with pytest.raises(CrashError):
        fit(modeling("modern", crash_at=5), tokens(), tmp_path / "parts", **changes)
    path = max((tmp_path / "parts" / "checkpoints").iterdir()) / "guard.safetensors"
    kept = load_file(path)
    kept["model.most_in_a_row"] = kept.pop("model.longest_streak")
    save_file(kept, path)
    resumed = fit(modeling("modern"), tokens(), tmp_path / "parts", **changes)
    assert equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("accumulation", "muon_lr"), [(1, 0.0), (2, 0.0), (1, 0.02)])
def test_resumed_equals_uninterrupted(tmp_path: Path, family: str, accumulation: int, muon_lr: float) -> None:
    """With dropout, random masks, label dropout, learning-rate decay and averages."""
    changes = {
        "checkpoint_every": 2,
        "accumulation": accumulation,
        "optimizer": {"decay": "cosine", "warmup_steps": 2, "weight_decay": 0.1, "muon_lr": muon_lr},
    }
    whole = fit(modeling(family), tokens(), tmp_path / "whole", **changes)
    with pytest.raises(CrashError):
        fit(modeling(family, crash_at=5), tokens(), tmp_path / "parts", **changes)
    torch.manual_seed(12345)  # whatever happened in between
    resumed = fit(modeling(family), tokens(), tmp_path / "parts", **changes)
    assert equal(weights(whole), weights(resumed))
    other = fit(modeling(family), tokens(), tmp_path / "other", **changes, seed=1)
    assert not equal(weights(whole), weights(other))


def test_resumed_with_another_optimiser(tmp_path: Path) -> None:
    """What an optimiser keeps of a weight is not the checkpoint's business: Muon keeps a single momentum of matrices."""
    changes = {"checkpoint_every": 2, "optimizer": {"muon_lr": 0.02, "warmup_steps": 2, "decay": "cosine"}}
    whole = fit(modeling("modern"), tokens(), tmp_path / "whole", **changes)
    with pytest.raises(CrashError):
        fit(modeling("modern", crash_at=5), tokens(), tmp_path / "parts", **changes)
    resumed = fit(modeling("modern"), tokens(), tmp_path / "parts", **changes)
    assert equal(weights(whole), weights(resumed))
    states = [
        [run.optimizers["model"].state[weight] for weight in run.modules["model"].parameters()]
        for run in (whole, resumed)
    ]
    assert all(equal(mine, yours) for mine, yours in zip(*states, strict=True))


def test_what_happens_between_steps_does_not_disturb_them(tmp_path: Path) -> None:
    """Masks and dropout are a function of seed and step; validation may draw all the random numbers it likes."""

    class Gambling(CrashingModeling):
        def validate(self, model: Any, device: torch.device) -> dict[str, float]:
            return {"score": float(torch.rand(()))}

    whole = fit(modeling("modern"), tokens(), tmp_path / "whole")
    objective = Gambling(transformer("modern", dropout=0.1), MaskingSettings())
    gambled = fit(objective, tokens(), tmp_path / "gambled", validate_every=1)
    assert equal(weights(whole), weights(gambled))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_next_run_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    handler = signal.getsignal(number)
    whole = fit(LineObjective(), points(), tmp_path / "whole")

    def interrupt(step: int) -> None:
        if step == 2:
            signal.raise_signal(number)

    with pytest.raises(Interrupted, match="stopped after step 3 and saved; run it again to go on"):
        fit(LineObjective(hook=interrupt), points(), tmp_path / "parts")
    assert signal.getsignal(number) is handler
    done: list[int] = []
    resumed = fit(LineObjective(hook=done.append), points(), tmp_path / "parts")
    assert done == [3, 4, 5]
    assert equal(weights(whole), weights(resumed))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = fit(LineObjective(), points(), tmp_path)
    done: list[int] = []
    second = fit(LineObjective(hook=done.append), points(), tmp_path)
    assert done == []
    assert equal(weights(first), weights(second))


def test_a_full_disk_while_saving_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(LineObjective(), points(), tmp_path / "whole", checkpoint_every=2)
    real, calls = maskgen.training.state.save_file, []

    def full(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 6:  # four files a checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(maskgen.training.state, "save_file", full)
        with pytest.raises(OSError, match="No space left"):
            fit(LineObjective(), points(), tmp_path / "parts", checkpoint_every=2)
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["step-00000002"]
    done: list[int] = []
    resumed = fit(LineObjective(hook=done.append), points(), tmp_path / "parts", checkpoint_every=2)
    assert done == [2, 3, 4, 5]
    assert equal(weights(whole), weights(resumed))


def test_a_leftover_of_a_killed_save_is_ignored(tmp_path: Path) -> None:
    fit(LineObjective(), points(), tmp_path, steps=2)
    leftover = tmp_path / "checkpoints" / ".step-00000009-abc"
    leftover.mkdir()
    done: list[int] = []
    fit(LineObjective(hook=done.append), points(), tmp_path, steps=4)
    assert done == [2, 3]


def test_the_best_score_survives(tmp_path: Path) -> None:
    first = fit(LineObjective(scores=[1.5]), points(), tmp_path, steps=2)
    assert first.state.best_score == 1.5
    worse = fit(LineObjective(scores=[1.7]), points(), tmp_path, steps=4)
    assert worse.state.best_score == 1.5
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    assert json.loads((newest / "run.json").read_text(encoding="utf-8")) == {
        "step": 4,
        "best_score": 1.5,
        "processes": 1,
    }


def test_longer_settings_go_on_from_the_end(tmp_path: Path) -> None:
    whole = fit(LineObjective(), points(), tmp_path / "whole", steps=6)
    fit(LineObjective(), points(), tmp_path / "parts", steps=4)
    assert equal(weights(whole), weights(fit(LineObjective(), points(), tmp_path / "parts", steps=6)))


def test_the_log_has_every_step_once(tmp_path: Path) -> None:
    def crash(step: int) -> None:
        if step == 5:
            raise CrashError

    fit(LineObjective(), points(), tmp_path / "whole", log_every=1, checkpoint_every=3)
    with pytest.raises(CrashError):
        fit(LineObjective(hook=crash), points(), tmp_path / "parts", log_every=1, checkpoint_every=3)
    fit(LineObjective(), points(), tmp_path / "parts", log_every=1, checkpoint_every=3)
    logs = []
    for name in ("whole", "parts"):
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        logs.append([(line["step"], line["loss"]) for line in lines])
    assert [step for step, _ in logs[0]] == [1, 2, 3, 4, 5, 6]
    assert logs[0] == logs[1]
