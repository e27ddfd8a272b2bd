"""``maskgen evaluate`` where only a part is asked for or can be had: no extractor, a task, broken files, sound, video."""

import json
from pathlib import Path

import pytest
import torch

from maskgen.tasks.media.audio.files import save_sound
from maskgen.tasks.media.video.files import save_video
from tests.support import tiny_audio_pipeline, toy_pipeline
from tests.tasks.commandline import refused, run
from tests.tasks.commands.test_evaluate import PIXELS, QUICK, SAMPLES, SHORT, report
from tests.tasks.evaluation.support import pictures
from tests.tasks.video import toys as video_toys

DIGITS = ("--data", "maskgen.tasks.data.images.digits.Digits", "--data.size", 32)


@pytest.fixture
def sets(place: Path) -> Path:
    """A working directory with generated, real and held-out pictures of two classes."""
    for seed, name in enumerate(("made", "real", "test")):
        pictures(place / name, 24, seed)
    return place


@pytest.fixture
def sounds(place: Path) -> Path:
    """Twelve sounds in a folder, and an audio model."""
    for number in range(12):
        wave = 0.2 * torch.randn(1, 400 + 20 * number, generator=torch.Generator().manual_seed(number))
        save_sound(wave, place / "sounds" / f"{number:02d}.wav", 1000)
    tiny_audio_pipeline().save_pretrained(place / "songs")
    return place


def content(out: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(Path(out, "evaluation.json").read_text(encoding="utf-8"))
    return found


def test_masked_tokens_alone_need_no_samples(
    model: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.download_url_to_file", None)
    metrics = ("--settings.metrics", '["masked"]', "--settings.ratios", "[0.5]", "--settings.draws", 10)
    run("evaluate", "model", "--model", model, *DIGITS, *metrics, "--out", "m")
    assert "masked 50%: loss " in capsys.readouterr().out
    assert not Path("m/samples").exists()
    assert content("m")["masked_tokens"][0]["loss"]["count"] == 360  # type: ignore[index]
    line = refused(capsys, "evaluate", "model", "--model", model, *DIGITS[:3], 16, *metrics, "--out", "n")
    assert line.startswith("data: got image of size (16, 16), but the model's is image of (32, 32)")
    assert not Path("n/samples").exists()
    assert "give either a place of real samples" in refused(capsys, "evaluate", "model", "--model", model)


def test_cas_alone_needs_no_extractor(
    sets: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.download_url_to_file", None)
    words = ("evaluate", "samples", "--samples", "made", "--reference", "real", "--held-out", "test", *SHORT)
    run(*words, "--settings.metrics", '["cas"]', "--out", "out")
    assert report("out").keys() == {"cas", "cas_real", "cas_over_real", "label_agreement"}
    assert content("out")["counts"] == {"samples": 24}
    Path("real/left").rename("real/other")
    line = refused(capsys, *words, "--settings.metrics", '["cas"]', "--out", "again")
    assert line.startswith("classes: made has left, which real lacks (it has other, right); expected the same names")


def test_broken_pictures_are_counted_and_left_out(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("made/left/0002.png", "real/right/0003.png", "test/left/0004.png"):
        (sets / place).write_bytes(b"x")
    share = ("--settings.broken", 0.05)
    run(*SAMPLES, *share, "--held-out", "test", *SHORT, "--out", "out")
    said = capsys.readouterr().out
    assert "CAS: training a classifier on 23 generated images" in said
    assert "warning: 1 samples could not be read and were left out" in said
    assert "warning: 1 real samples could not be read and were left out" in said
    metrics = content("out")["metrics"]
    assert (metrics["fid"]["count"], metrics["cas"]["count"]) == (23, 23)  # type: ignore[index]
    assert content("out")["skipped"]["samples"] == [  # type: ignore[index]
        "made/left/0002.png: no picture, or a damaged one (cannot identify image file)"
    ]
    line = refused(capsys, *SAMPLES, "--out", "again")  # the reference comes from the cache, with what it left out
    assert line.startswith("real: 1 of 24 samples cannot be read, expected at most a share of 0.01")


def test_originals_of_a_tokenizer(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_pipeline().save_pretrained("toy")
    words = ("evaluate", "tokenizer", "--tokenizer", "toy", "--samples", "made", "--settings.draws", 10)
    words = (*words, "--settings.metrics", '["psnr","codes"]')
    (sets / "made/left/0002.png").write_bytes(b"x")
    assert "made: 1 of 24 samples cannot be read" in refused(capsys, *words, "--out", "out")
    run(*words, "--settings.broken", 0.05, "--out", "out")
    assert content("out")["metrics"]["psnr"]["count"] == 23  # type: ignore[index]
    assert content("out")["skipped"]["originals"]  # type: ignore[index]
    pictures(sets / "made" / "large", 2, 0, side=12)
    line = refused(capsys, *words, "--settings.broken", 0.05, "--out", "mixed")
    assert line.startswith("made: got samples of different sizes: [12, 12] (number 0) and [8, 8] (number 2)")


def test_measures_that_mean_nothing_here(sets: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "metrics: got psnr, but a set of image samples is measured by fid, kid, is, prdc, cas; leave the rest out"
    assert refused(capsys, *SAMPLES, "--settings.metrics", '["psnr"]') == told
    words = ("evaluate", "model", "--model", model, *DIGITS, *PIXELS, "--settings.metrics")
    assert "but a model of image without a task is measured by" in refused(capsys, *words, '["psnr"]')
    assert "task needs a video model" in refused(capsys, *words, '["kid"]', "--task", "FP5")
    save_video(video_toys.noise(4), sets / "clips" / "a.mp4", 8)
    words = ("evaluate", "samples", "--samples", "clips", "--reference", "real")
    line = refused(capsys, *words)
    assert line.startswith("clips: no image files found (it holds video: name features of that kind)")


def test_an_audio_model(sounds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without features named it is measured on log-mel ones; gaps in held-out sounds need no reference at all."""
    words = ("evaluate", "model", "--model", "songs", "--settings.draws", 10, "--settings.points", 3, "--cache", "c")
    words = (*words, "--settings.batch_size", 4)
    line = refused(capsys, *words, "--reference", "sounds", "--settings.count", 8, "--out", "few")
    assert line.startswith("fad: got 8 feature vectors of 128 numbers")
    few = ("--settings.allow_few", "true")
    run(*words, *few, "--reference", "sounds", "--settings.count", 8, "--out", "whole")
    assert content("whole")["extractor"] == "log-mel-64-moments-16000-0.96s"
    assert {"fad", "kad"} <= report("whole").keys()
    gap = ("--held_out", "sounds", "--task", "infill", "--settings.gap.share", 0.25)
    run(*words, *gap, "--settings.metrics", '["log_mel","stft","si_sdr"]', "--out", "gap")
    found = report("gap")
    assert {f"gap_log_mel_{name}" for name in ("filled", "silence", "repeated", "codec")} <= found.keys()
    assert found["gap_kept_identical"] == 1
    assert "gap_si_sdr_filled: " in capsys.readouterr().out
    assert content("gap")["settings"]["gap"]["share"] == 0.25  # type: ignore[index]
    run(*words, *few, *gap, "--reference", "sounds", "--settings.metrics", '["fid","stft"]', "--out", "both")
    assert {"fad", "gap_stft_filled"} <= report("both").keys()
    assert "gap: got share 0.7" in refused(capsys, *words, *gap, "--settings.gap.share", 0.7)
    assert "needs held-out sounds" in refused(capsys, *words, "--task", "infill", "--settings.metrics", '["stft"]')
    assert "psnr" in refused(capsys, *words, *gap, "--settings.metrics", '["psnr"]')


def test_a_video_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was not given is measured by itself, beside its padding and beside the tokenizer's own version."""
    video_toys.pipeline(names=("FP2",)).save_pretrained("clips")
    for number in range(5):
        save_video(video_toys.boxes(number), place / "held" / f"{number}.mkv", 8, quality=0)
    words = ("evaluate", "model", "--model", "clips", "--settings.draws", 10, *QUICK[2:], "--settings.batch_size", 2)
    assert refused(capsys, *words, "--reference", "held").startswith(
        "features: got none, and FVD's I3D cannot be downloaded by itself: put MAGVIT's i3d_k400.flax or pytorch-i3d's"
    )
    task = ("--task", "FP2", "--settings.metrics", '["psnr"]')
    run(*words, *task, "--held_out", "held", "--out", "out")
    found = report("out")
    assert found.keys() == {"psnr", "psnr_new", "psnr_new_padding", "psnr_new_tokenizer"}
    assert found["psnr_new"] < found["psnr_new_tokenizer"]
    assert "psnr_new: " in capsys.readouterr().out
    (place / "held" / "3.mkv").write_bytes(b"x")
    line = refused(capsys, *words, *task, "--held_out", "held", "--out", "again")
    assert line.startswith("held: 1 of 5 samples cannot be read, expected at most a share of 0.01")
    save_video(video_toys.noise(8, 10, 12), place / "large" / "a.mp4", 8)
    line = refused(capsys, *words, *task, "--held_out", "large", "--out", "again")
    assert line.startswith(
        "task: large has clips of [8, 10, 12] (frames, height, width), expected the model's [8, 8, 8]"
    )
    line = refused(capsys, *words, *task, "--task", "IPC", "--held_out", "large")
    assert line.startswith("IPC: this model was trained on FP2; expected")
