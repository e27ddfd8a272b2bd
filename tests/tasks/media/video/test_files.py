"""Video files: what is read, what is refused, what is written, and what becomes a tensor."""

import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskgen.tasks.media.video import files as video_files
from maskgen.tasks.media.video.files import VideoFile, load_video, save_video, to_frames, to_video_tensor
from maskgen.tasks.media.video.writer import VideoWriter
from tests.tasks.media.video.samples import PORTRAIT, blank, cut, decoded, moving, trim, write, write_sound

DATA = Path(__file__).resolve().parents[5] / "shared" / "data"
MOMENTS = [0, 40, 80, 220, 250, 400, 900, 1000, 1020, 1250]  # milliseconds at which unevenly spaced frames begin
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames at 10 a second."""
    return write(tmp_path_factory.mktemp("video") / "clip.mp4", moving(40))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "uneven.mp4", moving(10), times=MOMENTS)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference in levels of 255."""
    return float(np.abs(one.astype(int) - other).mean())


def test_what_a_file_says_of_itself(clip: Path) -> None:
    with VideoFile(clip) as file:
        assert (file.frames, file.height, file.width, file.frame_rate) == (40, 48, 64, 10)
        assert isinstance(file.frame_rate, Fraction)
        assert file.duration == pytest.approx(4)
        assert not file.variable_rate
        assert file.times == pytest.approx(np.arange(40) / 10)
        assert repr(file) == f"VideoFile({clip}: 40 frames of 64 x 48, 10 frames a second)"


@pytest.mark.parametrize(
    "places",
    [[0], [39], [17], range(40), range(0, 40, 7), [30, 3, 3, 12], range(39, -1, -1), [11, 12, 13]],
    ids=lambda places: f"{places[0]}..{places[-1]}",
)
def test_frames_are_those_asked_for(clip: Path, places: list[int]) -> None:
    with VideoFile(clip) as file:
        found = file.read(places)
        assert found.dtype == np.uint8
        assert np.array_equal(found, decoded(clip)[list(places)])


def test_ranges_and_reopening(clip: Path) -> None:
    whole = decoded(clip)
    with VideoFile(clip) as file:
        assert np.array_equal(file.read(), whole)
        assert np.array_equal(file.read(start=5, stop=21, step=3), whole[5:21:3])
        file.close()
        assert np.array_equal(file.read(start=38), whole[38:])


def test_blocks_hold_a_whole_file(clip: Path) -> None:
    with VideoFile(clip) as file:
        blocks = list(file.blocks(16))
        assert [len(block) for block in blocks] == [16, 16, 8]
        assert np.array_equal(np.concatenate(blocks), decoded(clip))
        some = np.concatenate(list(file.blocks(3, range(0, 40, 4), size=(24, 32))))
        assert np.array_equal(some, file.read(range(0, 40, 4), size=(24, 32)))
        with pytest.raises(ValueError, match="blocks of 0 frames, expected at least 1"):
            next(file.blocks(0))


@pytest.mark.parametrize("size", [(24, 32), (100, 30), (1, 1)])
def test_resizing_on_read(clip: Path, size: tuple[int, int]) -> None:
    with VideoFile(clip) as file:
        found = file.read([0, 20], size=size)
        assert found.shape == (2, *size, 3)
        # Pillow has a low-pass filter too: no aliasing, the same picture to a few levels.
        whole = [Image.fromarray(frame) for frame in file.read([0, 20])]
        filtered = [np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR)) for image in whole]
        assert difference(found, np.stack(filtered)) < 4
        assert np.array_equal(file.read([20]), decoded(clip)[20:21])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts", ".webm", ".gif"])
def test_containers(tmp_path: Path, suffix: str) -> None:
    """decord finds other frames than asked for in AVI and MPEG-TS: these must be the right ones."""
    codec = {".avi": "mpeg4", ".webm": "libvpx-vp9", ".gif": "gif"}.get(suffix, "libx264")
    pixels = "rgb8" if suffix == ".gif" else "yuv420p"
    path = write(tmp_path / f"a{suffix}", moving(30), codec=codec, pixels=pixels)
    whole = decoded(path)
    with VideoFile(path) as file:
        assert (file.frames, file.frame_rate, file.variable_rate) == (30, 10, False)
        for places in ([14], range(0, 30, 7), range(26, 30), range(30)):
            assert np.array_equal(file.read(places), whole[list(places)]), list(places)


def test_odd_sizes_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "odd.mkv", moving(5, 47, 63), pixels="yuv444p")
    with VideoFile(path) as file:
        assert file.read().shape == (5, 47, 63, 3)
        assert difference(file.read(), moving(5, 47, 63)) < 8


def test_turned_videos_stand_upright(tmp_path: Path) -> None:
    path = write(tmp_path / "phone.mp4", moving(6), matrix=PORTRAIT)
    with VideoFile(path) as file:
        assert (file.height, file.width) == (64, 48)
        upright = np.rot90(decoded(path), -1, axes=(1, 2))
        assert np.array_equal(file.read(), upright)
        small = file.read([3], size=(32, 12))
        assert small.shape == (1, 32, 12, 3)
        image = Image.fromarray(upright[3]).resize((12, 32), Image.Resampling.BILINEAR)
        assert difference(small[0], np.asarray(image)) < 4


@pytest.mark.parametrize(("start", "share"), [(0, 0.5), (5, 0.5), (15, 0.3)])
def test_trimmed_videos(tmp_path: Path, start: int, share: float) -> None:
    """Frames that were trimmed away are in the file and in its header, but are not shown."""
    path = write(tmp_path / "trimmed.mp4", moving(40))
    whole = decoded(path)
    trim(path, start, share)
    with VideoFile(path) as file:
        assert file.frames == 40 * share
        assert file.duration == pytest.approx(4 * share)
        assert np.array_equal(file.read(), whole[start : start + file.frames])
        assert np.array_equal(file.read([file.frames - 2]), whole[start + file.frames - 2 :][:1])


def test_uneven_frames(uneven: Path) -> None:
    with VideoFile(uneven) as file:
        assert file.variable_rate
        assert file.times == pytest.approx(np.array(MOMENTS) / 1000)
        assert float(file.frame_rate) == pytest.approx(9 / 1.25, rel=1e-3)
        assert "unevenly spaced" in repr(file)
        moments = np.arange(12) / 10
        shown = [max(place for place, time in enumerate(MOMENTS) if time <= 1000 * moment + 1) for moment in moments]
        assert file.at_rate(10, count=12) == shown
        assert file.at_rate(10, start=0.85, count=2) == [5, 6]
        assert np.array_equal(file.read(shown), decoded(uneven)[shown])


def test_taking_frames_by_time(clip: Path) -> None:
    with VideoFile(clip) as file:
        assert file.at_rate(10) == list(range(40))
        assert file.at_rate(5) == list(range(0, 40, 2))
        assert file.at_rate(20, count=5) == [0, 0, 1, 1, 2]
        assert file.at_rate(Fraction(10, 3), start=1.0, count=3) == [10, 13, 16]
        with pytest.raises(ValueError, match=r"41 frames from 0 s on at 10 a second, expected 1 to 40: it lasts 4 s"):
            file.at_rate(10, count=41)
        for rate in (0, -1, float("nan"), 2000):
            with pytest.raises(ValueError, match=r"frames a second, expected 0\.001 to 1000"):
                file.at_rate(rate)


def test_load_video(clip: Path, uneven: Path) -> None:
    whole = decoded(clip)
    frames, rate = load_video(clip)
    assert np.array_equal(frames, whole)
    assert rate == 10
    frames, rate = load_video(clip, start=1.0, frames=4, frame_rate=2, size=(24, 32))
    assert (frames.shape, rate) == ((4, 24, 32, 3), 2)
    assert np.array_equal(load_video(clip, start=1.0, frames=4)[0], whole[10:14])
    with pytest.warns(UserWarning, match=r"not evenly spaced in time \(7.2 a second on average\).*give frame_rate"):
        assert len(load_video(uneven)[0]) == 10
    assert len(load_video(uneven, frame_rate=10)[0]) == 14  # 1.25 s and the last frame's 0.1 s


BAD_READS: list[tuple[dict[str, object], str]] = [
    ({"start": 30, "stop": 50}, r"got frames 30 to 49, expected some of 0 to 39: it has 40 frames"),
    ({"indices": [-1, 3]}, "got frames -1 to 3, expected some of 0 to 39"),
    ({"indices": []}, "got no frames, expected some of 0 to 39"),
    ({"start": 40}, "got no frames, expected some of 0 to 39"),
    ({"step": 0}, "step 0; expected 0 <= start < stop and step >= 1"),
    ({"start": 3, "stop": 3}, "start 3, stop 3"),
    ({"indices": [0], "size": (0, 5)}, r"got size \(0, 5\), expected \(height, width\)"),
    ({"size": (1 << 14, 1 << 14)}, r"40 frames of 16384 x 16384, 30 GiB; expected at most 4 GiB at once.*by blocks"),
]


@pytest.mark.parametrize(("asked", "told"), BAD_READS, ids=[told[:20] for _, told in BAD_READS])
def test_what_cannot_be_read(clip: Path, asked: dict[str, object], told: str) -> None:
    with VideoFile(clip) as file, pytest.raises(ValueError, match=told):
        file.read(**asked)  # type: ignore[arg-type]


def text(path: Path) -> Path:
    path.write_text("hello\n" * 99)
    return path


def picture(path: Path) -> Path:
    Image.new("RGB", (32, 32)).save(path)
    return path


def empty_video(path: Path) -> Path:
    """A whole container with a video stream that has no frames."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv420p"
        file.start_encoding()
    return path


def lossy(path: Path) -> Path:
    return write(path, moving(30), container={"movflags": "faststart"} if path.suffix == ".mp4" else {})


def animated(path: Path) -> Path:
    """A picture that moves."""
    first, *others = (Image.fromarray(frame) for frame in moving(3))
    first.save(path, save_all=True, append_images=others, duration=100)
    return path


BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty.mp4": (lambda path: (path.touch(), path)[1], "empty.mp4: got an empty file, expected a video file"),
    "words.mp4": (text, "words.mp4: no video file, cut off or damaged"),
    "words.txt": (text, "words.txt: got a file of type 'tty', expected a video such as mp4"),
    "picture.png": (picture, "picture.png: got a picture, expected a video"),
    "moving.webp": (
        animated,
        "moving.webp: got a picture, expected a video; an animated WebP is not read, save it as GIF",
    ),
    "picture.mp4": (lambda path: picture(path.with_suffix(".jpg")).rename(path), "got a picture, expected a video"),
    "sound.wav": (write_sound, r"sound.wav: no video in it \(only audio\), expected a file with moving pictures"),
    "song.m4a": (write_sound, r"song.m4a: no video in it \(only audio\)"),
    "cover.mp4": (lambda path: write_sound(path, cover=True), r"cover.mp4: no video in it \(only audio\)"),
    "none.mp4": (empty_video, "none.mp4: (holds no frames|no video)"),
    "cut.mp4": (lambda path: cut(lossy(path), 0.7), r"cut.mp4: damaged or cut off: frame \d+ of 30 cannot be decoded"),
    "headless.mp4": (lambda path: cut(write(path, moving(30)), 0.7), "no video file, cut off or damaged"),
    "cut.mkv": (
        lambda path: cut(lossy(path), 0.6),
        r"cut.mkv: cut off: ends 1\.\d s before its header says, after \d+ f",
    ),
    "cut.avi": (
        lambda path: cut(write(path, moving(30), codec="mpeg4"), 0.9),
        r"cut.avi: damaged or cut off: frame \d+ of 30 cannot be decoded",
    ),
    "holes.mp4": (lambda path: blank(lossy(path)), r"holes.mp4: damaged or cut off: frame \d+ of 30 cannot be decoded"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_no_videos(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, told = BAD_FILES[name]
    path = make(tmp_path / name)
    with pytest.raises(ValueError, match=told) as caught:
        VideoFile(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.mp4: no such file, expected a video file"):
        VideoFile(tmp_path / "nothing.mp4")
    with pytest.raises(ValueError, match="got a folder, expected a video file"):
        load_video(tmp_path)


def test_names_that_look_like_protocols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_video(moving(2), "a:b.mp4", 10)
    assert VideoFile("a:b.mp4").read().shape == (2, 48, 64, 3)


@needs_data
def test_the_file_that_decord_opens_without_complaint() -> None:
    with pytest.raises(ValueError, match=r"corrupted\.mp4: damaged or cut off: frame 30 of 50 cannot be decoded"):
        VideoFile(DATA / "corrupted.mp4")


@needs_data
def test_a_real_clip() -> None:
    with VideoFile(DATA / "flipping_a_pancake.mkv") as file:
        assert (file.frames, file.height, file.width, file.frame_rate) == (310, 240, 426, 30)
        assert file.duration == pytest.approx(10.333, abs=0.01)
        assert np.array_equal(file.read(range(148, 153)), decoded(DATA / "flipping_a_pancake.mkv")[148:153])


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov", ".mkv"])
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str) -> None:
    frames = moving(20)
    save_video(frames, tmp_path / f"a{suffix}", Fraction(30000, 1001), quality=4)
    with VideoFile(tmp_path / f"a{suffix}") as file:
        assert (file.frames, file.height, file.width) == (20, 48, 64)
        assert file.frame_rate == Fraction(30000, 1001)
        assert difference(file.read(), frames) < 4
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_pictures_and_pieces_are_written(tmp_path: Path) -> None:
    frames = moving(9)
    save_video([Image.fromarray(frame) for frame in frames], tmp_path / "a.mp4", 25)
    with VideoWriter(tmp_path / "new" / "b.mp4", 25) as writer:
        for block in np.array_split(frames, 3):
            writer.write(block)
    assert writer.frames == 9
    one, other = decoded(tmp_path / "a.mp4"), decoded(tmp_path / "new" / "b.mp4")
    assert one.shape == other.shape == frames.shape
    assert difference(one, other) < 1  # x264 is not the same in every run


def test_gif(tmp_path: Path) -> None:
    save_video(moving(6, 15, 21), tmp_path / "a.gif", 20)
    with Image.open(tmp_path / "a.gif") as found:
        assert (getattr(found, "n_frames", 1), found.size, found.info["duration"]) == (6, (21, 15), 50)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    frames = moving(2)
    for bad, told in (
        (frames[:, :47], r"got frames of 64 x 47, expected an even width and height for H.264.*\.gif"),
        (frames[:0], r"got shape \(0, 48, 64, 3\), expected \[T, H, W, 3\] with at least one frame"),
        (frames[..., :1], r"expected \[T, H, W, 3\]"),
        ([], r"pictures of sizes \[\], expected at least one"),
        ([Image.new("RGB", (2, 2)), Image.new("RGB", (4, 2))], "all of one size"),
    ):
        with pytest.raises(ValueError, match=told):
            save_video(bad, tmp_path / "a.mp4", 10)
    with pytest.raises(TypeError, match=r"got float32, expected uint8; make them with to_frames"):
        save_video(frames.astype(np.float32), tmp_path / "a.mp4", 10)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got ndarray, expected PIL images or one uint8 array"):
        save_video(list(frames), tmp_path / "a.mp4", 10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a\.webm: expected a name that ends in \.mp4"):
        save_video(frames, tmp_path / "a.webm", 10)
    with pytest.raises(ValueError, match="got quality 60, expected 0"):
        save_video(frames, tmp_path / "a.mp4", 10, quality=60)
    with pytest.raises(ValueError, match="got 0 frames a second"):
        save_video(frames, tmp_path / "a.gif", 0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=re.escape(f"{tmp_path / 'file' / 'a.mp4'}: cannot be written")):
        save_video(frames, tmp_path / "file" / "a.mp4", 10)


def write_and_stop(path: Path, *blocks: np.ndarray) -> VideoWriter:
    with VideoWriter(path, 10) as writer:
        for block in blocks:
            writer.write(block)
    return writer


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    before = write_and_stop(tmp_path / "a.mp4", moving(2)).path.read_bytes()
    with pytest.raises(ValueError, match="got frames of 32 x 48, expected 64 x 48"):
        write_and_stop(tmp_path / "a.mp4", moving(3), moving(3)[:, :, :32])
    with pytest.raises(TypeError, match="got float64, expected uint8"):
        write_and_stop(tmp_path / "a.mp4", moving(3), moving(3) / 1.0)
    with pytest.raises(ValueError, match="got no frames, expected at least one; nothing was written"):
        write_and_stop(tmp_path / "b.mp4")
    with pytest.raises(ValueError, match="not open; write inside"):
        write_and_stop(tmp_path / "a.mp4", moving(2)).write(moving(1))
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == before


def test_tensors_and_back() -> None:
    frames = moving(3)
    video = to_video_tensor(frames)
    assert (video.shape, video.dtype) == ((1, 3, 3, 48, 64), torch.float32)
    assert video.is_contiguous()
    assert float(video[0, 2, 1, 4, 5]) == pytest.approx(frames[1, 4, 5, 2] / 255)
    (again,) = to_frames(video)
    assert np.array_equal(again, frames)
    assert torch.equal(to_video_tensor([Image.fromarray(frame) for frame in frames]), video)
    two = to_frames(torch.cat((video, video.flip(-1))))
    assert np.array_equal(two[1], frames[:, :, ::-1])
    assert to_frames(torch.tensor([-1.0, 0.499 / 255, 2.0]).view(1, 3, 1, 1, 1))[0].ravel().tolist() == [0, 0, 255]
    with pytest.raises(ValueError, match=r"got shape \(3, 3, 48, 64\), expected \[B, 3, T, H, W\]"):
        to_frames(video[0])
    with pytest.raises(ValueError, match="not finite, expected numbers in"):
        to_frames(video * torch.nan)
    with pytest.raises(TypeError, match="got float32, expected uint8"):
        to_video_tensor(frames.astype(np.float32))  # type: ignore[arg-type]


def test_libraries_are_imported_where_they_are_used() -> None:
    code = f"import sys, {video_files.__name__}; print([name for name in ('av', 'decord') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
