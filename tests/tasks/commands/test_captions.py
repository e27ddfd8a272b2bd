"""Captions on the command line: from pictures and their texts to a model that draws what a prompt says."""

from pathlib import Path
from typing import Any

import pytest

from maskgen.checkpoint import save_module
from maskgen.tasks.pipeline import Pipeline
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from tests.support import text_encoder_folder
from tests.tasks.commandline import TRANSFORMER, picture, refused, run, write_yaml

LENGTH = 20  # of the encoder of the tests
PRETRAINED = "maskgen.tasks.conditions.text.PretrainedText"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_encoder_folder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with twelve pictures and their captions, a tokenizer, and settings that lack the text encoder."""
    (tmp_path / "data").mkdir()
    for number in range(12):
        picture(10 + number, 12).save(tmp_path / "data" / f"{number}.png")
        (tmp_path / "data" / f"{number}.txt").write_text(f"a {number}\nnumber {number} of many\n", encoding="utf-8")
    save_module(ToyTokenizer(ToyTokenizerConfig(levels=16, patch=2)), tmp_path / "toy")
    return tmp_path


def yaml(place: Path, **changes: Any) -> Path:
    told = {
        "data__init_args__classes": False,
        "data__init_args__captions": "txt",
        "transformer__init_args__config__num_classes": 0,
        "transformer__init_args__config__context": {"width": 16, "every": 1},
    }
    return write_yaml(TRANSFORMER, place / "settings.yaml", **{**told, **changes})


@pytest.mark.parametrize("how", ["yaml", "options"])
def test_pictures_with_captions_to_a_picture_of_a_prompt(how: str, place: Path, encoder: Path) -> None:
    named = {"class_path": PRETRAINED, "init_args": {"config": {"source": str(encoder), "length": LENGTH}}}
    given = ("--text", PRETRAINED, "--text.config.source", encoder, "--text.config.length", LENGTH)
    words = ("--config", yaml(place, text=named)) if how == "yaml" else ("--config", yaml(place), *given)
    run("train", "transformer", *words, "--tokenizer", place / "toy", "--out", place / "model")
    assert (place / "model" / "transformer" / "samples" / "captions.txt").is_file()
    run("generate", "--model", place / "model", "--prompt", "number 3 of many", "--guidance", 2, "--out", place / "out")
    assert (place / "out" / "seed-00000000.png").is_file()
    assert Pipeline.from_pretrained(place / "model", device="cpu").text is not None


def test_tokenize_keeps_features(place: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ("--text", PRETRAINED, "--text.config.source", encoder, "--text.config.length", LENGTH)
    data = ("--data", "maskgen.tasks.data.Folder", "--data.root", place / "data", "--data.size", 8)
    told = (*data, "--data.classes", "false", "--data.captions", "txt")
    words = ("tokenize", "--tokenizer", place / "toy", *told, "--out", place / "tokens")
    run(*words, *text)
    assert "text: encoding 13 different captions" in capsys.readouterr().out  # the empty prompt is one
    assert (place / "tokens" / "text" / "text-00000.safetensors").is_file()
    shards = ("--data", "maskgen.tasks.data.TokenShards", "--data.root", place / "tokens")
    trained = (
        "train",
        "transformer",
        "--config",
        yaml(place),
        *shards,
        "--tokenizer",
        place / "toy",
        "--out",
        place / "a",
    )
    run(*trained, *text)
    assert "text: encoding" not in capsys.readouterr().out
    said = refused(capsys, *trained[:-1], place / "b")
    assert (
        "text: got no text encoder, but the data have captions; name one, or set captions: false of the tokens" in said
    )
    assert "holds features of the text encoder" in refused(capsys, *words, *text[:-1], LENGTH - 1)


def test_an_encoder_that_is_not_there(place: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", "transformer", "--config", yaml(place), "--tokenizer", place / "toy", "--out", place / "model")
    assert "is no folder with a text encoder" in refused(capsys, *words, "--text", place / "nothing")
