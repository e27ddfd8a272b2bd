"""Data that are wrong, on the command line: one line each; broken pictures are skipped and counted; places come back."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import maskgen.tasks.data.patience
from maskgen.tokenizers.training.reconstruction import ReconstructionTraining
from tests.tasks.commandline import TOKENIZER, TRANSFORMER, picture, refused, run, write_yaml
from tests.tasks.data.broken_pictures import counted, fill
from tests.tasks.data.images.shard_samples import write_shards

WORDS = ("train", "tokenizer", "--config", "tokenizer.yaml", "--out")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No pauses, and an index of this test's own."""
    monkeypatch.setattr(maskgen.tasks.data.patience, "PAUSE", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.filterwarnings("ignore:.* skipped so far")
@pytest.mark.parametrize("workers", [0, 1])
def test_exactly_the_broken_pictures_are_counted(workers: int, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = fill(place / "data", good=100, broken=25)
    write_yaml(TOKENIZER, place / "tokenizer.yaml", data__init_args__broken=0.25, settings__workers=workers)
    run(*WORDS, "out", "--settings.steps", 8, "--settings.batch_size", 20, "--settings.checkpoint_every", 3)
    assert counted(Path("out/skipped.jsonl")) == wrong
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(*WORDS, "less", "--data.init_args.broken", 0.1, "--settings.steps", 8, "--settings.batch_size", 20)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        f"maskgen: error: {place}/data: 13 of 125 examples cannot be used, expected at most a share of 0.1"
    )


@pytest.mark.filterwarnings("ignore:.* skipped so far")
def test_broken_pictures_and_a_resumed_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for a broken picture does not depend on what was read before."""
    fill(place / "data", good=20, broken=5)
    write_yaml(TOKENIZER, place / "tokenizer.yaml", data__init_args__broken=0.25)
    run(*WORDS, "whole", "--settings.steps", 6)
    real = ReconstructionTraining.loss

    def fail(self: Any, network: str, modules: Any, batch: Any, step: int) -> Any:
        if step == 3:
            raise ValueError("enough")
        return real(self, network, modules, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(ReconstructionTraining, "loss", fail)
        with pytest.raises(SystemExit):
            run(*WORDS, "parts", "--settings.steps", 6)
    run(*WORDS, "parts", "--settings.steps", 6)
    assert Path("whole/model.safetensors").read_bytes() == Path("parts/model.safetensors").read_bytes()


def shard_config(folder: Path, shards: Path) -> None:
    content = {
        **TOKENIZER,
        "data": {"class_path": "maskgen.tasks.data.images.shards.ShardImages", "init_args": {"size": 8}},
    }
    content["data"]["init_args"]["shards"] = str(shards)  # type: ignore[index]
    (folder / "tokenizer.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def test_shards_that_vanish_mid_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run stops with status 75 and one line, and goes on as if nothing had happened once they are back."""
    paths = write_shards(place / "shards", shards=4)
    shard_config(place, place / "shards")
    run(*WORDS, "whole", "--settings.steps", 8)
    real = ReconstructionTraining.loss

    def lose(self: Any, network: str, modules: Any, batch: Any, step: int) -> Any:
        if step == 5:
            for path in paths:
                os.truncate(path, 100)  # even files that are open become unreadable
        return real(self, network, modules, batch, step)

    kept = place / "kept"
    shutil.copytree(place / "shards", kept)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(ReconstructionTraining, "loss", lose)
        with pytest.raises(SystemExit) as stopped:
            run(*WORDS, "parts", "--settings.steps", 8)
    assert stopped.value.code == 75
    last = capsys.readouterr().err.splitlines()[-1]
    assert "shorter than it was" in last
    assert last.endswith("run the same command again to go on from the last checkpoint")
    shutil.rmtree(place / "shards")
    line = refused(capsys, *WORDS, "parts", "--settings.steps", 8)
    assert "shards: got" in line or "does not exist" in line
    shutil.copytree(kept, place / "shards")
    run(*WORDS, "parts", "--settings.steps", 8)
    assert Path("whole/model.safetensors").read_bytes() == Path("parts/model.safetensors").read_bytes()


def test_a_folder_of_images_that_vanishes(
    configs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = ReconstructionTraining.loss

    def lose(self: Any, network: str, modules: Any, batch: Any, step: int) -> Any:
        if step == 2 and Path("data").exists():
            Path("data").rename("away")
        return real(self, network, modules, batch, step)

    run(*WORDS, "whole")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(ReconstructionTraining, "loss", lose)
        with pytest.raises(SystemExit) as stopped:
            run(*WORDS, "parts")
    assert stopped.value.code == 75
    assert "No such file or directory" in capsys.readouterr().err.splitlines()[-1]
    Path("away").rename("data")
    run(*WORDS, "parts")
    assert Path("whole/model.safetensors").read_bytes() == Path("parts/model.safetensors").read_bytes()
    assert not Path("parts/skipped.jsonl").exists()  # good pictures out of reach are not broken ones


def test_empty_folders(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("data")
    Path("data/cat").mkdir(parents=True)
    assert refused(capsys, *WORDS, "out").startswith(
        f"{configs}/data: no images found; expected names that end in .apng"
    )
    Path("shards").mkdir()
    shard_config(configs, configs / "shards")
    assert refused(capsys, *WORDS, "out") == f"shards: got '{configs}/shards', where there are no tar files"
    assert not Path("out").exists()


def test_one_class_only(configs: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("data/cat")
    run(*WORDS, "m/tokenizer")
    words = ("train", "transformer", "--config", "transformer.yaml", "--tokenizer", "m/tokenizer", "--out", "m")
    run(*words)
    assert "transformer: num_classes 1, as many as the data have; its settings say 2" in capsys.readouterr().out
    run("generate", "--model", "m", "--labels", "dog", "--out", "out")
    assert Path("out/label-0000_seed-00000000.png").is_file()


def test_without_classes(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sub-folders mean nothing: a model of the pictures alone."""
    run(*WORDS, "m/tokenizer", "--data.init_args.classes", "false")
    changes = {"transformer__init_args__config__num_classes": 0, "data__init_args__classes": False}
    write_yaml(TRANSFORMER, configs / "transformer.yaml", **changes, masking__label_dropout=0.0)
    run("train", "transformer", "--config", "transformer.yaml", "--tokenizer", "m/tokenizer", "--out", "m")
    run("generate", "--model", "m", "--count", 2, "--out", "out")
    assert sorted(path.name for path in Path("out").glob("seed-*")) == ["seed-00000000.png", "seed-00000001.png"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "a/0,a\n",
            "labels.txt: 6 of 6 images have no label (0.png, 1.png, 2.png, ...); 1 lines name no image (a.png/0); write",
        ),
        ("0,a\n1,b\n", "labels.txt: 4 of 6 images have no label (2.png, 3.png, 4.png, ...); add a line for each"),
        ("0,a\n1,b\n2,a\n3,b\n4,a\n5,a\n6,b\n", "labels.txt: 1 labels are for images that do not exist (6.png)"),
        ("0,0\n1,0\n2,3\n3,3\n4,0\n5,1\n", "labels.txt: got class numbers up to 3, but no image for 1 of them (2)"),
        ("0,a\n1,b\n2,a\n3,b\n4,a\n4,a\n5,a\n", "labels.txt: line 6: got a second label for 4.png"),
        ("0,a\n1,b\n2,a\n3\n4,a\n5,a\n", "labels.txt: line 4: got '3.png', expected `image,label`"),
    ],
)
def test_label_files_with_gaps(lines: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("flat").mkdir()
    for number in range(6):
        picture(10, 10).save(f"flat/{number}.png")
    text = "\n".join(line.replace(line[0], f"{line[0]}.png", 1) for line in lines.splitlines())
    Path("labels.txt").write_text(text, encoding="utf-8")
    write_yaml(TOKENIZER, place / "tokenizer.yaml", data__init_args__label_file="labels.txt")
    assert refused(capsys, *WORDS, "out", "--data.init_args.root", "flat").startswith(message)
    assert not Path("out").exists()
