"""``maskgen evaluate`` of text to image: prompts, dual encoders, sweeps, and one line for what cannot be measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskgen.tasks.data.images.folders import Folder
from maskgen.tasks.evaluation.sets.base import DataSamples
from maskgen.tasks.image.generation import generate
from maskgen.tasks.pipeline import Pipeline
from tests.support import make_tiny_pipeline, text_encoder_folder, text_pipeline
from tests.tasks.commandline import pixels, refused, run
from tests.tasks.evaluation.support import arrays, clip_folder

QUICK = ("--settings.draws", 20, "--settings.points", 3, "--settings.shown", 4, "--cache", "cache")
PIXELS = ("--features", "maskgen.tasks.evaluation.features.base.PixelFeatures", "--features.side", 2)
TEXT = ("--settings.metrics", '["text"]')
WORDS = ("cat", "dog", "house", "tree", "red", "blue")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    encoder = text_encoder_folder(folder / "encoder")
    text_pipeline(encoder).save_pretrained(folder / "model")
    text_pipeline(encoder, classes=2).save_pretrained(folder / "both")
    make_tiny_pipeline(folder / "plain")
    clip_folder(folder / "clip")
    return folder


@pytest.fixture
def real(place: Path) -> Path:
    """24 pictures with captions, in a working directory of their own."""
    (place / "real").mkdir()
    for number, picture in enumerate(arrays(24, 0, 16)):
        Image.fromarray(picture).save(place / "real" / f"{number:02d}.png")
        text = f"a {WORDS[number % 6]} {WORDS[number % 5]}\n{WORDS[number % 6]} {number}\n"
        (place / "real" / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    return place / "real"


DATA = (
    "--data",
    "Folder",
    "--data.root",
    "real",
    "--data.size",
    16,
    "--data.captions",
    "txt",
    "--data.classes",
    "false",
)


def report(out: str) -> Any:
    return json.loads(Path(out, "evaluation.json").read_text(encoding="utf-8"))


def test_what_generate_made_of_prompts(parts: Path, real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("prompts.txt").write_text("a red cat\na blue dog\na house\n", encoding="utf-8")
    run("generate", "--model", parts / "model", "--prompts", "prompts.txt", "--count", 2, "--out", "made")
    capsys.readouterr()
    measured = ("evaluate", "samples", "--samples", "made", "--dual_encoder", parts / "clip", *QUICK)
    run(*measured, "--out", "one")
    said = capsys.readouterr().out
    assert said.startswith("neither --reference nor --data: measuring the text alone\n")
    found = report("one")
    assert found["metrics"].keys() == {"clip_score", "clip_r_precision"}
    assert f"clip_score: {found['metrics']['clip_score']['value']:.5g} (" in said
    assert "warning: clip_r_precision: no held-out pictures with captions, so nothing says what real ones" in said
    assert [row["caption"] for row in found["captions"]] == [
        text for text in ("a red cat", "a blue dog", "a house") for _ in range(2)
    ]
    assert np.mean([row["cosine"] for row in found["captions"]]) == pytest.approx(
        found["metrics"]["clip_score"]["value"]
    )
    assert found["dual_encoder"].startswith(f"CLIP {parts / 'clip'}-")
    assert found["metrics"]["clip_r_precision"]["note"].startswith("R = 3")
    run(*measured, *PIXELS, *DATA, "--settings.metrics", '["fid","text"]', "--out", "two")
    other = report("two")
    assert other["metrics"]["clip_score"] == found["metrics"]["clip_score"]
    assert "fid" in other["metrics"]
    run(*measured, *TEXT, "--held_out", "real", "--out", "three")
    floor = report("three")["floor"]
    assert floor["clip_r_precision"]["count"] == 24
    assert "clip_score" in floor


def test_a_model_is_asked_for_captions(parts: Path, real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--settings.count", 10, "--settings.seed", 7, "--settings.batch_size", 4, "--dual_encoder", parts / "clip")
    metrics = ("--settings.metrics", '["fid","text"]', *PIXELS)
    whole = ("evaluate", "model", "--model", parts / "model", *QUICK, *asked, *metrics, *DATA)
    run(*whole, "--out", "m")
    assert "making 10 samples, one for the caption of each of so many of Folder (train)" in capsys.readouterr().out
    found, manifest = report("m"), json.loads(Path("m/samples/manifest.json").read_text("utf-8"))
    prompts = [item["prompt"] for item in manifest["items"]]
    data = DataSamples(Folder(root=real, size=16, captions="txt", classes=False), "train")
    every = data.captions(range(24))
    assert every is not None
    drawn = [number for number in range(24) if every[number] in prompts]
    assert len(set(drawn)) >= 10
    assert len(prompts) == 10
    assert [item["seed"] for item in manifest["items"]] == list(range(7, 17))
    pipe = Pipeline.from_pretrained(parts / "model", device="cpu")
    for item, image in zip(manifest["items"], generate(pipe, prompt=prompts, seeds=range(7, 17)), strict=True):
        assert np.array_equal(pixels(Path("m/samples", item["file"])), np.asarray(image))
    subject = found["subject"]
    assert subject["seeds"] == [7, 16]
    assert subject["captions"]["of"] == "Folder (train)"
    assert subject["text"] == pipe.config.text_identity
    assert subject["sampling"]["steps"] == pipe.config.sampling.steps
    assert found["reference"]["samples"] == 24
    assert found["protocol"]["count"] == 30_000
    assert found["floor"]["clip_score"]["count"] == 10
    assert [row["caption"] for row in found["captions"]] == prompts
    run(*whole, "--out", "again", "--settings.seed", 8)
    assert report("again")["subject"]["captions"] == subject["captions"]  # the same captions, whatever is sampled


def test_classes_beside_captions(parts: Path, real: Path) -> None:
    for number, path in enumerate(sorted(real.glob("*.*"))):
        (real / ("zero" if number // 2 % 2 else "one")).mkdir(exist_ok=True)
        path.rename(real / ("zero" if number // 2 % 2 else "one") / path.name)
    run(
        *("evaluate", "model", "--model", parts / "both", "--reference", "real", *QUICK, *PIXELS),
        *("--settings.count", 12, "--settings.metrics", '["fid"]', "--out", "m"),
    )
    items = json.loads(Path("m/samples/manifest.json").read_text("utf-8"))["items"]
    names = Pipeline.from_pretrained(parts / "both", device="cpu").config.class_names
    for item in items:
        number = next(path for path in real.rglob("*.txt") if item["prompt"] in path.read_text("utf-8").splitlines())
        assert names[item["label"]] == number.parent.name


def test_a_sweep_of_guidance(parts: Path, real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(
        *("evaluate", "model", "--model", parts / "model", *QUICK, *DATA, *PIXELS, "--dual_encoder", parts / "clip"),
        *("--settings.count", 8, "--settings.metrics", '["fid","text"]', "--guidance", "0,2.5", "--out", "s"),
    )
    assert "sweep.json and sweep.html in s" in capsys.readouterr().out
    swept = json.loads(Path("s/sweep.json").read_text("utf-8"))
    assert [row["guidance"] for row in swept["by_guidance"]] == [0.0, 2.5]
    for row in swept["by_guidance"]:
        one = report(f"s/guidance-{row['guidance']:g}")
        assert one["subject"]["sampling"]["guidance"]["scale"] == row["guidance"]
        assert one["metrics"] == row["metrics"]
        assert one["subject"]["captions"] == swept["subject"]["captions"]
    values = [row["metrics"]["clip_score"]["value"] for row in swept["by_guidance"]]
    assert values[0] != values[1]
    assert Path("s/sweep.html").is_file()
    assert Path("s/pictures/sweep.png").is_file()
    run(
        *("evaluate", "model", "--model", parts / "model", *QUICK, *DATA, "--dual_encoder", parts / "clip", *TEXT),
        *("--settings.count", 8, "--guidance", 2.5, "--out", "single"),
    )
    assert report("single")["metrics"]["clip_score"]["value"] == values[1]
    assert not Path("single/sweep.json").exists()


def test_missing_captions(parts: Path, real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (real / "03.txt").unlink()
    measured = ("evaluate", "samples", "--samples", "real", "--dual_encoder", parts / "clip", *QUICK, *TEXT)
    line = refused(capsys, *measured, "--out", "one")
    assert line.startswith("real: 1 of 24 samples have no caption that can be read, expected at most a share of 0.01")
    run(*measured, "--settings.broken", 0.05, "--out", "one")
    assert "warning: 1 of 24 samples of real have no caption and were left out" in capsys.readouterr().out
    found = report("one")
    assert found["metrics"]["clip_score"]["count"] == 23
    assert 3 not in [row["sample"] for row in found["captions"]]


def test_what_cannot_be_measured(parts: Path, real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples, clip = (
        ("evaluate", "samples", "--samples", "real", *QUICK, "--out", "x"),
        ("--dual_encoder", parts / "clip"),
    )
    assert refused(capsys, *samples, *TEXT) == (
        "metrics: text needs a dual encoder; give --dual_encoder, a CLIP or a folder of `maskgen train dual-encoder`"
    )
    line = refused(capsys, *samples, "--reference", "real", *PIXELS, *clip, "--settings.metrics", '["fid"]')
    assert (
        line == "dual_encoder: got one, but settings.metrics leaves text out; name it there, or leave dual_encoder out"
    )
    video = ("--features", "maskgen.tasks.evaluation.features.base.ModuleFeatures", "--features.modality", "video")
    arrayed = ("--features.module", "torch.nn.Identity", "--reference", "clips.npz", "--samples", "clips.npz")
    np.savez("clips.npz", arr_0=np.zeros((4, 2, 8, 8, 3), dtype=np.uint8))
    line = refused(capsys, *samples, *video, *arrayed, *clip)
    assert line == "dual_encoder: got one, but it looks at pictures and the samples are video; leave it out"
    line = refused(capsys, *samples, *TEXT, "--dual_encoder", parts / "encoder")
    assert "a model of type 'clip_text_model'; expected a CLIP with both towers" in line
    for path in real.glob("*.txt"):
        path.unlink()
    line = refused(capsys, *samples, *TEXT, *clip)
    assert line.startswith("real: has no captions; expected a folder of `maskgen generate --prompts`")
    of_model = ("evaluate", "model", *QUICK, *PIXELS, "--reference", "real", "--settings.metrics", '["fid","text"]')
    line = refused(capsys, *of_model, "--model", parts / "model", *clip, "--out", "y")
    assert "is asked for texts, but none of real has captions; say where they are (--data.captions txt)" in line
    line = refused(capsys, *of_model, "--model", parts / "plain", *clip, "--out", "y")
    assert line == f"dual_encoder: got one, but {parts / 'plain'} was not trained with texts; leave it out"
    line = refused(capsys, *of_model, "--model", parts / "model", *clip, "--guidance", "1,1", "--out", "y")
    assert line == "guidance: got [1.0, 1.0], expected different scales"
    assert not Path("y").exists()
