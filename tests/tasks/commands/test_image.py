"""``maskgen generate`` and the editing commands: what they write, and one line with status 2 for every mistake."""

import dataclasses
import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.sampling.settings import Sampling
from maskgen.tasks.image.class_swap import swap_class
from maskgen.tasks.image.generation import generate
from maskgen.tasks.image.inpainting import inpaint
from maskgen.tasks.image.outpainting import outpaint
from maskgen.tasks.pipeline import Pipeline
from tests.support import tiny_pipeline
from tests.tasks.commandline import HEIGHT, WIDTH, edits, files, mask, picture, pixels, refused, run


def test_generate(model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("generate", "--model", model, "--labels", "7,two,Nine", "--count", 2, "--seed", 5, "--out", "out/deep")
    assert "6 images, grid.png and manifest.json in out/deep" in capsys.readouterr().out
    wanted = [(7, 5), (7, 6), (2, 7), (2, 8), (9, 9), (9, 10)]
    names = [f"label-{label:04d}_seed-{seed:08d}.png" for label, seed in wanted]
    assert files(Path("out/deep")) == sorted([*names, "grid.png", "manifest.json"])
    pipe = Pipeline.from_pretrained(model, device="cpu")
    made = generate(pipe, [label for label, _ in wanted], seeds=[seed for _, seed in wanted])
    for name, image in zip(names, made, strict=True):
        assert np.array_equal(pixels(f"out/deep/{name}"), np.asarray(image))
    with Image.open("out/deep/grid.png") as grid:
        assert grid.size == (6 * 34 + 2, 36)
    manifest = json.loads(Path("out/deep/manifest.json").read_text(encoding="utf-8"))
    assert manifest["task"] == "generate"
    assert manifest["model"] == str(model)
    assert manifest["items"][3] == {"file": names[3], "label": 2, "seed": 8}
    assert manifest["sampling"]["steps"] == 3
    assert manifest["environment"]["torch"] == torch.__version__.split("+")[0]


def test_all_classes(model: Path, place: Path) -> None:
    run("generate", "--model", model, "--out", "out")
    names = [f"label-{label:04d}_seed-{label:08d}.png" for label in range(10)]
    assert files(Path("out")) == sorted([*names, "grid.png", "manifest.json"])


def test_a_class_that_is_called_all(place: Path) -> None:
    pipe = tiny_pipeline()
    names = ("all", *pipe.config.class_names[1:])
    pipe.config = dataclasses.replace(pipe.config, class_names=names)
    pipe.save_pretrained("m")
    run("generate", "--model", "m", "--labels", "all", "--out", "out")
    assert files(Path("out")) == ["grid.png", "label-0000_seed-00000000.png", "manifest.json"]


def test_a_manifest_makes_the_same_files_again(model: Path, place: Path) -> None:
    changes = ("--steps", 4, "--guidance", 1.5, "--sampling.choice_temperature", 2.0)
    run("generate", "--model", model, "--labels", "1,8", "--count", 2, "--seed", 3, *changes, "--out", "first")
    again = ("--labels", 5, "--seed", 99, "--batch_size", 1)  # neither label nor seed matters then
    run("generate", "--manifest", "first/manifest.json", "--out", "second", *again)
    assert files(Path("first")) == files(Path("second"))
    for name in files(Path("first")):
        assert Path("first", name).read_bytes() == Path("second", name).read_bytes()
    sampling = json.loads(Path("first/manifest.json").read_text(encoding="utf-8"))["sampling"]
    assert (sampling["steps"], sampling["guidance"]["scale"], sampling["choice_temperature"]) == (4, 1.5, 2.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--labels", 10), "label: got 10, expected 0 to 9"),
        (("--labels=-1",), "label: got -1, expected 0 to 9"),
        (
            ("--labels", "eleven"),
            "label: got 'eleven', expected a number from 0 to 9 or a class name; the nearest names are seven",
        ),
        (("--labels", "1,,2"), "labels: got '1,,2', expected class numbers or names separated by commas"),
        (("--steps", 0), "steps: got 0, expected at least 1"),
        (("--steps", "three"), "steps: expected int, got three; see `maskgen generate --help`"),
        (("--sampling.steps", 0), "steps: got 0, expected at least 1"),
        (("--sampling.schedule", "cosinus"), "schedule: got 'cosinus', expected 'cosine', 'arccos', 'uniform'"),
        (("--sampling.select", "best"), "selector: got 'best', expected one of 'confidence', 'random'"),
        (("--sampling.guidance.ramp", "steep"), "guidance.ramp"),
        (("--sampling.guidance", 2), "sampling.guidance: this option is called sampling.guidance.scale now"),
        (("--sampling.guidance=2",), "sampling.guidance: this option is called sampling.guidance.scale now"),
        (("--sampling.top-p", 0.9), "sampling.top_p: this option is called sampling.filter.top_p now"),
        (("--sampling.reuse=2",), "sampling.reuse: this option is called sampling.speed.reuse now"),
        (("--config", "former.yaml"), "sampling.guidance: this option is called sampling.guidance.scale now"),
        (("--config=former_too.yaml",), "sampling.compile: this option is called sampling.speed.compile now"),
        (("--sampling.stepz", 3), "'stepz' is not accepted; see `maskgen generate --help`"),
        (("--stepz", 3), "unrecognized arguments: --stepz 3; perhaps --steps"),
        (("--guidance=-1",), "guidance.scale: got -1.0, expected 0 (none) or more"),
        (("--guidance", "nan"), "guidance: expected float, got nan"),
        (("--count", 0), "count: got 0, expected at least 1"),
        (("--seed", -1), "seeds: got -1, expected 0 <= seed"),
        (("--seed", 1.5), "seed: expected int, got 1.5"),
        (("--batch_size", 0), "batch_size: got 0, expected at least 1"),
        (("--device", "toaster"), "device: got 'toaster', which cannot be used here; expected cpu"),
        (("--manifest", "nowhere.json"), "nowhere.json: no such file"),
        (("--manifest", "image.png"), "image.png: not a JSON file"),
    ],
)
def test_generate_refuses(
    words: tuple[object, ...], message: str, model: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("former.yaml").write_text("sampling: {guidance: 2}", encoding="utf-8")
    Path("former_too.yaml").write_text("sampling:\n  compile: true", encoding="utf-8")
    assert message in refused(capsys, "generate", "--model", model, "--out", "out", *words)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"task": "inpaint"}, "not a manifest of `maskgen generate`"),
        ([], "not a manifest of `maskgen generate`"),
        (
            {"task": "generate", "items": [{"label": 1}]},
            "damaged; expected model, sampling, and items with label and seed",
        ),
        ({"task": "generate", "items": [], "model": "M", "sampling": {"stepz": 1}}, "stepz"),
        ({"task": "generate", "items": [], "model": "nowhere", "sampling": {}}, "nowhere: no such model folder"),
    ],
)
def test_foreign_manifests(content: Any, message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("manifest.json").write_text(json.dumps(content), encoding="utf-8")
    assert message in refused(capsys, "generate", "--manifest", "manifest.json", "--out", "out")
    assert not Path("out").exists()


@pytest.mark.parametrize("task", ["inpaint", "outpaint", "swap-class"])
def test_edits(task: str, model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*edits(model)[task], "--count", 2, "--seed", 4, "--out", "out")
    assert "2 image(s) and manifest.json in out" in capsys.readouterr().out
    names = [f"{task}_seed-{seed:08d}.png" for seed in (4, 5)]
    assert files(Path("out")) == sorted([*names, "manifest.json"])
    pipe = Pipeline.from_pretrained(model, device="cpu")
    plain: dict[str, Any] = {"label": 4, "seeds": [4, 5]}
    expected = {
        "inpaint": lambda: inpaint(pipe, "image.png", "mask.png", **plain),
        "outpaint": lambda: outpaint(pipe, "image.png", right=10, top=6, left=0, bottom=0, **plain),
        "swap-class": lambda: swap_class(pipe, "image.png", box=(4, 6, 20, 16), **plain),
    }[task]()
    for name, image in zip(names, expected, strict=True):
        assert np.array_equal(pixels(f"out/{name}"), np.asarray(image))
    manifest = json.loads(Path("out/manifest.json").read_text(encoding="utf-8"))
    assert (manifest["task"], manifest["image"], manifest["label"]) == (task, "image.png", "four")
    assert manifest["items"][1] == {"file": names[1], "seed": 5}


@pytest.mark.parametrize("task", ["inpaint", "outpaint", "swap-class"])
def test_models_without_classes_are_edited(
    task: str, model: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tiny_pipeline()
    size: dict[str, Any] = {"axes": plain.axes, "width": 16, "layers": 1, "heads": 2}
    config = ModernConfig(vocab_size=plain.tokenizer.vocab_size, num_classes=0, **size)
    settings = dataclasses.replace(plain.config, class_names=(), sampling=Sampling(steps=2))
    Pipeline(plain.tokenizer, ModernTransformer(config), settings, "cpu").save_pretrained("classless")
    words = list(edits(Path("classless"))[task])
    assert "this model has no classes" in refused(capsys, *words, "--out", "out")
    label = words.index("--label")
    run(*words[:label], *words[label + 2 :], "--out", "out")
    assert f"{task}_seed-00000000.png" in files(Path("out"))


@pytest.mark.parametrize("task", ["inpaint", "outpaint", "swap-class"])
def test_edits_take_steps_and_guidance(task: str, model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*edits(model)[task], "--steps", 4, "--guidance", 1.5, "--out", "out")
    assert "step" in capsys.readouterr().err  # the progress bar
    sampling = json.loads(Path("out/manifest.json").read_text(encoding="utf-8"))["sampling"]
    assert (sampling["steps"], sampling["guidance"]["scale"]) == (4, 1.5)


def test_a_swap_records_where_it_starts_and_with_what(model: Path, place: Path) -> None:
    run(*edits(model)["swap-class"], "--start_step", 1, "--out", "out")
    manifest = json.loads(Path("out/manifest.json").read_text(encoding="utf-8"))
    assert (manifest["start_step"], manifest["sampling"]["steps"]) == (1, 12)


def test_a_word_of_a_name_is_told(model: Path, place: Path) -> None:
    pipe = Pipeline.from_pretrained(model, device="cpu")
    names = ("House sparrow", "tench, Tinca tinca", *pipe.config.class_names[2:])
    birds = Pipeline(pipe.tokenizer, pipe.transformer, dataclasses.replace(pipe.config, class_names=names), "cpu")
    birds.save_pretrained("birds")
    with pytest.warns(UserWarning, match="label: 'sparrow' is taken as class 0, 'House sparrow'"):
        run("generate", "--model", "birds", "--labels", "sparrow,tench, tinca tinca,seven", "--out", "out")
    items = json.loads(Path("out/manifest.json").read_text(encoding="utf-8"))["items"]
    assert [item["label"] for item in items] == [0, 1, 7]


def turned(path: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(HEIGHT, WIDTH).save(path, exif=exif)


def transparent(path: str) -> None:
    image = picture().convert("RGBA")
    image.putalpha(mask())
    image.save(path)


USABLE: dict[str, Callable[[str], None]] = {
    "grey": lambda path: picture().convert("L").save(path),
    "rgba": transparent,
    "16-bit": lambda path: Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257).save(path),
    "palette": lambda path: picture().convert("P").save(path),
    "exif-rotated": turned,
}


@pytest.mark.parametrize("kind", USABLE)
def test_unusual_pictures_are_edited(kind: str, model: Path, place: Path) -> None:
    USABLE[kind]("image.png")
    for task, words in edits(model).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if kind == "16-bit" else "error")  # see test_originals.py
            run(*words, "--out", task)
        with Image.open(f"{task}/{task}_seed-00000000.png") as made:
            assert made.mode == ("RGBA" if kind == "rgba" else "RGB")
            assert made.size == ((WIDTH + 10, HEIGHT + 6) if task == "outpaint" else (WIDTH, HEIGHT))


def truncated(path: str) -> None:
    buffer = io.BytesIO()
    picture(64, 64).save(buffer, "PNG")
    Path(path).write_bytes(buffer.getvalue()[:3000])


UNUSABLE: dict[str, tuple[Callable[[str], Any], str]] = {
    "no image": (lambda path: Path(path).write_text("text", encoding="utf-8"), "got a file that is no image, expected"),
    "empty": (lambda path: Path(path).write_bytes(b""), "got an empty file, expected an image file"),
    "truncated": (truncated, "got a damaged image"),
    "1x1": (lambda path: picture(1, 1).save(path), "got 1 x 1 pixels, expected 2 or more on each side"),
    "missing": (os.remove, "no such file, expected an image file"),
    "a folder": (lambda path: (os.remove(path), os.mkdir(path)), "got a folder, expected an image file"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
@pytest.mark.parametrize("task", ["inpaint", "outpaint", "swap-class"])
def test_pictures_that_cannot_be_edited(
    task: str, kind: str, model: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = UNUSABLE[kind]
    make("image.png")
    line = refused(capsys, *edits(model)[task], "--out", "out")
    assert line.startswith("image.png: ")
    assert message in line
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mask(0), "mask: nothing to repaint"),
        (lambda: mask(255), "mask: nothing is kept"),
        (
            lambda: mask(width=WIDTH + 1),
            f"mask: got 37 x 40 pixels, expected {WIDTH} x {HEIGHT} as the image; resize it",
        ),
        (lambda: mask(width=1, height=1), "got 1 x 1 pixels"),
    ],
)
def test_masks_that_cannot_be_used(
    make: Callable[[], Image.Image], message: str, model: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make().save("mask.png")
    assert message in refused(capsys, *edits(model)["inpaint"], "--out", "out")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        ("inpaint", ("--label", 12), "label: got 12, expected 0 to 9"),
        ("inpaint", ("--label", "dog"), "label: got 'dog', expected a number from 0 to 9 or a class name"),
        ("inpaint", ("--dilation", -1), "dilation: got -1"),
        ("inpaint", ("--steps", 0), "steps: got 0, expected at least 1"),
        ("inpaint", ("--count", 0), "count: got 0, expected at least 1"),
        ("outpaint", ("--right", -3), "right: got -3"),
        ("outpaint", ("--right", 0, "--top", 0), "0"),
        ("outpaint", ("--label", 12), "label: got 12, expected 0 to 9"),
        ("outpaint", ("--sampling.schedule", "x"), "schedule: got 'x', expected"),
        ("swap-class", ("--box", "[0,0,50,5]"), "box: got top 0, left 0, height 50, width 5; expected"),
        ("swap-class", ("--box", "0,0,5"), "box: expected 4 values, got [0, 0, 5]"),
        ("swap-class", ("--box", "here"), "box: expected values separated by commas, got here"),
        ("swap-class", ("--label", 12), "label: got 12, expected 0 to 9"),
        ("swap-class", ("--bocks", "1"), "unrecognized arguments: --bocks"),
    ],
)
def test_edits_refuse(
    task: str, words: tuple[object, ...], message: str, model: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *edits(model)[task], *words, "--out", "out")
    assert not Path("out").exists()
