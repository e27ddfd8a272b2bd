"""Models and tokenizers measured: the same on any number of processes and after any interruption, in every modality."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import maskgen.tasks.evaluation.made.making
from maskgen.data import TensorSource, draw_numbers
from maskgen.tasks.data.base import AudioData
from maskgen.tasks.data.images.digits import Digits
from maskgen.tasks.evaluation.features.base import LogMelFeatures, ModuleFeatures, PixelFeatures
from maskgen.tasks.evaluation.models import _model_classes, _usual_count, evaluate_model
from maskgen.tasks.evaluation.report import as_json, write_evaluation
from maskgen.tasks.evaluation.samples import Target
from maskgen.tasks.evaluation.sets.base import ArraySamples, DataSamples, FileSamples, drawn, open_samples
from maskgen.tasks.evaluation.settings import Evaluation
from maskgen.tasks.evaluation.tokenizers import evaluate_tokenizer
from maskgen.tasks.image.generation import generate
from maskgen.tasks.media.audio.files import save_sound
from maskgen.tasks.media.video.files import save_video
from tests.support import tiny_audio_pipeline, tiny_pipeline, toy_pipeline
from tests.tasks.evaluation.support import ONE_AT_A_TIME, SETTINGS, arrays, evaluation_run, pictures, together
from tests.tasks.video import toys as video_toys

PIXELS = PixelFeatures(2)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("model") / "real", 20, 1, side=32)


@pytest.fixture(autouse=True)
def one_generator_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*args: Any, **kwargs: Any) -> Any:
        with ONE_AT_A_TIME:
            return generate(*args, **kwargs)

    monkeypatch.setattr(maskgen.tasks.evaluation.made.making, "generate", locked)


def of_model(real: Path, out: Path, count: int = 1, **changes: Any) -> Evaluation:
    def work(state: Any) -> Evaluation | None:
        with ONE_AT_A_TIME:
            pipe = tiny_pipeline()
        run = evaluation_run(out, PIXELS, settings=dataclasses.replace(SETTINGS, **changes), state=state)
        found = evaluate_model(pipe, "tiny", Target(real=open_samples(real, "image")), run)
        run.team.close()
        return found

    first, *others = together(count, work)
    assert others == [None] * (count - 1)
    return first


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.*")}


@pytest.fixture(scope="module")
def whole(real: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    out = tmp_path_factory.mktemp("whole")
    return of_model(real, out), out


def test_a_model(whole: tuple[Evaluation, Path], real: Path) -> None:
    found, out = whole
    manifest = json.loads((out / "samples" / "manifest.json").read_text("utf-8"))
    assert [item["label"] for item in manifest["items"]] == [number * 10 // 24 for number in range(24)]
    images = generate(tiny_pipeline(), [item["label"] for item in manifest["items"]], seeds=range(24))
    for item, image in zip(manifest["items"], images, strict=True):
        with Image.open(out / "samples" / item["file"]) as saved:
            assert saved.tobytes() == image.tobytes()
    assert found.subject["seeds"] == [0, 23]
    assert found.subject["sampling"]["steps"] == 3
    assert found.metrics["fid"].count == 24
    assert found.seconds.keys() >= {"generate", "reference", "features", "metrics"}
    assert not (out / ".parts").exists()


@pytest.mark.parametrize("count", [2, 4])
def test_any_number_of_processes(count: int, whole: tuple[Evaluation, Path], real: Path, tmp_path: Path) -> None:
    found = of_model(real, tmp_path, count)
    assert contents(tmp_path / "samples") == contents(whole[1] / "samples")
    assert found.metrics == whole[0].metrics
    assert found.shown == whole[0].shown
    a, b = (as_json(result, SETTINGS, 1) for result in (found, whole[0]))
    for name in a.keys() - {"seconds", "environment"}:
        assert a[name] == b[name], name


def test_killed_and_resumed(
    whole: tuple[Evaluation, Path], real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def stop(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(kwargs["seeds"]))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(*args, **kwargs)

    monkeypatch.setattr(maskgen.tasks.evaluation.made.making, "generate", stop)
    with pytest.raises(KeyboardInterrupt):
        of_model(real, tmp_path)
    assert len(list((tmp_path / "samples").glob("*.png"))) == 12
    with pytest.raises(ValueError, match="this set is not finished"):
        open_samples(tmp_path / "samples", "image")
    calls.clear()
    calls.extend([0] * 10)
    found = of_model(real, tmp_path)
    assert len(calls) == 10 + 3
    assert contents(tmp_path / "samples") == contents(whole[1] / "samples")
    assert found.metrics == whole[0].metrics
    manifest = tmp_path / "samples" / "manifest.json"  # killed once more, between the last sample and the manifest
    manifest.write_text(manifest.read_text("utf-8").replace('"complete": true', '"complete": false'), "utf-8")
    assert of_model(real, tmp_path).metrics == whole[0].metrics
    with pytest.raises(ValueError, match=r"samples: holds other samples \(items\[0\]\.file: \S+ before, \S+ now; "):
        of_model(real, tmp_path, seed=5)


def test_masked_tokens(real: Path, tmp_path: Path) -> None:
    pipe, data = tiny_pipeline(), Digits(size=32)
    data._test = TensorSource(**{name: tensor[:12] for name, tensor in data.test().tensors.items()})
    target = Target(real=open_samples(real, "image"))
    settings = dataclasses.replace(SETTINGS, metrics=("masked", "kid"), ratios=(0.2, 1.0))
    evaluation = evaluation_run(tmp_path, PIXELS, settings=settings)
    found = evaluate_model(pipe, "tiny", target, evaluation, data=data)
    assert found is not None
    assert [score.ratio for score in found.masked] == [0.2, 1.0]
    assert found.masked[0].loss.count == 12
    samples = open_samples(tmp_path / "samples", "image")
    write_evaluation(found, samples, target.real, tmp_path, settings=settings)
    assert (tmp_path / "pictures" / "masked.png").is_file()
    assert json.loads((tmp_path / "evaluation.json").read_text("utf-8"))["masked_tokens"][1]["ratio"] == 1.0
    with pytest.raises(ValueError, match="metrics: masked needs held-out data of the model's size"):
        evaluate_model(pipe, "tiny", target, evaluation)
    with pytest.raises(ValueError, match=r"data: got image of size \(16, 16\), but the model's is image of \(32, 32\)"):
        evaluate_model(pipe, "tiny", target, evaluation, data=Digits(size=16))


class Net3d(nn.Module):
    """Means over boxes of a clip."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool3d(x.mean(1, keepdim=True), (2, 2, 1))


VIDEO = ModuleFeatures(Net3d(), modality="video")


@pytest.mark.parametrize("task", [None, "FP2"])
def test_a_video_model(task: str | None, tmp_path: Path) -> None:
    pipe = video_toys.pipeline(classes=2)
    data = video_toys.Boxes(count=12)
    target = Target(real=DataSamples(data, "train"), held_out=DataSamples(data, "test"))
    settings = dataclasses.replace(SETTINGS, count=10, metrics=None)
    run = evaluation_run(tmp_path, VIDEO, settings=dataclasses.replace(settings, paste=True))
    found = evaluate_model(pipe, "toy", target, run, task=task, data=data)
    assert found is not None
    assert {"fvd", "fvd_infinity", "kvd", "precision", "coverage"} <= found.metrics.keys()
    assert "fvd of clips of 8 frames: published numbers are of 16" in found.warnings
    assert len(found.masked) == 6
    made = open_samples(tmp_path / "samples", "video")
    clips = torch.stack(made.read(0, 10))  # type: ignore[arg-type]
    assert clips.shape == (10, 3, 8, 8, 8)
    if task is None:
        assert "psnr" not in found.metrics
        assert made.labels == [0] * 5 + [1] * 5
    else:
        drawn_clips = drawn(target.held_out, 10)  # type: ignore[arg-type]
        truth = torch.stack(drawn_clips.read(0, 10))  # type: ignore[arg-type]
        assert torch.equal(clips[:, :, :2], truth[:, :, :2])  # given, and pasted
        assert not torch.equal(clips, truth)
        assert found.metrics["psnr"].count == 10
        assert "ssim: left out, its window of 11 pixels is larger than pictures of 8" in found.warnings
    write_evaluation(found, made, target.real, tmp_path, settings=settings)
    with Image.open(tmp_path / "pictures" / "samples.png") as picture:
        assert picture.height > 64


class Waves(AudioData):
    """Sounds in memory."""

    def __init__(self, rate: int = 800, samples: int = 400) -> None:
        self.sample_rate, self.channels, self.size = rate, 1, (samples,)
        sounds = 0.3 * torch.randn(12, 1, samples, generator=torch.Generator().manual_seed(0))
        self._source = TensorSource(audio=sounds)

    @property
    def class_names(self) -> tuple[str, ...]:
        return ()

    def train(self) -> TensorSource:
        return self._source

    test = train


def test_an_audio_model(tmp_path: Path) -> None:
    extractor = LogMelFeatures(1000, bands=2, window=0.05)
    target = Target(real=DataSamples(Waves(), "train"))
    run = evaluation_run(tmp_path, extractor, settings=dataclasses.replace(SETTINGS, count=6))
    found = evaluate_model(tiny_audio_pipeline(), "tiny", target, run)
    assert found is not None
    assert {"fad", "kad", "precision"} <= found.metrics.keys()
    assert found.counts["samples"] == 6
    assert found.counts["vectors"] > 6
    assert any("features of log-mel-2-moments-1000-0.05s: compare with numbers" in line for line in found.warnings)
    samples = open_samples(tmp_path / "samples", "audio")
    assert samples.read(0, 1)[0].shape == (1, 160)  # type: ignore[union-attr]
    write_evaluation(found, samples, target.real, tmp_path, settings=SETTINGS)
    assert (tmp_path / "pictures" / "samples.png").is_file()


@pytest.mark.parametrize("kind", ["folder", "statistics", "others"])
def test_as_many_samples_as_the_reference_holds(kind: str, real: Path, tmp_path: Path) -> None:
    """And what it will take is said: 20 pictures in blocks of 8. Statistics of others say no number."""
    said: list[str] = []
    mean, covariance = np.zeros(4), np.eye(4)
    told = {"extractor": np.asarray(PIXELS.identity()), "count": np.asarray(20)}
    np.savez(tmp_path / "real.npz", mu=mean, sigma=covariance, **(told if kind == "statistics" else {}))
    target = Target(real=open_samples(real, "image")) if kind == "folder" else Target(statistics=tmp_path / "real.npz")
    settings = dataclasses.replace(SETTINGS, count=None, batch_size=8, metrics=("fid",), shown=0)
    run = evaluation_run(tmp_path, PIXELS, settings=settings, say=said.append)
    if kind == "others":
        assert _usual_count(target, run) == 50_000
        return
    found = evaluate_model(tiny_pipeline(), "tiny", target, run)
    assert found is not None
    assert found.subject["count"] == len(open_samples(tmp_path / "samples", "image")) == 20
    assert said[0] == "making 20 samples, as many as the reference holds (at most 50000); settings.count changes it"
    assert re.fullmatch(r"8 of 20 samples are made; the rest takes about \d+ s", said[1])


class Named(Digits):
    """Digits in another order than the model's."""

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(reversed(super().class_names))


def test_masked_tokens_go_by_the_names_of_classes(tmp_path: Path) -> None:
    """Labels of another order are the model's before it is asked; names it lacks are refused."""
    pipe = tiny_pipeline()
    torch.nn.init.normal_(pipe.transformer.head.weight, std=0.5)  # type: ignore[union-attr]
    run = evaluation_run(tmp_path, settings=dataclasses.replace(SETTINGS, metrics=("masked",), ratios=(0.5,)))
    data = Digits(size=32)
    usual = evaluate_model(pipe, "tiny", Target(), run, data=data)
    other = evaluate_model(pipe, "tiny", Target(), run, data=Named(size=32))
    assert usual is not None
    assert other is not None
    assert _model_classes(pipe, Named(size=32)).tolist() == list(range(9, -1, -1))
    assert usual.masked[0].loss.value != other.masked[0].loss.value
    pipe.config = dataclasses.replace(pipe.config, class_names=tuple("abcdefghij"))
    with pytest.raises(ValueError, match="classes: the data has zero, one, .* which the model lacks"):
        evaluate_model(pipe, "tiny", Target(), run, data=data)


def test_a_task_gives_the_class_of_the_truth_by_name(tmp_path: Path) -> None:
    """Folders left, right: this model calls right number 0."""
    for number, name in enumerate(("left", "right")):
        for place in range(2):
            path = tmp_path / "truth" / name / f"{place}.gif"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_video(video_toys.noise(8, seed=2 * number + place), path, 8)
    truth = FileSamples(tmp_path / "truth", "video")
    run = evaluation_run(tmp_path, VIDEO, settings=dataclasses.replace(SETTINGS, metrics=("psnr",)))
    pipe = video_toys.pipeline(classes=2)
    pipe.config = dataclasses.replace(pipe.config, class_names=("right", "left"))
    evaluate_model(pipe, "toy", Target(held_out=truth), run, task="FP2")
    manifest = json.loads((tmp_path / "samples" / "manifest.json").read_text("utf-8"))
    assert [item["label"] for item in manifest["items"]] == [1, 1, 0, 0]
    assert manifest["classes"] == {"0": "right", "1": "left"}


def of_tokenizer(count: int, out: Path, tokenizer: Any, originals: Any, extractor: Any, **changes: Any) -> Evaluation:
    def work(state: Any) -> Evaluation | None:
        run = evaluation_run(out, extractor, settings=dataclasses.replace(SETTINGS, **changes), state=state)
        return evaluate_tokenizer(tokenizer, "toy", originals, run)

    first, *others = together(count, work)
    assert others == [None] * (count - 1)
    return first


def test_an_image_tokenizer(tmp_path: Path) -> None:
    """A lossless one on its own domain, then on pictures that it cannot keep; on one process and on three."""
    tokenizer = toy_pipeline().tokenizer
    kept = tokenizer.decode(torch.arange(8).view(1, 8, 1).repeat(20, 8, 1), (8, 8))
    kept = kept * torch.linspace(0.3, 1, 20)[:, None, None, None]
    kept = tokenizer.decode(tokenizer.encode(kept), (8, 8))
    np.savez(tmp_path / "kept.npz", (kept * 255).round().byte().movedim(1, -1).numpy())
    metrics = ("fid", "psnr", "ssim", "codes")
    found = of_tokenizer(1, tmp_path / "a", tokenizer, ArraySamples(tmp_path / "kept.npz"), PIXELS, metrics=metrics)
    assert found.metrics["rfid"].value == pytest.approx(0, abs=1e-9)
    assert found.metrics["psnr"].value == pytest.approx(120)
    assert found.metrics["ssim"].value == pytest.approx(1)
    assert found.metrics["codebook_usage"].value == 1
    np.savez(tmp_path / "noise.npz", arrays(20, 0, side=16))
    noise = ArraySamples(tmp_path / "noise.npz")
    one, three = (
        of_tokenizer(count, tmp_path / str(count), tokenizer, noise, PIXELS, metrics=metrics) for count in (1, 3)
    )
    assert one.metrics == three.metrics
    assert one.metrics["psnr"].value < 30
    assert one.metrics["rfid"].value > 0
    assert any(line.startswith("rfid of 20 samples: not comparable") for line in one.warnings)
    assert contents(tmp_path / "1" / "rebuilt") == contents(tmp_path / "3" / "rebuilt")
    write_evaluation(one, open_samples(tmp_path / "1" / "rebuilt", "image"), noise, tmp_path, settings=SETTINGS)
    assert "Rebuilt and original" in (tmp_path / "evaluation.html").read_text("utf-8")


def test_some_of_many_are_drawn_over_all_classes(tmp_path: Path) -> None:
    """--settings.count of a tokenizer: the first so many of a folder are one class."""
    place = pictures(tmp_path / "real", 40, 1, side=16)
    codec, some = (
        toy_pipeline().tokenizer,
        dataclasses.replace(SETTINGS, metrics=("fid", "psnr"), count=10, allow_few=True),
    )
    found = evaluate_tokenizer(
        codec, "toy", FileSamples(place), evaluation_run(tmp_path / "out", PIXELS, settings=some)
    )
    assert found is not None
    assert found.counts["samples"] == 10
    originals = {place for _, place in found.shown}
    assert originals <= set(draw_numbers(40, 10))
    assert {place < 20 for place in originals} == {True, False}


def test_a_video_tokenizer(tmp_path: Path) -> None:
    originals = DataSamples(video_toys.Boxes(count=12), "test")
    metrics = ("fid", "psnr", "codes")
    found = of_tokenizer(2, tmp_path, video_toys.tokenizer(), originals, VIDEO, metrics=metrics)
    assert found.metrics["rfvd"].value == pytest.approx(0, abs=1e-9)
    assert found.metrics["psnr"].value == pytest.approx(120)
    assert found.metrics["codebook_usage"].value == 1
    with pytest.raises(ValueError, match="tokenizer: its modality is image, but Boxes .* holds samples of video"):
        of_tokenizer(1, tmp_path / "x", toy_pipeline().tokenizer, originals, None)


def test_an_audio_codec(tmp_path: Path) -> None:
    codec = tiny_audio_pipeline().tokenizer
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for number in range(6):  # of different lengths, at another rate
        wave = 0.2 * torch.randn(1, 900 + 100 * number, generator=torch.Generator().manual_seed(number))
        save_sound(wave, sounds / f"{number}.wav", 1000)
    extractor = LogMelFeatures(1000, bands=2, window=0.1)
    originals = open_samples(sounds, "audio")
    found = of_tokenizer(2, tmp_path / "out", codec, originals, extractor)
    assert found.metrics.keys() >= {"rfad", "log_mel", "stft", "si_sdr", "codebook_usage", "codebook_perplexity"}
    assert found.metrics["log_mel"].count == 6
    assert found.metrics["rfad"].value > 0
    without = of_tokenizer(1, tmp_path / "plain", codec, originals, None)
    assert without.metrics["stft"].value == pytest.approx(found.metrics["stft"].value)
    assert "rfad" not in without.metrics
