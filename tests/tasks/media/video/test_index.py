"""When frames are shown, which stream is taken, and where decoding can begin: headers are claims."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from maskgen.tasks.media.video.files import VideoFile, load_video
from maskgen.tasks.media.video.index import opened
from tests.tasks.media.video.samples import Frames, decoded, moving, write


def numbered(count: int) -> Frames:
    """Frames that say their number, in eight bars, and have something that moves, so that B frames are made."""
    frames = np.full((count, 64, 64, 3), 90, np.uint8)
    for number, frame in enumerate(frames):
        for bit in range(8):
            frame[:16, 8 * bit : 8 * bit + 8] = 255 * (number >> bit & 1)
        frame[30:50, number % 44 : number % 44 + 20] = 200
    return frames


def numbers(frames: Frames) -> list[int]:
    bits = frames[:, 4:12].reshape(len(frames), 8, 8, 8, 3)[:, :, :, 2:6].mean((1, 3, 4)) > 128
    return [int(number) for number in (bits * (1 << np.arange(8))).sum(1)]


def encode(path: Path, frames: Frames, codec: str, options: dict[str, str], rate: Any = 25, last: float = 0) -> Path:
    """Frames with the options of an encoder; the last held for so many seconds longer."""
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=rate, options=dict(options))
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *frames.shape[1:3], "yuv420p", 2_000_000
        packets = [one for frame in frames for one in stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24"))]
        packets += stream.encode()
        if last:
            packets[-1].duration = round((last + float(1 / stream.average_rate)) / packets[-1].time_base)
        file.mux(packets)
    return path


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("mpeg4.mp4", "mpeg4", {"bf": "2", "g": "12", "b_strategy": "0", "qmin": "2", "qmax": "4"}),
        ("mpeg2.mp4", "mpeg2video", {"bf": "2", "g": "12", "b_strategy": "0", "qmin": "2", "qmax": "4"}),
        ("open.mp4", "libx264", {"x264-params": "keyint=20:open-gop=1:bframes=3:b-adapt=0:scenecut=0"}),
        (
            "x265.mp4",
            "libx265",
            {"preset": "ultrafast", "x265-params": "log-level=none:keyint=20:min-keyint=20:bframes=3"},
        ),
        ("closed.mp4", "libx264", {"g": "20"}),
    ],
)
def test_frames_from_the_middle(tmp_path: Path, name: str, codec: str, options: dict[str, str], reader: Any) -> None:
    """decord counts wrong after it seeks to a key frame before which frames are shown that come after it."""
    path = encode(tmp_path / name, numbered(72), codec, options)
    asked: Sequence[Sequence[int]] = [range(start, start + 8) for start in range(0, 64, 13)]
    for places in (*asked, range(3, 72, 5), range(25, 72, 9)):
        with VideoFile(path, threads=1, reader=reader) as file:
            assert file.frames == 72
            assert numbers(file.read(places)) == list(places)
    assert numbers(load_video(path, start=49 / 25, frames=4)[0]) == [49, 50, 51, 52]


@pytest.mark.parametrize(("suffix", "held"), [(".mp4", 0.16), (".mov", 3.0), (".mkv", 0.48)])
def test_a_last_frame_that_is_held(tmp_path: Path, suffix: str, held: float) -> None:
    """25 a second, none left out; the last comes again as long as it is shown."""
    frames = moving(200)
    path = encode(tmp_path / f"held{suffix}", frames, "libx264", {"preset": "ultrafast", "bf": "0"}, last=held)
    with VideoFile(path) as file:
        taken = file.at_rate(file.frame_rate)
        assert (file.frame_rate, file.variable_rate, file.frames) == (25, False, 200)
        assert taken[:200] == list(range(200))
        assert set(taken[200:]) <= {199}
        assert file.duration == pytest.approx(8 + held, abs=0.002)
        assert len(taken) == pytest.approx(25 * (8 + held), abs=1)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts", ".avi", ".flv"])
@pytest.mark.parametrize("rate", [24, Fraction(24000, 1001), Fraction(30000, 1001), 50, 120, 240])
def test_rates_behind_rounded_stamps(tmp_path: Path, suffix: str, rate: Any) -> None:
    """Matroska and FLV round to milliseconds; each frame is taken once, at the file's own rate and at half of it."""
    codec = {".avi": "mpeg4", ".flv": "flv"}.get(suffix, "libx264")
    path = encode(tmp_path / f"a{suffix}", moving(61, 16, 16), codec, {"bf": "0"}, rate)
    with VideoFile(path) as file:
        assert float(file.frame_rate) == pytest.approx(float(rate), rel=2e-3 if suffix == ".flv" else 1e-6)
        assert (file.frames, file.variable_rate) == (61, False)
        assert file.at_rate(file.frame_rate) == list(range(61))
        assert file.at_rate(file.frame_rate / 2) == list(range(0, 61, 2))
        assert file.at_rate(file.frame_rate, start=10 / float(file.frame_rate))[0] == 10


def test_a_pause_does_not_change_the_rate(tmp_path: Path) -> None:
    """A recorder that stood still for ten seconds: 25 a second before and after it, the same frame meanwhile."""
    times = [40 * number + (10_000 if number >= 30 else 0) for number in range(60)]
    path = write(tmp_path / "a.mkv", moving(60), times=times)
    with VideoFile(path) as file:
        assert (file.frame_rate, file.variable_rate) == (25, True)
        taken = file.at_rate(25)
        assert set(taken) == set(range(60))
        assert taken.count(29) == 251


@pytest.mark.parametrize("suffix", [".ts", ".h264"])
def test_a_stream_that_begins_between_key_frames(tmp_path: Path, suffix: str) -> None:
    """What is shown before the first key frame nobody can decode: players begin there."""
    options = {"preset": "ultrafast", "g": "25", "bf": "0"}
    path = encode(tmp_path / f"a{suffix}", numbered(100), "libx264", options)
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 188 * 3 // 10 * 188 :])
    there = numbers(decoded(path))
    with pytest.warns(
        UserWarning, match=r"begins between key frames: its first \d+ frames cannot be decoded and are left"
    ):
        clip, rate = load_video(path)
    assert numbers(clip) == there == list(range(100 - len(there), 100))
    assert there[0] % 25 == 0
    assert rate == 25


def test_two_videos_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as file:
        streams: list[Any] = [file.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, chosen in zip(streams, (0, av.stream.Disposition.default), strict=True):
            stream.height, stream.width, stream.pix_fmt, stream.disposition = 48, 64, "yuv420p", chosen
        for dark in moving(10):
            for stream, picture in zip(streams, (dark // 4, dark), strict=True):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        for stream in streams:
            file.mux(stream.encode())
    with pytest.warns(UserWarning, match=r"two\.mkv: holds 2 videos: stream 1 is taken, as players do"):
        clip, _ = load_video(path)
    assert np.abs(clip.astype(int) - moving(10)).mean() < 8


def test_recordings_that_were_joined(tmp_path: Path) -> None:
    """Time begins anew: sorted by their stamps, frames of both would come in turn."""
    path = encode(tmp_path / "a.ts", numbered(50), "libx264", {"g": "10"})
    path.write_bytes(path.read_bytes() * 2)
    with pytest.warns(UserWarning, match="time stamps are equal or begin anew: frames are taken one after the other"):
        clip, _ = load_video(path)
    assert numbers(clip) == [*range(50)] * 2


def test_a_stream_that_begins_in_the_middle(tmp_path: Path) -> None:
    """PyAV raises IndexError of the first packet of a stream that was not there at the start."""
    path = encode(tmp_path / "a.ts", moving(5), "libx264", {})
    with (
        pytest.raises(ValueError, match=r"a\.ts: a stream begins in its middle, which PyAV cannot follow; copy it"),
        opened(path, "a.ts") as container,
    ):
        container.streams[len(container.streams)]
