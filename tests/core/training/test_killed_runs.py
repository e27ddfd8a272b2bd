"""SIGKILL at any moment, also while a checkpoint is written: the run ends where an undisturbed one ends, bit for bit.

``MASKGEN_KILLS=20 pytest tests/core/training/test_killed_runs.py`` kills more often than the suite has time for.
"""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import torch

import maskgen.training.state
from maskgen.data import TensorSource
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from tests.core.toys import fit, transformer
from tests.core.training.many_processes import PRELOAD

KILLS = int(os.environ.get("MASKGEN_KILLS", "3"))
CHANGES: dict[str, Any] = {
    "steps": 25 * KILLS,
    "checkpoint_every": 3,
    "log_every": 5,
    "optimizer": {"decay": "cosine", "warmup_steps": 5, "weight_decay": 0.1},
}


def train(out: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(11, (12, 12, 1), generator=generator)
    labels = torch.randint(4, (12,), generator=generator)
    objective = MaskedModeling(transformer("bert", dropout=0.1), MaskingSettings())
    fit(objective, TensorSource(tokens=tokens, labels=labels), out, **CHANGES)


def slow_life(out: Path) -> None:
    """The same training with slow files and slow steps, so that most kills hit in the middle of something."""
    real_save, real_loss = maskgen.training.state.save_file, MaskedModeling.loss

    def save(*args: Any) -> None:
        time.sleep(0.01)
        real_save(*args)
        time.sleep(0.01)

    def loss(*args: Any) -> Any:
        time.sleep(0.01)
        return real_loss(*args)

    maskgen.training.state.save_file = save
    MaskedModeling.loss = loss  # type: ignore[method-assign]
    train(out)


def test_kills_leave_no_trace(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    out, chance, caught = tmp_path / "killed", random.Random(0), 0
    server = multiprocessing.get_context(
        "forkserver"
    )  # torch refuses to go backwards in forks of what has gone backwards
    server.set_forkserver_preload(PRELOAD)
    for _ in range(KILLS):
        process = server.Process(target=slow_life, args=(out,))
        process.start()
        before = newest(out)
        until = time.monotonic() + 30
        while newest(out) == before and process.is_alive() and time.monotonic() < until:
            time.sleep(0.001)  # every life saves at least once, or nothing would ever end
        time.sleep(chance.uniform(0, 0.15))
        caught += any((out / "checkpoints").glob(".step-*"))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run was over before it was killed; give it more steps"
    print(f"{KILLS} kills, {caught} of them while a checkpoint was being written, the last after step {newest(out)}")
    assert caught
    train(out)
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    final = [folder / "checkpoints" / f"step-{CHANGES['steps']:08d}" for folder in (out, tmp_path / "whole")]
    for name in ("model", "optimizer", "ema", "guard"):
        assert (final[0] / f"{name}.safetensors").read_bytes() == (final[1] / f"{name}.safetensors").read_bytes()
    logs = [(folder / "log.jsonl").read_text(encoding="utf-8").splitlines() for folder in (out, tmp_path / "whole")]
    losses = [[(line["step"], line["loss"]) for line in map(json.loads, log)] for log in logs]
    assert [step for step, _ in losses[0]] == [step for step, _ in losses[1]]
    assert not list((out / "checkpoints").glob(".step-*"))


def newest(out: Path) -> str:
    return max((path.name for path in out.glob("checkpoints/step-*")), default="")
