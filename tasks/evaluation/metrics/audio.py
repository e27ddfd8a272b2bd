"""How far one sound is from another: log-mel and STFT distances, signal-to-distortion ratio.

The Frechet audio distance is ``maskgen.tasks.evaluation.metrics.frechet.frechet_distance`` on an embedding of sound,
which its report names. Shapes: B batch, C channels, S samples.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from maskgen.tasks.evaluation.metrics.pairs import CEILING, PairScores, check_measures
from maskgen.tasks.media.audio.features import log_mel_distance
from maskgen.tokenizers.training.losses.audio import si_sdr

_RESOLUTIONS = ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200))  # transform, hop, window: Parallel WaveGAN's

_SILENT = 1e-8  # mean square below which a sound is silent: -80 dB, the floor of log-mel distances

_SILENCE = 1e-7  # smallest power: auraloss and Parallel WaveGAN have it too

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


class SoundScores(PairScores):
    """Distances of pairs of sounds that come some at a time.

    Relative to silence nothing can be measured: where the truth is silent, ``stft`` and ``si_sdr`` are NaN, and ``si_sdr``
    also where the result is.

    Args:
        sample_rate: of all of them.
        measures: which of ``log_mel``, ``stft`` and ``si_sdr``.

    Raises:
        ValueError: an unknown measure.
    """

    def __init__(self, sample_rate: int, measures: Sequence[str] = tuple(_NOTES)) -> None:
        check_measures(measures, tuple(_NOTES))
        super().__init__("sound", {name: _NOTES[name] for name in measures}, ["si_sdr"])
        self.sample_rate = sample_rate

    def update(self, original: Tensor, rebuilt: Tensor) -> None:
        """Compare pairs, see ``compare``."""
        self.add(self.compare(original, rebuilt))

    def compare(self, original: Tensor, rebuilt: Tensor) -> dict[str, Tensor]:
        """The numbers of pairs by name, ``[B]``.

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
            "stft": lambda: stft_distance(rebuilt, original).masked_fill(_silent(original), math.nan),
            "si_sdr": lambda: _ratio(rebuilt, original),
        }
        return {name: each[name]() for name in self.notes}


def _silent(sound: Tensor) -> Tensor:
    """Which sounds of ``[B, C, S]`` are silent, ``[B]`` on the CPU."""
    return (sound.flatten(1).double().square().mean(1) < _SILENT).cpu()


def _ratio(estimate: Tensor, target: Tensor) -> Tensor:
    """``si_sdr``, NaN where a side is silent, ``CEILING`` where both are equal."""
    found = si_sdr(estimate, target).double().cpu()
    found = found.masked_fill((estimate == target).flatten(1).all(1).cpu(), CEILING)
    return found.masked_fill(_silent(target) | _silent(estimate), math.nan)


def _magnitudes(sound: Tensor, size: int, hop: int, window: int) -> Tensor:
    """``[B, C, bins, frames]`` in float64, at least the root of the smallest power."""
    flat = rearrange(sound, "b c s -> (b c) s").double()
    flat = torch.nn.functional.pad(flat, (0, max(0, size // 2 + 1 - flat.shape[-1])))
    hann = torch.hann_window(window, dtype=flat.dtype, device=flat.device)
    spectrum = torch.stft(flat, size, hop, window, window=hann, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    return rearrange(power.clamp(min=_SILENCE).sqrt(), "(b c) bins frames -> b c bins frames", b=len(sound))
