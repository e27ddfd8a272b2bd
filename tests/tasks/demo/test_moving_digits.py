"""The video demo from end to end at toy size: both stages through the command line, clips, numbers, report, second run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import maskgen.tasks.demo.moving_digits
from maskgen.checkpoint import read_json
from maskgen.tasks.cli import main
from maskgen.tasks.data.video.moving_digits import MovingDigits
from maskgen.tasks.demo.moving_digits import read_digits
from maskgen.tasks.demo.stages import config_file
from tests.tasks.commandline import refused

SETTINGS = {
    "steps": 2,
    "batch_size": 2,
    "optimizer": {"lr": 1.0e-3, "warmup_steps": 1},
    "log_every": 2,
    "validate_every": 0,
    "show_every": 0,
    "checkpoint_every": 2,
    "tracker": None,
}
DATA = {
    "class_path": "maskgen.tasks.data.video.moving_digits.MovingDigits",
    "init_args": {"frames": 8, "size": 16, "digit_size": 8, "grid": 4},
}
TOKENIZER: dict[str, Any] = {
    "tokenizer": {
        "class_path": "maskgen.tokenizers.video.vq3d.VQ3D",
        "init_args": {
            "config": {
                "channels": 4,
                "multipliers": [1, 1, 2],
                "temporal_downsample": [True, True],
                "encoder_blocks": 1,
                "decoder_blocks": 1,
                "groups": 2,
                "quantizer": {"kind": "vq", "codebook_size": 16, "dim": 4},
            }
        },
    },
    "data": DATA,
    "loss": {"perceptual": None, "gan_weight": 0.0},
    "settings": SETTINGS,
}
TRANSFORMER: dict[str, Any] = {
    "transformer": {
        "class_path": "maskgen.models.modern.ModernTransformer",
        "init_args": {
            "config": {
                "vocab_size": 16,
                "num_classes": 0,
                "num_tasks": 5,
                "axes": [2, 4, 4],
                "width": 16,
                "layers": 1,
                "heads": 2,
            }
        },
    },
    "data": DATA,
    "tasks": {"FP5": 1.0, "FI": 1.0, "IPC": 1.0},
    "masking": {"ratios": "row"},
    "settings": SETTINGS,
    "sampling": {"sampler": "commit", "steps": 2},
}
CLIPS = {
    *("prediction.gif", "prediction.png", "longer.gif", "trajectory.png", "reconstruction.gif"),
    *("fi.gif", "ipc.gif"),
}
STAGES = ("train_tokenizer", "train_transformer", "predict", "measure", "clips")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("demo")
    for name, content in (("tokenizer", TOKENIZER), ("transformer", TRANSFORMER)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    out = folder / "run"
    words = ["demo", "video", f"--out={out}"]
    words += [f"--{name}_config={folder / f'{name}.yaml'}" for name in ("tokenizer", "transformer")]
    main(words)
    return out, words


def test_clips(run: tuple[Path, list[str]]) -> None:
    out, _ = run
    assert {path.name for path in (out / "clips").iterdir()} == CLIPS
    with Image.open(out / "clips" / "prediction.gif") as movie:
        assert 1 < movie.n_frames <= 8
    with Image.open(out / "clips" / "longer.gif") as movie:
        assert movie.n_frames <= 16


def test_numbers(run: tuple[Path, list[str]]) -> None:
    out, _ = run
    metrics = read_json(out / "metrics.json")
    assert set(maskgen.tasks.demo.moving_digits._NOTES) <= set(metrics)
    assert metrics["psnr_gain"] == pytest.approx(metrics["psnr_predicted"] - metrics["psnr_repeated"])
    assert metrics["clips"] == 360
    assert metrics["digit_read_in_truth"] > 0.95
    assert 5 < metrics["psnr_repeated"] < 20
    assert metrics["seconds_total"] == pytest.approx(sum(metrics[f"seconds_{name}"] for name in STAGES), abs=0.5)


def test_report_and_a_second_run(run: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    out, words = run
    text = (out / "report.html").read_text(encoding="utf-8")
    assert text.count("<img ") == len(CLIPS)
    before = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    capsys.readouterr()
    main(words)
    assert capsys.readouterr().out.count("finished before, reused") == 2
    after = read_json(out / "metrics.json")
    same = [name for name in before if not name.startswith(("seconds", "peak"))]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_the_judge_needs_a_digit() -> None:
    data = MovingDigits(frames=4, size=16, digit_size=8)
    batch = data.test().batch(range(60), range(60))
    blank = torch.zeros(60, 3, 16, 16)
    read, guessed = read_digits(data, [batch["video"][:, :, -1], blank])
    assert (read == batch["labels"].numpy()).mean() > 0.9
    assert (guessed == batch["labels"].numpy()).mean() < 0.3


def test_its_own_configs() -> None:
    for name in ("moving_digits_tokenizer", "moving_digits_transformer"):
        assert config_file(name).is_file()


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(TRANSFORMER | {"stpes": 3}), encoding="utf-8")
    out = tmp_path / "run"
    words = ("demo", "video", f"--out={out}", f"--transformer_config={tmp_path / 'wrong.yaml'}")
    assert "stpes" in refused(capsys, *words)
    assert not out.exists()
