"""Training on two processes is training on one: same batches, same curve, one set of files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tasks.commandline import TOKENIZER

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = {"steps": 4, "batch_size": 8, "checkpoint_every": 2, "log_every": 1, "validate_every": 2, "tracker": None}
PLAIN = ["--num_processes=1", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]


def train(config: Path, out: Path, launcher: list[str]) -> list[dict[str, float]]:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, "train", "tokenizer", f"--config={config}", f"--out={out}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    config = {
        "tokenizer": TOKENIZER["tokenizer"],
        "data": {"class_path": "maskgen.tasks.data.images.digits.Digits", "init_args": {"size": 16}},
        "loss": {
            **{"perceptual": None, "gan_weight": 0.1, "lecam_weight": 0.1, "revive_every": 3},
            "discriminator": {"image_size": 16, "max_width": 8},
        },
        "settings": {**SETTINGS, "optimizer": {"lr": 1.0e-3, "warmup_steps": 1}},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    # As people launch it: from the root of the repository, once with Accelerate, once with torch's own launcher.
    one = train(path, tmp_path / "one", ["accelerate.commands.launch", "--cpu", *PLAIN, "-m", "maskgen"])
    two = train(
        path, tmp_path / "two", ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "maskgen"]
    )
    assert [line["step"] for line in two] == [line["step"] for line in one]
    for first, second in zip(one, two, strict=True):
        same = {
            name: value for name, value in first.items() if not name.endswith("_per_second") and name != "data_wait"
        }
        assert {name: second[name] for name in same} == pytest.approx(same, rel=1e-3, abs=1e-5)
    assert sorted(path.name for path in (tmp_path / "two" / "checkpoints").iterdir()) == [
        "step-00000002",
        "step-00000004",
    ]
