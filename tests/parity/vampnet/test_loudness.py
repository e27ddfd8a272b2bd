"""Loudness and its normalisation against audiotools, as VampNet uses it.

Shapes: C channels, S samples.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskgen.tasks.media.audio.features import loudness, normalize_loudness
from maskgen.tasks.media.audio.files import to_channels
from tests.parity.support import load, metadata, own_set, recordings

CASES = [(path, case) for path in recordings("vampnet", "loudness*.safetensors") for case in metadata(path)["cases"]]
each_case = pytest.mark.parametrize(("path", "case"), CASES, ids=lambda value: str(getattr(value, "name", value)))
WITHIN = 0.01  # dB, from the README of the recordings


def recorded(path: Path, case: str) -> tuple[dict[str, Tensor], int]:
    start = f"{case}."
    tensors = {name.removeprefix(start): tensor for name, tensor in load(path).items() if name.startswith(start)}
    return tensors, metadata(path)["cases"][case]["sample_rate"]


@each_case
def test_loudness_is_what_audiotools_measures(path: Path, case: str) -> None:
    tensors, sample_rate = recorded(path, case)
    measured = [loudness(waveform, sample_rate) for waveform in tensors["audio"].float()]
    assert measured == pytest.approx(tensors["loudness"].tolist(), abs=WITHIN)


@each_case
def test_mono_normalised_and_limited(path: Path, case: str) -> None:
    tensors, sample_rate = recorded(path, case)
    mono = torch.stack([to_channels(waveform, 1) for waveform in tensors["audio"].float()])
    done = torch.stack([normalize_loudness(waveform, sample_rate, -24.0) for waveform in mono])
    after = [loudness(waveform, sample_rate) for waveform in done]
    assert after == pytest.approx(tensors["mono_loudness_after"].flatten().tolist(), abs=WITHIN)
    recorded_gain = tensors["mono_norm_gain"].flatten()
    whole = recorded_gain.numel() == 1  # one number for the batch: of all its samples
    norms = [x.norm()[None] if whole else x.flatten(1).norm(dim=1) for x in (done, mono)]
    gain = 20 * torch.log10(norms[0] / norms[1])
    assert gain.tolist() == pytest.approx((20 * recorded_gain.log10()).tolist(), abs=WITHIN)
    expected = tensors["mono_norm_first256"]
    # A hundredth of a dB of gain is a factor of 1.00115.
    torch.testing.assert_close(done[..., : expected.shape[-1]], expected, rtol=1.16e-3, atol=0)


def test_recordings_hold_stereo_and_short_sounds() -> None:
    """The two cases that ``torchaudio.functional.loudness`` gets wrong."""
    shapes = [(recorded(path, case)[0]["audio"].shape, recorded(path, case)[1]) for path, case in CASES]
    assert any(shape[1] == 2 for shape, _ in shapes) or not own_set("vampnet")
    assert any(shape[2] < 0.4 * rate for shape, rate in shapes) or not own_set("vampnet")
