"""Sound as a picture: log-mel spectrograms for report pages.

Shapes: C channels, S samples; pictures are width x height pixels, time to the right, high notes up.
"""

import math

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from maskgen.tasks.media.audio.features import log_mel
from maskgen.tasks.media.audio.files import check_waveform, to_channels

# Nine colours from silence to full scale, of evenly rising lightness: a picture printed in grey says the same.
_COLOURS = ("#05061a", "#1d1147", "#451275", "#72228a", "#a03386", "#cd4a73", "#ec7159", "#f8a958", "#fbf3c0")

_MARK = (90, 220, 255)

_BANDS = 96


def spectrogram_image(
    waveform: Tensor, sample_rate: int, *, width: int = 640, height: int = 160, mark: tuple[float, float] | None = None
) -> Image.Image:
    """A log-mel spectrogram: -80 dB and less dark, full scale bright.

    Args:
        waveform: float ``[C, S]``, one or two channels; their mean is shown.
        sample_rate: samples a second.
        width: pixels.
        height: pixels.
        mark: start and stop in seconds of a span to frame, such as what was filled in.

    Returns:
        An RGB picture.

    Raises:
        TypeError, ValueError: what ``check_waveform`` refuses, sizes below 1, or a span that is not inside the sound.
    """
    check_waveform(waveform, sample_rate)
    if width < 1 or height < 1:
        raise ValueError(f"spectrogram_image: got {width} x {height} pixels, expected at least 1 x 1")
    length = waveform.shape[1] / sample_rate
    if mark is not None and not 0 <= mark[0] < mark[1] <= length * (1 + 1e-9):
        raise ValueError(f"mark: got {mark} s, expected start < stop inside of 0 to {length:g} s")
    hop = max(1, math.ceil(waveform.shape[1] / width))
    levels = log_mel(to_channels(waveform, 1), sample_rate, hop=hop, bands=_BANDS)[0]
    shown = ((levels.clamp(-80, 0) + 80) / 80).flip(0).numpy()
    shares = Image.fromarray(shown.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    image = Image.fromarray(_colour_table()[(np.asarray(shares).clip(0, 1) * 255).round().astype(np.uint8)])
    if mark is not None:
        left, right = (min(width - 1, max(0, round(second / length * width))) for second in mark)
        draw = ImageDraw.Draw(image)
        draw.rectangle((left, 0, max(left, right), height - 1), outline=_MARK)
    return image


def _colour_table() -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """uint8 ``[256, 3]``: the nine colours and straight lines between them."""
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in _COLOURS], dtype=np.float64)
    places = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(places, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)
