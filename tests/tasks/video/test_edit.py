"""Edits of video files: the same frames as in memory, computed when they are wanted, and everything refused before that.

Shapes: T frames, H W pixels.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskgen.tasks.media.video.files import VideoFile, load_video, save_video
from maskgen.tasks.video import generate_video, inpaint_video, interpolate, outpaint_video, predict_frames
from maskgen.tasks.video.edit import VideoEdit
from maskgen.tasks.video.source import Excerpt
from tests.support import tiny_audio_pipeline
from tests.tasks.media.video.samples import heard, write, write_heard
from tests.tasks.video.toys import LENGTH, SIDE, Frames, noise, pipeline

PIPE = pipeline(frame_rate=5.0)
MASK = np.zeros((SIDE, SIDE), bool)
MASK[2:5, 3:7] = True


@pytest.fixture
def clip(tmp_path: Path) -> Frames:
    """20 frames as ``a.mp4`` holds them."""
    save_video(noise(20), tmp_path / "a.mp4", 10, quality=0)
    Image.fromarray(noise(1)[0]).save(tmp_path / "picture.png")
    Image.fromarray(MASK.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    return load_video(tmp_path / "a.mp4")[0]


def edits(source: Any, part: Frames, folder: Path) -> dict[str, tuple[VideoEdit, VideoEdit]]:
    """Every task, from a file and from its frames."""
    options: dict[str, Any] = {"seeds": [3, 4]}
    picture = Image.open(folder / "picture.png")
    return {
        "predict": tuple(predict_frames(PIPE, one, total=30, context=3, **options) for one in (source, part)),  # type: ignore[dict-item]
        "inpaint": (
            inpaint_video(PIPE, source, folder / "mask.png", **options),
            inpaint_video(PIPE, part, MASK, **options),
        ),
        "region": tuple(inpaint_video(PIPE, one, "dynamic", **options) for one in (source, part)),  # type: ignore[dict-item]
        "outpaint": tuple(outpaint_video(PIPE, one, region="vertical", **options) for one in (source, part)),  # type: ignore[dict-item]
        "interpolate": (
            interpolate(PIPE, str(folder / "picture.png"), source, total=40, **options),
            interpolate(PIPE, picture, part, total=40, **options),
        ),
    }


@pytest.mark.parametrize("part", [{}, {"start": 0.5, "frames": 9}])
def test_a_file_is_its_frames(tmp_path: Path, clip: Frames, part: dict[str, Any]) -> None:
    first = round(part.get("start", 0) * 10)
    inside = clip[first : first + part.get("frames", 20)]
    source = Excerpt(tmp_path / "a.mp4", **part) if part else tmp_path / "a.mp4"
    outs = [tmp_path / "one.gif", tmp_path / "two.mp4"]
    for task, (from_file, in_memory) in edits(source, inside, tmp_path).items():
        assert from_file.write(outs) == len(in_memory[0]), task
        assert (from_file.frame_rate, in_memory.frame_rate) == (10, 5), task
        written, _ = load_video(outs[0], frame_rate=10)
        assert np.abs(written.astype(int) - in_memory[0]).mean() < 40
        assert load_video(outs[1])[0].shape == in_memory[1].shape
        for one, other in zip(from_file, in_memory, strict=True):
            assert (one == other).all(), task
        assert in_memory.write(outs) == len(in_memory[0])


def test_a_file_is_computed_when_it_is_wanted(tmp_path: Path, clip: Frames) -> None:
    steps: list[int] = []
    watched: dict[str, Any] = {"callback": lambda step: steps.append(step.step)}
    picture, video = tmp_path / "picture.png", str(tmp_path / "a.mp4")
    lazy = [
        predict_frames(PIPE, video, **watched),
        predict_frames(PIPE, picture, **watched),
        interpolate(PIPE, clip, picture, **watched),
        interpolate(PIPE, picture, picture, **watched),
        inpaint_video(PIPE, video, "central", **watched),
    ]
    assert steps == []
    assert [edit.frame_rate for edit in lazy] == [10, 5, 5, 5, 10]
    lazy[1].write(tmp_path / "out.gif")
    assert steps == [0, 1, 2]
    predict_frames(PIPE, clip[0], **watched)
    assert steps == [0, 1, 2] * 2, "what is in memory is computed at once"


def test_other_rates_and_generated_clips(tmp_path: Path) -> None:
    made = generate_video(PIPE, seeds=[1, 2])
    assert made.write([tmp_path / "a.mp4", tmp_path / "b.mp4"], frame_rate=Fraction(25, 2), quality=0) == LENGTH
    with VideoFile(tmp_path / "b.mp4") as file:
        assert (file.frames, file.frame_rate) == (LENGTH, Fraction(25, 2))
    assert generate_video(pipeline()).frame_rate == 8
    with pytest.raises(ValueError, match="0 frames a second"):
        made.write([tmp_path / "c.mp4", tmp_path / "d.mp4"], frame_rate=0)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (lambda pipe, path: predict_frames(pipe, path, total=20), "total: got 20, expected more than the 20 frames"),
        (lambda pipe, path: predict_frames(pipe, path, total=40, context=LENGTH), "context: got 8"),
        (lambda pipe, path: predict_frames(pipe, Excerpt(path, frames=99)), "got 99 frames from 0 s on"),
        (lambda pipe, path: predict_frames(pipe, Excerpt(path, frame_rate=0)), "frame_rate: got 0 frames a second"),
        (lambda pipe, path: interpolate(pipe, path, path, total=40), "total: got 40, expected more than the 40 frames"),
        (lambda pipe, path: inpaint_video(pipe, path, "middle"), "mask: got 'middle', expected central, dynamic"),
        (lambda pipe, path: outpaint_video(pipe, path, left=-1), "outpaint: got left -1"),
        (outpaint_video, "nothing to add"),
    ],
)
def test_everything_is_refused_before_it_is_wanted(tmp_path: Path, clip: Frames, task: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(PIPE, tmp_path / "a.mp4")


def test_files_that_are_missing(tmp_path: Path, clip: Frames) -> None:
    for call in (
        lambda: predict_frames(PIPE, tmp_path / "none.mp4"),
        lambda: predict_frames(PIPE, "none.png"),
        lambda: inpaint_video(PIPE, tmp_path / "a.mp4", "none.png"),
        lambda: inpaint_video(PIPE, tmp_path / "a.mp4", "none.mp4"),
    ):
        with pytest.raises(FileNotFoundError, match=r"none\.(mp4|png)"):
            call()
    with pytest.raises(TypeError, match="got an unexpected option 'seed'"):
        predict_frames(PIPE, clip, seed=1)  # type: ignore[call-arg]


def test_a_model_of_another_modality() -> None:
    sounds = tiny_audio_pipeline()
    for task in (lambda: predict_frames(sounds, noise(3)), lambda: generate_video(sounds)):
        with pytest.raises(ValueError, match="needs a video model, but this model's modality is audio"):
            task()


def with_sound(path: Path, burst: float = 1.0, **settings: Any) -> Path:
    return write_heard(path, noise(20), burst=burst, **settings)


def onset(path: Path) -> float:
    sound, rate, begin = heard(path)
    return begin + int(np.argmax(np.abs(sound) > 0.2)) / rate


def test_sound_comes_back_with_every_edit(tmp_path: Path) -> None:
    """At its time in the result: of a part of the file, before frames that are new, or after them."""
    path, out = with_sound(tmp_path / "a.mp4"), tmp_path / "out.mp4"
    options: dict[str, Any] = {"seeds": [0], "steps": 1}
    inpaint_video(PIPE, path, "central", **options).write(out)
    assert onset(out) == pytest.approx(1.0, abs=0.03)
    outpaint_video(PIPE, Excerpt(path, start=0.5, frames=9), region="vertical", **options).write(out)
    assert onset(out) == pytest.approx(0.5, abs=0.03)
    with pytest.warns(UserWarning, match="what was added in time has no sound"):
        predict_frames(PIPE, path, total=30, **options).write(out)
    assert onset(out) == pytest.approx(1.0, abs=0.03)
    interpolate(PIPE, np.zeros((SIDE, SIDE, 3), np.uint8), path, total=40, **options).write(out)
    assert onset(out) == pytest.approx(3.0, abs=0.03)
    with pytest.warns(UserWarning, match="what was added in time has no sound"):
        interpolate(PIPE, path, np.zeros((SIDE, SIDE, 3), np.uint8), total=40, **options).write(out)
    assert onset(out) == pytest.approx(1.0, abs=0.03)
    with pytest.warns(UserWarning, match=r"b\.mp4: sound \(aac\) left out: of several files the first keeps them"):
        interpolate(PIPE, path, with_sound(tmp_path / "b.mp4"), total=50, **options)


def test_sound_needs_the_pace_of_its_pictures(tmp_path: Path) -> None:
    path = with_sound(tmp_path / "a.mp4")
    slow = inpaint_video(PIPE, path, "central", seeds=[0], steps=1)
    with pytest.warns(UserWarning, match="another pace"):
        slow.write(tmp_path / "slow.mp4", frame_rate=5)
    faster = inpaint_video(PIPE, Excerpt(path, frame_rate=5), "central", seeds=[0], steps=1)
    faster.write(tmp_path / "fewer.mp4")
    assert onset(tmp_path / "fewer.mp4") == pytest.approx(1.0, abs=0.03), "fewer frames, as long as before"


def test_depth_that_is_lost_is_said(tmp_path: Path) -> None:
    deep = write(tmp_path / "deep.mp4", noise(20), pixels="yuv420p10le")
    with pytest.warns(UserWarning, match=r"deep\.mp4: 10 bits a channel come back as 8"):
        inpaint_video(PIPE, deep, "central", seeds=[0])
