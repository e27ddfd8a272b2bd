"""Loudness, log-mel distances, onsets and pictures, on sounds whose answer is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.tasks.media.audio.features import (
    limit_peak,
    log_mel,
    log_mel_distance,
    loudness,
    mel_filters,
    normalize_loudness,
    onsets,
)
from maskgen.tasks.media.audio.spectrogram import spectrogram_image

RATE = 16_000


def sine(frequency: float, seconds: float = 1.0, rate: int = RATE, amplitude: float = 1.0) -> Tensor:
    time = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return (amplitude * torch.sin(2 * math.pi * frequency * time))[None].float()


def noise(samples: int = RATE, channels: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_loudness_of_the_standards_sine(rate: int) -> None:
    """BS.1770: a full-scale sine of 997 Hz in one channel has -3.01 LKFS."""
    assert loudness(sine(997, 2.0, rate), rate) == pytest.approx(-3.01, abs=0.1)


def test_loudness_adds_the_power_of_channels_and_follows_the_gain() -> None:
    sound = noise()
    level = loudness(sound, RATE)
    assert loudness(sound.repeat(2, 1), RATE) == pytest.approx(level + 10 * math.log10(2), abs=1e-3)
    assert loudness(sound * 0.1, RATE) == pytest.approx(level - 20, abs=1e-3)


def test_the_gate_leaves_silence_and_quiet_parts_out() -> None:
    loud = noise(10 * RATE)
    level = loudness(loud, RATE)
    # Only the blocks that straddle the border (0.3 s of 10) can be softer.
    assert loudness(torch.cat([loud, torch.zeros(1, 10 * RATE)], 1), RATE) == pytest.approx(level, abs=0.1)
    assert loudness(torch.cat([loud, loud * 0.03], 1), RATE) == pytest.approx(level, abs=0.1)
    assert loudness(torch.cat([loud, loud * 0.5], 1), RATE) < level - 1.5  # 6 dB softer: that counts


@pytest.mark.parametrize("samples", [1, 7, 3000])
def test_short_sounds_and_low_rates_have_a_loudness(samples: int) -> None:
    assert loudness(torch.zeros(1, samples), RATE) == -70
    assert math.isfinite(loudness(torch.full((2, samples), 0.5), RATE))
    assert -70 <= loudness(noise(samples), 800) < 0


def test_normalize_reaches_the_target_or_the_peak() -> None:
    assert loudness(normalize_loudness(noise(channels=2), RATE, -30.0), RATE) == pytest.approx(-30, abs=1e-3)
    spiky = torch.zeros(1, RATE)
    spiky[0, ::4000] = 0.5
    limited = normalize_loudness(spiky, RATE, -10.0)
    assert float(limited.abs().max()) == 1
    assert loudness(limited, RATE) < -10
    silence = torch.zeros(1, 100)
    assert torch.equal(normalize_loudness(silence, RATE), silence)
    with pytest.raises(ValueError, match="target: got nan"):
        normalize_loudness(silence, RATE, math.nan)


def test_limit_peak() -> None:
    quiet, loud = torch.tensor([[0.5, -1.0]]), torch.tensor([[0.5, -4.0]])
    assert limit_peak(quiet) is quiet
    assert torch.equal(limit_peak(loud), torch.tensor([[0.125, -1.0]]))


@given(st.sampled_from([800, 8000, 24_000, 44_100]), st.integers(1, 128))
def test_every_mel_band_hears_something(rate: int, bands: int) -> None:
    filters = mel_filters(rate, 256, bands)
    assert filters.shape == (bands, 129)
    assert filters.min() >= 0
    assert (filters.amax(1) > 0).all()
    assert filters.amax() <= 1
    middles = (filters * torch.arange(129)).sum(1) / filters.sum(1)
    assert (middles.diff() >= -1).all()  # those narrower than a bin may share one


def test_log_mel_shows_a_sine_where_and_as_loud_as_it_is() -> None:
    levels = log_mel(sine(1000, amplitude=0.1), RATE, hop=100)
    assert levels.shape == (1, 80, 161)
    inner = levels[0, :, 20:-20]
    assert float(inner.max()) == pytest.approx(-20, abs=2)
    edges = [700 * (10 ** (2595 * math.log10(1 + 8000 / 700) * band / 81 / 2595) - 1) for band in range(82)]
    band = int(inner.mean(1).argmax())
    assert edges[band] < 1000 < edges[band + 2]
    assert float(log_mel(torch.zeros(1, 1), RATE).max()) == -80
    with pytest.raises(ValueError, match="hop 0"):
        log_mel(sine(100), RATE, hop=0)


def test_log_mel_distance() -> None:
    a, b = sine(300), sine(3000)
    assert log_mel_distance(a, a, RATE) == 0
    assert log_mel_distance(a, b, RATE) == log_mel_distance(b, a, RATE) > 1
    # Noise at half the amplitude: 6 dB in every band.
    assert log_mel_distance(noise(), noise() / 2, RATE) == pytest.approx(6.02, abs=0.1)
    assert log_mel_distance(a * 1e-6, torch.zeros_like(a), RATE) == 0  # -120 dB: under the floor
    with pytest.raises(ValueError, match="expected the same"):
        log_mel_distance(a, a[:, 1:], RATE)


@pytest.mark.parametrize("hop", [128, 320, 768])
@pytest.mark.parametrize("amplitude", [0.02, 0.9])
def test_onsets_of_clicks(hop: int, amplitude: float) -> None:
    places = [3000, 9000, 12_500, 20_011, 30_000, 47_000]
    sound = torch.zeros(2, 48_000)
    sound[:, places] = amplitude
    found = onsets(sound, 24_000, hop).tolist()
    assert len(found) == len(places)
    assert all(abs(frame - place // hop) <= 1 for frame, place in zip(found, places, strict=True))


def test_onsets_of_notes_that_ring_into_each_other() -> None:
    rate, hop, begins = 24_000, 320, [0, 6000, 12_000, 18_000]
    sound = torch.zeros(1, 24_000)
    for number, begin in enumerate(begins):
        note = sine(220 * 1.5**number, 1.0, rate)[:, : 24_000 - begin]
        sound[:, begin:] += 0.3 * note * torch.exp(-torch.arange(24_000 - begin) / 3000)
    found = onsets(sound, rate, hop).tolist()
    assert len(found) == len(begins)
    assert all(abs(frame - begin // hop) <= 1 for frame, begin in zip(found, begins, strict=True))


def test_no_onsets_in_silence_and_in_next_to_silence() -> None:
    assert onsets(torch.zeros(1, RATE), RATE, 256).tolist() == []
    assert onsets(noise() * 1e-5, RATE, 256).tolist() == []
    assert onsets(sine(440, 2.0), RATE, 256).tolist() == [0]  # one that begins at once and goes on
    with pytest.raises(ValueError, match="hop: got 0"):
        onsets(noise(), RATE, 0)


@given(st.integers(1, 5000), st.integers(1, 6000))
def test_onsets_are_frames_of_the_sound(samples: int, hop: int) -> None:
    found = onsets(noise(samples, seed=samples) * 5, RATE, hop)
    assert found.dtype == torch.long
    assert (found.diff() > 0).all()
    assert ((found >= 0) & (found < -(-samples // hop))).all()


def test_spectrogram_image() -> None:
    sound = torch.cat([torch.zeros(1, RATE), sine(1000)], 1)
    picture = np.asarray(spectrogram_image(sound, RATE, width=200, height=80).convert("L")).astype(int)
    assert picture.shape == (80, 200)
    assert picture[:, :80].max() < 20 < 150 < picture[:, 110:190].max()
    row = int(picture[:, 110:190].mean(1).argmax())
    higher = torch.cat([torch.zeros(1, RATE), sine(4000)], 1)
    above = np.asarray(spectrogram_image(higher, RATE, width=200, height=80).convert("L")).astype(int)
    assert int(above[:, 110:190].mean(1).argmax()) < row  # high notes up
    marked = np.asarray(spectrogram_image(sound, RATE, width=200, height=80, mark=(0.5, 1.5)))
    plain = np.asarray(spectrogram_image(sound, RATE, width=200, height=80))
    columns = np.flatnonzero((marked != plain).any(2).all(0))
    assert columns.tolist() == [50, 150]
    assert spectrogram_image(torch.zeros(2, 1), RATE, width=3, height=2).size == (3, 2)


def test_lightness_of_the_colours_rises() -> None:
    levels = torch.linspace(0, 1, 256)
    time = torch.arange(256 * 512)
    swell = torch.sin(2 * math.pi * 1000 * time / RATE) * (10 ** (4 * levels - 4)).repeat_interleave(512)
    picture = np.asarray(spectrogram_image(swell[None], RATE, width=256, height=96).convert("L")).astype(int)
    brightest = picture.max(0)[5:-5]
    assert (np.diff(brightest) >= -1).all()
    assert brightest[-1] > 200


@pytest.mark.parametrize("mark", [(0.5, 0.5), (-0.1, 0.5), (0.5, 1.2)])
def test_spectrogram_refuses_a_span_outside(mark: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="expected start < stop"):
        spectrogram_image(noise(), RATE, mark=mark)
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        spectrogram_image(noise(), RATE, width=0, height=5)
