"""``maskgen`` on video: both stages of training, the tasks, what they write, and mistakes in one line.

Shapes: T frames, H W pixels.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from maskgen.checkpoint import save_module
from maskgen.tasks.media.video.files import VideoFile, load_video, save_video
from tests.support import make_tiny_pipeline, tiny_audio_pipeline
from tests.tasks.commandline import files, refused, run
from tests.tasks.media.video.samples import (
    PORTRAIT,
    cut,
    heard,
    moving,
    spoil,
    write,
    write_empty,
    write_heard,
    write_sound,
)
from tests.tasks.video.toys import LENGTH, SIDE, pipeline, tokenizer

CORRUPTED = Path(__file__).resolve().parents[4] / "shared" / "data" / "corrupted.mp4"
NAMES = ("FP2", "FI", "OPC", "IPC")
FAST: dict[str, Any] = {
    "steps": 3,
    "batch_size": 4,
    "optimizer": {"lr": 1.0e-3, "warmup_steps": 1},
    "log_every": 3,
    "validate_every": 0,
    "show_every": 0,
    "checkpoint_every": 0,
    "tracker": None,
}
DATA: dict[str, Any] = {
    "class_path": "maskgen.tasks.data.video.moving_digits.MovingDigits",
    "init_args": {"frames": 4, "size": 16, "digit_size": 8},
}
TOKENIZER: dict[str, Any] = {
    "tokenizer": {
        "class_path": "maskgen.tokenizers.video.vq3d.VQ3D",
        "init_args": {
            "config": {
                "channels": 4,
                "multipliers": [1, 1, 1],
                "temporal_downsample": [True, False],
                "encoder_blocks": 1,
                "decoder_blocks": 1,
                "groups": 4,
                "quantizer": {"codebook_size": 16, "dim": 4},
            }
        },
    },
    "data": DATA,
    "loss": {"perceptual": None, "gan_weight": 0.0},
    "settings": FAST,
}
SIZES = {"vocab_size": 16, "num_classes": 10, "axes": [2, 4, 4], "width": 16, "layers": 1, "heads": 2, "num_tasks": 5}
TRANSFORMER: dict[str, Any] = {
    "transformer": {"class_path": "maskgen.models.modern.ModernTransformer", "init_args": {"config": SIZES}},
    "data": DATA,
    "tasks": {"FP": 1, "FI": 1, "OPC": 1, "IPC": 1, "CG": 1},
    "settings": FAST,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lossless tokenizer under random weights."""
    folder = tmp_path_factory.mktemp("video") / "model"
    pipeline(names=NAMES, frame_rate=5.0).save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two videos of 20 frames of 16 x 12, a picture and masks."""
    monkeypatch.chdir(tmp_path)
    write(Path("a.mp4"), moving(20, 12, 16))
    write(Path("b.mp4"), moving(20, 12, 16)[::-1].copy())
    Image.fromarray(moving(1, 12, 16)[0]).save("picture.png")
    mask = np.zeros((12, 16), np.uint8)
    mask[3:7, 5:9] = 255
    Image.fromarray(mask).save("mask.png")
    save_video(np.broadcast_to(mask[None, :, :, None], (20, 12, 16, 3)).copy(), "mask.mp4", 10, quality=0)
    return tmp_path


def tasks(model: Path) -> dict[str, tuple[object, ...]]:
    """A complete command of each task."""
    part = ("--model", model, "--video", "a.mp4", "--clip.frames", 10)
    return {
        "predict-frames": ("predict-frames", *part, "--total", 26),
        "interpolate": ("interpolate", "--model", model, "--first", "a.mp4", "--last", "picture.png", "--total", 50),
        "inpaint-video": ("inpaint-video", *part, "--mask", "mask.png"),
        "outpaint-video": ("outpaint-video", *part, "--sides.left", 4, "--sides.bottom", 2),
    }


def test_tasks(model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each writes its videos and a manifest; seeds are the results' names."""
    lengths = {"predict-frames": 26, "interpolate": 50, "inpaint-video": 10, "outpaint-video": 10}
    for task, words in tasks(model).items():
        run(*words, "--count", 2, "--seed", 5, "--steps", 2, "--out", task)
        assert f"2 video(s) of {lengths[task]} frames and manifest.json in {task}" in capsys.readouterr().out
        expected = [f"{task}_seed-{seed:08d}.mp4" for seed in (5, 6)]
        assert files(Path(task)) == sorted([*expected, "manifest.json"])
        manifest = json.loads((Path(task) / "manifest.json").read_text(encoding="utf-8"))
        assert (manifest["task"], manifest["model"]) == (task, str(model))
        assert manifest["items"] == [{"file": name, "seed": seed} for name, seed in zip(expected, (5, 6), strict=True)]
        assert (manifest["sampling"]["steps"], manifest["sampling"]["sampler"]) == (2, "commit")
        (first, rate), (second, _) = (load_video(Path(task) / name) for name in expected)
        assert (rate, first.shape) == (10, (lengths[task], SIDE, SIDE, 3))
        assert (first != second).any()
        form = ("--format", "gif") if task == "interpolate" else ("--clip.format", "gif")
        run(*words, "--seed", 6, "--steps", 2, *form, "--out", "gif")
        again, _ = load_video(f"gif/{task}_seed-00000006.gif", frame_rate=10)  # equal frames of a GIF are one
        assert again.shape == second.shape
        assert np.abs(again.astype(int) - second).mean() < 40


def test_what_is_given_is_in_the_file(model: Path, place: Path) -> None:
    """Up to what H.264 loses; the picture is resized to the model's height and loses its sides."""
    source, _ = load_video("a.mp4", size=(SIDE, round(16 * SIDE / 12)))
    middle = source[:, :, 1:9].astype(int)
    run(*tasks(model)["predict-frames"], "--clip.start", 0.5, "--out", "out")
    made, _ = load_video("out/predict-frames_seed-00000000.mp4")
    assert np.abs(made[:10] - middle[5:15]).mean() < 12
    run(*tasks(model)["interpolate"], "--out", "out")
    made, _ = load_video("out/interpolate_seed-00000000.mp4")
    assert np.abs(made[:20] - middle).mean() < 12
    assert np.abs(made[-1] - middle[0]).mean() < 20


def test_other_ways_to_say_it(model: Path, place: Path) -> None:
    common = ("--model", model, "--video", "a.mp4", "--out", "out", "--steps", 1)
    run("predict-frames", *common, "--clip.frame_rate", 5, "--context", 3)
    with VideoFile("out/predict-frames_seed-00000000.mp4") as file:
        assert (file.frames, file.frame_rate) == (10 - 3 + LENGTH, 5)
    for mask in ("central", "dynamic", "mask.mp4"):
        run("inpaint-video", *common, "--mask", mask)
        assert load_video("out/inpaint-video_seed-00000000.mp4")[0].shape == (20, SIDE, SIDE, 3)
    for region in ("vertical", "dynamic"):
        run("outpaint-video", *common, "--region", region)
    run("interpolate", "--model", model, "--first", "picture.png", "--last", "picture.png", "--out", "out")
    with VideoFile("out/interpolate_seed-00000000.mp4") as file:
        assert (file.frames, file.frame_rate) == (LENGTH, 5), "two pictures have the model's frame rate"


def test_sound_comes_back(model: Path, place: Path) -> None:
    """With every edit, or it is said that it does not; at its time."""
    write_heard(Path("a.mp4"), moving(20, 12, 16), burst=0.5, tags={"location": "+48.1+011.5/"})
    longer = "; what was added in time has no sound"
    for task, words in tasks(model).items():
        lost = "tags left out, which say where it was filmed: location, location-eng"
        lost += longer if task in ("predict-frames", "interpolate") else ""
        with pytest.warns(UserWarning, match=f"^a.mp4: {lost}$"):
            run(*words, "--steps", 1, "--out", task)
        sound, rate, begin = heard(Path(task) / f"{task}_seed-00000000.mp4")
        assert begin + int(np.argmax(np.abs(sound) > 0.2)) / rate == pytest.approx(0.5, abs=0.03), task
        form = "--format" if task == "interpolate" else "--clip.format"
        with pytest.warns(UserWarning, match=r"a.mp4: a GIF has no sound \(aac\), tags: left out"):
            run(*words, "--steps", 1, "--out", "gif", form, "gif")


def test_frames_at_uneven_times(model: Path, place: Path) -> None:
    """They are taken by the time at which they are shown, without a word."""
    times = [0, 100, 200, 300, 900, 1000, 1100, 1200]
    write(Path("phone.mp4"), moving(8, 12, 16), times=times)
    common = ("--model", model, "--video", "phone.mp4", "--steps", 1, "--out", "out", "--mask", "central")
    run("inpaint-video", *common, "--clip.frame_rate", 10)
    made, _ = load_video("out/inpaint-video_seed-00000000.mp4")
    assert len(made) == 13
    assert np.abs(made[4].astype(int) - made[7])[0].mean() < 12, "the frame of 300 ms is on the screen until 900"


def test_generating(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline(classes=2).save_pretrained("classes")
    run("generate", "--model", "classes", "--labels", "right,0", "--count", 2, "--steps", 2, "--seed", 3, "--out", "a")
    assert "4 clip(s), grid.gif and manifest.json in a" in capsys.readouterr().out
    names = [f"label-{label:04d}_seed-{seed:08d}.mp4" for label, seed in ((1, 3), (1, 4), (0, 5), (0, 6))]
    assert files(Path("a")) == sorted([*names, "grid.gif", "manifest.json"])
    run("generate", "--manifest", "a/manifest.json", "--out", "b", "--batch_size", 3)
    assert files(Path("b")) == files(Path("a"))
    with Image.open("a/grid.gif") as first, Image.open("b/grid.gif") as second:
        assert first.size == (4 * (SIDE + 2) + 2, SIDE + 4)
        assert (np.asarray(first.convert("RGB")) == np.asarray(second.convert("RGB"))).all()
    run("generate", "--model", "classes", "--count", 1, "--steps", 1, "--out", "all")
    assert len(files(Path("all"))) == 2 + 2
    pipeline().save_pretrained("plain")
    run("generate", "--model", "plain", "--count", 3, "--steps", 1, "--out", "c")
    assert [name for name in files(Path("c")) if name.startswith("seed-")] == [f"seed-{n:08d}.mp4" for n in range(3)]
    assert "label: got 7, expected 0 to 1" in refused(capsys, "generate", "--model", "classes", "--labels", 7)
    assert "needs an image model" in refused(capsys, "generate", "--model", "classes", "--per_class", 2)


def test_mistakes(model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict, between, inpaint, outpaint = tasks(model).values()
    Path("text.mp4").write_text("no video", encoding="utf-8")
    Path("empty.mp4").touch()
    write_sound(Path("sound.mp4"))
    cut(write(Path("cut.mp4"), moving(20, 12, 16)), 0.5)
    save_video(moving(4, 10, 10), "small.mp4", 10)
    for words, message in (
        ((*predict, "--video", "nowhere.mp4"), "nowhere.mp4: no such file, expected a video file"),
        ((*predict, "--video", "text.mp4"), "text.mp4"),
        ((*predict, "--video", "empty.mp4"), "got an empty file"),
        ((*predict, "--video", "sound.mp4"), "sound.mp4"),
        ((*predict, "--video", "cut.mp4"), "cut.mp4"),
        ((*predict, "--video", "."), "got a folder, expected a video file"),
        ((*predict, "--clip.frames", 99), "got 99 frames from 0 s on at 10 a second, expected 1 to 20"),
        ((*predict, "--clip.frame_rate", 0), "frame_rate: got 0 frames a second, expected 0.001 to 1000"),
        ((*predict, "--clip.format", "avi"), "format"),
        ((*predict, "--total", 10), "total: got 10, expected more than the 10 frames that are given"),
        ((*predict, "--steps", 0), "steps: got 0, expected at least 1"),
        ((*predict, "--label", "dog"), "label: got 'dog', but this model has no classes; give none"),
        ((*predict, "--device", "cuda:77"), "device: got 'cuda:77', which cannot be used here; expected cpu"),
        ((*between, "--last", "mask.txt"), "mask.txt: no such file"),
        ((*inpaint, "--mask", "outer"), "outer: no such file"),
        (
            (*inpaint, "--mask", "small.mp4"),
            "mask: got 4 frames of 10 x 10, expected 10 or more of 16 x 12, as the video",
        ),
        ((*outpaint, "--sides.left", -1), "outpaint: got left -1"),
        ((*outpaint, "--sides.left", 0, "--sides.bottom", 0, "--region", "top"), "region: got 'top', expected central"),
    ):
        assert message in refused(capsys, *words, "--out", "out"), words
    assert not Path("out").exists() or files(Path("out")) == []
    odd = pipeline()
    odd.config = dataclasses.replace(odd.config, signal_size=(LENGTH, SIDE, SIDE - 1))
    odd.save_pretrained("odd")
    words = ("--video", "a.mp4", "--clip.frames", 4, "--out", "odd-out")
    told = "format: got mp4, but the model's frames are 7 x 8, and it has even sizes only; use gif"
    assert told in refused(capsys, "predict-frames", "--model", "odd", *words)
    run("predict-frames", "--model", "odd", *words, "--clip.format", "gif")
    pipeline(names=["FP2"]).save_pretrained("narrow")
    assert "interpolation: this model was trained on FP2; expected" in refused(
        capsys, "interpolate", "--model", "narrow", "--first", "a.mp4", "--last", "b.mp4"
    )


def test_files_that_are_no_whole_videos(model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each by the command line: one line that names the file and what is wrong with it, and nothing is written."""
    write_sound(Path("sound.wav"))
    write_sound(Path("cover.mp4"), cover=True)
    write_empty(Path("zero.mp4"))
    write_empty(Path("zero.mkv"))
    Path("picture.mp4").write_bytes(Path("picture.png").read_bytes())
    spoil(write(Path("spoilt.mp4"), moving(40)), 12)  # the contents of a key frame, in a container that is whole
    for suffix, codec in ((".mkv", "libx264"), (".avi", "mpeg4")):
        cut(write(Path(f"cut{suffix}"), moving(60), codec=codec), 0.7)
    cut(write(Path("fast.mp4"), moving(60), container={"movflags": "faststart"}), 0.7)
    told = {
        "sound.wav": "sound.wav: no video in it (only audio)",
        "cover.mp4": "cover.mp4: no video in it (only audio)",
        "zero.mp4": "zero.mp4: no video in it",
        "zero.mkv": "zero.mkv: no video file, cut off or damaged",
        "picture.mp4": "picture.mp4: got a picture, expected a video",
        "spoilt.mp4": "spoilt.mp4: damaged: frame 12 of 40 cannot be decoded",
        "cut.mkv": "cut.mkv: cut off: ends",
        "cut.avi": "cut.avi: cut off:",
        "fast.mp4": "fast.mp4: damaged or cut off: frame",
    }
    if CORRUPTED.is_file():
        told[str(CORRUPTED)] = "corrupted.mp4: damaged or cut off: frame 30 of 50 cannot be decoded"
    for name, message in told.items():
        words = ("predict-frames", "--model", model, "--video", name, "--steps", 1, "--out", "out")
        assert message in refused(capsys, *words), name
    late = ("predict-frames", "--model", model, "--video", "a.mp4", "--clip.start", 9, "--out", "out")
    assert "a.mp4: got a start at 9 s, expected 0 to 2 s: so long it lasts" in refused(capsys, *late)
    assert not Path("out").exists() or files(Path("out")) == []


def test_files_that_only_look_wrong(model: Path, place: Path) -> None:
    """Odd sizes, a phone held upright, a single frame: what is given comes out as networks show it."""
    write(Path("odd.mkv"), moving(12, 45, 63), pixels="yuv444p")
    write(Path("phone.mp4"), moving(12, 48, 64), matrix=PORTRAIT)
    write(Path("one.mp4"), moving(1))
    for name, frames in (("odd.mkv", 12), ("phone.mp4", 12), ("one.mp4", 1)):
        run("predict-frames", "--model", model, "--video", name, "--steps", 1, "--out", "out")
        made, _ = load_video("out/predict-frames_seed-00000000.mp4")
        with VideoFile(name) as file:
            height, width = file.height, file.width
            scale = SIDE / min(height, width)
            source = file.read(size=(round(height * scale), round(width * scale)))
        top, left = (source.shape[1] - SIDE) // 2, (source.shape[2] - SIDE) // 2
        middle = source[:, top : top + SIDE, left : left + SIDE].astype(int)
        assert np.abs(made[:frames] - middle).mean() < 16, name
    assert (height, width) == (48, 64)


def test_models_of_other_modalities(place: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_pipeline(Path("images"))
    tiny_audio_pipeline().save_pretrained("sounds")
    for words in tasks(Path("images")).values():
        assert "needs a video model, but this model's modality is image" in refused(capsys, *words, "--out", "out")
    for words in tasks(Path("sounds")).values():
        assert "needs a video model, but this model's modality is audio" in refused(capsys, *words, "--out", "out")
    common = ("--model", model, "--out", "out")
    assert "needs an image model, but this model's modality is video" in refused(
        capsys, "inpaint", *common, "--image", "picture.png", "--mask", "mask.png", "--label", 0
    )
    assert not Path("out").exists()


def test_info(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("info", "--model", model)
    found = json.loads(capsys.readouterr().out)
    assert (found["modality"], found["signal_size"], found["token_axes"]) == ("video", [8, 8, 8], [4, 4, 4])
    assert (found["tasks"], found["frame_rate"], found["stride"]) == (list(NAMES), 5.0, [2, 2, 2])
    assert found["inpainting_prompt"] is False


def test_training_and_every_task(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("tokenizer", TOKENIZER), ("transformer", TRANSFORMER)):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    run("train", "tokenizer", "--config", "tokenizer.yaml", "--out", "m/tokenizer")
    second = ("train", "video-transformer", "--config", "transformer.yaml", "--tokenizer", "m/tokenizer", "--out", "m")
    run(*second, "--masking.ratios", "row")
    assert Path("m/tokenizer/samples/reconstructions-00000003.gif").is_file()
    assert Path("m/transformer/samples/samples-00000003.gif").is_file()
    for task, words in tasks(Path("m")).items():
        if task == "interpolate":
            words = ("interpolate", "--model", "m", "--first", "a.mp4", "--last", "b.mp4")
        run(*words, "--steps", 2, "--out", "out")
        assert load_video(f"out/{task}_seed-00000000.mp4")[0].shape[1:] == (16, 16, 3)
    run("generate", "--model", "m", "--labels", "seven", "--steps", 2, "--out", "out")
    assert load_video("out/label-0007_seed-00000000.mp4")[0].shape == (4, 16, 16, 3)
    capsys.readouterr()
    run(*second, "--masking.ratios", "row")
    assert "video transformer: finished before, reused from m/transformer" in capsys.readouterr().out


def test_mistakes_in_training(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = {"class_path": "maskgen.tasks.data.video.folders.VideoFolder", "init_args": {"root": "nowhere"}}
    for name, changes, message in (
        ("key", {"settings": {**FAST, "stpes": 2}}, "stpes"),
        ("data", {"data": folder}, "nowhere: no such folder, expected one of video files"),
        ("image", {"data": {"class_path": "maskgen.tasks.data.images.digits.Digits"}}, "data"),
        ("gan", {"loss": {"perceptual": None}}, "but the clips are [4, 16, 16] (frames, height, width)"),
    ):
        Path(f"{name}.yaml").write_text(yaml.safe_dump({**TOKENIZER, **changes}), encoding="utf-8")
        assert message in refused(capsys, "train", "tokenizer", "--config", f"{name}.yaml", "--out", "out"), name
    save_module(tokenizer(), Path("toy"))
    for name, changes, message in (
        ("task", {"tasks": {"XY": 1}}, "task: got 'XY', expected one of FP"),
        ("weight", {"tasks": {"FP": "often"}}, "tasks"),
        ("fit", {}, "vocab_size is 16, expected 4"),
    ):
        Path(f"{name}.yaml").write_text(yaml.safe_dump({**TRANSFORMER, **changes}), encoding="utf-8")
        words = ("train", "video-transformer", "--config", f"{name}.yaml", "--tokenizer", "toy", "--out", "out")
        assert message in refused(capsys, *words), name
    assert not Path("out").exists()


def test_libraries_of_video_are_loaded_when_they_are_needed(tmp_path: Path) -> None:
    code = (
        "import sys, maskgen.tasks.cli as c; c.build_parser(); "
        "print([n for n in ('av', 'decord', 'sklearn', 'torchaudio') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
