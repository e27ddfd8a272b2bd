"""Prompts on the command line: the files, the manifest, and one line for every mistake."""

import json
from pathlib import Path

import numpy as np
import pytest

from maskgen.tasks.image.generation import generate
from maskgen.tasks.pipeline import Pipeline
from tests.support import text_encoder_folder, text_pipeline
from tests.tasks.commandline import files, pixels, refused, run


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    text_pipeline(text_encoder_folder(folder / "encoder"), classes=2).save_pretrained(folder / "model")
    return folder / "model"


def test_a_prompt(texts: Path, place: Path) -> None:
    asked = ("--prompt", "a red cat", "--negative_prompt", "a dog", "--guidance", 2, "--count", 2, "--seed", 4)
    run("generate", "--model", texts, *asked, "--out", "out")
    pipe = Pipeline.from_pretrained(texts, device="cpu")
    made = generate(pipe, prompt="a red cat", negative_prompt="a dog", guidance=2.0, seeds=[4, 5])
    for seed, image in zip((4, 5), made, strict=True):
        assert np.array_equal(pixels(f"out/seed-{seed:08d}.png"), np.asarray(image))
    manifest = json.loads(Path("out/manifest.json").read_text(encoding="utf-8"))
    assert manifest["negative_prompt"] == "a dog"
    assert [item["prompt"] for item in manifest["items"]] == ["a red cat"] * 2


def test_a_file_of_prompts_and_its_manifest(texts: Path, place: Path) -> None:
    Path("prompts.txt").write_text("\ufeffa red cat\n\n  ein blauer Hund \n", encoding="utf-8")
    run("generate", "--model", texts, "--prompts", "prompts.txt", "--count", 2, "--labels", "one", "--out", "first")
    manifest = json.loads(Path("first/manifest.json").read_text(encoding="utf-8"))
    wanted = ["a red cat", "a red cat", "ein blauer Hund", "ein blauer Hund"]
    assert [item["prompt"] for item in manifest["items"]] == wanted
    assert {item["label"] for item in manifest["items"]} == {1}
    run("generate", "--manifest", "first/manifest.json", "--out", "second")
    assert files(Path("first")) == files(Path("second"))
    for name in files(Path("first")):
        if name.endswith(".png"):
            assert Path("first", name).read_bytes() == Path("second", name).read_bytes()


def test_an_edit_by_a_text(texts: Path, place: Path) -> None:
    run("generate", "--model", texts, "--prompt", "a cat", "--out", "made")
    picture = next(Path("made").glob("seed*.png"))
    run("outpaint", "--model", texts, "--image", picture, "--right", 8, "--prompt", "a dog", "--out", "edited")
    assert json.loads(Path("edited/manifest.json").read_text(encoding="utf-8"))["prompt"] == "a dog"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt", "a", "--prompts", "b.txt"), "prompts: give either prompt"),
        (("--prompts", "missing.txt"), "missing.txt: no such file; expected a text file with a prompt a line"),
        (("--prompts", "empty.txt"), "empty.txt: got no prompt, expected one a line"),
        (("--prompts", "latin.txt"), "latin.txt: not UTF-8 text"),
        (("--prompt", "a", "--per_class", "2"), "per_class: got it with a prompt"),
        (("--prompt", "a", "--negative_prompt", "b"), "negative_prompt: got one, but guidance is 0"),
        (("--prompt", "a " * 30, "--long_prompts", "refuse"), "is longer than the text encoder's window"),
    ],
)
def test_mistakes(
    texts: Path, place: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    Path("empty.txt").write_text("\n \n", encoding="utf-8")
    Path("latin.txt").write_bytes("Stra\xdfe".encode("latin-1"))
    assert message in refused(capsys, "generate", "--model", str(texts), *options, "--out", "out")
