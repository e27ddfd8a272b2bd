"""``evaluation.json`` with every number and all it depends on, and a page to look at."""

import dataclasses
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from maskgen.checkpoint import write_json
from maskgen.tasks.evaluation.metrics.base import Metric
from maskgen.tasks.evaluation.pictures import plot_evaluation
from maskgen.tasks.evaluation.sets.base import SampleSet
from maskgen.tasks.evaluation.settings import Evaluation, EvaluationSettings
from maskgen.tasks.media.plots import Curve, Panel, plot_curves, save_plot
from maskgen.tasks.media.report import Figure, write_report
from maskgen.tasks.media.results import environment

_FORMAT = "maskgen-evaluation"

_SWEEP = "maskgen-guidance-sweep"

_SWEPT = (
    "fid",
    "fvd",
    "fad",
    "clip_score",
    "clip_r_precision",
    "dual_encoder_r_precision",
)  # what is drawn by guidance

_PACKAGES = ("torchmetrics", "torch-fidelity", "lpips", "scikit-learn", "numpy", "pillow")

_MEANING = {
    "fid": "Frechet distance to the reference; lower is better",
    "fvd": "Frechet video distance to the reference; lower is better",
    "fad": "Frechet audio distance to the reference; lower is better",
    "kid": "squared kernel distance, unbiased; lower is better",
    "kvd": "squared kernel distance, unbiased; lower is better",
    "kad": "squared kernel distance with KID's cubic kernel, unbiased; published KAD has a Gaussian one; lower is better",
    "infinity": "what infinitely many samples would have",
    "inception_score": "higher is better",
    "precision": "share of samples among real data",
    "recall": "share of real data among samples",
    "density": "how densely real data surround samples; about 1 for real data",
    "coverage": "share of real data with a sample nearby",
    "cas": "accuracy on real test data of a classifier trained on samples only",
    "cas_real": "the same classifier trained on real data",
    "cas_over_real": "cas / cas_real",
    "label_agreement": "share of samples that the classifier of real data reads as the class it was generated for",
    "psnr": "dB, higher is better",
    "ssim": "1 for equal pictures",
    "lpips": "0 for equal pictures",
    "clip_score": "mean cosine of picture and caption (Muse: 0.32; others write 100 times that)",
    "clip_r_precision": "share of pictures whose own caption is the nearest of R",
    "dual_encoder_r_precision": "the same by a dual encoder trained on real pairs; see what held-out real pairs have",
    "codebook_usage": "share of codes that occur",
    "codebook_perplexity": "exp of the entropy of the code frequencies",
    "log_mel": "dB, 0 for equal sounds",
    "stft": "0 for equal sounds",
    "si_sdr": "dB, higher is better",
    "gap_kept_identical": "share of sounds that came back bit for bit outside of the gap and its cross-fade",
}


def hardware() -> dict[str, Any]:
    """Versions and devices that numbers may depend on in their last digits."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        **environment(),
        **versions,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def as_json(result: Evaluation, settings: EvaluationSettings, processes: int) -> dict[str, Any]:
    """Everything of an evaluation as plain values.

    Args:
        result: the evaluation.
        settings: what was to be measured.
        processes: how many took part.
    """
    content: dict[str, Any] = {
        "format": _FORMAT,
        "subject": result.subject,
        "metrics": {name: _metric(metric) for name, metric in result.metrics.items()},
        "floor": {name: _metric(metric) for name, metric in result.floor.items()},
        "warnings": result.warnings,
        "protocol": dataclasses.asdict(result.protocol),
        "extractor": result.extractor,
        "dual_encoder": result.dual_encoder,
        "reference": result.reference,
        "counts": result.counts,
        "skipped": result.skipped,
        "by_neighbours": [
            {"k": one.k, **{name: metric.value for name, metric in one.metrics(draws=1).items()}}
            for one in result.curve
        ],
        "masked_tokens": [
            {"ratio": one.ratio, "loss": _metric(one.loss), "accuracy": _metric(one.accuracy)} for one in result.masked
        ],
        "settings": dataclasses.asdict(settings),
        "seconds": result.seconds,
        "processes": processes,
        "environment": hardware(),
    }
    if result.captions:
        content["captions"] = result.captions
    if result.cas is not None:
        content["accuracy_by_class"] = [
            {"class": name, "cas": made, "cas_real": real}
            for name, made, real in zip(
                result.cas.class_names, result.cas.per_class, result.cas.per_class_real, strict=True
            )
        ]
    return content


def write_evaluation(
    result: Evaluation,
    samples: SampleSet | None,
    real: SampleSet | None,
    out: Path,
    *,
    settings: EvaluationSettings,
    processes: int = 1,
) -> None:
    """Write ``evaluation.json``, ``evaluation.html`` and ``pictures/``.

    Args:
        result: the evaluation.
        samples: what was measured; None where nothing was made.
        real: the real side, if there is more than statistics.
        out: folder.
        settings: what was to be measured.
        processes: how many took part.
    """
    figures = plot_evaluation(result, samples, real, out / "pictures")
    numbers: dict[str, float | str] = {name: str(metric) for name, metric in result.metrics.items()}
    notes = {name: _note(name, metric, result.floor.get(name)) for name, metric in result.metrics.items()}
    for one in result.masked:
        name = f"masked {one.ratio:.0%}"
        numbers[name] = f"{one.loss} nats, {one.accuracy}"
        notes[name] = f"loss and accuracy of masked tokens; {one.loss.count} examples; {one.loss.interval}"
    for name, value in (
        ("protocol", f"{result.protocol.name}, {result.protocol.resize}"),
        ("extractor", result.extractor),
        ("dual_encoder", result.dual_encoder),
        ("reference", result.reference.get("name", "")),
    ):
        if value:
            numbers[name], notes[name] = value, ""
    subject = result.subject
    told = f"What was measured: {subject['kind']} {subject['name']}, {result.counts.get('samples', 0)} samples."
    if result.warnings:
        told += " NOT COMPARABLE AS IT IS: " + "; ".join(result.warnings) + "."
    title = f"maskgen: evaluation of {subject['name']}"
    write_report(out / "evaluation.html", title, told, figures, numbers, notes)
    write_json(out / "evaluation.json", as_json(result, settings, processes))


def write_sweep(found: Mapping[float, Evaluation], out: Path) -> None:
    """Write ``sweep.json`` and ``sweep.html``: the numbers of one model by guidance scale.

    Args:
        found: evaluations by the scale, which differ in nothing else.
        out: folder, with the report of each in ``guidance-SCALE/``.
    """
    scales = sorted(found)
    first = found[scales[0]]
    numbers: dict[str, float | str] = {}
    notes, panels = dict[str, str](), list[Panel]()
    for name in first.metrics:
        values = {scale: found[scale].metrics[name] for scale in scales if name in found[scale].metrics}
        numbers |= {f"{name}, guidance {scale:g}": str(metric) for scale, metric in values.items()}
        notes |= {
            f"{name}, guidance {scale:g}": _note(name, metric, first.floor.get(name))
            for scale, metric in values.items()
        }
        if name in _SWEPT:
            panels.append(_panel("guidance", name, [(scale, metric.value) for scale, metric in values.items()]))
    if {"clip_score", "fid"} <= first.metrics.keys():
        both = [tuple(found[scale].metrics[name].value for name in ("clip_score", "fid")) for scale in scales]
        panels.append(_panel("clip_score", "fid", [(x, y) for x, y in both]))
    figures = []
    if panels:
        path = save_plot(plot_curves(panels), out / "pictures" / "sweep.png")
        caption = "More guidance most often costs variety, and with it FID, for likeness to what was asked for."
        figures = [Figure("Guidance", path, caption)]
    name = first.subject["name"]
    told = f"What was measured: {name} with guidance {', '.join(f'{scale:g}' for scale in scales)}, all else the same."
    write_report(out / "sweep.html", f"maskgen: {name} by guidance", told, figures, numbers, notes)
    rows = [
        {"guidance": scale, "metrics": {key: _metric(metric) for key, metric in found[scale].metrics.items()}}
        for scale in scales
    ]
    subject = {key: value for key, value in first.subject.items() if key != "sampling"}
    write_json(out / "sweep.json", {"format": _SWEEP, "subject": subject, "by_guidance": rows})


def _panel(x: str, y: str, points: list[tuple[float, float]]) -> Panel:
    return Panel(x=x, y=y, curves=[Curve(label="", points=points)])


def _metric(metric: Metric) -> dict[str, Any]:
    return {
        name: value for name, value in dataclasses.asdict(metric).items() if value not in (None, "") and value == value
    }


def _note(name: str, metric: Metric, floor: Metric | None) -> str:
    kind = "infinity" if name.endswith("_infinity") else name
    meaning = _MEANING.get(kind) or _MEANING.get(kind.removeprefix("r"), "")
    told = [meaning, f"{metric.count} samples", metric.note, metric.interval]
    if floor is not None:
        told.append(f"held-out real data: {floor} on {floor.count}")
    return "; ".join(part for part in told if part)
