"""The plan for many GPUs agrees with what this machine measures, and its files are what Accelerate reads."""

import json
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from tests.core.training.many_processes import run_processes

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))  # scripts, not a package

import scaling_plan  # noqa: E402


def test_planned_bytes_are_measured_bytes() -> None:
    rows = scaling_plan.check()
    assert len(rows) == 5
    for name, planned, measured in rows:
        assert measured == pytest.approx(planned, rel=0.02), name


def held(out: Path, expected: float) -> None:
    measured = scaling_plan.held_bytes(out)
    assert measured == pytest.approx(expected, rel=0.01)


def test_a_sharded_process_holds_its_share(tmp_path: Path) -> None:
    whole = 4 * scaling_plan.FLOAT * scaling_plan.parameters(3, 192, 8)
    assert run_processes(2, held, tmp_path / "sharded", whole / 2, fsdp=True) == [0, 0]
    assert run_processes(2, held, tmp_path / "ddp", whole) == [0, 0]


def test_the_table_of_the_docs_is_the_scripts() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    for name, (layers, width) in scaling_plan.SIZES.items():
        assert f"| {name} {layers} x {width} |" in text
        assert scaling_plan.parameters(layers, width) == pytest.approx(
            float(name.split()[0]) * (1e6 if name.endswith("M") else 1e9), rel=0.12
        )
    documented = next(line for line in text.splitlines() if line.startswith("| 3 B 48 x 2304 | FSDP2, checkpointing"))
    assert documented in scaling_plan.tables()


def test_more_gpus_hold_less_and_send_as_much() -> None:
    plans = [scaling_plan.Plan(layers=4, width=256, gpus=gpus, sharded=True) for gpus in (1, 2, 8, 64)]
    memory = [scaling_plan.static_bytes(plan) for plan in plans]
    assert memory == sorted(memory, reverse=True)
    sent = [scaling_plan.sent_bytes(plan) for plan in plans]
    assert sent[0] == 0
    assert sent == sorted(sent)
    assert sent[-1] < 6 * scaling_plan.parameters(4, 256)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "fsdp2_nodes"])
def test_accelerate_reads_its_files(name: str) -> None:
    found = load_config_from_file(str(ROOT / "docs" / "accelerate" / f"{name}.yaml"))
    assert found.mixed_precision == "no"  # the run's own setting decides
    assert found.num_processes in (8, 64)
    if name != "ddp":
        assert found.fsdp_config["fsdp_version"] == 2


def test_training_speed_at_toy_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import training_speed

    monkeypatch.setattr(training_speed, "matmul_peak", lambda device: 1e12)  # seconds of large products
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sizes = ["--layers=1", "--width=32", "--heads=2", "--side=4", "--steps=2", "--batch=2"]
    training_speed.main([*sizes, f"--json={tmp_path / 'speed.json'}"])
    found = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))["results"]
    assert [row["family"] for row in found] == ["bert", "modern"]
    for row in found:
        assert row["tokens_per_second"] == pytest.approx(16 * row["images_per_second"])
        assert 0 < row["mfu"] < 1
        assert 0 <= row["save_stall_share"] < 0.5
        assert row["passes_seconds"] > 0
