"""The sound demo's pictures and players: what a masked-token model does, to look at and to hear.

Shapes: C channels, S samples.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from maskgen.tasks.audio.infilling import continue_audio, loop, vary
from maskgen.tasks.evaluation.made.gaps import repeated, silenced
from maskgen.tasks.media.audio.files import save_sound
from maskgen.tasks.media.audio.spectrogram import spectrogram_image
from maskgen.tasks.media.images import save_image
from maskgen.tasks.media.report import Figure
from maskgen.tasks.pipeline import Pipeline

_SHOWN = 3  # melodies whose gap is shown


@dataclass(frozen=True)
class Filled:
    """A melody with a gap, and what the model put there.

    Attributes:
        original: float ``[C, S]``.
        result: float ``[C, S]``.
        gap: its first sample, and one past its last.
        sample_rate: samples a second.
    """

    original: Tensor
    result: Tensor
    gap: tuple[int, int]
    sample_rate: int

    @property
    def mark(self) -> tuple[float, float]:
        """The gap in seconds."""
        return self.gap[0] / self.sample_rate, self.gap[1] / self.sample_rate


def plot_sounds(pipe: Pipeline, filled: list[Filled], folder: Path) -> list[Figure]:
    """Write all sounds of the report with their spectrograms.

    Args:
        pipe: the trained model.
        filled: melodies with a filled gap.
        folder: where the files go.

    Returns:
        The figures, in the order of the report.
    """
    figures = []
    for number, one in enumerate(filled[:_SHOWN], start=1):
        rows = {
            "original": (one.original, "What had been there."),
            "gap": (silenced(one.original, one.gap), "What the model is given: the gap, framed, is masked."),
            "filled": (
                one.result,
                "The gap filled. Outside of it and of a short cross-fade every sample is the original's.",
            ),
            "repeated": (
                repeated(one.original, one.gap),
                "For comparison: what came before the gap, played once more.",
            ),
        }
        for name, (sound, caption) in rows.items():
            title = f"Melody {number}: a gap filled" if name == "original" else ""
            figures.append(_figure(folder / f"melody-{number}-{name}", title, caption, sound, one, one.mark))
    return figures + _continued(pipe, filled[0], folder) + _varied(pipe, filled[0], folder)


def _continued(pipe: Pipeline, one: Filled, folder: Path) -> list[Figure]:
    rate, half = one.sample_rate, one.original.shape[-1] // 2
    length = half / rate
    begun = one.original[:, :half]
    (longer,) = continue_audio(pipe, begun, rate, seconds=length, seeds=[0])
    mark = (length, longer.shape[-1] / rate)
    caption = f"The first {length:.1f} s are the melody's, the framed rest is the model's."
    return [_figure(folder / "continued", "Going on", caption, longer, one, mark)]


def _varied(pipe: Pipeline, one: Filled, folder: Path) -> list[Figure]:
    rate = one.sample_rate
    (other,) = vary(pipe, one.original, rate, period=4, seeds=[0])
    caption = "Every fourth frame of tokens is kept, all others are decided anew."
    figures = [_figure(folder / "varied", "A variation", caption, other, one)]
    seam = (one.gap[1] - one.gap[0]) / rate
    (closed,) = loop(pipe, one.original, rate, seam=seam, seeds=[0])
    twice = torch.cat((closed, closed), dim=1)
    middle = one.original.shape[-1] / rate
    caption = "Played twice; the framed seam between end and start is the model's."
    mark = (middle - seam / 2, middle + seam / 2)
    return [*figures, _figure(folder / "loop", "A loop closed", caption, twice, one, mark)]


def _figure(
    path: Path, title: str, caption: str, sound: Tensor, one: Filled, mark: tuple[float, float] | None = None
) -> Figure:
    """Save a sound and its picture."""
    picture, wave = path.with_suffix(".png"), path.with_suffix(".wav")
    save_sound(sound.clamp(-1, 1), wave, one.sample_rate)
    save_image(spectrogram_image(sound, one.sample_rate, mark=mark), picture)
    return Figure(title, picture, caption, sound=wave)
