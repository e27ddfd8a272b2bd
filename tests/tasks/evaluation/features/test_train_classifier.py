"""``maskgen train classifier``: it learns, goes on, is reused, gives features, and judges generated samples."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from maskgen.checkpoint import load_module
from maskgen.tasks.evaluation.cas import cas_scores
from maskgen.tasks.evaluation.features.classifier import Classifier, ClassifierConfig, ClassifierFeatures, predict
from maskgen.tasks.evaluation.features.train_classifier import train_classifier
from maskgen.tasks.evaluation.sets.arrays import write_batch
from maskgen.tasks.evaluation.sets.base import DataSamples, open_samples
from maskgen.tasks.evaluation.sets.labelled import SampleImages
from maskgen.tasks.evaluation.settings import CasScores
from tests.tasks.commandline import refused, run
from tests.tasks.evaluation.support import SHORT, TINY, arrays, evaluation_run, pictures, tensors

LABELS = np.arange(24) % 2


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images, held-out ones, and good and wrongly labelled samples."""
    root = tmp_path_factory.mktemp("classes")
    pictures(root / "train", 40, 0)
    pictures(root / "test", 24, 1)
    pictures(root / "good", 30, 2)
    (root / "wrong").mkdir()
    for name, other in (("left", "right"), ("right", "left")):
        (root / "wrong" / other).symlink_to(root / "good" / name)
    return root


@pytest.fixture(scope="module")
def trained(places: Path) -> Path:
    data = SampleImages(places / "train", places / "test")
    return train_classifier(data=data, out=places / "run", classifier=TINY, settings=SHORT, say=lambda text: None)


def test_it_learns(trained: Path) -> None:
    network = load_module(trained, Classifier)
    assert network.config == dataclasses.replace(TINY, num_classes=2, size=(8, 8))
    assert (predict(network, tensors(24, 1)).numpy() == LABELS).mean() == 1
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text("utf-8").splitlines()]
    assert lines[-1]["validation/accuracy"] == 1
    assert lines[-1]["validation/score"] < 0.5


def test_features(trained: Path) -> None:
    features, network = ClassifierFeatures(trained), load_module(trained, Classifier)
    found = features.embed(tensors(5, 1))
    with torch.no_grad():
        torch.testing.assert_close(found.features, network.features(tensors(5, 1)))
        torch.testing.assert_close(found.logits, network(tensors(5, 1)))
    assert found.features.shape == (5, 16)
    assert features.input_size == (8, 8)
    assert features.identity().startswith("classifier-2-8x8-")
    with pytest.raises(FileNotFoundError, match="features.folder: got nowhere, which holds no classifier"):
        ClassifierFeatures(Path("nowhere"))


def scores(places: Path, samples: str, out: Path, alone: bool = True, train: str = "train") -> CasScores:
    run = evaluation_run(out).measuring(draws=50)
    if not alone:
        run = dataclasses.replace(run, team=SimpleNamespace(count=2))
    return cas_scores(*(open_samples(places / name, "image") for name in (samples, train, "test")), run)


def test_cas(places: Path, tmp_path: Path) -> None:
    good = scores(places, "good", tmp_path)
    assert good.metrics["cas"].value == good.metrics["cas_real"].value == good.metrics["label_agreement"].value == 1
    assert good.metrics["cas_over_real"].value == 1
    assert good.class_names == ("left", "right")
    assert good.per_class == good.per_class_real == [1.0, 1.0]
    runs = {path.name: (path / "model.safetensors").stat().st_mtime_ns for path in (tmp_path / "cas").iterdir()}
    assert sorted(name.partition("-")[0] for name in runs) == ["generated", "real"]
    wrong = scores(places, "wrong", tmp_path)
    assert wrong.metrics["cas"].value == wrong.metrics["label_agreement"].value == 0
    assert wrong.metrics["cas_real"].value == 1
    again = {path.name: (path / "model.safetensors").stat().st_mtime_ns for path in (tmp_path / "cas").iterdir()}
    assert runs.items() <= again.items()  # the real one was not trained once more
    assert len(again) == 3


NAMES = {"0": "right", "1": "left"}  # a model that numbers its classes otherwise than folders are sorted


def numbered(places: Path, folder: Path, names: dict[str, str]) -> Path:
    """The good samples as a model writes them, with its own class numbers."""
    folder.mkdir()
    items = []
    for number, name in (("0", "right"), ("1", "left")):
        for path in sorted((places / "good" / name).iterdir()):
            (folder / path.name).symlink_to(path)
            items.append({"file": path.name, "label": int(number), "seed": 0})
    told = {"task": "generate", "items": items, "classes": names, "complete": True}
    (folder / "manifest.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


@pytest.mark.parametrize("alone", [True, False])
def test_classes_go_by_name(alone: bool, places: Path, tmp_path: Path) -> None:
    found = scores(places, str(numbered(places, tmp_path / "made", NAMES)), tmp_path, alone=alone)
    assert found.metrics["cas"].value == found.metrics["label_agreement"].value == 1
    assert found.class_names == ("left", "right")


def test_numbers_alone_say_nothing_of_folders(places: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"made only numbers its classes and .*train names them \(left, right\)"):
        scores(places, str(numbered(places, tmp_path / "made", {})), tmp_path)
    with pytest.raises(ValueError, match=r"other has up, which .*train lacks \(it has left, right\)"):
        scores(places, str(numbered(places, tmp_path / "other", {**NAMES, "1": "up"})), tmp_path)


def test_an_array_keeps_the_names(places: Path, tmp_path: Path) -> None:
    """The reference as others read it, in an order of its own, and held-out folders."""
    images, labels = arrays(40, 0), [1 - number % 2 for number in range(40)]
    write_batch(tmp_path / "real.npz", images.shape, [images], labels, ("right", "left"))
    found = scores(places, "good", tmp_path, train=str(tmp_path / "real.npz"))
    assert found.metrics["cas"].value == found.metrics["label_agreement"].value == 1
    assert found.class_names == ("right", "left")
    write_batch(tmp_path / "bare.npz", images.shape, [images], labels)
    with pytest.raises(ValueError, match=r"bare.npz only numbers its classes and .*good names them \(left, right\)"):
        scores(places, "good", tmp_path, train=str(tmp_path / "bare.npz"))


def test_cas_beside_other_processes(places: Path, tmp_path: Path) -> None:
    """Trained in a process of its own, the classifier is the same."""
    assert scores(places, "good", tmp_path).metrics["cas"].value == 1
    (made,) = (tmp_path / "cas").glob("generated-*")
    here = made.rename(tmp_path / "here")
    assert scores(places, "good", tmp_path, alone=False).metrics["cas"].value == 1
    assert (made / "model.safetensors").read_bytes() == (here / "model.safetensors").read_bytes()


def test_cas_of_data_in_memory(places: Path, tmp_path: Path) -> None:
    """A data set has no place on the disk, so it is written there."""
    data = SampleImages(places / "train", places / "test")
    found = cas_scores(
        open_samples(places / "good", "image"),
        *(DataSamples(data, split) for split in ("train", "test")),
        evaluation_run(tmp_path),
    )
    assert found.metrics["cas"].value == 1
    assert found.class_names == ("left", "right")
    assert len(list((tmp_path / "cas").glob("data-*.npz"))) == 2


def test_the_command(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "data": {
            "class_path": "maskgen.tasks.evaluation.sets.labelled.SampleImages",
            "init_args": {"root": str(places / "train"), "test_root": str(places / "test")},
        },
        "classifier": json.loads(json.dumps(dataclasses.asdict(TINY))),
        "settings": json.loads(json.dumps(dataclasses.asdict(SHORT))),
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    words = ("train", "classifier", "--config", path, "--out", tmp_path / "run")
    run(*words)
    run(*words)
    assert f"classifier: finished before, reused from {tmp_path / 'run'}" in capsys.readouterr().out
    line = refused(capsys, *words, "--settings.seed", 5)
    assert line == (
        f"{tmp_path / 'run'}: holds another run (settings.seed: 42 before, 5 now); give --again to train anew (what is "
        "there is set aside), or name another output folder"
    )
    line = refused(capsys, *words, "--classifier.num_classes", 3, "--out", tmp_path / "other")
    assert line == "classifier: got 3 classes of images (0, 0), but the data have 2 of (8, 8); leave both out"
    line = refused(capsys, *words, "--data.root", places / "train" / "left", "--out", tmp_path / "other")
    assert "got images without labels; expected one sub-folder a class" in line
    assert not (tmp_path / "other").exists()


def test_mistakes(places: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    (one / "left").symlink_to(places / "good" / "left")
    with pytest.raises(ValueError, match=r"data: got 1 class\(es\), expected at least 2"):
        train_classifier(data=SampleImages(one), out=tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"CAS: .*one: its images have 1 class\(es\), expected at least 2: a classifier of"
    ):
        cas_scores(
            *(open_samples(place, "image") for place in (one, places / "train", places / "test")),
            evaluation_run(tmp_path),
        )
    pictures(tmp_path / "large", 4, 0, side=12)
    with pytest.raises(ValueError, match=r"large has images of \(12, 12\) pixels, but .*train of \(8, 8\); resize one"):
        cas_scores(
            *(open_samples(place, "image") for place in (tmp_path / "large", places / "train", places / "test")),
            evaluation_run(tmp_path),
        )
    with pytest.raises(ValueError, match=r"groups: got 3, expected a divisor of the levels' channels \[8, 16\]"):
        ClassifierConfig(width=8, multipliers=(1, 2), groups=3)
    with pytest.raises(ValueError, match="classifier: got num_classes 0, patch 0"):
        ClassifierConfig(patch=0)
    with pytest.raises(ValueError, match=r"classifier: got 0 classes of images \(0, 0\)"):
        Classifier(ClassifierConfig())
