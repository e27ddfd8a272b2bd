"""The example of a modality of one's own: trained, sampled and edited by the same commands, in a minute."""

import json
from pathlib import Path

import pytest
import torch

from examples.new_modality.names import SCRIPTS, CharacterNames, TextConfig, TextTokenizer, as_signal
from maskgen.checkpoint import save_module
from maskgen.tasks.cli import main
from maskgen.tokenizers.base import check_contract

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = '["examples.new_modality.names"]'
NAME = "GREEK SMALL LETTER ALPHA"


def run(*words: object) -> None:
    main([str(word) for word in words])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    save_module(TextTokenizer(TextConfig()), folder / "tokenizer")
    config = ROOT / "examples" / "new_modality" / "names.yaml"
    places = ("--tokenizer", folder / "tokenizer", "--out", folder / "model")
    run(
        "train", "transformer", "--config", config, *places, "--settings.steps", 200, "--settings.checkpoint_every", 100
    )
    return folder / "model"


def test_the_tokenizer_keeps_its_contract(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(TextConfig())
    check_contract(tokenizer)
    signal = as_signal([NAME, "x"], 32)
    assert torch.equal(tokenizer.decode(tokenizer.encode(signal), (32,)), signal)
    tokenizer.write(signal[0], tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text(encoding="ascii") == f"{NAME}\n"
    assert torch.equal(tokenizer.read(tmp_path / "a.txt"), signal[:1])


def test_the_data_are_real() -> None:
    data = CharacterNames()
    assert len(data.train()) > 2000
    assert set(data.labels.tolist()) == set(range(len(SCRIPTS)))


def test_generated_names_begin_with_their_script(model: Path, tmp_path: Path) -> None:
    run("generate", "--model", model, "--plugins", PLUGINS, "--count", 4, "--out", tmp_path)
    items = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["items"]
    right = sum((tmp_path / item["file"]).read_text().startswith(SCRIPTS[item["label"]]) for item in items)
    assert right >= 0.5 * len(items)  # one in eight by chance; half of the config's steps


def test_infilling_keeps_every_other_letter(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("name.txt").write_text(NAME, encoding="ascii")
    common = ("infill", "--model", model, "--plugins", PLUGINS, "--label", "GREEK", "--source", "name.txt")
    run(*common, "--start", 6, "--stop", 12, "--count", 3, "--out", "out")
    made = [path.read_text(encoding="ascii") for path in sorted(Path("out").glob("*.txt"))]
    assert len(made) == 3
    for text in made:
        assert (text[:6], text[12:].rstrip()) == (NAME[:6], NAME[12:])


@pytest.mark.parametrize(("span", "message"), [((6, 60), "expected whole numbers"), ((3, 3), "start < stop <= 32")])
def test_spans_that_are_refused(
    span: tuple[int, int], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "name.txt").write_text(NAME, encoding="ascii")
    common = ("infill", "--model", model, "--plugins", PLUGINS, "--label", "GREEK", "--source", tmp_path / "name.txt")
    with pytest.raises(SystemExit):
        run(*common, "--start", span[0], "--stop", span[1], "--out", tmp_path / "out")
    assert message in capsys.readouterr().err


def test_a_text_that_is_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "name.txt").write_text("GREEK SMALL LETTER ALPHA WITH TONOS", encoding="ascii")
    with pytest.raises(ValueError, match=r"name\.txt: got 35 characters, expected at most 32; shorten it"):
        TextTokenizer(TextConfig()).read(tmp_path / "name.txt")
