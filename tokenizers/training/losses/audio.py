"""Losses and measures of a reconstructed sound; nothing but torch.

Shapes: B batch, C channels, S samples, F frequencies, M mel bands, T frames.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

_FLOOR = 1e-5  # magnitudes below count as silence: DAC's clamp


def mel_filters(sample_rate: int, window: int, bands: int) -> Tensor:
    """Triangular filters, evenly spaced on the mel scale 2595 log10(1 + f / 700) from 0 to half the sample rate.

    Filters narrower than the distance of two frequencies are widened to it, so that none is empty.

    Args:
        sample_rate: samples a second.
        window: samples of the Fourier transform.
        bands: M.

    Returns:
        Float ``[F, M]``, F = window // 2 + 1; every column sums to 1.

    Raises:
        ValueError: fewer than one band, or more than there are frequencies.
    """
    frequencies = window // 2 + 1
    if not 1 <= bands <= frequencies:
        raise ValueError(f"bands: got {bands} for a window of {window}, expected 1 to {frequencies}")
    top = 2595 * torch.log10(torch.tensor(1 + sample_rate / 2 / 700, dtype=torch.float64))
    edges = 700 * (10 ** (torch.linspace(0, 1, bands + 2, dtype=torch.float64) * top / 2595) - 1)
    grid = torch.arange(frequencies, dtype=torch.float64) * sample_rate / window
    spacing = sample_rate / window
    centre = edges[1:-1]
    left, right = (centre - edges[:-2]).clamp(min=spacing), (edges[2:] - centre).clamp(min=spacing)
    rising, falling = (grid[:, None] - centre) / left + 1, (centre - grid[:, None]) / right + 1
    filters = torch.minimum(rising, falling).clamp(min=0)
    return (filters / filters.sum(0)).float()


class SpectralLoss(nn.Module):
    """Distance of mel spectra at several time scales (as in DAC, Kumar et al. 2023, arXiv 2306.06546, section 3.4).

    The mean over the windows of mean |log10 m(a) - log10 m(b)| + ``linear`` x mean |m(a) - m(b)|, where m are mel magnitudes
    of a Hann window with hops of a quarter, normalised so that a sine of amplitude 1 has a peak of about 1.

    Args:
        sample_rate: samples a second.
        windows: samples of each window.
        bands: mel bands of each window.
        linear: weight of the second term.

    Raises:
        ValueError: another number of bands than of windows, or none.
    """

    def __init__(
        self,
        sample_rate: int,
        windows: Sequence[int],
        bands: Sequence[int],
        *,
        linear: float = 1.0,
        floor: float = 1e-5,
    ) -> None:
        super().__init__()
        if not windows or len(windows) != len(bands):
            raise ValueError(
                f"windows and bands: got {tuple(windows)} and {tuple(bands)}, expected one each for each scale"
            )
        self.windows, self.linear, self.floor = tuple(windows), linear, floor
        for window, count in zip(windows, bands, strict=True):
            self.register_buffer(f"hann_{window}", torch.hann_window(window), persistent=False)
            self.register_buffer(f"mel_{window}", mel_filters(sample_rate, window, count), persistent=False)

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Distance of two sounds ``[B, C, S]``; scalar. Only the estimate gets a gradient."""
        total = estimate.new_zeros(())
        for window in self.windows:
            with torch.no_grad():
                wanted = self.mel(target, window)
            got = self.mel(estimate, window)
            total = total + (got.clamp(min=self.floor).log10() - wanted.clamp(min=self.floor).log10()).abs().mean()
            total = total + self.linear * (got - wanted).abs().mean()
        return total / len(self.windows)

    def mel(self, audio: Tensor, window: int) -> Tensor:
        """Mel magnitudes ``[B x C, M, T]`` of ``[B, C, S]``; a sound shorter than half a window is padded with silence."""
        flat = rearrange(audio, "b c s -> (b c) s").float()
        flat = nn.functional.pad(flat, (0, max(0, window // 2 + 1 - flat.shape[-1])))
        hann: Tensor = getattr(self, f"hann_{window}")
        spectrum = torch.stft(flat, window, hop_length=window // 4, window=hann, return_complex=True)
        # The root of a sum is safe to differentiate at silence, where the magnitude itself is not.
        magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt() * (2 / float(hann.sum()))
        return getattr(self, f"mel_{window}").t() @ magnitude


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, equation 5), ``[B, C, S]`` to ``[B]``.

    10 log10(|a t|^2 / |a t - e|^2) with a = <e, t> / |t|^2; higher is better. No mean is taken out.
    """
    e, t = estimate.flatten(1).double(), target.flatten(1).double()
    scaled = ((e * t).sum(1) / t.square().sum(1).clamp(min=1e-12))[:, None] * t
    ratio = scaled.square().sum(1).clamp(min=1e-12) / (scaled - e).square().sum(1).clamp(min=1e-12)
    return (10 * ratio.log10()).float()
