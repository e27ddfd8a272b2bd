"""Pictures of an evaluation's page: samples, nearest real ones, accuracy by class, precision against recall.

Shapes: pictures are width x height pixels.
"""

from collections.abc import Sequence
from pathlib import Path

from einops import rearrange
from PIL import Image

from maskgen.tasks.data.broken import Broken
from maskgen.tasks.evaluation.metrics.manifold import Overlap
from maskgen.tasks.evaluation.sets.base import SampleSet
from maskgen.tasks.evaluation.settings import CasScores, Evaluation
from maskgen.tasks.media.audio.files import to_channels
from maskgen.tasks.media.audio.spectrogram import spectrogram_image
from maskgen.tasks.media.images import image_grid, save_image
from maskgen.tasks.media.plots import Bar, Curve, Panel, plot_bars, plot_curves, save_plot
from maskgen.tasks.media.report import Figure

_COLUMNS = 10

_SMALL = 64  # pixels: smaller pictures are shown larger


def plot_evaluation(
    result: Evaluation, samples: SampleSet | None, real: SampleSet | None, folder: Path
) -> list[Figure]:
    """Plot and save all pictures that the evaluation has something to show for.

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
        named = {"samples": result.curve, "held-out real data": result.floor_curve}
        curves = [_overlaps(name, curve, result.protocol.neighbours) for name, curve in named.items() if curve]
        panel = Panel(x="precision", y="recall", curves=curves)
        path = save_plot(plot_curves([panel]), folder / "precision-recall.png")
        ks = ", ".join(str(one.k) for one in result.curve)
        caption = (
            f"Precision (right) and recall (up) as balls grow: {ks} neighbours. The ring is the protocol's "
            f"{result.protocol.neighbours}. Nothing generated can be expected above real data that were held out."
        )
        figures.append(Figure("Precision and recall", path, caption))
    if result.cas is not None:
        path = save_plot(plot_bars([("", _classes(result.cas))]), folder / "classes.png")
        caption = (
            "Accuracy on real test images of each class: bars, a classifier that saw generated samples only; marks, the "
            "same classifier trained on real data."
        )
        figures.append(Figure("Accuracy by class", path, caption))
    if result.masked:
        points = [(score.ratio, score.accuracy.value) for score in result.masked]
        panel = Panel(x="mask ratio", y="accuracy", curves=[Curve(label="", points=points)])
        path = save_plot(plot_curves([panel]), folder / "masked.png")
        caption = "Share of masked tokens that are predicted right, by the share that is masked."
        figures.append(Figure("Masked tokens", path, caption))
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
    pairs = [(number, other) for number, other in result.shown if other is not None]
    pairs = pairs[:: max(1, -(-len(pairs) // (2 * _COLUMNS)))]  # of all, which come class by class
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
    picture = Image.fromarray(rearrange(frame, "c h w -> h w c").contiguous().numpy())
    factor = max(1, _SMALL // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _overlaps(label: str, curve: Sequence[Overlap], k: int) -> Curve:
    points = [(float(one.precise.mean()), float(one.recalled.mean())) for one in curve]
    ring = next((number for number, one in enumerate(curve) if one.k == k), None)
    return Curve(label=label, points=points, ring=ring)


def _classes(cas: CasScores) -> list[Bar]:
    each = zip(cas.class_names, cas.per_class, cas.per_class_real, strict=True)
    return [Bar(label=name[:18], value=made or 0, mark=real or 0) for name, made, real in each]
