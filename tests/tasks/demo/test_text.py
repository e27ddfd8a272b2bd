"""The text demo from end to end at toy size, and its reader: both stages, pictures, numbers, report, second run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import maskgen.tasks.demo.text
from maskgen.checkpoint import read_json
from maskgen.tasks.cli import main
from maskgen.tasks.data import Scenes
from maskgen.tasks.demo.reader import answers, count_right, train_reader
from maskgen.tasks.demo.stages import config_file
from maskgen.tasks.pipeline import Pipeline
from tests.support import text_encoder_folder
from tests.tasks.commandline import refused

SETTINGS = {
    "steps": 2,
    "batch_size": 4,
    "optimizer": {"lr": 1.0e-3, "warmup_steps": 1},
    "log_every": 2,
    "validate_every": 0,
    "show_every": 0,
    "checkpoint_every": 2,
    "tracker": None,
}
DATA = {"class_path": "maskgen.tasks.data.Scenes", "init_args": {"count": 12, "test_count": 4}}
TOKENIZER: dict[str, Any] = {
    "tokenizer": {
        "class_path": "maskgen.tokenizers.image.VQGAN",
        "init_args": {
            "config": {
                "channels": 4,
                "multipliers": [1, 1, 2],
                "res_blocks": 1,
                "shortcut": "input",
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
        "class_path": "maskgen.models.ModernTransformer",
        "init_args": {
            "config": {
                **{"vocab_size": 16, "num_classes": 0, "axes": [6, 6], "width": 16, "layers": 1, "heads": 2},
                "context": {"width": 16, "pooled": 16, "every": 1},
            }
        },
    },
    "text": {
        "class_path": "maskgen.tasks.conditions.text.PretrainedText",
        "init_args": {"config": {"source": "nobody/has-this", "length": 20, "pooled": "mean"}},
    },
    "data": DATA,
    "masking": {"label_smoothing": 0.0},
    "settings": SETTINGS,
    "sampling": {"steps": 2, "guidance": {"scale": 1.0}},
}
PICTURES = {
    *(f"prompt-{number}.png" for number in range(3)),
    *(f"{name}-{number}.png" for name in ("unseen", "left-out") for number in range(2)),
    *("held-out.png", "guidance.png", "negative.png", "edited.png", "revised.png"),
}
STAGES = ("train_tokenizer", "train_transformer", "draw", "measure", "pictures")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("demo")
    for name, content in (("tokenizer", TOKENIZER), ("transformer", TRANSFORMER)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    words = ["demo", "text", f"--out={folder / 'run'}", f"--text={text_encoder_folder(folder / 'encoder')}"]
    words += [f"--{name}_config={folder / f'{name}.yaml'}" for name in ("tokenizer", "transformer")]
    run_small(words)
    return folder / "run", words


def run_small(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_SCENES", 8), ("_PART", 8), ("_READER_STEPS", 2)):
            patch.setattr(maskgen.tasks.demo.text, name, value)
        with pytest.warns(UserWarning, match="longer than the text encoder's window"):
            main(words)


def test_numbers(run: tuple[Path, list[str]]) -> None:
    metrics = read_json(run[0] / "metrics.json")
    assert set(maskgen.tasks.demo.text._notes()) <= set(metrics)
    assert (metrics["scenes"], metrics["sampling_steps"]) == (8, 2)
    shares = [
        value
        for name, value in metrics.items()
        if re.match("digit|colour|size|place|ground|scene_|avoided|edited", name)
    ]
    assert len(shares) > 30
    assert all(0 <= share <= 1 for share in shares)
    assert metrics["scene_drawn"] < 0.5  # two steps teach nothing: a measure that says otherwise is broken
    assert metrics["seconds_total"] == pytest.approx(sum(metrics[f"seconds_{name}"] for name in STAGES), abs=0.5)


def test_report_and_a_second_run(run: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    out, words = run
    assert {path.name for path in (out / "pictures").iterdir()} == PICTURES
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == len(PICTURES)
    assert "a big red 3 at the top left on a black ground" in page
    before = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    capsys.readouterr()
    run_small(words)
    assert capsys.readouterr().out.count("finished before, reused") == 2
    after = read_json(out / "metrics.json")
    same = [name for name in before if not name.startswith(("seconds", "peak"))]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_the_model_takes_prompts(run: tuple[Path, list[str]], tmp_path: Path) -> None:
    assert Pipeline.from_pretrained(run[0], device="cpu").text is not None
    main(["generate", f"--model={run[0]}", "--prompt=a red 3", f"--out={tmp_path / 'out'}"])
    assert len(list((tmp_path / "out").glob("seed-*.png"))) == 1


def test_the_reader_tells_scenes_apart() -> None:
    data = Scenes(count=2000, test_count=60)
    reader = train_reader(data.train(), steps=60)
    numbers = range(60)
    scenes, images = data.test().scenes(numbers), data.test().batch(numbers, numbers)["images"]
    right = count_right(reader, images, scenes)
    assert right["colour"] > 0.8
    assert right["place"] > 0.8
    assert right["ground"] > 0.9
    others = count_right(reader, images, [*scenes[1:], scenes[0]])
    assert all(others[name] < 0.8 for name in ("digit", "colour", "size", "place", "ground", "scene"))
    blank = count_right(reader, torch.zeros_like(images), scenes)
    assert blank["scene"] == 0


def test_right_answers_are_all_right_and_each_slip_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Scenes(test_count=20)
    scenes = data.test().scenes(range(20))
    truth = answers(scenes)
    read: dict[str, Any] = {}
    monkeypatch.setattr("maskgen.tasks.demo.reader.read_scenes", lambda reader, images: read)

    def shares(**changes: Any) -> dict[str, float]:
        read.clear()
        read.update({name: changes.get(name, table) for name, table in truth.items()})
        return count_right(None, torch.empty(0), scenes)  # type: ignore[arg-type]

    assert set(shares().values()) == {1.0}
    for name in ("digit", "colour", "size"):
        wrong = truth[name].clone()
        row, place = 0, scenes[0].figures[0].place
        wrong[row, place] = (wrong[row, place] + 1) % 2
        found = shares(**{name: wrong})
        assert found[name] < 1
        assert found["scene"] == pytest.approx(0.95)
    stray = truth["digit"].clone()
    stray[0, next(place for place in range(4) if stray[0, place] == 10)] = 3  # something where nothing should be
    assert shares(digit=stray)["place"] < 1
    assert shares(digit=stray)["digit"] == 1
    assert shares(digit=stray)["scene"] == pytest.approx(0.95)
    assert shares(ground=(truth["ground"] + 1) % 3)["scene"] == 0


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("scenes_tokenizer", "scenes_transformer"):
        assert config_file(name).is_file()
    out = tmp_path / "out"
    monkeypatch.setattr(maskgen.tasks.demo.text, "ENCODER", "no_such_package_anywhere")
    assert "maskgen[demo-text]" in refused(capsys, "demo", "text", f"--out={out}")
    assert not out.exists()
