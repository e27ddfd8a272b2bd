"""Edits of files: the same samples as in memory, what is kept bit for bit, and reads that do not grow with the file."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.tasks.audio import files as audio_files
from maskgen.tasks.audio.files import continue_file, infill_file, vary_file
from maskgen.tasks.audio.infilling import continue_audio, infill, vary
from maskgen.tasks.media.audio.files import SoundFile, load_sound, save_sound
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline, Sampling
from maskgen.tokenizers.audio.toy import ToyAudioTokenizer, ToyAudioTokenizerConfig

RATE, HOP, WINDOW = 8000, 40, 32


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    torch.manual_seed(3)
    codec = ToyAudioTokenizer(ToyAudioTokenizerConfig(sample_rate=RATE, hop=HOP, codebooks=2, levels=8))
    sizes = {"vocab_size": 8, "num_codebooks": 2, "num_classes": 0, "width": 8, "layers": 1, "heads": 2}
    model = ModernTransformer(ModernConfig(axes=(WINDOW,), **sizes))
    config = PipelineConfig(signal_size=(WINDOW * HOP,), sampling=Sampling(steps=2))
    return Pipeline(codec, model, config, device="cpu")


def sound(seconds: float, channels: int = 1, rate: int = RATE) -> Tensor:
    time = torch.arange(round(seconds * rate)) / rate
    noise = torch.rand(channels, len(time), generator=torch.Generator().manual_seed(1)) - 0.5
    return 0.3 * torch.sin(2 * math.pi * 5 * time) + 0.02 * noise


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "in.wav"
    save_sound(sound(0.6, 2), path, RATE)
    return path


@pytest.mark.parametrize(("suffix", "bits"), [(".wav", 16), (".wav", 32), (".flac", 24)])
def test_infilling_a_file_is_infilling_its_sound(pipe: Pipeline, file: Path, suffix: str, bits: int) -> None:
    out = file.with_name(f"out{suffix}")
    clipped = infill_file(pipe, file, out, start=0.2, stop=0.3, seed=5, bits=bits)
    waveform, _ = load_sound(file)
    (expected,) = infill(pipe, waveform, RATE, start=0.2, stop=0.3, seeds=[5])
    written, rate = load_sound(out)
    assert (rate, clipped) == (RATE, 0)
    assert torch.allclose(written, expected, atol=0.51 * 2.0 ** (1 - min(bits, 24)))
    first, last = 1600 - 80, 2400 + 80
    assert torch.equal(written[:, :first], waveform[:, :first])
    assert torch.equal(written[:, last:], waveform[:, last:])
    assert not torch.equal(written[:, first:last], waveform[:, first:last])


def test_a_file_may_be_its_own_result(pipe: Pipeline, file: Path) -> None:
    before, _ = load_sound(file)
    infill_file(pipe, file, file, start=0.2, stop=0.3)
    after, _ = load_sound(file)
    assert after.shape == before.shape
    assert torch.equal(after[:, :1500], before[:, :1500])
    assert not torch.equal(after, before)


def test_continuing_and_varying_files(pipe: Pipeline, file: Path) -> None:
    waveform, _ = load_sound(file)
    out = file.with_name("out.wav")
    continue_file(pipe, file, out, seconds=0.3, seed=2, bits=32)
    assert torch.equal(load_sound(out)[0], continue_audio(pipe, waveform, RATE, seconds=0.3, seeds=[2])[0])
    vary_file(pipe, file, out, period=3, keep_codebooks=1, onset_width=1, seed=2, bits=32)
    expected = vary(pipe, waveform, RATE, period=3, keep_codebooks=1, onset_width=1, seeds=[2])
    assert torch.equal(load_sound(out)[0], expected[0])


@pytest.mark.parametrize("task", ["infill", "continue", "vary"])
def test_no_read_is_longer_than_a_window(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    path, out, block = tmp_path / "long.wav", tmp_path / "out.wav", 2000
    save_sound(sound(4.0), path, RATE)
    longest = 0
    read = SoundFile.read

    def counted(self: SoundFile, start: int, count: int) -> Tensor:
        nonlocal longest
        longest = max(longest, count)
        return read(self, start, count)

    monkeypatch.setattr(SoundFile, "read", counted)
    monkeypatch.setattr(audio_files, "_BLOCK", block)
    if task == "infill":
        infill_file(pipe, path, out, start=2.0, stop=2.5)
    elif task == "continue":
        continue_file(pipe, path, out, seconds=0.5)
    else:
        vary_file(pipe, path, out)
    assert 0 < longest <= max(block, WINDOW * HOP)
    expected = 4.5 if task == "continue" else 4.0
    with SoundFile(out) as written:
        assert written.frames == expected * RATE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 0.3, "stop": 0.2}, "start before stop"),
        ({"start": 0.5, "stop": 0.7}, "0.6 s long"),
        ({"start": 0.1, "stop": 0.2, "seed": -1}, "seeds: got -1"),
        ({"start": 0.1, "stop": 0.2, "bits": 12}, "12 bits"),
    ],
)
def test_refusals_leave_no_file(pipe: Pipeline, file: Path, settings: dict[str, Any], message: str) -> None:
    out = file.with_name("out.wav")
    with pytest.raises(ValueError, match=message):
        infill_file(pipe, file, out, **settings)
    assert sorted(path.name for path in file.parent.iterdir()) == ["in.wav"]


def test_many_channels_and_other_files_are_refused(pipe: Pipeline, tmp_path: Path) -> None:
    import soundfile

    path, out = tmp_path / "eight.wav", tmp_path / "out.wav"
    soundfile.write(path, torch.zeros(100, 8).numpy(), RATE)
    for edit in (infill_file, continue_file, vary_file):
        needed: dict[str, Any] = {infill_file: {"start": 0, "stop": 0.01}, continue_file: {"seconds": 1}}.get(edit, {})
        with pytest.raises(ValueError, match="got 8 channels, expected 1 or 2"):
            edit(pipe, path, out, **needed)  # type: ignore[operator]
        with pytest.raises(FileNotFoundError):
            edit(pipe, tmp_path / "none.wav", out, **needed)  # type: ignore[operator]
    assert not out.exists()
