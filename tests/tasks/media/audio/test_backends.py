"""Which library reads and writes sound: soundfile, torchcodec where it must stand in, and an error that names both."""

import io
import sys
import types
import wave
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor

from maskgen.tasks.media.audio.files import SoundFile, SoundWriter, load_sound, save_sound

RATE = 24_000


def noise(channels: int = 1, samples: int = 5000) -> Tensor:
    return torch.randn(channels, samples, generator=torch.Generator().manual_seed(0)) * 0.1


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class _Samples:
    def __init__(self, data: Tensor, pts_seconds: float) -> None:
        self.data, self.pts_seconds = data, pts_seconds


class _Decoder:
    """Stands in for torchcodec's decoder, as far as it is used here, for 16-bit wav: that needs FFmpeg."""

    begin = 0.0
    wrong = 0.0

    def __init__(self, source: str | bytes) -> None:
        try:
            with wave.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
                rate, channels, frames = file.getframerate(), file.getnchannels(), file.getnframes()
                values = torch.frombuffer(bytearray(file.readframes(frames)), dtype=torch.int16)
        except (wave.Error, EOFError):
            raise RuntimeError("no decoder found") from None
        self.all = values.reshape(-1, channels).T / 32768
        self.metadata = types.SimpleNamespace(
            sample_rate=rate,
            num_channels=channels,
            begin_stream_seconds_from_header=self.begin,
            duration_seconds_from_header=frames / rate + self.wrong,
        )

    def get_all_samples(self) -> _Samples:
        return _Samples(self.all, self.begin)

    def get_samples_played_in_range(self, start_seconds: float = 0.0, stop_seconds: float | None = None) -> _Samples:
        times = self.begin + torch.arange(self.all.shape[1], dtype=torch.float64) / self.metadata.sample_rate
        stop = float("inf") if stop_seconds is None else stop_seconds
        inside = torch.nonzero((times >= start_seconds) & (times < stop)).flatten()
        return _Samples(self.all[:, inside], float(times[inside[0]]) if len(inside) else start_seconds)


class _Encoder:
    def __init__(self, samples: Tensor, *, sample_rate: int) -> None:
        self.samples, self.rate = samples, sample_rate

    def to_file(self, dest: str) -> None:
        soundfile.write(dest, self.samples.T.numpy(), self.rate, subtype="PCM_16")


def install_torchcodec(monkeypatch: pytest.MonkeyPatch, decoder: type) -> None:
    parts = {
        "torchcodec": types.ModuleType("torchcodec"),
        "torchcodec.decoders": types.SimpleNamespace(AudioDecoder=decoder),
        "torchcodec.encoders": types.SimpleNamespace(AudioEncoder=_Encoder),
    }
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]


def test_torchcodec_where_soundfile_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_sound(noise(2), tmp_path / "a.wav", RATE)
    whole, _ = load_sound(tmp_path / "a.wav")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    install_torchcodec(monkeypatch, _Decoder)
    again, rate = load_sound(tmp_path / "a.wav")
    assert rate == RATE
    assert torch.equal(again, whole)
    with SoundFile(tmp_path / "a.wav") as file:
        for start, count in ((0, 1), (17, 333), (4999, 1)):
            assert torch.equal(file.read(start, count), whole[:, start : start + count])
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.wav: no sound file, or damaged \(no decoder found"):
        load_sound(tmp_path / "text.wav")


@pytest.mark.parametrize(("begin", "wrong"), [(0.0251, 0.0), (0.0, 0.3), (0.0251, -0.2), (0.0, -99.0)])
def test_torchcodec_knows_the_length_from_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: float, wrong: float
) -> None:
    """Streams that begin late, and headers that promise more or less than there is."""

    class Estimates(_Decoder):
        pass

    Estimates.begin, Estimates.wrong = begin, wrong
    save_sound(noise(2, 50_000), tmp_path / "a.wav", RATE)
    whole, _ = load_sound(tmp_path / "a.wav")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    install_torchcodec(monkeypatch, Estimates)
    assert torch.equal(load_sound(tmp_path / "a.wav")[0], whole)
    assert torch.equal(load_sound(tmp_path / "a.wav", start=1.0, seconds=0.25)[0], whole[:, 24_000:30_000])


def test_torchcodec_writes_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_torchcodec(monkeypatch, _Decoder)
    monkeypatch.setattr("maskgen.tasks.media.audio.backends._soundfile", lambda: None)
    with SoundWriter(tmp_path / "b.wav", RATE, 2) as writer:
        for block in noise(2).split(1000, dim=1):
            writer.write(block)
    assert files_in(tmp_path) == ["b.wav"]
    assert float((load_sound(tmp_path / "b.wav")[0] - noise(2)).abs().max()) < 1e-4
    with pytest.raises(ImportError, match="written by soundfile"):
        save_sound(noise(), tmp_path / "c.wav", RATE, bits=32)
    assert files_in(tmp_path) == ["b.wav"]


def test_torchcodec_for_what_soundfile_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Knows(_Decoder):
        def __init__(self, source: str | bytes) -> None:
            super().__init__(source if isinstance(source, bytes) else str(tmp_path / "real.wav"))

    save_sound(noise(), tmp_path / "real.wav", RATE)
    (tmp_path / "a.m4a").write_bytes(b"some other format" * 20)
    with pytest.raises(ValueError, match="such as m4a, need torchcodec"):
        load_sound(tmp_path / "a.m4a")
    install_torchcodec(monkeypatch, Knows)
    assert torch.equal(load_sound(tmp_path / "a.m4a")[0], load_sound(tmp_path / "real.wav")[0])


def test_without_any_library_both_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, source: object) -> None:
            raise RuntimeError("Could not load libtorchcodec")

    save_sound(noise(), tmp_path / "a.wav", RATE)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    for step in ("missing", "broken"):
        if step == "broken":
            install_torchcodec(monkeypatch, Broken)
        else:
            monkeypatch.setitem(sys.modules, "torchcodec", None)
        with pytest.raises(ImportError, match=r'pip install "maskgen\[audio\]".*torchcodec'):
            load_sound(tmp_path / "a.wav")
        with pytest.raises(ImportError, match=r'pip install "maskgen\[audio\]".*torchcodec'):
            save_sound(noise(), tmp_path / "b.wav", RATE)
    assert files_in(tmp_path) == ["a.wav"]
