"""Edits of files: the same samples as in memory, what is kept bit for bit, and reads that do not grow with the file."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.sampling.settings import Sampling
from maskgen.tasks.audio import continue_audio, infill, loop, vary
from maskgen.tasks.audio import edit as audio_edit
from maskgen.tasks.media.audio.files import SoundFile, load_sound, save_sound
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline
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
    clipped = infill(pipe, file, start=0.2, stop=0.3, seeds=[5]).write(out, bits=bits)
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
    infill(pipe, file, start=0.2, stop=0.3).write(file)
    after, _ = load_sound(file)
    assert after.shape == before.shape
    assert torch.equal(after[:, :1500], before[:, :1500])
    assert not torch.equal(after, before)


def test_continuing_and_varying_files(pipe: Pipeline, file: Path) -> None:
    waveform, _ = load_sound(file)
    out = file.with_name("out.wav")
    settings: dict[str, Any]
    for task, settings in (
        (continue_audio, {"seconds": 0.3}),
        (vary, {"period": 3, "keep_codebooks": 1, "onset_width": 1}),
        (loop, {"seam": 0.1}),
        (loop, {"seam": 0.00001, "crossfade": 0.0}),
    ):
        edit, expected = task(pipe, file, seeds=[2], **settings), task(pipe, waveform, RATE, seeds=[2], **settings)
        edit.write(out, bits=32)
        assert torch.equal(load_sound(out)[0], expected[0])
        assert torch.equal(edit[0], expected[0])


def test_an_edit_is_a_sequence(pipe: Pipeline, file: Path) -> None:
    waveform, _ = load_sound(file)
    in_memory = infill(pipe, waveform, RATE, start=0.2, stop=0.3, seeds=[1, 2, 3])
    assert len(in_memory) == 3
    assert all(map(torch.equal, in_memory, [*in_memory[:2], in_memory[-1]]))
    assert (in_memory.sample_rate, in_memory.channels) == (RATE, 2)
    outs = [file.with_name(f"{seed}.wav") for seed in (1, 2, 3)]
    from_file = infill(pipe, str(file), start=0.2, stop=0.3, seeds=[1, 2, 3])
    for edit in (from_file, in_memory):
        edit.write(outs, bits=32)
        for out, expected in zip(outs, in_memory, strict=True):
            assert torch.equal(load_sound(out)[0], expected)
    assert all(map(torch.equal, from_file, in_memory))
    with pytest.raises(ValueError, match=r"got 1 path\(s\) for 3 result\(s\), expected one for each"):
        from_file.write(outs[0])
    assert infill(pipe, waveform.numpy(), RATE, start=0.2, stop=0.3)[0].equal(
        infill(pipe, file, start=0.2, stop=0.3)[0]
    )


def test_a_file_is_computed_when_it_is_wanted(pipe: Pipeline, file: Path) -> None:
    steps: list[int] = []
    edit = infill(pipe, file, start=0.2, stop=0.3, callback=lambda step: steps.append(step.step))
    assert (len(edit), steps) == (1, [])
    assert "not computed yet" in repr(edit)
    edit.write(file.with_name("out.wav"))
    assert steps == [0, 1]
    assert torch.equal(edit[0], edit[-1])
    assert steps == [0, 1] * 2, "writing kept nothing, reading did"
    assert repr(edit) == "SoundEdit(1 result(s))"
    infill(pipe, load_sound(file)[0], RATE, start=0.2, stop=0.3, callback=lambda step: steps.append(step.step))
    assert steps == [0, 1] * 3


@pytest.mark.parametrize("task", ["infill", "continue", "vary", "loop"])
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
    monkeypatch.setattr(audio_edit, "_BLOCK", block)
    if task == "infill":
        infill(pipe, path, start=2.0, stop=2.5).write(out)
    elif task == "continue":
        continue_audio(pipe, path, seconds=0.5).write(out)
    elif task == "loop":
        loop(pipe, path, seam=0.5).write(out)
    else:
        vary(pipe, path).write(out)
    assert 0 < longest <= max(block, WINDOW * HOP)
    expected = 4.5 if task == "continue" else 4.0
    with SoundFile(out) as written:
        assert written.frames == expected * RATE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 0.3, "stop": 0.2}, "start before stop"),
        ({"start": 0.5, "stop": 0.7}, "0.6 s long"),
        ({"start": 0.1, "stop": 0.2, "seeds": [-1]}, "seeds: got -1"),
        ({"start": 0.1, "stop": 0.2, "crossfade": -1.0}, "crossfade: got -1"),
        ({"start": 0.1, "stop": 0.2, "context": -1.0}, "context: got -1"),
        ({"start": 0.1, "stop": 0.2, "sample_rate": RATE}, "expected none: a file says its own"),
    ],
)
def test_everything_is_refused_before_it_is_wanted(
    pipe: Pipeline, file: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        infill(pipe, file, **settings)


def test_other_refusals(pipe: Pipeline, file: Path) -> None:
    edit = infill(pipe, file, start=0.1, stop=0.2)
    for name, bits, message in (("out.wav", 12, "12 bits"), ("out.txt", 16, "expected a name that ends in")):
        with pytest.raises(ValueError, match=message):
            edit.write(file.with_name(name), bits=bits)
    assert sorted(path.name for path in file.parent.iterdir()) == ["in.wav"]
    with pytest.raises(TypeError, match="sample_rate: got none"):
        infill(pipe, sound(0.3), start=0.1, stop=0.2)
    with pytest.raises(TypeError, match="got an unexpected option 'seed'; expected those of the task, or callback"):
        infill(pipe, file, start=0.1, stop=0.2, seed=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="keep_codebooks: got 3"):
        vary(pipe, file, keep_codebooks=3)


def test_many_channels_and_other_files_are_refused(pipe: Pipeline, tmp_path: Path) -> None:
    import soundfile

    path = tmp_path / "eight.wav"
    soundfile.write(path, torch.zeros(100, 8).numpy(), RATE)
    for task in (infill, continue_audio, vary, loop):
        needed: dict[str, Any] = {infill: {"start": 0, "stop": 0.01}, continue_audio: {"seconds": 1}}.get(task, {})
        with pytest.raises(ValueError, match="got 8 channels, expected 1 or 2"):
            task(pipe, path, **needed)  # type: ignore[operator]
        with pytest.raises(FileNotFoundError):
            task(pipe, tmp_path / "none.wav", **needed)  # type: ignore[operator]
