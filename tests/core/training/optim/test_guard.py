"""Steps that are not finite, or far off, do not count; too many of them end the run; a resumed run skips the same ones."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from maskgen.training.optim.guard import Guard, GuardSettings
from tests.core.toys import LineObjective, equal, fit, points, weights


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def spoilt(*steps: int, by: float = math.nan) -> LineObjective:
    return LineObjective(hook=lambda step: by if step in steps else None)


@pytest.mark.parametrize("by", [math.nan, math.inf])
def test_a_spoilt_step_changes_nothing(by: float, tmp_path: Path) -> None:
    """Six steps of which two are spoilt leave weights and optimiser where the four others would."""
    done = fit(spoilt(2, 4, by=by), points(), tmp_path / "spoilt", log_every=1, optimizer={"weight_decay": 0.1})
    before: list[Any] = []

    def watch(step: int) -> None:
        before.append(step)

    fit(LineObjective(hook=watch), points(), tmp_path / "good", steps=2, optimizer={"weight_decay": 0.1})
    state = next(iter(done.optimizers["model"].state.values()))
    assert float(state["step"]) == 4
    assert all(tensor.isfinite().all() for tensor in weights(done).values())
    found = lines(tmp_path / "spoilt")
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]
    assert ["loss" in line for line in found] == [True, True, False, True, False, True]
    assert [line.get("skipped_steps", 0) for line in found] == [0, 0, 1, 1, 2, 2]


def test_weights_stay_bit_for_bit(tmp_path: Path) -> None:
    two = fit(LineObjective(), points(), tmp_path / "two", steps=2)
    four = fit(spoilt(2, 3), points(), tmp_path / "four", steps=4)
    raw = {name: tensor for name, tensor in weights(two).items() if name.startswith("raw/")}
    assert equal(raw, {name: tensor for name, tensor in weights(four).items() if name.startswith("raw/")})
    ours, theirs = (next(iter(run.optimizers["model"].state.values())) for run in (two, four))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_means_of_the_log_leave_skipped_steps_out(tmp_path: Path) -> None:
    fit(spoilt(1), points(), tmp_path / "means", steps=3, log_every=3)
    fit(spoilt(1), points(), tmp_path / "each", steps=3, log_every=1)
    (mean,) = lines(tmp_path / "means")
    each = [line["loss"] for line in lines(tmp_path / "each") if "loss" in line]
    assert len(each) == 2
    assert mean["loss"] == pytest.approx(sum(each) / 2, rel=1e-6)
    assert mean["skipped_steps"] == 1


def test_too_many_in_a_row_end_the_run_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "steps": 12,
        "log_every": 2,
        "checkpoint_every": 2,
        "guard": GuardSettings(max_consecutive_skips=3),
    }
    fit(spoilt(2, 3, 6, 7), points(), tmp_path / "pairs", **changes)
    with pytest.raises(
        FloatingPointError, match=r"step 6: 3 steps in a row of 'model' were skipped.*lower the learning"
    ):
        fit(spoilt(3, 4, 5, 6, 7), points(), tmp_path / "run", **changes)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-00000002",
        "step-00000004",
    ]
    assert not (tmp_path / "run" / "model.safetensors").exists()
    kept = load_file(tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_spikes_are_skipped_when_asked_for(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"steps": 12, "log_every": 1, "optimizer": {"lr": 1e-4}}
    guard = GuardSettings(spike=10.0, window=4)
    fit(spoilt(8, by=1000.0), points(), tmp_path / "guarded", guard=guard, **changes)
    fit(spoilt(8, by=1000.0), points(), tmp_path / "plain", **changes)
    guarded, plain = lines(tmp_path / "guarded"), lines(tmp_path / "plain")
    assert [line["step"] for line in guarded if "loss" not in line] == [9]
    assert all("loss" in line for line in plain)


def test_a_resumed_run_skips_the_same_steps(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"steps": 14, "checkpoint_every": 4, "log_every": 7}
    changes |= {"guard": GuardSettings(spike=1.5, window=4), "optimizer": {"lr": 1e-3, "weight_decay": 0.1}}
    whole = fit(spoilt(5, 9), points(), tmp_path / "whole", **changes)
    assert int(whole.guards["model"].skipped) > 2  # some spikes among them

    def crash(step: int) -> float | None:
        if step == 10:
            raise ConnectionError
        return math.nan if step in (5, 9) else None

    with pytest.raises(ConnectionError):
        fit(LineObjective(hook=crash), points(), tmp_path / "parts", **changes)
    resumed = fit(spoilt(5, 9), points(), tmp_path / "parts", **changes)
    assert equal(weights(whole), weights(resumed))
    assert equal(dict(whole.guards.state_dict()), dict(resumed.guards.state_dict()))


def judged(guard: Guard, *norms: float) -> list[int]:
    return [int(guard.check(torch.tensor(1.0), torch.tensor(norm))) for norm in norms]


def test_the_median_is_that_of_the_last_good_norms() -> None:
    guard = Guard(GuardSettings(spike=2.0, window=4))
    assert judged(guard, 1.0, 50.0) == [0, 0]  # nothing is a spike before half a window is there
    assert judged(guard, 2.1) == [1]  # the lower median of (1, 50) is 1
    assert judged(guard, 1.9, 1.0, 1.0, 1.0, 2.1, 1.9) == [0, 0, 0, 0, 1, 0]
    assert int(guard.skipped) == 2
    # Gradients of zero, of a discriminator that waits for its game, are no sign of what is usual.
    waiting = Guard(GuardSettings(spike=2.0, window=2))
    assert judged(waiting, 0.0, 0.0, 0.0, 5.0, 11.0) == [0, 0, 0, 0, 1]


def test_runs_of_skips_are_counted() -> None:
    guard = Guard(GuardSettings(max_consecutive_skips=2))
    assert judged(guard, math.nan, 1.0, math.inf, 1.0) == [1, 0, 1, 0]
    assert not guard.too_many()
    assert judged(guard, math.nan, math.nan, 1.0) == [1, 1, 0]
    assert guard.too_many()  # it was so, whatever came later
    assert int(Guard(GuardSettings()).check(torch.tensor(math.inf), torch.tensor(1.0))) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_consecutive_skips": 0}, "guard: got max_consecutive_skips 0 and window 128, expected 1 and 2 or more"),
        ({"window": 1}, "guard: got max_consecutive_skips 20 and window 1"),
        ({"spike": 0.5}, "guard.spike: got 0.5, expected a multiple above 1, or 0 for never"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuardSettings(**change)
