"""Loudness and its normalisation against audiotools, as VampNet uses it.

Shapes: C channels, S samples.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskgen.tasks.media.audio.features import loudness, normalize_loudness
from maskgen.tasks.media.audio.files import to_channels
from tests.parity.support import files, load, metadata

CASES = [(path, case) for path in files("vampnet", "loudness*.safetensors") for case in metadata(path)["cases"]]
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
    (waveform,) = tensors["audio"].float()
    mono = to_channels(waveform, 1)
    done = normalize_loudness(mono, sample_rate, -24.0)
    assert loudness(done, sample_rate) == pytest.approx(float(tensors["mono_loudness_after"]), abs=WITHIN)
    gain = 20 * torch.log10(done.norm() / mono.norm())
    assert float(gain) == pytest.approx(20 * float(tensors["mono_norm_gain"].log10()), abs=WITHIN)
    expected = tensors["mono_norm_first256"][0]
    # A hundredth of a dB of gain is a factor of 1.00115.
    torch.testing.assert_close(done[:, : expected.shape[1]], expected, rtol=1.16e-3, atol=0)


def test_recordings_hold_stereo_and_short_sounds() -> None:
    """The two cases that ``torchaudio.functional.loudness`` gets wrong."""
    shapes = [(recorded(path, case)[0]["audio"].shape, recorded(path, case)[1]) for path, case in CASES]
    assert any(shape[1] == 2 for shape, _ in shapes)
    assert any(shape[2] < 0.4 * rate for shape, rate in shapes)
