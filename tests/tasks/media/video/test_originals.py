"""What an edited clip keeps of its file beside the pictures, and what is said of what it loses."""

import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from maskgen.tasks.media.video.files import VideoFile
from maskgen.tasks.media.video.originals import VideoOriginal
from maskgen.tasks.media.video.writer import VideoWriter
from tests.tasks.media.video.samples import decoded, heard, moving, write, write_heard

FRAMES = moving(40)
CHAPTERS: list[Any] = [
    {
        "id": number,
        "start": 1000 * number,
        "end": 1000 * (number + 1),
        "time_base": Fraction(1, 1000),
        "metadata": {"title": name},
    }
    for number, name in enumerate(("one", "two", "three", "four"))
]
SOURCES = {
    "a.mp4": {"sound": "aac"},
    "b.ts": {"sound": "mp2"},
    "c.avi": {"sound": "pcm_s16le", "codec": "mpeg4"},
    "d.mkv": {"sound": "wavpack"},
    "e.webm": {"sound": "libopus", "codec": "libvpx"},
    "f.flv": {"sound": "libmp3lame", "codec": "flv", "rate": 44100},
    "g.mov": {"sound": "pcm_s24le"},
    "h.avi": {"sound": "aac", "codec": "mpeg4"},
    "i.mkv": {"sound": "tta", "layout": "5.1"},
}


def rewrite(path: Path, out: Path, start: int = 0, stop: int = 40, longer: int = 0) -> VideoOriginal:
    """Frames of a file as an edit writes them, with more of them at the end if asked."""
    with VideoFile(path) as file:
        original = file.original(start / 10, (stop - start) / 10)
        with VideoWriter(out, file.frame_rate, original=original) as writer:
            writer.write(file.read(range(start, stop)))
            if longer:
                writer.write(moving(longer))
    return original


def onset(path: Path) -> float:
    """When the burst is heard, in seconds after the first picture."""
    sound, rate, begin = heard(path)
    return begin + int(np.argmax(np.abs(sound) > 0.2)) / rate


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("name", SOURCES)
def test_sound_comes_with_the_pictures(tmp_path: Path, name: str, suffix: str) -> None:
    """As it is where the container takes it, else said to be encoded; at its time, of all or of a part."""
    path = write_heard(tmp_path / name, FRAMES, burst=2.0, **SOURCES[name])
    for start, stop in ((0, 40), (10, 26)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            rewrite(path, tmp_path / f"out{suffix}", start, stop)
        assert onset(tmp_path / f"out{suffix}") == pytest.approx(2 - start / 10, abs=0.03)
        sound, rate, begin = heard(tmp_path / f"out{suffix}")
        assert begin + len(sound) / rate == pytest.approx((stop - start) / 10, abs=0.16)
        with av.open(str(path)) as source, av.open(str(tmp_path / f"out{suffix}")) as result:
            kept = [file.streams.audio[0].codec_context.name.removesuffix("float") for file in (source, result)]
        assert bool(told) is (kept[1] == "aac" != kept[0]), (kept, told)
        assert all("encoded anew as AAC at 48000 Hz" in str(one.message) for one in told)


def test_packets_are_untouched(tmp_path: Path) -> None:
    path = write_heard(tmp_path / "a.mp4", FRAMES)
    rewrite(path, tmp_path / "b.mp4")
    packets = []
    for name in ("a.mp4", "b.mp4"):
        with av.open(str(tmp_path / name)) as file:
            packets.append([bytes(packet) for packet in file.demux(audio=0) if packet.size])
    assert packets[0] == packets[1]


def test_several_tracks_and_languages(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=10)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        tracks: list[Any] = [file.add_stream("aac", rate=16000, layout="mono") for _ in range(2)]
        for track, language in zip(tracks, ("ger", "eng"), strict=True):
            track.metadata["language"] = language
        for frame in moving(10):
            file.mux(video.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(video.encode())
        for track in tracks:
            block = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
            block.sample_rate = 16000
            file.mux(track.encode(block))
            file.mux(track.encode())
    rewrite(path, tmp_path / "out.mp4", 0, 10)
    with av.open(str(tmp_path / "out.mp4")) as file:
        assert [track.language for track in file.streams.audio] == ["ger", "eng"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_chapters_and_tags(tmp_path: Path, suffix: str) -> None:
    tags = {"title": "My clip", "comment": "made by me", "location": "+48.1+011.5/"}
    path = write_heard(tmp_path / "a.mp4", FRAMES, chapters=CHAPTERS, tags=tags)
    with pytest.warns(
        UserWarning, match=r"a\.mp4: tags left out, which say where it was filmed: location, location-eng"
    ) as told:
        rewrite(path, tmp_path / f"out{suffix}", 5, 25)
    assert len(told) == 1
    with av.open(str(tmp_path / f"out{suffix}")) as file:
        found = {name.lower(): text for name, text in file.metadata.items()}
        assert (found["title"], found["comment"]) == (tags["title"], tags["comment"])
        assert not any("48.1" in text for text in found.values())
        chapters = [(one["metadata"]["title"], float(one["start"] * one["time_base"])) for one in file.chapters()]
    assert chapters == [("one", 0), ("two", pytest.approx(0.5)), ("three", pytest.approx(1.5))]


def test_tags_that_mp4_does_not_take(tmp_path: Path) -> None:
    path = write_heard(tmp_path / "a.mkv", FRAMES, tags={"title": "My clip", "PHOTOGRAPHER": "me"})
    with pytest.warns(UserWarning, match=r"tags left out, which \.mp4 does not take: photographer"):
        rewrite(path, tmp_path / "out.mp4")
    rewrite(path, tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as file:
        assert file.metadata["PHOTOGRAPHER"] == "me"


def test_subtitles(tmp_path: Path) -> None:
    path = write_heard(tmp_path / "a.mp4", FRAMES, subtitles="mov_text")
    rewrite(path, tmp_path / "out.mp4", 3, 30)
    with av.open(str(tmp_path / "out.mp4")) as file:
        lines = [packet for packet in file.demux(subtitles=0) if b"hello" in bytes(packet)]
        assert [float(line.pts * line.time_base) for line in lines if line.pts is not None] == [pytest.approx(0.2)]
    path = write_heard(tmp_path / "b.mkv", FRAMES, subtitles="subrip")
    with pytest.warns(UserWarning, match=r"subtitles \(srt\) left out, which \.mp4 does not take"):
        rewrite(path, tmp_path / "out.mp4")


def test_what_is_added_in_time_has_no_sound(tmp_path: Path) -> None:
    path = write_heard(tmp_path / "a.mp4", FRAMES)
    with pytest.warns(UserWarning, match="what was added in time has no sound"):
        rewrite(path, tmp_path / "out.mp4", 0, 20, longer=10)
    sound, rate, _ = heard(tmp_path / "out.mp4")
    assert len(sound) / rate == pytest.approx(2, abs=0.1), "of the frames that were given, and no other"


def test_a_part_that_lies_later_in_the_result(tmp_path: Path) -> None:
    """As the last of two clips that are joined by new frames."""
    path = write_heard(tmp_path / "a.mp4", FRAMES, burst=1.0)
    with VideoFile(path) as file:
        original = replace(file.original(0, 4), at=1.5)
        with VideoWriter(tmp_path / "out.mp4", 10, original=original) as writer:
            writer.write(np.concatenate((moving(15), file.read())))
    assert onset(tmp_path / "out.mp4") == pytest.approx(2.5, abs=0.03)


def test_another_pace(tmp_path: Path) -> None:
    path = write_heard(tmp_path / "a.mp4", FRAMES, chapters=CHAPTERS)
    with VideoFile(path) as file:
        original = replace(file.original(0, 4), in_time=False)
        with (
            pytest.warns(UserWarning, match=r"sound \(aac\) left out: the result has another pace; chapters left out"),
            VideoWriter(tmp_path / "out.mp4", 5, original=original) as writer,
        ):
            writer.write(file.read())
    with av.open(str(tmp_path / "out.mp4")) as result:
        assert not result.streams.audio


def test_gif_keeps_nothing(tmp_path: Path) -> None:
    path = write_heard(tmp_path / "a.mp4", FRAMES, chapters=CHAPTERS, tags={"title": "My clip"})
    with pytest.warns(UserWarning, match=r"a\.mp4: a GIF has no sound \(aac\), chapters, tags: left out"):
        rewrite(path, tmp_path / "out.gif")
    rewrite(write(tmp_path / "mute.mp4", FRAMES), tmp_path / "out.gif")


@pytest.mark.parametrize(("matrix", "full"), [(1, False), (1, True), (5, False), (9, False)])
def test_colours_mean_the_same(tmp_path: Path, matrix: int, full: bool) -> None:
    """The result says its matrix and range, is encoded by them, and so looks like its source."""
    path, out = tmp_path / "a.mp4", tmp_path / "out.mp4"
    colours = np.array([(220, 30, 30), (30, 200, 40), (30, 40, 220), (230, 220, 20)], np.uint8)
    frames = np.broadcast_to(colours.repeat(16, axis=0)[None, None], (6, 48, 64, 3)).copy()
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx264", rate=10, options={"crf": "2"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = matrix, 1 + full, 1, 1
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            file.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range=1 + full)))
        file.mux(stream.encode())
    assert np.abs(decoded(path)[:, :, 6::16].astype(int) - colours).max() < 8
    rewrite(path, out, 0, 6)
    assert np.abs(decoded(out)[:, :, 6::16].astype(int) - colours).max() < 12
    with av.open(str(out)) as file:
        context = file.streams.video[0].codec_context
        assert (int(context.colorspace), int(context.color_range)) == (matrix, 1 + full)


def test_what_comes_from_nowhere_says_its_colours(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", 10) as writer:
        writer.write(moving(3))
    with av.open(str(tmp_path / "out.mp4")) as file:
        context = file.streams.video[0].codec_context
        assert [int(number) for number in (context.colorspace, context.color_primaries, context.color_trc)] == [1, 1, 1]
    assert np.abs(decoded(tmp_path / "out.mp4").astype(int) - moving(3)).mean() < 6


def test_a_source_whose_sound_is_damaged(tmp_path: Path) -> None:
    """Packets that no decoder takes are copied or left out; the pictures are written all the same."""
    path = write_heard(tmp_path / "a.mp4", FRAMES, "libopus")
    with av.open(str(path)) as file:
        places = [(packet.pos or 0, packet.size) for packet in file.demux(audio=0) if packet.size]
    content = bytearray(path.read_bytes())
    for place, size in places[10:]:
        content[place : place + size] = b"\xff" * size
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="encoded anew"):
        rewrite(path, tmp_path / "out.mov")
    assert len(decoded(tmp_path / "out.mov")) == 40


def test_a_track_without_anything_in_it(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        video, _ = file.add_stream("libx264", rate=10), file.add_stream("aac", rate=16000, layout="mono")
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        for frame in moving(10):
            file.mux(video.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(video.encode())
    with pytest.warns(UserWarning, match=r"sound \(aac\) is empty"):
        rewrite(tmp_path / "a.mkv", tmp_path / "out.mp4", 0, 10)
