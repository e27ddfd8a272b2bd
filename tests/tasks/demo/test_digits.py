"""The demo from end to end at toy size: both stages through the command line, pictures, numbers, report, second run."""

import contextlib
import io
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import maskgen.tasks.demo.digits
from maskgen.checkpoint import read_json
from maskgen.objectives.masked import MaskedModeling
from maskgen.tasks.cli import main
from maskgen.tasks.demo.stages import config_file
from maskgen.tasks.pipeline import Pipeline

SETTINGS = {
    "steps": 8,
    "batch_size": 8,
    "optimizer": {"lr": 1.0e-3, "warmup_steps": 1},
    "log_every": 4,
    "validate_every": 0,
    "show_every": 0,
    "checkpoint_every": 4,
    "tracker": None,
}
DATA = {"class_path": "maskgen.tasks.data.images.digits.Digits", "init_args": {"size": 8}}
TOKENIZER: dict[str, Any] = {
    "tokenizer": {
        "class_path": "maskgen.tokenizers.image.VQGAN",
        "init_args": {
            "config": {
                "channels": 8,
                "multipliers": [1, 2],
                "res_blocks": 1,
                "shortcut": "input",
                "groups": 4,
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
            "config": {"vocab_size": 16, "num_classes": 10, "axes": [4, 4], "width": 16, "layers": 1, "heads": 2}
        },
    },
    "data": DATA,
    "masking": {"label_smoothing": 0.0},
    "settings": SETTINGS,
    "sampling": {"steps": 3},
}
PICTURES = {
    "classes.png",
    "trajectory.png",
    "trajectory.gif",
    "reconstructions.png",
    "inpainting.png",
    "outpainting.png",
    "swaps.png",
    "neighbours.png",
}
STAGES = ("train_tokenizer", "train_transformer", "generate", "measure", "pictures")
METRICS = {
    "cas",
    "cas_real",
    "cas_over_real",
    "label_agreement",
    "variance_ratio",
    "reconstruction_psnr",
    "reconstruction_variance_ratio",
    "codebook_usage",
    "codebook_perplexity",
    "neighbour_generated_to_train",
    "neighbour_test_to_train",
    "copies",
    "generated",
    "generated_sets",
    "sampling_steps",
    "seconds_total",
    "peak_memory_mb",
    *(f"seconds_{stage}" for stage in STAGES),
}


def run(out: Path) -> str:
    """The demo with tiny settings; returns what it prints."""
    configs = []
    for name, settings in (("tokenizer", TOKENIZER), ("transformer", TRANSFORMER)):
        path = out.parent / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        configs.append(f"--{name}_config={path}")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        main(["demo", f"--out={out}", *configs])
    return printed.getvalue()


def weights(out: Path) -> list[bytes]:
    return [(out / part / "model.safetensors").read_bytes() for part in ("tokenizer", "transformer")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo") / "with space"
    return out, run(out)


def test_numbers(finished: tuple[Path, str]) -> None:
    metrics = json.loads((finished[0] / "metrics.json").read_text(encoding="utf-8"))
    assert metrics.keys() == METRICS
    assert set(maskgen.tasks.demo.digits._NOTES) <= METRICS
    assert (metrics["generated"], metrics["sampling_steps"]) == (1437, 3)
    for name in ("cas", "cas_real", "label_agreement", "codebook_usage", "copies"):
        assert 0 <= metrics[name] <= 1
    assert metrics["cas_real"] > 0.95
    assert metrics["cas_over_real"] == pytest.approx(metrics["cas"] / metrics["cas_real"])
    assert metrics["cas"] < 0.5  # eight steps teach nothing: a measure that says otherwise is broken
    assert 1 <= metrics["codebook_perplexity"] <= 16
    assert metrics["seconds_total"] == pytest.approx(sum(metrics[f"seconds_{stage}"] for stage in STAGES), abs=0.3)
    assert metrics["peak_memory_mb"] > 50


def test_report_and_pictures(finished: tuple[Path, str]) -> None:
    out, said = finished
    assert {path.name for path in (out / "pictures").iterdir()} == PICTURES
    sizes = {}
    for name in PICTURES:
        with Image.open(out / "pictures" / name) as picture:
            sizes[name] = (
                picture.width - 4,
                picture.height - 4,
            )  # 2 pixels around each 8 x 8 digit, all twice as large
    cells = {name: (width // 20, height // 20) for name, (width, height) in sizes.items()}
    assert cells["classes.png"] == (10, 10)
    assert cells["trajectory.png"] == (4, 5)  # nothing, then 3 steps; 5 digits
    assert cells["reconstructions.png"] == cells["neighbours.png"] == (10, 2)
    assert cells["inpainting.png"] == (10, 5)
    assert cells["outpainting.png"] == cells["swaps.png"] == (10, 4)
    with Image.open(out / "pictures" / "trajectory.gif") as moving:
        assert moving.n_frames in (4, 5, 6)  # the end stands still: equal frames may be merged
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/") == len(PICTURES)
    assert all(f"<td>{name}</td>" in page for name in METRICS)
    assert f"open {out / 'report.html'}" in said


def test_the_model_can_be_used(finished: tuple[Path, str], tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(finished[0], device="cpu")
    assert pipe.config.class_names[3] == "three"
    assert pipe.config.sampling.steps == 3
    main(["generate", "--model", str(finished[0]), "--labels", "three", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "label-0003_seed-00000000.png").is_file()


def test_a_second_run_reuses_both_stages(finished: tuple[Path, str]) -> None:
    out, first = finished
    assert "finished before" not in first
    before, metrics = weights(out), read_json(out / "metrics.json")
    second = run(out)
    assert f"tokenizer: finished before, reused from {out / 'tokenizer'}" in second
    assert f"transformer: finished before, reused from {out / 'transformer'}" in second
    assert weights(out) == before
    again = read_json(out / "metrics.json")
    for name in METRICS:
        if not name.startswith(("seconds", "peak")):
            assert again[name] == metrics[name]


def test_an_interrupted_demo_goes_on(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, done = tmp_path / "demo", MaskedModeling.loss, []

    def interrupt(self: Any, network: str, modules: Any, batch: Any, step: int) -> Any:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, network, modules, batch, step)

    def note(self: Any, network: str, modules: Any, batch: Any, step: int) -> Any:
        done.append(step)
        return real(self, network, modules, batch, step)

    monkeypatch.setattr(MaskedModeling, "loss", interrupt)
    with pytest.raises(SystemExit) as stopped:
        run(out)
    assert stopped.value.code == 75
    spent = read_json(out / "seconds.json")
    assert spent.keys() == {"train_tokenizer", "train_transformer"}
    (out / "seconds.json").write_text(json.dumps({**spent, "train_transformer": 500.0}), encoding="utf-8")
    monkeypatch.setattr(MaskedModeling, "loss", note)
    assert "tokenizer: finished before" in run(out)
    assert done == [5, 6, 7]
    assert weights(out) == weights(finished[0])
    assert 500 < read_json(out / "seconds.json")["train_transformer"] < 600
    assert read_json(out / "metrics.json")["seconds_total"] > 500


def test_demo_names_its_own_configs() -> None:
    for name in ("digits_tokenizer", "digits_transformer"):
        assert config_file(name).is_file()


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(TRANSFORMER | {"stpes": 3}), encoding="utf-8")
    small = json.loads(json.dumps(TOKENIZER))
    small["tokenizer"]["init_args"]["config"]["channels"] = 6
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
    for words, message in (
        ((f"--transformer_config={tmp_path / 'wrong.yaml'}",), "stpes"),  # before the first stage trains
        ((f"--tokenizer_config={tmp_path / 'small.yaml'}",), "channels: got level widths (6, 12)"),
        ((f"--tokenizer_config={tmp_path / 'nowhere.yaml'}",), "nowhere.yaml"),
        (("--steps=3",), "unrecognized arguments: --steps=3; see `maskgen demo --help`"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["demo", f"--out={out}", *words])
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert re.fullmatch(r"maskgen: error: [^\n]*\n", error)
        assert message in error
    assert not out.exists()
