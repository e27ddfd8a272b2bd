"""The benchmark that trains, measures and draws a model of CIFAR-10: all of it at toy size, and a second run of it."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

import cifar10

from maskgen.checkpoint import read_json
from tests.tasks.data.images.cifar10_records import binary

SHORT = {"steps": 2, "batch_size": 8, "log_every": 1, "validate_every": 2, "show_every": 0, "checkpoint_every": 2}


def short(name: str, folder: Path, small: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A committed config with a few steps of small models."""
    config = yaml.safe_load((cifar10.CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    config["settings"] |= SHORT
    config["settings"]["optimizer"]["warmup_steps"] = 1
    if small is not None:
        config["tokenizer"]["init_args"]["config"] |= small
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def test_the_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    small = {"channels": 8, "groups": 4}
    words = [
        *("--data", str(binary(tmp_path / "cifar-10-batches-bin", 30)), "--out", str(out)),
        *("--tokenizer-config", str(short("cifar10_vqgan", tmp_path, small))),
        *("--transformer-config", str(short("cifar10_maskgit", tmp_path, views=1, sampling={"steps": 2}))),
        *("--count", "140", "--cas-steps", "2"),
    ]
    cifar10.main(words)
    text = (out / "cifar10.md").read_text(encoding="utf-8")
    found = read_json(out / "evaluation" / "evaluation.json")
    for name in ("fid", "cas", "cas_over_real", "label_agreement"):
        assert f"| {name}" in text
        assert f"{found['metrics'][name]['value']:.4g}" in text
    assert "maskgen on CIFAR-10" in (out / "curves.svg").read_text(encoding="utf-8")
    with Image.open(out / "pictures" / "classes.png") as picture:
        assert picture.size == (2 * (10 * 32 + 11 * 2),) * 2
    trained = (out / "transformer" / "log.jsonl").read_bytes()
    cifar10.main(words)
    assert (out / "transformer" / "log.jsonl").read_bytes() == trained
    assert "finished" in capsys.readouterr().out


def test_curves_leave_out_what_was_not_written(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": -0.1}\n{"step": 2, "score": 1}\n', encoding="utf-8")
    assert cifar10.read_log(log, "loss") == [(1, 2.0)]
    assert cifar10.read_log(log, "score") == [(2, 1)]
