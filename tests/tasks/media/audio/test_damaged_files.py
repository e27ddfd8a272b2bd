"""Sound files that are cut, flipped or something else: read as libsndfile or FFmpeg decode them, or refused in one line."""

from pathlib import Path

import numpy as np
import pytest

from tests.tasks.media.audio.samples import check, encoded, noise, ours, without_info, write_av

FLAC, MP3 = encoded("FLAC", "PCM_16"), encoded("MP3", "MPEG_LAYER_III", 16_000)
OGG, OPUS = encoded("OGG", "VORBIS"), encoded("OGG", "OPUS", 16_000)

CUT = [("WAV", "PCM_16"), ("AIFF", "PCM_24"), ("AU", "FLOAT"), ("CAF", "DOUBLE"), ("W64", "PCM_16"), ("RF64", "PCM_16")]
CUT += [("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("NIST", "PCM_16")]
CUT += [("SVX", "PCM_16"), ("AVR", "PCM_16"), ("WAV", "IMA_ADPCM"), ("WAV", "ULAW")]


@pytest.mark.parametrize(("container", "coding"), CUT)
def test_files_cut_off(tmp_path: Path, container: str, coding: str) -> None:
    """A header that promises more than there is means that something got lost."""
    content = encoded(container, coding, 16_000, noise(8000, 1))
    path = tmp_path / f"a.{container.lower()}"
    for share in (0.02, 0.3, 0.5, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        assert isinstance(check(path), str), share


@pytest.mark.parametrize("name", ["a.m4a", "a.wv", "l.m4a"])
def test_other_files_cut_off(tmp_path: Path, name: str) -> None:
    codec = {"a.m4a": "aac", "a.wv": "wavpack", "l.m4a": "alac"}[name]
    content = write_av(tmp_path / name, codec, "ipod" if name.endswith("m4a") else None).read_bytes()
    for share in (0.1, 0.6, 0.9):
        (tmp_path / name).write_bytes(content[: int(len(content) * share)])
        assert isinstance(check(tmp_path / name), str), share


FLIPPED = [
    "whole.wav",
    "whole.flac",
    "whole.mp3",
    "bare.mp3",
    "whole.ogg",
    "whole.opus",
    "whole.aiff",
    "whole.m4a",
    "a.aac",
]


@pytest.mark.parametrize("name", FLIPPED)
def test_bytes_flipped(tmp_path: Path, name: str) -> None:
    """Whatever a damaged byte does to either library, it does no more than that to what comes out."""
    contents = {
        "whole.wav": encoded("WAV", "PCM_16"),
        "whole.flac": FLAC,
        "whole.mp3": MP3,
        "bare.mp3": without_info(MP3),
    }
    contents |= {"whole.ogg": OGG, "whole.opus": OPUS, "whole.aiff": encoded("AIFF", "PCM_16")}
    path = tmp_path / name
    if name in contents:
        path.write_bytes(contents[name])
    else:
        write_av(path, "aac", "ipod" if name.endswith("m4a") else "adts")
    content, draw = path.read_bytes(), np.random.default_rng(1)
    for number in range(12):
        changed = bytearray(content)
        many = (1, 1, 20)[number % 3]
        among = 64 if number % 2 else len(changed)  # half of them in the header
        for place in draw.integers(0, among, many):
            changed[place] ^= int(draw.integers(1, 256))
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(changed)
        check(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.raw", np.random.default_rng(0).bytes(20_000), "raw samples without a header"),
        ("a.gsm", bytes(20_000), "raw samples without a header"),
        ("a.vox", bytes(20_000), "raw samples without a header"),
        ("a.sw", bytes(20_000), "raw samples without a header"),
        ("a.ul", bytes(20_000), "raw samples without a header"),
        ("a.g722", bytes(20_000), "raw samples without a header"),
        ("a.pcm", bytes(20_000), "no sound file, or damaged"),
        ("a.mp3", np.random.default_rng(0).bytes(20_000), "no sound"),
        ("b.mp3", b"hello world " * 500, "no sound"),
        ("a.srt", b"1\n00:00:01,000 --> 00:00:02,000\nhello\n", "no sound"),
        ("a.flac", bytes(5000), "no sound"),
        ("a.ogg", b"OggS" + bytes(100), "no sound"),
        ("a.wav", b"RIFF", "no sound"),
        ("b.wav", b"RIFF\x10\0\0\0WAVEfmt ", "no sound"),
    ],
)
def test_what_is_no_sound(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in str(check(tmp_path / name))


def test_pictures_are_no_sound(tmp_path: Path) -> None:
    from PIL import Image

    for suffix in ("png", "gif", "webp", "jpg"):
        Image.new("RGB", (64, 64)).save(tmp_path / f"a.{suffix}")
        assert "holds pictures but no sound" in str(ours(tmp_path / f"a.{suffix}"))
