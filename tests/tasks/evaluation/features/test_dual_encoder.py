"""A dual encoder of pictures and captions learns real pairs, tells wrong ones, and ``maskgen evaluate`` takes it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskgen.tasks.conditions.text.pretrained import PretrainedTextConfig
from maskgen.tasks.data.images.folders import Folder
from maskgen.tasks.evaluation.features.classifier import ClassifierConfig
from maskgen.tasks.evaluation.features.dual_encoder import DualEncoderConfig, DualEncoderFeatures, open_dual_encoder
from maskgen.tasks.evaluation.features.train_dual_encoder import train_dual_encoder
from maskgen.tasks.evaluation.measures import caption_scores
from maskgen.tasks.evaluation.sets.base import open_samples
from tests.support import text_encoder_folder
from tests.tasks.commandline import refused, run
from tests.tasks.evaluation.support import SHORT, TINY, evaluation_run

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "black": (0, 0, 0)}
PLACES = {"left": (slice(0, 8), slice(0, 4)), "right": (slice(0, 8), slice(4, 8))}
KINDS = [(colour, place) for colour in COLOURS for place in PLACES]
SIZES = DualEncoderConfig(pictures=ClassifierConfig(**dataclasses.asdict(TINY) | {"dropout": 0.0}), width=16, hidden=32)
SETTINGS = dataclasses.replace(SHORT, steps=80, batch_size=32, ema_decay=0.8, validate_every=80)


def scenes(folder: Path, count: int, seed: int, shift: int = 0) -> Path:
    """Coloured halves on noise, each with a caption; ``shift`` gives every picture the caption of another kind."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        colour, place = KINDS[number % 8]
        picture = generator.integers(100, 256, (8, 8, 3), dtype=np.uint8)
        picture[PLACES[place]] = COLOURS[colour]
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
        told = KINDS[(number + shift) % 8]
        (folder / f"{number:03d}.txt").write_text(f"a {told[0]} half on the {told[1]}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dual_encoder")
    text_encoder_folder(folder / "encoder")
    for name, seed, shift in (("train", 0, 0), ("test", 1, 0), ("shuffled", 2, 3)):
        scenes(folder / name, 64, seed, shift)
    data = Folder(root=folder / "train", size=8, test_root=folder / "test", classes=False, captions="txt", flip=False)
    text = PretrainedTextConfig(source=str(folder / "encoder"), length=20, pooled="mean")
    train_dual_encoder(
        data=data, text=text, out=folder / "dual_encoder", dual_encoder=SIZES, settings=SETTINGS, say=lambda text: None
    )
    return folder


def precision(parts: Path, name: str, out: Path) -> Any:
    dual_encoder = open_dual_encoder(str(parts / "dual_encoder"))
    found = caption_scores(open_samples(parts / name, "image"), evaluation_run(out, dual_encoder=dual_encoder), "x")
    assert found is not None
    assert found.metrics.keys() == {"dual_encoder_r_precision"}
    return found.metrics["dual_encoder_r_precision"]


def test_right_and_wrong_pairs(parts: Path, tmp_path: Path) -> None:
    right, wrong = precision(parts, "test", tmp_path), precision(parts, "shuffled", tmp_path)
    assert right.value > 0.9
    assert wrong.value < 0.1
    assert right.note.startswith("R = 8, chance 0.125")
    log = [json.loads(line) for line in (parts / "dual_encoder" / "log.jsonl").read_text("utf-8").splitlines()]
    told = [line["validation/r_precision"] for line in log if "validation/r_precision" in line]
    assert told[-1] == pytest.approx(right.value, abs=1e-6)


def test_the_report_has_what_real_pairs_score(parts: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = ("evaluate", "samples", "--samples", parts / "shuffled", "--dual_encoder", parts / "dual_encoder")
    run(*measured, "--held_out", parts / "test", "--settings.draws", 20, "--out", "one")
    found = json.loads(Path("one/evaluation.json").read_text("utf-8"))
    assert found["metrics"]["dual_encoder_r_precision"]["value"] < 0.1
    assert found["floor"]["dual_encoder_r_precision"]["value"] > 0.9
    assert found["dual_encoder"].startswith("dual-encoder-8x8-")
    page = Path("one/evaluation.html").read_text("utf-8")
    assert f"held-out real data: {found['floor']['dual_encoder_r_precision']['value']:.5g} (" in page


def test_the_command(parts: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data", "Folder", "--data.root", parts / "train", "--data.size", 8, "--data.classes", "false")
    few = (
        "--settings.steps",
        2,
        "--settings.batch_size",
        8,
        "--settings.tracker",
        "null",
        "--dual_encoder.pictures.patch",
        1,
    )
    wanted = ("train", "dual-encoder", *data, *few, "--text", parts / "encoder")
    line = refused(capsys, *wanted, "--out", "dual_encoder")
    assert line == "data: got Folder without captions; say where they are (--data.captions txt)"
    text = ("--text.source", parts / "encoder", "--text.length", 20, "--text.pooled", "projection")
    run(*("train", "dual-encoder", *data, *few), *text, "--data.captions", "txt", "--out", "dual_encoder")
    assert "dual_encoder: no held-out captions, so nothing says how far it can be trusted" in capsys.readouterr().out
    assert open_dual_encoder("dual_encoder").identity().startswith("dual-encoder-8x8-")
    line = refused(
        capsys, *("train", "dual-encoder", *data, *few), *text[:-1], "none", "--data.captions", "txt", "--out", "no"
    )
    assert line == "text.pooled: got none, but a dual encoder reads the pooled vector; name mean, first or projection"


def test_another_encoder_is_refused(parts: Path, tmp_path: Path) -> None:
    dual_encoder = Path(shutil.copytree(parts / "dual_encoder", tmp_path / "dual_encoder"))
    text_encoder_folder(tmp_path / "other", seed=1)
    place = dual_encoder / "config.json"
    place.write_text(
        place.read_text("utf-8").replace(str(parts / "encoder"), str(tmp_path / "other")), encoding="utf-8"
    )
    with pytest.raises(ValueError, match="was trained with the text encoder CLIPTextModelWithProjection-.*, but"):
        DualEncoderFeatures(dual_encoder)
