"""Distances of sounds: numpy's transform, closed forms, and the measures of the rest of the package."""

import numpy as np
import pytest
import torch
from torch import Tensor

from maskgen.tasks.evaluation.metrics.audio import SoundScores, stft_distance
from maskgen.tasks.media.audio.features import log_mel_distance
from maskgen.tokenizers.training.losses.audio import si_sdr


def sounds(count: int, seed: int, samples: int = 3000, channels: int = 1) -> Tensor:
    return 0.3 * torch.randn(count, channels, samples, generator=torch.Generator().manual_seed(seed))


def magnitudes(sound: np.ndarray, size: int, hop: int, window: int) -> np.ndarray:
    """One channel by numpy: frames centred, the sound mirrored at its ends, a Hann window in the middle of the transform."""
    hann = np.zeros(size)
    begin = (size - window) // 2
    hann[begin : begin + window] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(sound, size // 2, mode="reflect")
    frames = [padded[at : at + size] * hann for at in range(0, len(padded) - size + 1, hop)]
    return np.sqrt(np.maximum(np.abs(np.fft.rfft(frames, axis=1)) ** 2, 1e-7))


def test_stft_distance_by_its_formula() -> None:
    estimate, target = sounds(2, 0), sounds(2, 1)
    resolutions = ((256, 50, 240), (128, 32, 128))
    found = stft_distance(estimate, target, resolutions)
    for index in range(2):
        total = 0.0
        for resolution in resolutions:
            x, y = (magnitudes(s[index, 0].double().numpy(), *resolution) for s in (estimate, target))
            total += np.linalg.norm(x - y) / np.linalg.norm(y) + np.abs(np.log(x) - np.log(y)).mean()
        assert float(found[index]) == pytest.approx(total / 2, rel=1e-5)


def test_equal_sounds_and_louder_ones() -> None:
    target = sounds(2, 0, channels=2)
    assert stft_distance(target, target).tolist() == [0, 0]
    twice = stft_distance(2 * target, target)
    assert twice.tolist() == pytest.approx([1 + np.log(2)] * 2, rel=1e-3)
    short = sounds(1, 0, samples=40)
    assert torch.isfinite(stft_distance(short, -short)).all()
    assert stft_distance(torch.zeros(1, 1, 500), torch.zeros(1, 1, 500)).tolist() == [0]


def test_scores() -> None:
    original, rebuilt = sounds(3, 0), sounds(3, 0) + 0.1 * sounds(3, 1)
    scores = SoundScores(16_000)
    scores.update(original[:2], rebuilt[:2])
    scores.update(original[2:], rebuilt[2:])
    found = scores.metrics(draws=100)
    expected = [log_mel_distance(b, a, 16_000) for a, b in zip(original, rebuilt, strict=True)]
    assert found["log_mel"].value == pytest.approx(np.mean(expected))
    assert found["stft"].value == pytest.approx(float(stft_distance(rebuilt, original).mean()))
    assert found["si_sdr"].value == pytest.approx(float(si_sdr(rebuilt, original).mean()))
    assert found["si_sdr"].value == pytest.approx(20, abs=1)
    assert found["si_sdr"].count == 3


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"measures: got \['pesq'\], expected some of"):
        SoundScores(16_000, ("pesq",))
    with pytest.raises(ValueError, match="sound: got shapes .* expected equal ones"):
        SoundScores(16_000).update(sounds(1, 0), sounds(1, 0, samples=10))
    with pytest.raises(ValueError, match="sound: got no pairs"):
        SoundScores(16_000).metrics()
    with pytest.raises(ValueError, match="stft_distance: got shapes"):
        stft_distance(sounds(1, 0), sounds(2, 0))


@pytest.mark.parametrize("silent", [torch.zeros(1, 3000), 1e-5 * torch.ones(1, 3000)])
def test_silent_truths_are_left_out_and_counted(silent: Tensor) -> None:
    """One pause among ten sounds moved the mean ratio by tens of dB, and the STFT distance a hundredfold."""
    truth, made = sounds(10, 0), sounds(10, 0) + 0.5 * sounds(10, 1)
    whole, fewer, with_pause = (SoundScores(16_000) for _ in range(3))
    whole.update(truth, made)
    fewer.update(truth[1:], made[1:])
    paused = truth.clone()
    paused[0] = silent
    with_pause.update(paused, made)
    found, expected = with_pause.metrics(draws=50), fewer.metrics(draws=50)
    for name in ("stft", "si_sdr"):
        assert found[name].value == pytest.approx(expected[name].value)
        assert (found[name].low, found[name].high) == (expected[name].low, expected[name].high)
        assert (found[name].count, found[name].left_out) == (9, 1)
        assert found[name].note.endswith("1 of 10 pairs left out: silent")
        assert whole.metrics(draws=50)[name].left_out is None
    assert found["log_mel"].count == 10  # below its floor, all is equally silent


def test_silent_results_and_equal_pairs_have_no_ratio() -> None:
    truth = sounds(3, 0)
    made = truth + 0.1 * sounds(3, 1)
    made[0] = 0
    made[1] = truth[1]
    scores = SoundScores(16_000, ("si_sdr",))
    scores.update(truth, made)
    found = scores.metrics(draws=10)["si_sdr"]
    assert found.value == pytest.approx(float(si_sdr(made[2:], truth[2:])))
    assert (found.count, found.left_out) == (1, 2)
    assert "1 of 3 pairs left out: silent" in found.note
    assert "1 of 3 pairs left out: equal, so infinite" in found.note


def test_nothing_but_silence() -> None:
    scores = SoundScores(16_000, ("si_sdr", "log_mel"))
    scores.update(torch.zeros(2, 1, 3000), sounds(2, 0))
    found = scores.metrics(draws=10)
    assert np.isnan(found["si_sdr"].value)
    assert (found["si_sdr"].count, found["si_sdr"].left_out, str(found["si_sdr"])) == (0, 2, "not defined")
    assert found["log_mel"].count == 2
