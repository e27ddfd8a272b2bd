"""Sound files in and out: exact round trips, parts of files, and one clear line for everything that is no sound."""

import os
from pathlib import Path

import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.tasks.media.audio.files import (
    SoundFile,
    SoundWriter,
    check_waveform,
    load_sound,
    resample,
    save_sound,
    to_channels,
)

RATE = 24_000


def noise(channels: int = 1, samples: int = 5000, seed: int = 0) -> Tensor:
    return torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("suffix", "bits"), [("wav", 16), ("wav", 24), ("flac", 16), ("flac", 24), ("aiff", 16)])
def test_whole_numbers_come_back(tmp_path: Path, channels: int, suffix: str, bits: int) -> None:
    """To the nearest step, and what was read is written again bit for bit, full scale included."""
    sound = noise(channels)
    sound[:, :3] = torch.tensor([-1.0, 1.0, 1.0 - 2.0 ** (1 - bits)])
    for name, value in (("a", sound), ("b", None)):
        value = load_sound(tmp_path / f"a.{suffix}")[0] if value is None else value
        assert save_sound(value, tmp_path / f"{name}.{suffix}", RATE, bits=bits) == 0
    once, rate = load_sound(tmp_path / f"a.{suffix}")
    assert (rate, once.dtype, once.shape) == (RATE, torch.float32, sound.shape)
    step = 2.0 ** (1 - bits)
    assert float((once - sound)[:, 3:].abs().max()) <= step / 2 + 1e-7
    assert float((once - sound).abs().max()) <= step + 1e-7  # 1 itself has no step
    assert torch.equal(load_sound(tmp_path / f"b.{suffix}")[0], once)
    assert files_in(tmp_path) == [f"a.{suffix}", f"b.{suffix}"]


def test_float_files_keep_everything(tmp_path: Path) -> None:
    sound = noise(2) * 30
    assert save_sound(sound, tmp_path / "a.wav", RATE, bits=32) == 0
    assert torch.equal(load_sound(tmp_path / "a.wav")[0], sound)
    assert float(sound.abs().max()) > 2


@pytest.mark.parametrize("suffix", ["ogg", "mp3", "opus"])
def test_compressed_files_sound_alike(tmp_path: Path, suffix: str) -> None:
    time = torch.arange(RATE) / RATE
    sound = 0.5 * torch.sin(2 * torch.pi * 440 * time).repeat(2, 1)
    save_sound(sound, tmp_path / f"a.{suffix}", RATE)
    again, rate = load_sound(tmp_path / f"a.{suffix}")
    if suffix == "opus":
        assert rate in (RATE, 48_000)
        again = resample(again, rate, RATE)
    assert again.shape == sound.shape
    inner = slice(2000, -2000)
    assert float((again - sound)[:, inner].norm() / sound[:, inner].norm()) < 0.1


def test_clipped_samples_are_counted(tmp_path: Path) -> None:
    sound = torch.tensor([[0.5, 1.5, -2.0, 1.0, -1.0]])
    with pytest.warns(UserWarning, match=r"a.wav: 2 samples beyond \[-1, 1\] were clipped to fit into PCM_16"):
        assert save_sound(sound, tmp_path / "a.wav", RATE) == 2
    assert load_sound(tmp_path / "a.wav")[0].tolist() == [[0.5, 1 - 2**-15, -1.0, 1 - 2**-15, -1.0]]
    with pytest.warns(UserWarning, match="2 samples beyond"):
        assert save_sound(sound, tmp_path / "a.ogg", RATE) == 2
    assert save_sound(sound, tmp_path / "b.wav", RATE, bits=32) == 0


def test_a_single_sample_is_a_sound(tmp_path: Path) -> None:
    save_sound(torch.tensor([[0.25]]), tmp_path / "a.wav", RATE)
    assert load_sound(tmp_path / "a.wav")[0].tolist() == [[0.25]]


def test_long_vorbis_is_written_in_blocks(tmp_path: Path) -> None:
    save_sound(torch.zeros(1, 3_000_000), tmp_path / "a.ogg", 48_000)
    with SoundFile(tmp_path / "a.ogg") as file:
        assert file.frames == 3_000_000


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.integers(1, 2))
def test_blocks_in_any_size_make_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], channels: int
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    sound = noise(channels, sum(cuts))
    save_sound(sound, folder / "whole.wav", RATE)
    with SoundWriter(folder / "parts.wav", RATE, channels) as writer:
        for block in sound.split(cuts, dim=1):
            writer.write(block)
        assert not (folder / "parts.wav").exists()
    assert writer.frames == sum(cuts)
    assert (folder / "parts.wav").read_bytes() == (folder / "whole.wav").read_bytes()


def write_half(path: Path) -> None:
    with SoundWriter(path, RATE, 1) as writer:
        writer.write(noise())
        raise RuntimeError("the model broke")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    save_sound(noise(), path, RATE)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="^the model broke$"):
        write_half(path)
    with pytest.raises(ValueError, match="got no samples"), SoundWriter(path, RATE, 1):
        pass
    with pytest.raises(ValueError, match="3 samples that are NaN or infinite"):
        save_sound(torch.tensor([[0.0, float("nan"), float("inf"), float("-inf")]]), path, RATE)
    with pytest.raises(ValueError, match="got 2 channels, expected 1"), SoundWriter(path, RATE, 1) as writer:
        writer.write(noise(2))
    with pytest.raises(ValueError, match="not open"):
        writer.write(noise())
    assert path.read_bytes() == before
    assert files_in(tmp_path) == ["a.wav"]


@pytest.mark.parametrize(
    ("name", "rate", "bits", "message"),
    [
        ("a.txt", RATE, 16, "ends in .aif"),
        ("a", RATE, 16, "ends in .aif"),
        ("a.wav", RATE, 8, "8 bits"),
        ("a.flac", RATE, 32, "32 bits"),
        ("a.wav", 0, 16, "sample rate: got 0"),
        ("a.opus", 22_050, 16, "OPUS at 22050 Hz cannot be written.*resample to 48000"),
        ("a.mp3", 96_000, 16, "MPEG_LAYER_III at 96000 Hz"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, name: str, rate: int, bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_sound(noise(), tmp_path / name, rate, bits=bits)
    assert files_in(tmp_path) == []


def test_an_impossible_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"file/a\.wav: cannot be written"):
        save_sound(noise(), tmp_path / "file" / "a.wav", RATE)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_parts_of_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    save_sound(noise(2, 9000), path, 8000)
    whole, _ = load_sound(path)
    assert torch.equal(load_sound(path, start=0.25, seconds=0.5)[0], whole[:, 2000:6000])
    assert torch.equal(load_sound(path, start=1.0)[0], whole[:, 8000:])
    assert torch.equal(load_sound(path, start=1.0, seconds=99)[0], whole[:, 8000:])
    with SoundFile(path) as file:
        assert (file.sample_rate, file.channels, file.frames) == (8000, 2, 9000)
        for start, count in ((8999, 1), (0, 9000), (17, 400), (4000, 3000)):
            assert torch.equal(file.read(start, count), whole[:, start : start + count])
        for start, count in ((0, 0), (-1, 5), (8999, 2)):
            with pytest.raises(ValueError, match="expected a part of 0 to 9000"):
                file.read(start, count)
    with path.open("rb") as stream, SoundFile(stream, "from memory") as file:
        assert torch.equal(file.read(5, 70), whole[:, 5:75])
    with pytest.raises(ValueError, match=r"got start 1\.125 s, expected less than its 1\.125 s"):
        load_sound(path, start=1.125)


@pytest.mark.parametrize("suffix", ["ogg", "opus", "mp3"])
def test_jumps_in_compressed_files(tmp_path: Path, suffix: str) -> None:
    """Decoders forget at a jump what the next block overlaps with: libsndfile alone gives thousands of wrong samples."""
    path = tmp_path / f"a.{suffix}"
    save_sound(noise(2, 60_000), path, 48_000)
    whole, _ = load_sound(path)
    with SoundFile(path) as file:
        for start, count in ((50_000, 1000), (4000, 3000), (30_011, 500), (20, 50), (70, 1000), (59_999, 1)):
            torch.testing.assert_close(file.read(start, count), whole[:, start : start + count], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("start", "seconds"), [(-1.0, None), (0.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_times_must_make_sense(tmp_path: Path, start: float, seconds: float | None) -> None:
    with pytest.raises(ValueError, match="expected start >= 0"):
        load_sound(tmp_path / "any.wav", start=start, seconds=seconds)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "flac", "ogg", "mp3", "opus"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_cut_off_files_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    save_sound(noise(1, 48_000), whole, 48_000)
    assert load_sound(whole)[0].shape == (1, 48_000)
    content = whole.read_bytes()
    cut.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=rf"cut\.{suffix}.*(cut off|damaged)"):
        load_sound(cut)


def test_a_wav_written_into_a_pipe_is_whole(tmp_path: Path) -> None:
    """Such files promise 2^32 - 1 bytes, since their writer could not go back."""
    path = tmp_path / "a.wav"
    save_sound(noise(), path, RATE)
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = b"\xff\xff\xff\xff"
    whole = load_sound(path)[0]
    path.write_bytes(content)
    assert torch.equal(load_sound(path)[0], whole)


def test_what_is_no_sound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("hello world " * 50)
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "none.wav", torch.zeros(0, 1).numpy(), RATE)
    soundfile.write(tmp_path / "nan.wav", torch.tensor([0.0, float("nan")]).numpy(), RATE, subtype="FLOAT")
    for name, message in (
        ("text.wav", "no sound file, or damaged"),
        ("empty.wav", "empty file"),
        ("none.wav", "without samples"),
        ("nan.wav", "NaN or infinite"),
        (".", "got a folder"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load_sound(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"missing\.wav: no such file"):
        load_sound(tmp_path / "missing.wav")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(
        ValueError, match=r"pipe.wav: got a pipe or a device, expected a sound file, .*save it to a file first"
    ):
        load_sound(tmp_path / "pipe.wav")


def test_check_waveform() -> None:
    for fine in (torch.zeros(1, 1), torch.full((2, 3), 7.0), torch.zeros(1, 4, dtype=torch.float64)):
        check_waveform(fine, 44_100)
    for shape, message in (
        ((5,), "expected"),
        ((1, 0), "at least one sample"),
        ((1, 1, 5), "expected"),
        ((0, 5), "one"),
    ):
        with pytest.raises(ValueError, match=message):
            check_waveform(torch.zeros(shape), RATE)
    with pytest.raises(ValueError, match=r"8 channels, expected 1 or 2; downmix to their mean with to_channels"):
        check_waveform(torch.zeros(8, 5), RATE)
    for shape in ((132_300, 2), (48_000, 1), (33, 2)):
        with pytest.raises(ValueError, match=r"which looks like samples x channels; expected \[C, S\]: waveform.T"):
            check_waveform(torch.zeros(shape), RATE)
    with pytest.raises(ValueError, match="1 samples that are NaN"):
        check_waveform(torch.tensor([[0.0, float("nan")]]), RATE)
    for rate in (0, -1, 192_001):
        with pytest.raises(ValueError, match=f"sample rate: got {rate}, expected 1 to 192000"):
            check_waveform(torch.zeros(1, 5), rate)
    with pytest.raises(TypeError, match="divide int16"):
        check_waveform(torch.zeros(1, 5, dtype=torch.int16), RATE)
    with pytest.raises(TypeError, match="float"):
        check_waveform(torch.zeros(1, 5), 44_100.0)  # type: ignore[arg-type]


def test_eight_channels_load_and_downmix(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(8, 100).T.numpy(), RATE, subtype="FLOAT")
    sound, _ = load_sound(tmp_path / "a.wav")
    assert torch.equal(sound, noise(8, 100))
    assert torch.equal(to_channels(sound, 1), sound.mean(0, keepdim=True))
    with pytest.raises(ValueError, match="got 8 channels"):
        to_channels(sound, 2)


def test_to_channels() -> None:
    stereo = noise(2)
    assert to_channels(stereo, 2) is stereo
    mono = to_channels(stereo, 1)
    torch.testing.assert_close(mono[0], (stereo[0] + stereo[1]) / 2)
    assert torch.equal(to_channels(mono, 2), torch.cat([mono, mono]))
    with pytest.raises(ValueError, match="got 3"):
        to_channels(stereo, 3)


@given(
    st.sampled_from([800, 8000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000]),
    st.sampled_from([800, 8000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000]),
    st.integers(1, 3000),
)
def test_resampled_length(old: int, new: int, samples: int) -> None:
    sound = noise(2, samples)
    changed = resample(sound, old, new)
    exact = samples * new / old
    assert changed.shape[0] == 2
    assert abs(changed.shape[1] - exact) <= 0.5 or (changed.shape[1] == 1 and exact < 0.5)
    if old == new:
        assert changed is sound


def test_resampling_keeps_a_tone_and_its_place() -> None:
    time = torch.arange(22_050, dtype=torch.float64) / 44_100
    tone = torch.sin(2 * torch.pi * 1000 * time)[None]
    there = resample(tone, 44_100, 16_000)
    expected = torch.sin(2 * torch.pi * 1000 * torch.arange(8000, dtype=torch.float64) / 16_000)[None]
    assert float((there - expected)[:, 100:-100].abs().max()) < 0.01


def test_rates_without_a_common_divisor_are_refused_in_time() -> None:
    with pytest.raises(ValueError, match="44101 to 44100 Hz"):
        resample(noise(), 44_101, 44_100)
