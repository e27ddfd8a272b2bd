"""How far one sound is from another: log-mel and STFT distances, signal-to-distortion ratio.

The Frechet audio distance is ``maskgen.tasks.evaluation.metrics.frechet.frechet_distance`` on an embedding of sound,
which its report names. Shapes: B batch, C channels, S samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from maskgen.tasks.evaluation.metrics.base import Metric, bootstrap
from maskgen.tasks.media.audio.features import log_mel_distance
from maskgen.tokenizers.training.losses.audio import si_sdr

__all__ = ["SoundScores", "stft_distance"]

_RESOLUTIONS = ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200))  # transform, hop, window: Parallel WaveGAN's

_SILENCE = 1e-7  # smallest power: auraloss and Parallel WaveGAN have it too

_MEASURES = ("log_mel", "stft", "si_sdr")

_NOTES = {
    "log_mel": "dB, mean absolute difference of log-mel spectrograms",
    "stft": "spectral convergence plus log magnitude difference, mean of three resolutions",
    "si_sdr": "dB, higher is better",
}


def stft_distance(
    estimate: Tensor, target: Tensor, resolutions: Sequence[tuple[int, int, int]] = _RESOLUTIONS
) -> Tensor:
    """Multi-resolution STFT distance (Yamamoto et al. 2020, arXiv 1910.11480, equations 4 to 6).

    The mean over resolutions of |X - Y|_F / |Y|_F + mean |log X - log Y|, with magnitudes X of the estimate and Y of the
    target (Hann windows, frames centred, the sound reflected at its ends, or followed by silence where it is too short).

    Args:
        estimate: float ``[B, C, S]``.
        target: the same shape.
        resolutions: transform, hop and window of each, in samples.

    Returns:
        ``[B]``, 0 for equal sounds.

    Raises:
        ValueError: two shapes, or no resolution.
    """
    if estimate.shape != target.shape or target.ndim != 3 or not resolutions:
        raise ValueError(
            f"stft_distance: got shapes {tuple(estimate.shape)} and {tuple(target.shape)} and {len(resolutions)} "
            "resolutions; expected equal shapes [B, C, S] and at least one resolution"
        )
    total = torch.zeros(len(target), dtype=torch.float64)
    for size, hop, window in resolutions:
        x, y = (_magnitudes(sound, size, hop, window) for sound in (estimate, target))
        away = (x - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)
        total += (away + (x.log() - y.log()).abs().flatten(1).mean(1)).cpu()
    return total / len(resolutions)


class SoundScores:
    """Distances of pairs of sounds that come some at a time.

    Args:
        sample_rate: of all of them.
        measures: which of ``log_mel``, ``stft`` and ``si_sdr``.

    Raises:
        ValueError: an unknown measure.
    """

    def __init__(self, sample_rate: int, measures: Sequence[str] = _MEASURES) -> None:
        unknown = sorted(set(measures) - set(_MEASURES))
        if unknown:
            raise ValueError(f"measures: got {unknown}, expected some of {list(_MEASURES)}")
        self.sample_rate, self.measures = sample_rate, tuple(measures)
        self._found: dict[str, list[Tensor]] = {name: [] for name in self.measures}

    def update(self, original: Tensor, rebuilt: Tensor) -> None:
        """Compare pairs.

        Args:
            original: float ``[B, C, S]`` in about [-1, 1].
            rebuilt: the same shape.

        Raises:
            ValueError: two shapes, or what ``maskgen.tasks.media.audio.files.check_waveform`` refuses.
        """
        if original.shape != rebuilt.shape or original.ndim != 3:
            raise ValueError(
                f"sound: got shapes {tuple(original.shape)} and {tuple(rebuilt.shape)}, expected equal ones [B, C, S]"
            )
        pairs = list(zip(rebuilt, original, strict=True))
        each = {
            "log_mel": lambda: torch.tensor([log_mel_distance(a, b, self.sample_rate) for a, b in pairs]),
            "stft": lambda: stft_distance(rebuilt, original),
            "si_sdr": lambda: si_sdr(rebuilt, original),
        }
        for name in self.measures:
            self._found[name].append(each[name]().double().cpu())

    def values(self) -> dict[str, Tensor]:
        """One number a sound so far, float64 ``[M]``, by measure."""
        empty = torch.zeros(0, dtype=torch.float64)
        return {name: torch.cat([empty, *found]) for name, found in self._found.items()}

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from what ``values`` gave, of several meters perhaps."""
        self._found = {name: [values[name]] for name in self.measures}

    def metrics(self, *, draws: int = 1000, seed: int = 0) -> dict[str, Metric]:
        """The means over sounds by name, with bootstrap intervals.

        Args:
            draws: of the bootstrap.
            seed: of the draws.

        Raises:
            ValueError: nothing was compared.
        """
        values = self.values()
        if not all(map(len, values.values())):
            raise ValueError("sound: got no pairs, expected at least one")
        return {
            name: bootstrap(each.numpy(), draws=draws, seed=seed, note=_NOTES[name]) for name, each in values.items()
        }


def _magnitudes(sound: Tensor, size: int, hop: int, window: int) -> Tensor:
    """``[B, C, bins, frames]`` in float64, at least the root of the smallest power."""
    flat = sound.flatten(0, 1).double()
    flat = torch.nn.functional.pad(flat, (0, max(0, size // 2 + 1 - flat.shape[-1])))
    hann = torch.hann_window(window, dtype=flat.dtype, device=flat.device)
    spectrum = torch.stft(flat, size, hop, window, window=hann, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    return power.clamp(min=_SILENCE).sqrt().unflatten(0, sound.shape[:2])
