"""Which library reads and writes sound: soundfile, PyAV for what that does not know, and errors name what is missing."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from maskgen.tasks.media.audio import ffmpeg
from maskgen.tasks.media.audio.files import SoundFile, load_sound, save_sound
from tests.tasks.media.audio.samples import encoded, noise, without_info, write_av

RATE = 24_000


def sound(channels: int = 1, samples: int = 5000) -> Tensor:
    return torch.randn(channels, samples, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
def test_pyav_where_soundfile_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    save_sound(sound(2), tmp_path / f"a.{suffix}", RATE)
    whole, _ = load_sound(tmp_path / f"a.{suffix}")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    again, rate = load_sound(tmp_path / f"a.{suffix}")
    assert rate == RATE
    assert torch.equal(again, whole)
    with SoundFile(tmp_path / f"a.{suffix}") as file:
        for start, count in ((0, 1), (17, 333), (4999, 1), (3, 4000)):
            assert torch.equal(file.read(start, count), whole[:, start : start + count])
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.wav: no sound file, or damaged"):
        load_sound(tmp_path / "text.wav")
    with pytest.raises(ImportError, match=r'need soundfile: pip install "maskgen\[audio\]"'):
        save_sound(sound(), tmp_path / "b.wav", RATE)


def test_pyav_for_what_soundfile_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_av(tmp_path / "a.m4a", "alac", "ipod", RATE, sound=noise(30_000))
    whole, rate = load_sound(path)
    assert (rate, whole.shape) == (RATE, (2, 30_000))
    assert float((whole - torch.from_numpy(noise(30_000).T)).abs().max()) < 2**-20
    for source in (path, io.BytesIO(path.read_bytes())):
        with SoundFile(source, "a.m4a") as file:
            for start, count in ((29_000, 1000), (12, 8000), (8012, 3), (0, 30_000)):
                assert torch.equal(file.read(start, count), whole[:, start : start + count])
            file.close()
            assert torch.equal(file.read(5, 5), whole[:, 5:10])
    monkeypatch.setattr(ffmpeg, "library", lambda: None)
    with pytest.raises(ValueError, match=r'such as m4a|as m4a, need PyAV: pip install "maskgen\[audio\]"'):
        load_sound(path)


def test_without_pyav_headers_are_trusted_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_sound(sound(), tmp_path / "a.flac", RATE)
    whole, _ = load_sound(tmp_path / "a.flac")
    monkeypatch.setattr(ffmpeg, "library", lambda: None)
    with pytest.warns(UserWarning, match=r"a.flac: without PyAV its header is trusted to say how long it is"):
        again, _ = load_sound(tmp_path / "a.flac")
    assert torch.equal(again, whole)


def test_a_file_that_changes_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    for frames in (4000, 9000):
        path.write_bytes(without_info(encoded("MP3", "MPEG_LAYER_III", 16_000, noise(frames))))
        with SoundFile(path) as file:
            assert frames <= file.frames < frames + 2400


def test_more_than_24_bits_are_read_where_asked(tmp_path: Path) -> None:
    fine = np.random.default_rng(0).standard_normal((500, 1)) * 0.1
    for container, coding in (("WAV", "DOUBLE"), ("WAV", "PCM_32"), ("AU", "PCM_32"), ("FLAC", "PCM_24")):
        path = tmp_path / "a"
        path.write_bytes(encoded(container, coding, RATE, fine))
        with SoundFile(path) as file:
            exact = file.read(0, 500, file.dtype)
            assert exact.dtype == (torch.float32 if coding == "PCM_24" else torch.float64)
            error = float((exact.double() - torch.from_numpy(fine.T)).abs().max())
            assert error <= (0 if coding == "DOUBLE" else 2.0 ** -(23 if coding == "PCM_24" else 31))
            assert torch.equal(file.read(0, 500), exact.float())


def test_without_any_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_sound(sound(), tmp_path / "a.wav", RATE)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    monkeypatch.setattr(ffmpeg, "library", lambda: None)
    with pytest.raises(ImportError, match=r'pip install "maskgen\[audio\]"'):
        load_sound(tmp_path / "a.wav")
    with pytest.raises(ImportError, match=r'pip install "maskgen\[audio\]"'):
        save_sound(sound(), tmp_path / "b.wav", RATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav"]
