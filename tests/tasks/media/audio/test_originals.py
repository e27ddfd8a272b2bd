"""What an edit keeps of a sound file: container, coding, byte order, tags, samples it did not touch; the rest is said."""

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from maskgen.tasks.audio import continue_audio, infill
from maskgen.tasks.media.audio.files import SoundFile, load_sound
from maskgen.tasks.media.audio.originals import describe
from maskgen.tasks.pipeline import Pipeline
from tests.support import tiny_audio_pipeline
from tests.tasks.media.audio.samples import encoded, noise, write_av

RATE, START, STOP = 8000, 0.3, 0.4
FIRST, LAST = 2400 - 80, 3200 + 80  # with the fades

KEPT = [
    (container, coding, suffix, endian)
    for container, suffix in (
        *(("WAV", ".wav"), ("WAVEX", ".wav"), ("RF64", ".rf64"), ("FLAC", ".flac"), ("W64", ".w64")),
        *(("AIFF", ".aiff"), ("AIFF", ".aif"), ("AU", ".au"), ("CAF", ".caf")),
    )
    for coding in soundfile.available_subtypes(container)
    if coding.startswith(("PCM", "FLOAT", "DOUBLE", "ULAW", "ALAW"))
    for endian in ("FILE", "LITTLE", "BIG")
    if soundfile.check_format(container, coding, endian)
]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return tiny_audio_pipeline()


def raw(path: Path) -> Any:
    """Samples as they are stored, as far as libsndfile gives them: float64, or the whole numbers in 32 bits."""
    floats = soundfile.info(str(path)).subtype in ("FLOAT", "DOUBLE")
    return soundfile.read(str(path), dtype="float64" if floats else "int32", always_2d=True)[0]


def edited(pipe: Pipeline, source: Path, out: Path, **how: Any) -> list[str]:
    """Fill a span and write the result; what was said, but for clipped samples of the random model."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        infill(pipe, source, start=START, stop=STOP, steps=1).write(out, **how)
    told = [str(one.message) for one in said]
    assert all("\n" not in one for one in told)
    return [one for one in told if "were clipped" not in one]


@pytest.mark.parametrize("channels", [1, 2])
def test_files_like_the_source(pipe: Pipeline, tmp_path: Path, channels: int) -> None:
    """In every coding without a loss the samples outside the span are the source's, as they are stored."""
    for container, coding, suffix, endian in KEPT[channels - 1 :: 2]:
        source, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
        sound = noise(6000, channels).astype(np.float64) * (3 if coding in ("FLOAT", "DOUBLE") else 1) + 1e-11
        soundfile.write(source, sound, RATE, subtype=coding, endian=endian, format=container)
        with SoundFile(source) as file:
            assert describe(file).suffix == suffix
        assert edited(pipe, source, out) == []
        was, now = soundfile.info(str(source)), soundfile.info(str(out))
        same = ("format", "subtype", "samplerate", "channels", "frames")
        assert [getattr(now, name) for name in same] == [getattr(was, name) for name in same], (container, coding)
        if container in ("AU", "AIFF"):
            assert soundfile.SoundFile(source).endian == soundfile.SoundFile(out).endian
        before, after = raw(source), raw(out)
        assert np.array_equal(after[:FIRST], before[:FIRST]), (container, coding)
        assert np.array_equal(after[LAST:], before[LAST:]), (container, coding)
        assert not np.array_equal(after, before)


def test_big_endian_wav(pipe: Pipeline, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "in.wav", noise(), RATE, subtype="PCM_16", endian="BIG", format="WAV")
    assert (tmp_path / "in.wav").read_bytes()[:4] == b"RIFX"
    assert edited(pipe, tmp_path / "in.wav", tmp_path / "out.wav") == []
    assert (tmp_path / "out.wav").read_bytes()[:4] == b"RIFX"


def test_full_scale_comes_back(pipe: Pipeline, tmp_path: Path) -> None:
    """Both ends of the whole numbers, which another scale would move."""
    for coding, top in (("PCM_16", 2**15), ("PCM_24", 2**23), ("PCM_32", 2**31)):
        steps = np.zeros((6000, 1), np.int32)
        steps[:4, 0] = np.array([-top, top - 1, 1 - top, 1]) << (31 - (top.bit_length() - 1))
        soundfile.write(tmp_path / "in.wav", steps, RATE, subtype=coding)
        edited(pipe, tmp_path / "in.wav", tmp_path / "out.wav")
        assert raw(tmp_path / "out.wav")[:4].tolist() == steps[:4].tolist()


@pytest.mark.parametrize(
    ("container", "coding", "name", "said"),
    [
        (
            "MP3",
            "MPEG_LAYER_III",
            "out.wav",
            "its coding (MPEG_LAYER_III) cannot be written again without a loss: the result is .wav",
        ),
        (
            "OGG",
            "VORBIS",
            "out.flac",
            "its coding (VORBIS) cannot be written again without a loss: the result is .flac",
        ),
        ("WAV", "IMA_ADPCM", "out.wav", "its coding (IMA_ADPCM) cannot be written again"),
        ("WAV", "PCM_16", "out.mp3", "written as MPEG_LAYER_III, which changes the samples that were kept as well"),
        ("WAV", "FLOAT", "out.flac", "its samples (FLOAT) are rounded to PCM_24, the most that FLAC has"),
        ("WAV", "PCM_32", "out.flac", "its samples (PCM_32) are rounded to PCM_24"),
        ("NIST", "PCM_16", "out.wav", "a NIST container is not written, the result is .wav"),
    ],
)
def test_other_files_than_the_source(
    pipe: Pipeline, tmp_path: Path, container: str, coding: str, name: str, said: str
) -> None:
    rate = 16_000 if container == "MP3" else RATE
    source = tmp_path / f"in.{container.lower()}"
    source.write_bytes(encoded(container, coding, rate, noise(12_000)))
    with SoundFile(source) as file:
        assert describe(file).suffix == (
            f".{container.lower()}" if container == "WAV" and coding[0] in "PF" else ".wav"
        )
    (told,) = edited(pipe, source, tmp_path / name)
    assert said in told
    assert str(source) in told
    if name != "out.mp3":
        before, after = load_sound(source)[0], load_sound(tmp_path / name)[0]
        first = round(START * rate) - rate // 100
        limit = 1e-6 if container == "MP3" else 0 if name == "out.wav" else 2.0**-23  # mpg123 rounds as blocks come
        assert float((after.clamp(-1, 1) - before.clamp(-1, 1))[:, :first].abs().max()) <= limit


@pytest.mark.parametrize(
    ("container", "coding", "name", "expected"),
    [
        ("WAV", "PCM_U8", "out.flac", "PCM_S8"), ("WAV", "PCM_U8", "out.aiff", "PCM_U8"),
        ("AIFF", "PCM_S8", "out.wav", "PCM_U8"), ("WAV", "ULAW", "out.flac", "PCM_16"),
        ("FLAC", "PCM_24", "out.wav", "PCM_24"),
    ],
)  # fmt: skip
def test_another_container_without_a_loss(
    pipe: Pipeline, tmp_path: Path, container: str, coding: str, name: str, expected: str
) -> None:
    source = tmp_path / "in"
    source.write_bytes(encoded(container, coding, RATE))
    assert edited(pipe, source, tmp_path / name) == []
    assert soundfile.info(str(tmp_path / name)).subtype == expected
    before, after = load_sound(source)[0], load_sound(tmp_path / name)[0]
    assert torch.equal(after[:, :FIRST], before[:, :FIRST])


def test_alac_becomes_plain_samples(pipe: Pipeline, tmp_path: Path) -> None:
    """libsndfile reads and writes some of it wrong: FFmpeg reads, and the result has the samples as they are."""
    source = tmp_path / "in.caf"
    source.write_bytes(encoded("CAF", "ALAC_32", sound=noise(6000, 1)))
    (told,) = edited(pipe, source, tmp_path / "out.caf")
    assert told == f"{source}: not kept: the coding alac"
    before, after = load_sound(source)[0], load_sound(tmp_path / "out.caf")[0]
    assert torch.equal(after[:, :FIRST], before[:, :FIRST])
    assert float((before - torch.from_numpy(noise(6000, 1).T)).abs().max()) < 1e-6


def test_files_that_ffmpeg_reads(pipe: Pipeline, tmp_path: Path) -> None:
    """FLAC of unknown length stays FLAC, m4a becomes wav; what they hold is kept."""
    content = encoded("FLAC", "PCM_24")
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    (tmp_path / "piped.flac").write_bytes(content)
    assert edited(pipe, tmp_path / "piped.flac", tmp_path / "out.flac") == []
    assert soundfile.info(str(tmp_path / "out.flac")).subtype == "PCM_24"
    before, after = load_sound(tmp_path / "piped.flac")[0], load_sound(tmp_path / "out.flac")[0]
    assert torch.equal(after[:, :FIRST], before[:, :FIRST])
    for name, codec, said in (
        ("a.m4a", "aac", "its coding (AAC) cannot be written again without a loss: the result is .wav"),
        ("l.m4a", "alac", "a MOV container is not written, the result is .wav"),
        ("a.mp4", "aac", "not kept: its picture"),
    ):
        source = write_av(tmp_path / name, codec, "mp4" if name == "a.mp4" else "ipod", pictures=name == "a.mp4")
        (told,) = edited(pipe, source, tmp_path / "out.wav")
        assert said in told
        before, after = load_sound(source)[0], load_sound(tmp_path / "out.wav")[0]
        assert torch.equal(after[:, :FIRST], before[:, :FIRST])
        assert torch.equal(after[:, LAST:], before[:, LAST:])


TAGS = {"title": "Tïtel", "artist": "A", "comment": "C", "date": "2020-01-02", "album": "L", "tracknumber": "3"}
TAGS |= {"genre": "Rock", "copyright": "R"}


@pytest.mark.parametrize("suffix", ["wav", "flac", "caf", "rf64"])
def test_tags_are_kept(pipe: Pipeline, tmp_path: Path, suffix: str) -> None:
    source, out = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    with soundfile.SoundFile(source, "w", RATE, 1, "PCM_16", format=suffix.upper()) as file:
        for name, value in TAGS.items():
            setattr(file, name, value)
        file.write(noise(6000, 1))
    assert edited(pipe, source, out) == []
    assert edited(pipe, source, out, bits=24) == []
    with soundfile.SoundFile(out) as file:
        assert file.subtype == "PCM_24"
        assert {name: value for name, value in file.copy_metadata().items() if name != "software"} == TAGS
    (told,) = edited(pipe, source, tmp_path / "out.aiff")
    assert told.endswith("not kept: the tag date, the tag album, the tag tracknumber, the tag genre")
    (told,) = edited(pipe, source, tmp_path / "out.au")
    assert "the tag title" in told


def test_further_tags_and_covers_are_said(pipe: Pipeline, tmp_path: Path) -> None:
    source = write_av(tmp_path / "in.flac", "flac", tags={"title": "T", "BPM": "120", "REPLAYGAIN_TRACK_GAIN": "-3 dB"})
    (told,) = edited(pipe, source, tmp_path / "out.flac")
    assert told == f"{source}: not kept: the tag bpm, the tag replaygain_track_gain"
    with soundfile.SoundFile(tmp_path / "out.flac") as file:
        assert file.title == "T"
    content = bytearray(source.read_bytes())
    picture = b"\x89PNG\r\n\x1a\n" + bytes(60)
    block = (
        struct.pack(">II", 3, 9)
        + b"image/png"
        + struct.pack(">I", 0)
        + struct.pack(">IIIII", 1, 1, 24, 0, len(picture))
    )
    block += picture
    end = 4
    while not content[end] & 0x80:  # the last block of metadata
        end += 4 + int.from_bytes(content[end + 1 : end + 4], "big")
    content[end] &= 0x7F
    end += 4 + int.from_bytes(content[end + 1 : end + 4], "big")
    content[end:end] = bytes([0x86]) + len(block).to_bytes(3, "big") + block
    (tmp_path / "cover.flac").write_bytes(content)
    (told,) = edited(pipe, tmp_path / "cover.flac", tmp_path / "out.flac")
    assert "not kept: its picture, the tag bpm" in told


def test_further_parts_of_wav_files_are_said(pipe: Pipeline, tmp_path: Path) -> None:
    plain = encoded("WAV", "PCM_16")
    parts = {b"bext": bytes(602), b"cue ": struct.pack("<I", 1) + bytes(24), b"smpl": bytes(36), b"iXML": b"<x/>"}
    content = plain + b"".join(name + struct.pack("<I", len(part)) + part for name, part in parts.items())
    content[4:8] = struct.pack("<I", len(content) - 8)
    (tmp_path / "in.wav").write_bytes(content)
    (told,) = edited(pipe, tmp_path / "in.wav", tmp_path / "out.wav")
    assert "not kept: the part 'bext', the part 'cue', the part 'smpl', the part 'iXML'" in told


def test_floats_beyond_one_are_not_clipped_in_silence(pipe: Pipeline, tmp_path: Path) -> None:
    loud = noise(6000, 1) * 4
    soundfile.write(tmp_path / "in.wav", loud, RATE, subtype="FLOAT")
    assert edited(pipe, tmp_path / "in.wav", tmp_path / "out.wav") == []
    assert np.array_equal(raw(tmp_path / "out.wav")[:FIRST], raw(tmp_path / "in.wav")[:FIRST])
    longer = continue_audio(pipe, tmp_path / "in.wav", seconds=0.1, steps=1)
    with pytest.warns(UserWarning, match=r"out.wav: \d+ samples beyond \[-1, 1\] were clipped to fit into PCM_16"):
        clipped = longer.write(tmp_path / "out.wav", bits=16)
    assert clipped >= int((np.abs(loud) > 1).sum()) - 100


def test_an_edit_of_a_sound_in_memory_says_nothing(pipe: Pipeline, tmp_path: Path) -> None:
    sound = torch.from_numpy(noise(6000, 1).T) * 0.1
    edit = infill(pipe, sound, RATE, start=START, stop=STOP, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edit.write(tmp_path / "out.wav", bits=32)
    assert torch.equal(load_sound(tmp_path / "out.wav")[0], edit[0])


def test_sound_in_a_container_of_videos(pipe: Pipeline, tmp_path: Path) -> None:
    source = write_av(tmp_path / "in.mka", "flac", "matroska", tags={"title": "T"})
    (told,) = edited(pipe, source, tmp_path / "out.wav")
    assert "a MATROSKA container is not written" in told
    with soundfile.SoundFile(tmp_path / "out.wav") as written:
        assert (written.title, written.subtype) == ("T", "PCM_16")
