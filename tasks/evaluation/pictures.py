"""Pictures of an evaluation's page: samples, nearest real ones, accuracy by class, precision against recall.

Shapes: pictures are width x height pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from maskgen.tasks.data.broken import Broken
from maskgen.tasks.evaluation.metrics.manifold import Overlap
from maskgen.tasks.evaluation.metrics.scores import MaskedScore
from maskgen.tasks.evaluation.sets.base import SampleSet
from maskgen.tasks.evaluation.settings import CasScores, Evaluation
from maskgen.tasks.media.audio.files import to_channels
from maskgen.tasks.media.audio.spectrogram import spectrogram_image
from maskgen.tasks.media.images import image_grid, save_image
from maskgen.tasks.media.report import Figure

__all__ = ["draw_evaluation"]

_COLUMNS = 10

_SMALL = 64  # pixels: smaller pictures are shown larger

_MADE, _REAL, _FRAME, _INK = (200, 90, 30), (40, 110, 170), (190, 190, 190), (60, 60, 60)

_PLOT, _MARGIN = 320, 36

_BAR, _MOST_NAMES = 16, 40


def draw_evaluation(
    result: Evaluation, samples: SampleSet | None, real: SampleSet | None, folder: Path
) -> list[Figure]:
    """Draw and save all pictures that the evaluation has something to show for.

    Args:
        result: the evaluation.
        samples: what was measured; None where nothing was made.
        real: the real side; None where only statistics are known.
        folder: where the pictures go.

    Returns:
        The pictures, in the order of the page.
    """
    figures = (
        [] if samples is None else [*_samples(result, samples, folder), *_neighbours(result, samples, real, folder)]
    )
    if result.curve:
        points = [("samples", _MADE, _points(result.curve, result.protocol.neighbours))]
        points += [("held-out real data", _REAL, _points(result.floor_curve, result.protocol.neighbours))]
        path = folder / "precision-recall.png"
        save_image(_plot(points, "precision", "recall"), path)
        ks = ", ".join(str(one.k) for one in result.curve)
        caption = (
            f"Precision (right) and recall (up) as balls grow: {ks} neighbours. The ring is the protocol's "
            f"{result.protocol.neighbours}. Blue: real data that were held out, if there are any: nothing generated can be "
            "expected above them."
        )
        figures.append(Figure("Precision and recall", path, caption))
    if result.cas is not None:
        path = folder / "classes.png"
        save_image(_bars(result.cas), path)
        caption = (
            "Accuracy on real test images of each class: orange bars, a classifier that saw generated samples only; blue "
            "marks, the same classifier trained on real data."
        )
        figures.append(Figure("Accuracy by class", path, caption))
    if result.masked:
        path = folder / "masked.png"
        save_image(_plot([("", _MADE, _masked(result.masked))], "mask ratio", "accuracy"), path)
        figures.append(
            Figure(
                "Hidden tokens", path, "Share of hidden tokens that are predicted right, by the share that is hidden."
            )
        )
    return figures


def _samples(result: Evaluation, samples: SampleSet, folder: Path) -> list[Figure]:
    shown = [_picture(samples, number) for number, _ in result.shown]
    pictures = [picture for picture in shown if picture is not None]
    if not pictures:
        return []
    path = folder / "samples.png"
    columns = 2 if samples.modality == "audio" else _COLUMNS
    save_image(image_grid(pictures, columns), path)
    what = {"image": "Samples", "video": "Samples: the middle frame of each clip", "audio": "Samples as spectrograms"}
    return [Figure(what[samples.modality], path, f"{len(pictures)} evenly spaced samples, none of them selected.")]


def _neighbours(result: Evaluation, samples: SampleSet, real: SampleSet | None, folder: Path) -> list[Figure]:
    if real is None or samples.modality == "audio":
        return []
    pairs = [(number, other) for number, other in result.shown if other is not None][: 2 * _COLUMNS]
    both = [(_picture(samples, number), _picture(real, other)) for number, other in pairs]
    kept = [(made, true) for made, true in both if made is not None and true is not None]
    if not kept:
        return []
    rows: list[Image.Image] = []
    for first in range(0, len(kept), _COLUMNS):
        part = kept[first : first + _COLUMNS]
        rows += [made for made, _ in part] + [true for _, true in part]
    path = folder / "neighbours.png"
    save_image(image_grid(rows, min(_COLUMNS, len(kept))), path)
    if result.subject["kind"] == "tokenizer":
        return [Figure("Rebuilt and original", path, "In pairs of rows: through the tokenizer and back; the original.")]
    caption = (
        "In pairs of rows: samples, and below each the real one whose features are nearest. Copies would show here."
    )
    return [Figure("Nearest real neighbours", path, caption)]


def _picture(samples: SampleSet, number: int) -> Image.Image | None:
    """What one sees of a sample; None if it cannot be read."""
    (sample,) = samples.read(number, number + 1)
    if isinstance(sample, Broken):
        return None
    if samples.modality == "audio":
        return spectrogram_image(to_channels(sample.float(), 1), samples.sample_rate(number), width=320, height=96)
    frame = sample[:, sample.shape[1] // 2] if samples.modality == "video" else sample
    picture = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    factor = max(1, _SMALL // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _points(curve: Sequence[Overlap], k: int) -> list[tuple[float, float, bool]]:
    return [(float(one.precise.mean()), float(one.recalled.mean()), one.k == k) for one in curve]


def _masked(scores: Sequence[MaskedScore]) -> list[tuple[float, float, bool]]:
    return [(score.ratio, score.accuracy.value, False) for score in scores]


def _plot(
    lines: Sequence[tuple[str, tuple[int, int, int], list[tuple[float, float, bool]]]], across: str, up: str
) -> Image.Image:
    """Lines through points in the unit square, marked ones with a ring."""
    side = _PLOT + 2 * _MARGIN
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)

    def place(x: float, y: float) -> tuple[float, float]:
        return _MARGIN + x * _PLOT, _MARGIN + (1 - y) * _PLOT

    for step in range(5):
        share = step / 4
        draw.line([place(share, 0), place(share, 1)], fill=_FRAME)
        draw.line([place(0, share), place(1, share)], fill=_FRAME)
        draw.text((place(share, 0)[0] - 8, _MARGIN + _PLOT + 4), f"{share:g}", fill=_INK)
        draw.text((4, place(0, share)[1] - 6), f"{share:g}", fill=_INK)
    draw.text((_MARGIN + _PLOT // 2 - 24, side - 16), across, fill=_INK)
    draw.text((4, 4), up, fill=_INK)
    for number, (name, colour, points) in enumerate(lines):
        if not points:
            continue
        placed = [place(x, y) for x, y, _ in points]
        draw.line(placed, fill=colour, width=2)
        for (x, y), (_, _, marked) in zip(placed, points, strict=True):
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
            if marked:
                draw.ellipse((x - 6, y - 6, x + 6, y + 6), outline=colour, width=2)
        draw.text((_MARGIN + 60 + 100 * number, 4), name, fill=colour)
    return image


def _bars(cas: CasScores) -> Image.Image:
    """One bar a class, the real classifier's accuracy as a mark; without names where there are very many classes."""
    named = len(cas.class_names) <= _MOST_NAMES
    width = _BAR if named else max(2, 800 // len(cas.class_names))
    left = 120 if named else _MARGIN
    if named:
        image = Image.new("RGB", (left + _PLOT + _MARGIN, len(cas.class_names) * (width + 4) + 8), "white")
        draw = ImageDraw.Draw(image)
        for number, (name, made, real) in enumerate(
            zip(cas.class_names, cas.per_class, cas.per_class_real, strict=True)
        ):
            top = 4 + number * (width + 4)
            draw.text((4, top), name[:18], fill=_INK)
            draw.rectangle((left, top, left + _PLOT, top + width), outline=_FRAME)
            draw.rectangle((left, top, left + (made or 0) * _PLOT, top + width), fill=_MADE)
            mark = left + (real or 0) * _PLOT
            draw.line((mark, top, mark, top + width), fill=_REAL, width=3)
        return image
    image = Image.new("RGB", (2 * _MARGIN + width * len(cas.class_names), _PLOT + 2 * _MARGIN), "white")
    draw = ImageDraw.Draw(image)
    for number, (made, real) in enumerate(zip(cas.per_class, cas.per_class_real, strict=True)):
        x, floor = _MARGIN + number * width, _MARGIN + _PLOT
        draw.rectangle((x, floor - (made or 0) * _PLOT, x + width - 1, floor), fill=_MADE)
        mark = floor - (real or 0) * _PLOT
        draw.line((x, mark, x + width - 1, mark), fill=_REAL, width=2)
    return image
