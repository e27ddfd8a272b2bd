"""``maskgen evaluate``: what it writes, on one process and on two, and what it refuses in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

from tests.support import toy_pipeline
from tests.tasks.commandline import files, refused, run
from tests.tasks.evaluation.support import arrays, pictures

ROOT = Path(__file__).resolve().parents[3]
PIXELS = ("--features", "maskgen.tasks.evaluation.features.base.PixelFeatures", "--features.side", 2)
QUICK = ("--settings.draws", 20, "--settings.points", 3, "--settings.shown", 4)
SHORT = (
    "--settings.cas.settings.steps",
    20,
    "--settings.cas.settings.batch_size",
    16,
    "--settings.cas.classifier.patch",
    1,
)
SAMPLES = ("evaluate", "samples", "--samples", "made", "--reference", "real", "--cache", "cache", *PIXELS, *QUICK)


@pytest.fixture
def sets(place: Path) -> Path:
    """A working directory with generated, real and held-out pictures of two classes."""
    for seed, name in enumerate(("made", "real", "test")):
        pictures(place / name, 24, seed)
    return place


def report(out: str) -> dict[str, dict[str, float]]:
    content = json.loads(Path(out, "evaluation.json").read_text(encoding="utf-8"))
    return {name: metric["value"] for name, metric in content["metrics"].items()}


def test_samples(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*SAMPLES, "--out", "one", "--held-out", "test", *SHORT)
    said = capsys.readouterr().out
    found = report("one")
    assert found.keys() >= {"fid", "kid", "precision", "recall", "density", "coverage", "cas", "cas_real"}
    assert f"fid: {found['fid']:.5g}\n" in said
    assert "warning: fid of 24 samples: not comparable" in said
    assert said.endswith("evaluation.json and evaluation.html in one\n")
    assert {"evaluation.html", "evaluation.json", "pictures"} <= set(files(Path("one")))
    assert len(files(Path("cache"))) == 2
    np.savez("made.npz", arrays(24, 0))
    run(*SAMPLES, "--samples", "made.npz", "--out", "two")
    for name, value in report("two").items():  # the same pictures in another order
        if name not in ("fid_infinity", "kid"):
            assert value == pytest.approx(found[name], abs=1e-9), name


def test_any_module_by_its_class_path(sets: Path) -> None:
    module = (
        "--features",
        "maskgen.tasks.evaluation.features.base.ModuleFeatures",
        "--features.module",
        "torch.nn.AdaptiveAvgPool2d",
    )
    run(*SAMPLES, *module, "--features.module.output_size", 1, "--out", "one")
    content = json.loads(Path("one/evaluation.json").read_text(encoding="utf-8"))
    assert content["counts"]["features"] == 3
    assert content["extractor"].startswith("torch.nn.modules.pooling.AdaptiveAvgPool2d-")


def test_protocols_and_references(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("evaluate", "reference", "--samples", "real", "--out", "real.npz", "--cache", "cache", *PIXELS)
    assert capsys.readouterr().out == "24 samples, 4 features in real.npz\n"
    run(*SAMPLES, "--out", "whole", "--settings.metrics", '["fid"]')
    run(*SAMPLES, "--reference", "real.npz", "--protocol", "adm", "--out", "statistics")
    assert report("statistics")["fid"] == report("whole")["fid"]
    content = json.loads(Path("statistics/evaluation.json").read_text(encoding="utf-8"))
    assert content["protocol"]["name"] == "adm"
    run("evaluate", "reference", "--samples", "real", "--kind", "batch", "--out", "batch.npz")
    with np.load("batch.npz", allow_pickle=False) as found:
        assert found["arr_0"].shape == (24, 8, 8, 3)
        assert found["arr_1"].tolist() == [0] * 12 + [1] * 12
    run(*SAMPLES, "--reference", "batch.npz", "--out", "batch", "--settings.metrics", '["fid"]')
    assert report("batch")["fid"] == pytest.approx(report("whole")["fid"], abs=1e-12)
    line = refused(capsys, "evaluate", "reference", "--samples", "real", "--out", "real.txt", *PIXELS)
    assert line == "out: got real.txt, expected the name of an .npz file"


def test_a_model_and_its_tokenizer(model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = ("--data", "maskgen.tasks.data.images.digits.Digits", "--data.size", 32)
    common = (*PIXELS, *QUICK, "--settings.batch_size", 8, "--cache", "cache", *digits)
    metrics = ("--settings.metrics", '["fid","masked"]', "--settings.ratios", "[0.5]")
    run("evaluate", "model", "--model", model, "--settings.count", 12, *common, *metrics, "--out", "m")
    assert len(list(Path("m/samples").glob("*.png"))) == 12
    content = json.loads(Path("m/evaluation.json").read_text(encoding="utf-8"))
    assert content["masked_tokens"][0]["loss"]["count"] == 360
    assert content["subject"]["seeds"] == [0, 11]
    assert content["floor"]["fid"]["count"] == 360
    metrics = ("--settings.metrics", '["fid","psnr","codes"]')
    run("evaluate", "tokenizer", "--tokenizer", model, "--settings.count", 10, *common, *metrics, "--out", "t")
    assert report("t").keys() == {"rfid", "rfid_infinity", "psnr", "codebook_usage", "codebook_perplexity"}
    assert "rfid: " in capsys.readouterr().out
    line = refused(capsys, "evaluate", "tokenizer", "--tokenizer", "nowhere", *common)
    assert line.startswith("tokenizer: got nowhere, which holds none (no config.json)")
    line = refused(capsys, "evaluate", "model", "--model", model, *common, "--task", "FP2", "--out", "x")
    assert "task needs a video model, but this model's modality is image" in line
    assert not Path("x").exists()


def test_one_line_for_each_mistake(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(sets / "large", 12, 3, side=12)
    pictures(sets / "mixed", 6, 3)
    pictures(sets / "mixed" / "more", 6, 3, side=10)
    pictures(sets / "broken", 12, 3)
    for number in (0, 2):
        (sets / "broken" / "left" / f"{number:04d}.png").write_bytes(b"damaged")
    for name in ("left", "right"):
        pictures(sets / name, 12, 4)
    np.savez("inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    Path("set").mkdir()
    Path("set/manifest.json").write_text('{"items": [{"file": "a.png"}], "complete": false}', encoding="utf-8")
    for words, message in (
        (
            ("--features.side", 8),
            "fid: got 24 feature vectors of 64 numbers, whose covariance is singular; expected 65 or",
        ),
        (("--reference", "large"), "made: samples of size [8, 8], but the reference large has [12, 12]; resize one"),
        (("--samples", "mixed"), "mixed: got samples of different sizes: [8, 8]"),
        (("--samples", "broken"), "broken: at least 1 of 12 samples cannot be read, expected at most a share of 0.01"),
        (
            ("--reference", "inception.npz"),
            "inception.npz: statistics made by inception-v3-2015-12-05-... of 2048 features",
        ),
        (("--samples", "made/left", "--settings.metrics", '["cas"]'), "cas needs labelled samples"),
        (("--samples", "nowhere"), "nowhere: no such file or folder"),
        (("--samples", "set"), "set: this set is not finished"),
        (("--protocol", "fid"), "protocol: got 'fid', expected one of adm, clean-fid, torch-fidelity"),
        (("--settings.metrics", '["fidd"]'), "metrics: got fidd, expected some of fid"),
        (("--data", "maskgen.tasks.data.images.digits.Digits"), "or a data set (--data); got both"),
        (("--device", "cuda:77"), "device: got 'cuda:77', which cannot be used here; expected cpu"),
        (("--features", "maskgen.tasks.evaluation.features.base.Pixel"), "Pixel"),
    ):
        assert message in refused(capsys, *SAMPLES, *words, "--out", "out"), words
    (sets / "one").mkdir()
    (sets / "one" / "left").symlink_to(sets / "made" / "left")
    one = (*SAMPLES, "--samples", "one", "--held-out", "test", *SHORT, "--out", "out")
    line = refused(capsys, *one, "--settings.metrics", '["cas"]')
    assert line.startswith("CAS: one: its images have 1 class(es), expected at least 2")
    run(*one)  # nobody asked for it: everything else is measured
    assert "warning: cas: left out (CAS: one: its images have 1 class(es)" in capsys.readouterr().out


def test_no_network(sets: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(sets / "torch"))
    line = refused(capsys, "evaluate", "samples", "--samples", "made", "--reference", "real", "--out", "out")
    assert line.startswith("cannot download the weights of Inception")
    assert f"weights-inception-2015-12-05-6726825d.pth into {sets / 'torch' / 'hub' / 'checkpoints'}" in line
    lpips = ("--settings.metrics", '["psnr","lpips"]', "--cache", "cache")
    toy_pipeline().save_pretrained("toy")
    line = refused(capsys, "evaluate", "tokenizer", "--tokenizer", "toy", "--samples", "made", *lpips, "--out", "out")
    assert line.startswith("cannot download the alex weights of LPIPS: put alexnet-owt-7be5be79.pth into ")
    quiet = (
        "--settings.metrics",
        "null",
        "--features",
        "maskgen.tasks.evaluation.features.base.PixelFeatures",
        "--features.side",
        2,
    )
    run(
        "evaluate", "tokenizer", "--tokenizer", "toy", "--samples", "made", *quiet, *QUICK, "--cache", "c", "--out", "t"
    )
    said = capsys.readouterr().out
    assert "warning: lpips: left out (cannot download the alex weights of LPIPS" in said
    assert "warning: ssim: left out" in said


def test_two_real_processes(model: Path, place: Path) -> None:
    """Under torchrun, as ``accelerate launch`` does for several GPUs: the same samples, the same numbers."""
    pictures(place / "real", 24, 1, side=32)
    pictures(place / "test", 12, 2, side=32)
    words = [
        *("evaluate", "model", "--model", str(model), "--reference", "real", "--cache", "cache", "--device", "cpu"),
        *map(str, (*PIXELS, *QUICK)),
        *("--settings.count", "14", "--settings.batch_size", "3"),
    ]
    run(*words, "--out", "one")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "maskgen"]
    done = subprocess.run(
        [*launcher, *words, "--cache", "other", "--out", "two"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("evaluation.json and evaluation.html in two") == 1
    assert json.loads(Path("two/evaluation.json").read_text("utf-8"))["processes"] == 2
    for path in Path("one/samples").glob("*.png"):
        assert path.read_bytes() == Path("two/samples", path.name).read_bytes()
    for name, value in report("one").items():
        assert report("two")[name] == pytest.approx(value, rel=1e-6), name
    assert ".parts" not in files(Path("two"))
