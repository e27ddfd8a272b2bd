"""The sound demo from end to end at toy size: both stages through the command line, sounds, numbers, report, second run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import maskgen.tasks.demo.melodies
from maskgen.checkpoint import read_json
from maskgen.tasks.cli import main
from maskgen.tasks.data.audio.melodies import Melodies
from maskgen.tasks.demo.stages import config_file
from maskgen.tasks.media.audio.files import load_sound, save_sound
from tests.tasks.commandline import refused

SETTINGS = {
    "steps": 4,
    "batch_size": 4,
    "optimizer": {"lr": 1.0e-3, "warmup_steps": 1},
    "log_every": 2,
    "validate_every": 0,
    "show_every": 0,
    "checkpoint_every": 2,
    "tracker": None,
}
DATA = {
    "class_path": "maskgen.tasks.data.audio.melodies.Melodies",
    "init_args": {"count": 6, "held_out": 4, "seconds": 0.512, "sample_rate": 4000, "grid": 0.008},
}
CODEC: dict[str, Any] = {
    "tokenizer": {
        "class_path": "maskgen.tokenizers.audio.AudioCodec",
        "init_args": {
            "config": {"sample_rate": 4000, "hop": 32, "width": 8, "codebook_size": 16, "codebooks": 2, "dim": 4}
        },
    },
    "data": DATA,
    "loss": {"windows": [64], "bands": [8]},
    "settings": SETTINGS,
}
TRANSFORMER: dict[str, Any] = {
    "transformer": {
        "class_path": "maskgen.models.modern.ModernTransformer",
        "init_args": {
            "config": {
                "vocab_size": 16,
                "num_codebooks": 2,
                "num_classes": 0,
                "axes": [64],
                "width": 16,
                "layers": 1,
                "heads": 2,
            }
        },
    },
    "data": DATA,
    "masking": {"label_dropout": 0.0},
    "settings": SETTINGS,
    "sampling": {"steps": 2},
}
SOUNDS = {*(f"melody-{n}-{kind}" for n in (1, 2, 3) for kind in ("original", "gap", "filled", "repeated"))}
SOUNDS |= {"continued", "varied", "loop"}
STAGES = ("train_codec", "train_transformer", "fill", "measure", "sounds")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("demo")
    for name, content in (("codec", CODEC), ("transformer", TRANSFORMER)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    out = folder / "run"
    words = ["demo", "audio", f"--out={out}"]
    words += [f"--{name}_config={folder / f'{name}.yaml'}" for name in ("codec", "transformer")]
    main(words)
    return out, words


def test_sounds_and_pictures(run: tuple[Path, list[str]]) -> None:
    out, _ = run
    assert {path.name for path in (out / "sounds").iterdir()} == {
        f"{n}{end}" for n in SOUNDS for end in (".wav", ".png")
    }
    original, rate = load_sound(out / "sounds" / "melody-1-original.wav")
    filled, _ = load_sound(out / "sounds" / "melody-1-filled.wav")
    gap, _ = load_sound(out / "sounds" / "melody-1-gap.wav")
    assert rate == 4000
    masked = (gap == 0) & (original != 0)
    assert masked.any()
    places = masked.nonzero()[:, 1]
    first, last = int(places.min()), int(places.max())
    margin = 42  # of the cross-fade, 10 ms
    assert torch.equal(filled[:, : first - margin], original[:, : first - margin])
    assert torch.equal(filled[:, last + margin :], original[:, last + margin :])
    assert not torch.equal(filled[:, first:last], original[:, first:last])
    assert load_sound(out / "sounds" / "loop.wav")[0].shape[1] == 2 * original.shape[1]


def test_numbers(run: tuple[Path, list[str]]) -> None:
    out, _ = run
    metrics = read_json(out / "metrics.json")
    assert set(maskgen.tasks.demo.melodies._NOTES) <= set(metrics)
    assert metrics["kept_identical"] == 1.0
    assert metrics["filled_over_silence"] == pytest.approx(metrics["gap_filled"] / metrics["gap_silence"])
    assert metrics["filled_over_repeated"] == pytest.approx(metrics["gap_filled"] / metrics["gap_repeated"])
    assert metrics["gap_seconds"] == pytest.approx(0.064)
    assert metrics["bits_per_second"] == 125 * 2 * 4
    assert metrics["seconds_total"] == pytest.approx(sum(metrics[f"seconds_{name}"] for name in STAGES), abs=0.5)


def test_its_numbers_come_again_by_the_commands(run: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Evaluation and infilling hear the melodies as loud as training did, which was not -24 LUFS."""
    out, _ = run
    said, data = (
        read_json(out / "metrics.json"),
        [f"--data.{name}={value}" for name, value in DATA["init_args"].items()],
    )
    words = ["evaluate", "model", f"--model={out}", f"--data={DATA['class_path']}", *data, "--task=infill"]
    main([*words, f"--out={tmp_path}", '--settings.metrics=["log_mel"]', "--settings.count=4"])
    found = read_json(tmp_path / "evaluation.json")
    for name in ("filled", "silence", "repeated", "codec"):
        assert found["metrics"][f"gap_log_mel_{name}"]["value"] == pytest.approx(said[f"gap_{name}"], rel=1e-5), name
    assert found["subject"]["gap"]["loudness"] is None
    save_sound(Melodies(**DATA["init_args"]).test().tensors["audio"][0], tmp_path / "one.wav", 4000, bits=32)
    span = [f"--start={28 * 32 / 4000}", f"--stop={36 * 32 / 4000}"]
    main(["infill", f"--model={out}", f"--source={tmp_path / 'one.wav'}", *span, f"--out={tmp_path}"])
    written, _ = load_sound(tmp_path / "infill_seed-00000000.wav")
    shown, _ = load_sound(out / "sounds" / "melody-1-filled.wav")
    assert float((written.clamp(-1, 1) - shown).abs().max()) < 2**-15
    assert read_json(tmp_path / "manifest.json")["loudness"] is None


def test_report_plays(run: tuple[Path, list[str]]) -> None:
    out, _ = run
    text = (out / "report.html").read_text(encoding="utf-8")
    assert text.count("<audio ") == text.count("<img ") == len(SOUNDS)
    assert "data:audio/wav;base64," in text


def test_second_run_reuses_the_stages(run: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    out, words = run
    before = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    capsys.readouterr()
    main(words)
    told = capsys.readouterr().out
    assert told.count("finished before, reused") == 2
    after = read_json(out / "metrics.json")
    same = [name for name in before if not name.startswith(("seconds", "peak"))]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_its_own_configs() -> None:
    for name in ("melodies_codec", "melodies_transformer"):
        assert config_file(name).is_file()


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(TRANSFORMER | {"stpes": 3}), encoding="utf-8")
    out = tmp_path / "run"
    words = ("demo", "audio", f"--out={out}", f"--transformer_config={tmp_path / 'wrong.yaml'}")
    assert "stpes" in refused(capsys, *words)
    assert not out.exists()
