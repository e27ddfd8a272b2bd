"""What a file is found to hold, and that frames are right whichever library reads them."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from maskgen.tasks.media.video import backends as video_backends
from maskgen.tasks.media.video import index as video_index
from maskgen.tasks.media.video.backends import Decoder, open_decoder
from maskgen.tasks.media.video.files import VideoFile, save_video
from maskgen.tasks.media.video.index import VideoIndex, scan
from tests.tasks.media.video.samples import PORTRAIT, decoded, moving, spoil, write

DATA = Path(__file__).resolve().parents[5] / "shared" / "data"
PLACES = [0, 13, 14, 29, 30, 39]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "clip.mp4", moving(40))


def decoder(path: Path, index: VideoIndex | None = None, threads: int = 1) -> Decoder:
    return open_decoder(path, path.name, index or scan(path, path.name), threads, "decord")


class FakeDecord:
    """Counts what is asked of it; answers truthfully unless told otherwise.

    Args:
        path: file whose frames it knows.
        wrong: what it does wrong.
    """

    def __init__(self, path: Path, wrong: str = "") -> None:
        self.whole, self.wrong, self.batches = decoded(path), wrong, list[list[int]]()
        self.settings: dict[str, Any] = {}

    def cpu(self, number: int) -> int:
        return number

    def VideoReader(self, path: str, ctx: int, **settings: Any) -> Any:  # noqa: N802 (decord's name)
        if self.wrong == "does not open":
            raise RuntimeError("Error reading")
        self.settings = settings
        return self

    def __len__(self) -> int:
        return len(self.whole) + (self.wrong == "count")

    def get_frame_timestamp(self, places: Sequence[int]) -> Any:
        late = 0.1 * (np.arange(len(places)) > 0) if self.wrong == "times" else 0.0
        return np.stack([np.array(places) / 10 + late] * 2, axis=1)

    def get_batch(self, places: Sequence[int]) -> Any:
        self.batches.append(list(places))
        if self.wrong == "raises":
            raise RuntimeError("threaded_decoder.cc: Check failed: avcodec_send_packet")
        frames = self.whole[list(places)]
        return SimpleNamespace(asnumpy=lambda: frames[:, 1:] if self.wrong == "size" else frames)


@pytest.fixture
def fake(clip: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDecord:
    library = FakeDecord(clip)
    monkeypatch.setattr(video_backends, "_decord", lambda: library)
    return library


def test_decord_reads_regular_files(clip: Path, fake: FakeDecord) -> None:
    with VideoFile(clip, threads=3, reader="decord") as file:
        file.read([14, 3, 3])
        file.read([5], size=(20, 30))
    assert fake.batches == [[3, 14], [5]]  # ascending, no frame twice
    assert fake.settings == {"width": 30, "height": 20, "num_threads": 3, "fault_tol": pytest.approx(0, abs=1e-5)}
    assert fake.settings["fault_tol"] > 0  # 0 would let it repeat frames


def test_the_reader_can_be_chosen(clip: Path, fake: FakeDecord) -> None:
    with VideoFile(clip) as file:  # PyAV: decord passes on what the decoder had to guess
        assert np.array_equal(file.read(PLACES), fake.whole[PLACES])
    assert fake.batches == []
    with pytest.raises(ValueError, match="reader 'ffmpeg'; expected 0 or more, and decord or pyav"):
        VideoFile(clip, reader="ffmpeg")  # type: ignore[arg-type]


def test_threads_are_bounded(clip: Path, fake: FakeDecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 96)
    with VideoFile(clip, reader="decord") as file:
        file.read([0])
    assert fake.settings["num_threads"] == 4


@pytest.mark.parametrize("wrong", ["does not open", "count", "times", "raises", "size"])
def test_pyav_where_decord_is_wrong(clip: Path, fake: FakeDecord, wrong: str) -> None:
    fake.wrong = wrong
    with VideoFile(clip, reader="decord") as file:
        for _ in range(2):
            assert np.array_equal(file.read(PLACES), fake.whole[PLACES])
    assert len(fake.batches) <= 1  # not asked a second time


@pytest.mark.parametrize("missing", [None, "broken"])
def test_pyav_where_decord_is_missing(clip: Path, monkeypatch: pytest.MonkeyPatch, missing: str | None) -> None:
    """No wheel for the machine, or one whose library does not load."""
    if missing is None:
        monkeypatch.setitem(sys.modules, "decord", None)
    else:
        monkeypatch.delitem(sys.modules, "decord", raising=False)
        monkeypatch.setattr(
            "builtins.__import__", _refusing("decord", OSError("libdecord.so: cannot open"), __import__)
        )
    with VideoFile(clip, reader="decord") as file:
        assert np.array_equal(file.read(PLACES), decoded(clip)[PLACES])
        assert file.read(PLACES, size=(24, 32)).shape == (6, 24, 32, 3)


def _refusing(name: str, error: Exception, real: Any) -> Any:
    def load(asked: str, *args: Any, **named: Any) -> Any:
        if asked == name:
            raise error
        return real(asked, *args, **named)

    return load


def test_without_pyav(clip: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'video files need PyAV: pip install "maskgen\[video\]"'):
        VideoFile(clip)
    with pytest.raises(ImportError, match=r'pip install "maskgen\[video\]"'):
        save_video(moving(2), tmp_path / "a.mp4", 10)
    assert list(tmp_path.iterdir()) == []


def test_without_x264(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **named: object) -> None:
        raise av.codec.codec.UnknownCodecError("libx264")

    monkeypatch.setattr(av.container.OutputContainer, "add_stream", refuse, raising=False)
    with pytest.raises(ImportError, match=r"a\.mp4: this PyAV was built without x264"):
        save_video(moving(2), tmp_path / "a.mp4", 10)
    assert list(tmp_path.iterdir()) == []


def test_both_libraries_give_the_same_frames(clip: Path) -> None:
    pytest.importorskip("decord", reason="decord has no wheel for this machine")
    index = scan(clip, "clip")
    assert index.regular
    first = decoder(clip, index)
    assert first.__class__.__name__ == "_DecordDecoder"
    second = video_backends._PyavDecoder(clip, "clip", index, 1)
    for places in ([0], [37], PLACES, range(40)):
        assert np.array_equal(first.read(places, (48, 64)), second.read(places, (48, 64)))
        pair = [library.read(places, (24, 32)).astype(int) for library in (first, second)]
        assert np.abs(pair[0] - pair[1]).mean() < 2  # their versions of FFmpeg resize a little differently


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.avi", {"codec": "mpeg4"}),
        ("a.ts", {}),
        ("a.gif", {"codec": "gif", "pixels": "rgb8"}),
        ("turned.mp4", {"matrix": PORTRAIT}),
        ("uneven.mp4", {"times": [0, 10, 90, 100, 200, 500, 510, 600, 650, 990]}),
        ("deep.mkv", {"pixels": "yuv420p10le"}),
    ],
)
def test_what_decord_is_not_trusted_with(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    path = write(tmp_path / name, moving(10), **settings)
    index = scan(path, name)
    assert not index.regular
    assert decoder(path, index).__class__.__name__ == "_PyavDecoder"


def test_only_what_is_needed_is_decoded(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the key frame before the first frame that is asked for; 12 frames between key frames, at most."""
    passed = list[int]()
    real = video_backends._PyavDecoder._frames

    def counted(self: Any, *args: Any) -> Iterator[Any]:
        for place, frame in real(self, *args):
            passed.append(place)
            yield place, frame

    monkeypatch.setattr(video_backends._PyavDecoder, "_frames", counted)
    monkeypatch.setitem(sys.modules, "decord", None)
    index, reader = scan(clip, "clip"), decoder(clip)
    for places, key in (([30, 31], 24), ([32, 33], 32), ([39], 36), ([2], 0)):
        passed.clear()
        reader.read(places, (48, 64))
        assert passed == list(range(max(key, index.keys[index.keys <= key].max()), places[-1] + 1)), places


def test_what_is_known_without_decoding(clip: Path) -> None:
    index = scan(clip, "clip")
    assert len(index) == 40
    assert index.keys.tolist() == [0, 12, 24, 36]
    assert np.diff(index.stamps).min() == np.diff(index.stamps).max() > 0
    assert (index.seconds, index.shown.as_stored, index.variable) == (pytest.approx(4), True, False)


def test_frames_without_time_stamps_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "raw.h264", moving(20))
    with VideoFile(path) as file:
        assert file.frames == 20
        for places in ([11], [3, 4], range(0, 20, 6)):
            assert np.array_equal(file.read(places), decoded(path)[list(places)])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_damage_that_shows_when_a_frame_is_read(tmp_path: Path, name: str) -> None:
    """The decoder fills in what it cannot make out, and says so."""
    path = write(tmp_path / name, moving(40))
    whole = decoded(path)
    spoil(path, 12)  # the second key frame
    with VideoFile(path, reader="pyav") as file:
        assert file.frames == 40
        good = [*range(8), *range(24, 40)]
        assert np.array_equal(file.read(good), whole[good])
        with pytest.raises(ValueError, match=rf"{name}: damaged: frame 12 of 40 cannot be decoded; leave it out"):
            file.read(range(40))
        assert np.array_equal(file.read(good), whole[good])


def test_frames_that_the_decoder_refuses(tmp_path: Path) -> None:
    """Whichever library is asked: MPEG-4 says that it cannot, and decord hands over to PyAV."""
    path = write(tmp_path / "a.mp4", moving(40), codec="mpeg4")
    whole = decoded(path)
    spoil(path, 15, keep=0)
    for reader in ("decord", "pyav"):
        with VideoFile(path, reader=reader) as file:
            assert np.array_equal(file.read([0, 5, 30]), whole[[0, 5, 30]])
            with pytest.raises(ValueError, match=r"a\.mp4: damaged: frame \d+ of 40 cannot be decoded"):
                file.read(range(40))


def test_a_file_that_ends_between_two_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.mp4", moving(30), container={"movflags": "faststart"})
    with av.open(str(path)) as file:
        end = sorted(packet.pos for packet in file.demux(video=0) if packet.pos)[20]
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=r"cut\.mp4: (cut off: 20 of 30 frames are there|damaged or cut off)"):
        VideoFile(path)


def test_a_frame_that_never_comes_out(clip: Path) -> None:
    """An index that promises more than the decoder gives."""
    index = scan(clip, "clip")
    stamps = np.append(index.stamps, index.stamps[-1] + 1)
    times = np.append(index.times, index.times[-1] + 0.1)
    more = VideoIndex(**{**index.__dict__, "stamps": stamps, "times": times, "regular": False})
    reader = decoder(clip, more)
    with pytest.raises(ValueError, match=r"clip\.mp4: damaged: frame 40 of 41 cannot be decoded"):
        reader.read([40], (48, 64))
    assert np.array_equal(reader.read([39], (48, 64)), decoded(clip)[39:])


def test_seeking_that_lands_too_late(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some containers do; the frame is then looked for from the start."""
    index = scan(clip, "clip")
    reader = decoder(clip, VideoIndex(**{**index.__dict__, "regular": False}))
    monkeypatch.setattr(reader, "_near", lambda place: _stand_at(reader, index, 24))
    assert np.array_equal(reader.read([5], (48, 64)), decoded(clip)[5:6])


def _stand_at(reader: Any, index: VideoIndex, place: int) -> None:
    container, stream = reader._ready()
    container.seek(int(index.stamps[place]), stream=stream, backward=True)
    reader._decoded = reader._frames(container, stream)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
def test_the_trap() -> None:
    """decord opens the damaged file and counts its frames as if nothing were wrong."""
    decord = pytest.importorskip("decord", reason="decord has no wheel for this machine")
    path = DATA / "corrupted.mp4"
    assert len(decord.VideoReader(str(path), num_threads=1)) == 50
    with pytest.raises(ValueError, match="frame 30 of 50"):
        scan(path, "corrupted.mp4")


def test_units_are_measured() -> None:
    unit = b"\x00\x00\x00\x02ab"
    for content, whole in ((unit, True), (unit * 2, True), (unit + b"\0\0", True), (unit[:-1], False),
                           (b"\xff" * 8, False), (bytes(8), False)):  # fmt: skip
        packet = av.Packet(content)
        assert video_index._whole_units(packet, 4) is whole, content  # type: ignore[arg-type]
    assert video_index._whole_units(av.Packet(b"\xff" * 8), 0)  # type: ignore[arg-type]
