"""Measures of sound: loudness as people hear it, log-mel pictures, and where notes begin.

Shapes: C channels, S samples, F frames, M mel bands, n onsets. Rates are in Hz, loudness in LUFS, levels in dB.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from maskgen.tasks.media.audio.files import check_waveform, resample

_QUIETEST = -70.0  # LUFS: the absolute gate of BS.1770, below which nothing counts

_SHORTEST = 0.5  # seconds a sound is padded to before its loudness is measured

_LOWEST_RATE = 8000  # the shelf of the K-weighting turns at 1500 Hz, which a rate must hold with room to spare


def loudness(waveform: Tensor, sample_rate: int) -> float:
    """Loudness of a whole sound by ITU-R BS.1770-4, as audiotools (and so VampNet) measures it.

    1. K-weighting: a high shelf (+4 dB, 1500 Hz, Q = 1 / sqrt 2), then a high pass (38 Hz, Q = 1/2), both from the Audio EQ
       Cookbook. At 48 kHz these are the filters of the standard within 0.05 dB.
    2. Mean square z of each channel in blocks of 0.4 s, a new one every 0.1 s (both cut to whole samples). A last part of a
       block is filled with silence and counts as a block.
    3. Level of a block: -0.691 + 10 log10 (sum of z over channels), left and right with weight 1.
    4. Gates: blocks above -70 LUFS; of these, the blocks less than 10 dB below the level of their mean.
    5. The loudness is the level of the mean over the blocks that are left, at least -70.

    Sounds shorter than 0.5 s are padded with silence on the right. Rates below 8 kHz, where the shelf has no room, are
    measured after resampling to a multiple of the rate.

    Args:
        waveform: float ``[C, S]``, one or two channels.
        sample_rate: samples a second.

    Returns:
        LUFS, -70 for silence.

    Raises:
        TypeError, ValueError: what ``check_waveform`` refuses.
        ImportError: without torchaudio.
    """
    check_waveform(waveform, sample_rate)
    if sample_rate < _LOWEST_RATE:
        higher = sample_rate * -(-_LOWEST_RATE // sample_rate)
        waveform, sample_rate = resample(waveform, sample_rate, higher), higher
    samples = waveform.detach().cpu().double()
    samples = F.pad(samples, (0, max(0, math.ceil(_SHORTEST * sample_rate) - samples.shape[1])))
    squares = _k_weighted(samples, sample_rate).square_()
    size, step = int(0.4 * sample_rate), int(0.1 * sample_rate)
    squares = F.pad(squares, (0, -(squares.shape[1] - size) % step))
    powers = squares.unfold(1, size, step).sum(2).sum(0) / (0.4 * sample_rate)
    for gate in (_QUIETEST, None):
        threshold = _level(powers.mean()) - 10 if gate is None else gate
        powers = powers[_levels(powers) > threshold]
        if len(powers) == 0:
            return _QUIETEST
    return max(_QUIETEST, _level(powers.mean()))


def normalize_loudness(waveform: Tensor, sample_rate: int, target: float = -24.0) -> Tensor:
    """The sound at a wanted loudness, then, if a sample lies beyond [-1, 1], scaled down until the peak is 1 (VampNet).

    Silence stays silence; a sound below -70 LUFS is treated as if it had -70.

    Args:
        waveform: float ``[C, S]``, one or two channels; VampNet makes it mono first.
        sample_rate: samples a second.
        target: LUFS.

    Raises:
        TypeError, ValueError: what ``check_waveform`` refuses, or a target that is not finite.
        ImportError: without torchaudio.
    """
    if not math.isfinite(target):
        raise ValueError(f"target: got {target}, expected a finite loudness in LUFS such as -24")
    return limit_peak(waveform * 10 ** ((target - loudness(waveform, sample_rate)) / 20))


def limit_peak(waveform: Tensor) -> Tensor:
    """The sound scaled down so that its peak is 1, if a sample lies beyond [-1, 1]; unchanged otherwise.

    Args:
        waveform: float ``[C, S]``, S at least 1.
    """
    peak = float(waveform.abs().max())
    return (waveform / peak).clamp(-1, 1) if peak > 1 else waveform


def mel_filters(sample_rate: int, size: int, bands: int) -> Tensor:
    """Triangular filters, equally wide on the mel scale 2595 log10 (1 + f / 700), each with peak 1.

    Args:
        sample_rate: samples a second; the filters cover 0 to half of it.
        size: length of the Fourier transform.
        bands: M.

    Returns:
        float32 ``[M, size / 2 + 1]``. A band narrower than a bin still hears the bin nearest to its middle.
    """
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, size // 2 + 1, dtype=torch.float64)
    low, middle, high = (edges[i : i + bands, None] for i in range(3))
    filters = torch.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clamp(min=0)
    nearest = (bins - middle).abs().argmin(1)
    empty = filters.amax(1) == 0
    filters[empty, nearest[empty]] = 1.0
    return filters.float()


def log_mel(
    waveform: Tensor, sample_rate: int, *, hop: int | None = None, bands: int = 80, floor: float = -80.0
) -> Tensor:
    """Log-mel spectrogram in dB: the level of a full-scale sine is about 0 in its band.

    Hann windows of about 46 ms (a power of two), frame f centred at sample f x hop, silence beyond both ends.

    Args:
        waveform: float ``[C, S]``, one or two channels.
        sample_rate: samples a second.
        hop: samples between frames; a quarter of the window if left out.
        bands: M.
        floor: quieter levels become this one, so that inaudible differences do not count.

    Returns:
        float32 ``[C, M, S // hop + 1]``, at least ``floor``.

    Raises:
        TypeError, ValueError: what ``check_waveform`` refuses, or hop or bands below 1.
    """
    check_waveform(waveform, sample_rate)
    size = _window_size(sample_rate)
    hop = max(1, size // 4) if hop is None else hop
    if hop < 1 or bands < 1:
        raise ValueError(f"log_mel: got hop {hop}, bands {bands}; expected 1 or more of each")
    padded = F.pad(waveform.detach().cpu().float(), (size // 2, size // 2))
    levels = _mel_magnitudes(padded, sample_rate, size=size, hop=hop, bands=bands)
    return 20 * levels.clamp(min=10 ** (floor / 20)).log10()


def log_mel_distance(a: Tensor, b: Tensor, sample_rate: int) -> float:
    """Mean absolute difference of two log-mel spectrograms in dB, over bands, frames and channels.

    Levels below -80 dB count as -80 (see ``log_mel``), so silence and near silence are equal.

    Args:
        a: float ``[C, S]``.
        b: float ``[C, S]``.
        sample_rate: of both.

    Returns:
        dB, 0 for equal sounds.

    Raises:
        TypeError, ValueError: what ``check_waveform`` refuses, or two shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"log_mel_distance: got shapes {tuple(a.shape)} and {tuple(b.shape)}, expected the same")
    return float((log_mel(a, sample_rate) - log_mel(b, sample_rate)).abs().mean())


def onsets(waveform: Tensor, sample_rate: int, hop: int, *, delta: float = 0.07) -> Tensor:
    """Frames in which a note, a beat or a click begins.

    1. Spectral flux (Dixon 2006; Böck, Krebs and Schedl 2012): mean over mel bands of the rise of log10 (1 + 1000 X) from
       one frame to the next, X the magnitude (1 for a full-scale sine). The window of a frame ends where the frame ends, so
       that a sound raises the flux when it begins and not half a window earlier. Before the start there is silence.
    2. Divided by its maximum, or by 0.02 if that is more, so that what is next to silence has no onsets.
    3. A frame is a peak if it has the largest flux within 30 ms on both sides, at least ``delta`` more than the mean within
       100 ms on both sides, and comes more than 30 ms after the last peak.
    4. Backtracking: from each peak back as long as the flux falls and is above a tenth of the peak's, to where the rise
       begins.

    Args:
        waveform: float ``[C, S]``, one or two channels; their mean is used.
        sample_rate: samples a second.
        hop: samples a frame; frame f is samples f hop to (f + 1) hop.
        delta: how far a peak must stand out, as a share of the largest.

    Returns:
        long ``[n]``, ascending, in [0, ceil(S / hop)).

    Raises:
        TypeError, ValueError: what ``check_waveform`` refuses, or a hop below 1.
    """
    check_waveform(waveform, sample_rate)
    if hop < 1:
        raise ValueError(f"hop: got {hop}, expected at least one sample a frame")
    flux = _flux(waveform.detach().cpu().float().mean(0, keepdim=True), sample_rate, hop)
    flux = flux / max(float(flux.max()), 0.02)
    near, wide = (max(1, round(seconds * sample_rate / hop)) for seconds in (0.03, 0.1))
    highest = F.max_pool1d(flux[None], 2 * near + 1, stride=1, padding=near)[0]
    mean = F.avg_pool1d(flux[None], 2 * wide + 1, stride=1, padding=wide, count_include_pad=False)[0]
    found: list[int] = []
    last = -near - 1
    for peak in torch.nonzero((flux == highest) & (flux >= mean + delta)).flatten().tolist():
        if peak - last > near:
            start = peak
            while start > 0 and 0.1 * flux[peak] < flux[start - 1] < flux[start]:
                start -= 1
            found.append(start)
            last = peak
    return torch.tensor(sorted(set(found)), dtype=torch.long)


def _flux(mono: Tensor, sample_rate: int, hop: int) -> Tensor:
    """Mean rise of the compressed spectrum, float ``[F]``."""
    size = max(_window_size(sample_rate), 1 << (2 * hop - 1).bit_length())
    frames = -(-mono.shape[1] // hop)
    padded = F.pad(mono, (size - hop + hop, frames * hop - mono.shape[1]))  # one frame of silence more, to rise from
    levels = torch.log10(1 + 1000 * _mel_magnitudes(padded, sample_rate, size=size, hop=hop, bands=80))[0]
    return levels.diff(dim=1).clamp(min=0).mean(0)


def _mel_magnitudes(padded: Tensor, sample_rate: int, *, size: int, hop: int, bands: int) -> Tensor:
    """``[C, S]`` to ``[C, M, F]``, frames that lie wholly inside; a sine of amplitude 1 has magnitude about 1."""
    window = torch.hann_window(size)
    spectrum = torch.stft(padded, size, hop, window=window, center=False, return_complex=True)
    return mel_filters(sample_rate, size, bands) @ (spectrum.abs() * (2 / float(window.sum())))


def _window_size(sample_rate: int) -> int:
    """The power of two nearest to 46 ms: 2048 at 44.1 kHz, 1024 at 24 kHz."""
    return int(max(16, 2 ** round(math.log2(0.046 * sample_rate))))


def _k_weighted(samples: Tensor, sample_rate: int) -> Tensor:
    """Both filters of BS.1770 as cookbook biquads; in float64, and never clipped as torchaudio's own biquads do."""
    try:
        from torchaudio.functional import lfilter
    except ImportError:
        raise ImportError('loudness needs torchaudio: pip install "maskgen[audio]"') from None
    for numerator, denominator in (_high_shelf(sample_rate), _high_pass(sample_rate)):
        samples = lfilter(samples, samples.new_tensor(denominator), samples.new_tensor(numerator), clamp=False)
    return samples


def _high_shelf(sample_rate: int, gain: float = 4.0, frequency: float = 1500.0) -> tuple[list[float], list[float]]:
    a, turn = 10 ** (gain / 40), 2 * math.pi * frequency / sample_rate
    cosine, slope = math.cos(turn), 2 * math.sqrt(a) * math.sin(turn) / math.sqrt(2)  # Q = 1 / sqrt 2
    up, down = (a + 1) + (a - 1) * cosine, (a + 1) - (a - 1) * cosine
    mixed_up, mixed_down = (a - 1) + (a + 1) * cosine, (a - 1) - (a + 1) * cosine
    return ([a * (up + slope), -2 * a * mixed_up, a * (up - slope)], [down + slope, 2 * mixed_down, down - slope])


def _high_pass(sample_rate: int, frequency: float = 38.0) -> tuple[list[float], list[float]]:
    turn = 2 * math.pi * frequency / sample_rate
    cosine, alpha = math.cos(turn), math.sin(turn)  # sin / (2 Q), Q = 1/2
    return [(1 + cosine) / 2, -(1 + cosine), (1 + cosine) / 2], [1 + alpha, -2 * cosine, 1 - alpha]


def _levels(powers: Tensor) -> Tensor:
    return -0.691 + 10 * powers.log10()


def _level(power: Tensor) -> float:
    return float(_levels(power))
