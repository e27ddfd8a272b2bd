"""Sound files of every container, coding, byte order and fault: read as libsndfile or FFmpeg decode them, or refused.

What comes out must be what one of the two libraries makes of the very file, all of it; or one line says why not.
"""

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from maskgen.tasks.media.audio.files import SoundFile, load_sound
from tests.tasks.media.audio.samples import RATE, by_pyav, by_soundfile, check, encoded, noise, without_info, write_av

KINDS = [
    (container, coding, endian)
    for container in soundfile.available_formats()
    if container not in ("RAW", "SD2")  # without a header; one with a second file
    for coding in soundfile.available_subtypes(container)
    for endian in ("FILE", "LITTLE", "BIG")
    if soundfile.check_format(container, coding, endian)
]


def written(path: Path, container: str, coding: str, endian: str, channels: int) -> bool:
    """Write such a file; whether libsndfile can."""
    try:
        soundfile.write(path, noise(2000, channels), RATE, subtype=coding, endian=endian, format=container)
    except (soundfile.LibsndfileError, ValueError):
        return False
    return True


def test_all_that_soundfile_writes(tmp_path: Path) -> None:
    count, refused = 0, set()
    for (container, coding, endian), channels in itertools.product(KINDS, (1, 2, 6)):
        path = tmp_path / f"{endian}{channels}.{container.lower()}"
        if not written(path, container, coding, endian, channels):
            continue
        count += 1
        if isinstance(check(path), str):
            # Some ALAC libsndfile writes so that FFmpeg refuses it, and so that it reads other samples itself.
            assert by_soundfile(path) is None or (coding[:4] == "ALAC" and by_pyav(path) is None), (container, coding)
            refused.add((container, coding))
    assert count > 500
    unread = {("AIFF", f"DWVW_{bits}") for bits in (12, 16, 24)}  # by libsndfile itself
    assert refused <= unread | {("CAF", f"ALAC_{bits}") for bits in (20, 24, 32)}


@pytest.mark.parametrize(
    ("name", "codec", "container", "rate"),
    [
        ("a.m4a", "aac", "ipod", RATE), ("a.aac", "aac", "adts", RATE), ("a.mka", "flac", "matroska", RATE),
        ("a.webm", "libopus", None, 48_000), ("a.opus", "libopus", "ogg", 48_000), ("l.m4a", "alac", "ipod", RATE),
        ("a.ac3", "ac3", None, 48_000), ("a.ts", "aac", "mpegts", 48_000), ("a.mp2", "mp2", None, 16_000),
        ("a.tta", "tta", None, RATE), ("a.wv", "wavpack", None, RATE), ("d.wav", "pcm_f64le", None, RATE),
        ("a.flac", "flac", None, RATE), ("ms.wav", "adpcm_ms", None, RATE), ("m.wav", "libmp3lame", "wav", 16_000),
        ("a.mp3", "libmp3lame", None, 16_000), ("u.wav", "pcm_mulaw", None, RATE), ("s.aiff", "pcm_s8", "aiff", RATE),
        ("b.mov", "pcm_s16be", "mov", RATE), ("s.mov", "pcm_s24le", None, RATE),
    ],
)  # fmt: skip
def test_what_pyav_writes(tmp_path: Path, name: str, codec: str, container: str | None, rate: int) -> None:
    found = check(write_av(tmp_path / name, codec, container, rate))
    assert not isinstance(found, str), found
    sound, _, said = found
    assert said == []
    # Nothing is missing; only streams without any word about it keep what the encoder filled up.
    assert 6000 <= sound.shape[1] <= 6000 + (1600 if codec not in ("flac", "alac") else 0)
    exact = codec in ("flac", "alac", "tta", "wavpack") or codec.startswith("pcm_f") or name in ("a.m4a", "a.mp3")
    if exact or codec == "libopus":
        assert sound.shape[1] == 6000


def test_sound_of_videos(tmp_path: Path) -> None:
    for suffix in ("mp4", "mkv", "avi"):
        path = write_av(tmp_path / f"a.{suffix}", "pcm_s16le" if suffix == "avi" else "aac", pictures=True)
        found = check(path)
        assert not isinstance(found, str), found
        assert found[0].shape[1] >= 6000
        assert found[2] == []
    late = check(write_av(tmp_path / "late.mp4", "aac", pictures=True, late=0.5))
    assert not isinstance(late, str)
    assert "its sound begins 0.372 s after its picture" in late[2][0]
    two = check(write_av(tmp_path / "two.mka", "flac", "matroska", tracks=2))
    assert not isinstance(two, str)
    assert "has 2 sound tracks; number 1 is read" in two[2][0]


def faulty_wav(riff: int | None, data: int | None, coding: str = "PCM_16") -> bytearray:
    """A WAV file of 6,000 stereo samples with other sizes in its header."""
    content = encoded("WAV", coding)
    place = content.index(b"data") + 4
    if riff is not None:
        content[4:8] = struct.pack("<I", riff)
    if data is not None:
        content[place : place + 4] = struct.pack("<I", data)
    return content


WHOLE = 6000


@pytest.mark.parametrize(
    ("riff", "data", "expected"),
    [
        (None, 0, WHOLE), (0, 0, WHOLE), (0xFFFFFFFF, 0xFFFFFFFF, WHOLE), (0x80000024, 0x80000000, WHOLE),
        (None, 0x7FFFF000, WHOLE), (0, None, WHOLE), (0x7FFFFFFF, None, WHOLE), (None, 23_999, 5999),
        (None, 48_088, "its part 'data' has 24000 of 48088 bytes"),
    ],
)  # fmt: skip
def test_sizes_in_wav_headers(tmp_path: Path, riff: int | None, data: int | None, expected: int | str) -> None:
    (tmp_path / "a.wav").write_bytes(faulty_wav(riff, data))
    found = check(tmp_path / "a.wav")
    if isinstance(expected, int):
        assert not isinstance(found, str), found
        assert (found[0].shape[1], found[2]) == (expected, [])
        assert np.abs(found[0].T - noise()[:expected]).max() <= 2**-15
    else:
        assert expected in str(found)


def test_wav_files_without_a_size_and_other_ends(tmp_path: Path) -> None:
    path, plain = tmp_path / "a.wav", encoded("WAV", "PCM_16")
    for coding in ("PCM_24", "FLOAT", "DOUBLE", "PCM_U8"):
        path.write_bytes(faulty_wav(0, 0, coding))
        found = check(path)
        assert not isinstance(found, str), found
        assert found[0].shape[1] == WHOLE
    for more, said in (
        (bytes(5000), []),
        (np.random.default_rng(0).bytes(5000), ["the last 5000 of its 29044 bytes belong to nothing by its header"]),
    ):
        path.write_bytes(plain + more)
        found = check(path)
        assert not isinstance(found, str), found
        assert found[0].shape[1] == WHOLE
        assert len(found[2]) == len(said)
        assert all(part in told for part, told in zip(said, found[2], strict=True))
    path.write_bytes(faulty_wav(None, 8000))
    found = check(path)
    assert not isinstance(found, str)
    assert "the last 16000 of its 24044 bytes" in found[2][0]


@pytest.mark.parametrize(
    ("name", "size", "data", "expected"),
    [
        ("all", 5 << 30, 0xFFFFFFFF, 5 << 28),
        ("none", 5 << 30, 0, 5 << 28),
        ("half", 3 << 30, 0x7FFFFFFF, 3 << 28),
        ("wrapped", 5 << 30, 1 << 30, "longer than the 4 GiB that a WAV header can say"),
    ],
)
def test_wav_files_beyond_four_gigabytes(
    tmp_path: Path, name: str, size: int, data: int, expected: int | str
) -> None:  # sparse files, of which a few blocks are on the disk
    path = tmp_path / f"{name}.wav"
    head = b"RIFF" + struct.pack("<I", min(data + 36, 0xFFFFFFFF)) + b"WAVEfmt "
    head += struct.pack("<IHHIIHH", 16, 1, 2, 48_000, 192_000, 4, 16) + b"data" + struct.pack("<I", data)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
        file.seek(len(head) + size - 4)
        file.write(struct.pack("<hh", 1000, -2000))
    try:
        if isinstance(expected, str):
            with pytest.raises(ValueError, match=expected):
                load_sound(path, seconds=0.1)
            return
        with SoundFile(path) as sound:
            assert sound.frames == expected
            assert (sound.read(expected - 1, 1) * 32768).T.tolist() == [[1000, -2000]]
    finally:
        path.unlink()


FLAC, MP3 = encoded("FLAC", "PCM_16"), encoded("MP3", "MPEG_LAYER_III", 16_000)
OGG, OPUS = encoded("OGG", "VORBIS"), encoded("OGG", "OPUS", 16_000)


def unknown_flac(content: bytearray, total: int = 0, checksum: bytes = bytes(16)) -> bytearray:
    """With another number of samples in its header; 0 is unknown."""
    changed = bytearray(content)
    changed[21] &= 0xF0
    changed[22:26] = struct.pack(">I", total)
    changed[26:42] = checksum
    return changed


JOINED = "two sound files joined, the second from byte"
MPEG = 1152 * 13  # samples of the frames, of which the encoder filled up the ends


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("whole.mp3", MP3, WHOLE),
        ("bare.mp3", without_info(MP3), 7488),
        ("tags.mp3", b"ID3\3\0\0\0\0\7\x76" + bytes(1014) + MP3 + b"TAG" + bytes(125), WHOLE),
        ("joined.mp3", MP3 + MP3, 14_447),
        ("joined-bare.mp3", without_info(MP3) * 2, 14_976),
        ("middle.mp3", without_info(MP3)[77:], 6912),
        ("rates.mp3", MP3 + encoded("MP3", "MPEG_LAYER_III", 44_100), "changes from 16000 Hz and 2 channel"),
        ("channels.mp3", MP3 + encoded("MP3", "MPEG_LAYER_III", 16_000, noise(channels=1)), "changes from 16000 Hz and 2"),
        ("chained.ogg", OGG + OGG, 12_256),
        ("chained.opus", OPUS + OPUS, 18_648),
        ("mixed.ogg", OGG + OPUS, "damaged or cut off"),
        ("rates.ogg", OGG + encoded("OGG", "VORBIS", 16_000), "damaged or cut off"),
        ("joined.flac", FLAC + FLAC, JOINED),
        ("unknown.flac", unknown_flac(FLAC), WHOLE),
        ("unknown24.flac", unknown_flac(encoded("FLAC", "PCM_24")), WHOLE),
        ("unknown-cut.flac", unknown_flac(FLAC)[: len(FLAC) // 2], "cut off"),
        ("fewer.flac", unknown_flac(FLAC, 3000), WHOLE),
        ("more.flac", unknown_flac(FLAC, 9000), "its header promises 9000 samples, there are 6000"),
        ("checksum.flac", unknown_flac(FLAC, 6000, bytes(range(16))), WHOLE),
        ("tagged.flac", b"ID3\3\0\0\0\0\0\x10" + bytes(16) + FLAC, WHOLE),
        ("joined.wav", encoded("WAV", "PCM_16") * 2, JOINED),
        ("joined-other.wav", encoded("WAV", "PCM_16") + encoded("WAV", "PCM_24", sound=noise(99)), JOINED),
        ("joined.aiff", encoded("AIFF", "PCM_16") * 2, JOINED),
        ("joined.au", encoded("AU", "PCM_16") * 2, JOINED),
        ("joined.caf", encoded("CAF", "PCM_16") * 2, JOINED),
        ("joined.w64", encoded("W64", "PCM_16") * 2, JOINED),
        ("joined.rf64", encoded("RF64", "PCM_16") * 2, JOINED),
        ("shifted.wav", bytes(7) + encoded("WAV", "PCM_16"), "no sound file, or damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)  # fmt: skip
def test_lengths_that_headers_claim(tmp_path: Path, name: str, content: bytes, expected: int | str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    found = check(path)
    if isinstance(expected, str):
        assert expected in str(found)
        return
    assert not isinstance(found, str), found
    assert found[0].shape[1] == expected
    with SoundFile(path) as file:  # what is promised can be read, in any order
        for start, count in ((expected - 100, 100), (1000, 500), (1500, 7), (0, 3), (expected - 1, 1)):
            part = file.read(start, count).numpy()
            assert np.abs(part - found[0][:, start : start + count]).max() < 1e-6
    with path.open("rb") as stream, SoundFile(stream, "memory") as file:
        assert file.frames == expected
        assert np.abs(file.read(10, 50).numpy() - found[0][:, 10:60]).max() < 1e-6


def sizes(container: str, chunk: bytes, width: int, values: tuple[int, ...], offset: int = 4) -> list[bytearray]:
    """Files whose part of samples has other sizes in its header."""
    order = "<" if container == "W64" else ">"
    found = []
    for value in values:
        content = encoded(container, "PCM_16")
        place = content.index(chunk) + offset
        content[place : place + width] = struct.pack(order + {4: "I", 8: "q"}[width], value)
        found.append(content)
    return found


@pytest.mark.parametrize(
    ("suffix", "content", "expected"),
    [
        *(("aiff", content, WHOLE) for content in sizes("AIFF", b"SSND", 4, (0, 0xFFFFFFFF))),
        *(("aiff", content, "it has 0 of 6000 samples") for content in sizes("AIFF", b"SSND", 4, (8,))),
        *(("caf", content, WHOLE) for content in sizes("CAF", b"data", 8, (-1, 0))),
        *(("au", content, WHOLE) for content in sizes("AU", b".snd", 4, (0xFFFFFFFF,), 8)),
        *(("au", content, "without samples") for content in sizes("AU", b".snd", 4, (0,), 8)),
        *(("w64", content, WHOLE) for content in sizes("W64", b"data", 8, (0,), 16)),
    ],
)
def test_sizes_in_other_headers(tmp_path: Path, suffix: str, content: bytes, expected: int | str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(content)
    found = check(tmp_path / f"a.{suffix}")
    assert (found[0].shape[1] == expected) if not isinstance(found, str) else str(expected) in found
