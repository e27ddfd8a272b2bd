"""The engine: the same numbers on any number of processes and after any interruption, and everything a report says."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskgen.tasks.evaluation.features.base import FeatureBatch, FeatureExtractor, PixelFeatures
from maskgen.tasks.evaluation.features.protocols import PROTOCOLS
from maskgen.tasks.evaluation.features.references import write_statistics
from maskgen.tasks.evaluation.metrics.frechet import frechet_distance, kernel_distance
from maskgen.tasks.evaluation.metrics.manifold import overlap
from maskgen.tasks.evaluation.metrics.scores import inception_score
from maskgen.tasks.evaluation.report import write_evaluation
from maskgen.tasks.evaluation.samples import evaluate_samples, open_target
from maskgen.tasks.evaluation.sets.base import open_samples
from maskgen.tasks.evaluation.settings import Evaluation, EvaluationSettings
from tests.tasks.evaluation.features.test_references import reference
from tests.tasks.evaluation.metrics.test_frechet import gaussian
from tests.tasks.evaluation.support import SETTINGS, arrays, evaluation_run, pictures

PROTOCOL = PROTOCOLS["torch-fidelity"]
PIXELS = PixelFeatures(2)


class Quarters(FeatureExtractor):
    """Means of the four quarters, and logits that say left or right."""

    name = "inception-v3-2015-12-05-pretended"  # so that nothing is said about the features

    def identity(self) -> str:
        return "inception-v3-2015-12-05-pretended"

    def embed(self, batch: Tensor) -> FeatureBatch:
        small = torch.nn.functional.adaptive_avg_pool2d(batch.mean(1, keepdim=True), 2).flatten(1)
        return FeatureBatch(small, 20 * torch.stack((small[:, 1] - small[:, 0], small[:, 0] - small[:, 1]), dim=1))


def measure(tmp_path: Path, **changes: Any) -> Evaluation:
    settings = dataclasses.replace(SETTINGS, **changes.pop("settings", {}))
    place = changes.pop("samples", tmp_path / "made")
    extractor = changes.pop("extractor", Quarters())
    target = open_target(
        changes.pop("reference", tmp_path / "real"), None, changes.pop("held_out", None), extractor.modality, frames=16
    )
    run = evaluation_run(tmp_path / "out", extractor, settings=settings, cache=tmp_path / "cache", **changes)
    found = evaluate_samples(open_samples(place, extractor.modality), target, run)
    assert found is not None
    return found


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    pictures(tmp_path / "made", 30, 0)
    pictures(tmp_path / "real", 40, 1)
    pictures(tmp_path / "test", 20, 2)
    return tmp_path


def test_numbers_are_those_of_the_metrics(sets: Path) -> None:
    found = measure(sets, settings={"metrics": ("fid", "kid", "is", "prdc")})
    made, real = (
        Quarters().embed(torch.stack(open_samples(sets / name, "image").read(0, 99)).float() / 255)  # type: ignore[arg-type]
        for name in ("made", "real")
    )
    expected = {
        "fid": frechet_distance(gaussian(made.features), gaussian(real.features)),
        "kid": kernel_distance(made.features, real.features).value,
        "precision": overlap(made.features, real.features, (3,))[0].precise.mean(),
        "recall": overlap(made.features, real.features, (3,))[0].recalled.mean(),
        "density": overlap(made.features, real.features, (5,))[0].density.mean(),
        "coverage": overlap(made.features, real.features, (5,))[0].covered.mean(),
    }
    assert made.logits is not None
    expected["inception_score"] = inception_score(made.logits).value
    assert found.metrics.keys() == expected.keys() | {"fid_infinity"}
    for name, value in expected.items():
        assert found.metrics[name].value == pytest.approx(float(value), rel=1e-9), name
    assert found.counts == {"samples": 30, "vectors": 30, "features": 4}
    assert found.reference["samples"] == 40
    assert found.extractor == Quarters().identity()
    assert [number for number, _ in found.shown] == [0, 6, 12, 17, 23, 29]


def test_floor_and_cas(sets: Path) -> None:
    """Held-out data give both, and the report shows them."""
    found = measure(sets, held_out=sets / "test")
    assert found.floor.keys() == {
        *("fid", "fid_infinity", "kid", "inception_score", "precision", "recall", "density", "coverage")
    }
    assert found.floor["fid"].count == 20
    assert found.cas is not None
    assert found.metrics["cas"].value == 1
    assert found.cas.class_names == ("left", "right")
    real = open_samples(sets / "real", "image")
    write_evaluation(found, open_samples(sets / "made", "image"), real, sets / "out", settings=SETTINGS)
    names = {path.name for path in (sets / "out" / "pictures").iterdir()}
    assert names == {"samples.png", "neighbours.png", "precision-recall.png", "classes.png"}
    page = (sets / "out" / "evaluation.html").read_text("utf-8")
    assert page.count("data:image/png") == 4
    assert "NOT COMPARABLE AS IT IS" in page
    assert "held-out real data" in page
    assert all(f"<td>{name}</td>" in page for name in found.metrics)
    content = json.loads((sets / "out" / "evaluation.json").read_text("utf-8"))
    assert content["metrics"]["fid"]["value"] == found.metrics["fid"].value
    assert content["metrics"]["kid"].keys() == {"value", "count", "low", "high", "interval", "note"}
    assert content["accuracy_by_class"][1] == {"class": "right", "cas": 1.0, "cas_real": 1.0}
    assert content["protocol"]["resize"] == "tf1-bilinear"
    assert content["settings"]["seed"] == 0
    assert content["environment"].keys() >= {"torch", "torch-fidelity", "platform", "threads"}
    assert content["by_neighbours"][0]["k"] == 1


def test_the_nearest_real_ones(sets: Path) -> None:
    shutil.copy(sets / "made" / "left" / "0006.png", sets / "real" / "left" / "9999.png")
    found = measure(sets, settings={"shown": 30})
    real = open_samples(sets / "real", "image")
    assert found.shown[3] == (3, [name.endswith("9999.png") for name in real._names].index(True))  # type: ignore[attr-defined]


def test_warnings(sets: Path) -> None:
    said = measure(sets, extractor=PIXELS).warnings
    assert said[0].startswith("fid of 30 samples: not comparable. With fewer than 10000")
    assert "published numbers are of 50000 samples, these of 30" in said[1]
    assert "features of pixels-2x2-grey: compare with numbers on these very features only" in said[2]
    assert said[3] == "kid: subsets of 30 samples, the protocol's are of 1000"
    protocol = dataclasses.replace(PROTOCOL, count=30, kid_size=30)
    assert measure(sets, protocol=protocol, settings={"metrics": ("kid", "prdc")}).warnings == []
    (sets / "made" / "left" / "0002.png").write_bytes(b"x")
    found = measure(sets, settings={"broken": 0.1})
    assert "1 samples could not be read and were left out" in found.warnings
    assert list(found.skipped) == ["samples"]


def test_too_few_samples(sets: Path) -> None:
    large = PixelFeatures(6)
    with pytest.raises(
        ValueError, match=r"fid: got 30 feature vectors of 36 numbers, whose covariance is singular; expected"
    ):
        measure(sets, extractor=large)
    found = measure(sets, extractor=large, settings={"allow_few": True})
    assert found.metrics["fid"].value > 0
    assert "fid_infinity" not in found.metrics  # half of the samples are fewer than the features
    assert any("a covariance is singular (allow_few)" in line for line in found.warnings)
    assert "fid" not in measure(sets, extractor=large, settings={"metrics": ("kid",)}).metrics
    with pytest.raises(ValueError, match=r"precision and recall: got 30 samples and 4 real ones, expected more than 5"):
        measure(sets, reference=pictures(sets / "few", 4, 0), settings={"metrics": ("prdc",)})


def test_statistics_and_batches(sets: Path) -> None:
    whole = measure(sets)
    kept = reference(sets / "real", sets, Quarters())
    write_statistics(sets / "real.npz", kept)
    found = measure(sets, reference=sets / "real.npz")
    assert found.metrics.keys() == {"fid", "fid_infinity", "inception_score"}
    assert found.metrics["fid"].value == whole.metrics["fid"].value
    assert found.shown == [(number, None) for number, _ in whole.shown]
    with pytest.raises(ValueError, match=r"metrics: kid needs features of real data, but .* has statistics only"):
        measure(sets, reference=sets / "real.npz", settings={"metrics": ("kid",)})
    # As ADM's: a batch that is a part of the data, and statistics of all of it.
    with np.load(sets / "real.npz") as content:
        np.savez(sets / "adm.npz", arrays(20, 5), **{name: content[name] for name in content if name != "shape"})
    both = measure(sets, reference=sets / "adm.npz")
    assert both.metrics["fid"].value == whole.metrics["fid"].value
    assert both.metrics["recall"].count == 20
    assert both.reference["statistics"] == str(sets / "adm.npz")


def test_what_was_named_and_cannot_be_measured(sets: Path) -> None:
    with pytest.raises(ValueError, match="metrics: is needs a classifier, but pixels-2x2-grey gives features only"):
        measure(sets, extractor=PIXELS, settings={"metrics": ("is",)})
    with pytest.raises(ValueError, match="metrics: cas needs labelled samples.*got no labels or nothing for held_out"):
        measure(sets, settings={"metrics": ("cas",)})
    with pytest.raises(ValueError, match=r"made: samples of size \[8, 8\], but the reference .* has \[12, 12\]"):
        measure(sets, reference=pictures(sets / "large", 20, 0, side=12))
    with pytest.raises(ValueError, match=r"give either a place .* or a data set \(--data\); got neither"):
        open_target(None, None, None, "image")
    with pytest.raises(ValueError, match="metrics: got fidd, expected some of fid, kid"):
        EvaluationSettings(metrics=("fidd",))
    for changes, message in (({"count": 1}, "count: got 1"), ({"broken": 1.0}, "got broken 1.0")):
        with pytest.raises(ValueError, match=message):
            EvaluationSettings(**changes)
