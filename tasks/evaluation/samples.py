"""The engine of ``maskgen evaluate``: samples on one side, real data on the other, every number between them.

1. Features of the real data come from the cache, or are computed once (``references``);
2. features of the samples are computed by all processes (``extraction``);
3. the first process computes distances, scores and intervals, and says what makes them incomparable with others.

Shapes: M samples, R real ones, F features.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskgen.tasks.data.base import Modality, SignalData
from maskgen.tasks.data.broken import Broken
from maskgen.tasks.evaluation.cas import Labels, cas_scores, check_labels
from maskgen.tasks.evaluation.features.extraction import extract
from maskgen.tasks.evaluation.features.references import (
    Reference,
    cached_reference,
    check_size,
    is_statistics,
    read_statistics,
)
from maskgen.tasks.evaluation.measures import (
    caption_scores,
    check_enough,
    feature_metrics,
    floor_metrics,
    nearest_shown,
    warnings_of,
)
from maskgen.tasks.evaluation.sets.arrays import array_names
from maskgen.tasks.evaluation.sets.base import DataSamples, SampleSet, Subset, drawn, open_samples
from maskgen.tasks.evaluation.settings import Evaluation, EvaluationRun, EvaluationSettings
from maskgen.tasks.media.clock import Clock


@dataclass(frozen=True, kw_only=True)
class Target:
    """What samples are measured against.

    Attributes:
        real: real data; None where only statistics are known.
        statistics: an ``.npz`` with the Gaussian of real data.
        held_out: real test data, for CAS and for the floor: what real data score against the reference.
        truth: the same for a task to complete: clips with as many frames as the model has.
        captioned: real data whose captions a model was asked for.
    """

    real: SampleSet | None = None
    statistics: Path | None = None
    held_out: SampleSet | None = None
    truth: SampleSet | None = None
    captioned: SampleSet | None = None


def open_target(
    reference: Path | None,
    data: SignalData | None,
    held_out: Path | None,
    modality: Modality,
    *,
    frames: int = 16,
    whole: int | None = None,
    needed: bool = True,
) -> Target:
    """Real data by their place, or the halves of a data set.

    Args:
        reference: folder, ``.zip`` or ``.npz`` of real samples, or an ``.npz`` of statistics.
        data: instead, a data set: its training half is the reference, its test half held out.
        held_out: place of held-out samples.
        modality: of all of them.
        frames: of video, see ``EvaluationSettings``.
        whole: frames of the clips that a task completes; ``frames`` if left out.
        needed: whether there must be a reference.

    Raises:
        FileNotFoundError, ValueError: neither or both, nothing there, or another modality.
    """
    if (reference is None) == (data is None) and (needed or data is not None):
        raise ValueError(
            "reference: give either a place of real samples or statistics (--reference), or a data set (--data); got "
            f"{'neither' if data is None else 'both'}"
        )

    def test(count: int) -> SampleSet | None:
        if held_out is not None:
            return open_samples(held_out, modality, count)
        return None if data is None or data.test() is None else DataSamples(data, "test", count)

    kept, truth = test(frames), test(whole or frames)
    if data is not None:
        return Target(real=DataSamples(data, "train", frames), held_out=kept, truth=truth)
    if reference is None:
        return Target(held_out=kept, truth=truth)
    statistics = reference if is_statistics(reference) else None
    batch = statistics is None or "arr_0" in array_names(reference)
    real = open_samples(reference, modality, frames) if batch else None
    return Target(real=real, statistics=statistics, held_out=kept, truth=truth)


def evaluate_samples(
    samples: SampleSet, target: Target, run: EvaluationRun, *, subject: dict[str, Any] | None = None
) -> Evaluation | None:
    """Measure samples against real data.

    Args:
        samples: what is measured.
        target: what it is measured against.
        run: how and where.
        subject: what the report says about the samples.

    Returns:
        The evaluation on the first process, None on the others.

    Raises:
        ValueError: what cannot be measured; see ``maskgen.tasks.evaluation.features.extraction`` and
            ``maskgen.tasks.evaluation.features.references``.
    """
    clock, settings, warnings = Clock(), run.settings, list[str]()
    # What shows before the work is said before the work.
    classified = can_classify(samples, target, settings, warnings)
    if target.real is not None and samples.modality != "audio":
        check_size(_first_shape(samples), samples.name, _first_shape(target.real), target.real.name)
    result = Evaluation(
        subject=subject or {"kind": "samples", "name": samples.name},
        protocol=run.protocol,
        counts={"samples": len(samples)},
        shown=[(number, None) for number in evenly(len(samples), settings.shown)],
        warnings=warnings,
        seconds=clock.seconds,
    )
    left_out = {} if run.extractor is None else _measure_features(result, samples, target, run, clock)
    if run.dual_encoder is not None:
        with clock("text"):
            _measure_text(result, samples, target, run)
    if not run.team.main:
        return None
    if classified:
        assert target.real is not None, "it was found to be there"
        assert target.held_out is not None, "it was found to be there"
        sides = {"samples": samples, "real": target.real, "held_out": target.held_out}
        made, real, held_out = (_without(side, left_out.get(name, ())) for name, side in sides.items())
        with clock("cas"):
            result.cas = cas_scores(made, real, held_out, run)
        result.metrics |= result.cas.metrics
    return result


def can_classify(made: Labels | SampleSet, target: Target, settings: EvaluationSettings, warnings: list[str]) -> bool:
    """Whether the classification accuracy score can be taken; why not, if labels were there, is said in ``warnings``.

    Args:
        made: the samples, or what will be known of them.
        target: see ``evaluate_samples``.
        settings: whether the score is enabled, or required by name.
        warnings: of the report; added to.

    Raises:
        ValueError: it is required and cannot be taken.
    """
    sides = (target.real, target.held_out)
    if not settings.enabled("cas") or any(side is not None and side.modality != "image" for side in sides):
        return False
    try:
        found = check_labels(made, *sides)
        if found:
            warnings.append(f"cas: {made.name} has no samples of {found}, which counts against it")
    except ValueError as error:
        if settings.required("cas"):
            raise
        if made.labels and all(side is not None and side.labels for side in sides):
            warnings.append(f"cas: left out ({error})")
        return False
    return True


def _measure_features(
    result: Evaluation, samples: SampleSet, target: Target, run: EvaluationRun, clock: Clock
) -> dict[str, Iterable[int]]:
    """Put every number of features into the result of the first process; numbers of the unreadable, by side."""
    with clock("reference"):
        reference = find_reference(target, run)
        if reference is not None and samples.modality != "audio":
            check_enough(len(samples), reference, run)
    with clock("features"):
        found = extract(samples, run.extraction, "samples")
    floor = None
    with clock("floor"):
        if target.held_out is not None:
            floor = cached_reference(target.held_out, run.extraction, cache=run.cache, name="held-out")
    if found is None or reference is None:  # not the first process
        return {}
    with clock("metrics"):
        check_size(found.shape, samples.name, reference.shape, reference.name)
        result.extractor, result.reference = run.extraction.extractor.identity(), _describe(reference, target)
        result.counts = {"samples": found.samples, "vectors": found.gaussian.count, "features": found.gaussian.width}
        sides = {"samples": found.skipped, "reference": reference.skipped}
        result.skipped = {side: list(skipped.values()) for side, skipped in sides.items() if skipped}
        result.metrics, result.curve = feature_metrics(found, reference, run)
        if floor is not None:
            result.floor, result.floor_curve = floor_metrics(floor, reference, run)
        result.shown = nearest_shown(found, reference, run.settings.shown)
        result.warnings += warnings_of(found, reference, run)
    return {"samples": found.skipped, "real": reference.skipped, "held_out": {} if floor is None else floor.skipped}


def _measure_text(result: Evaluation, samples: SampleSet, target: Target, run: EvaluationRun) -> None:
    """Put what a dual encoder says of samples, and of real pictures with their own captions, into the first one's result."""
    found, floor = caption_scores(samples, run, "captions"), None
    real = target.captioned or target.held_out
    if real is not None and real.captions(range(1)) is not None:
        floor = caption_scores(drawn(real, run.settings.most), run, "real-captions", keep=True)
    if found is None or run.dual_encoder is None:
        return
    result.metrics |= found.metrics
    result.captions, result.dual_encoder = found.rows, run.dual_encoder.identity()
    result.warnings += found.warnings
    if floor is not None:
        result.floor |= floor.metrics
    else:
        told = "no held-out pictures with captions, so nothing says what real ones would score"
        result.warnings.append(f"{run.dual_encoder.precision}: {told}")


def find_reference(target: Target, run: EvaluationRun, name: str = "reference") -> Reference | None:
    """The reference of a target: statistics that are read, features that are cached or computed, or both.

    Args:
        target: what samples are measured against.
        run: extractor, rule, processes and cache.
        name: of this look-up, used once.

    Returns:
        The reference on the first process, None on the others.
    """
    statistics = None
    if target.statistics is not None and run.team.main:
        statistics = read_statistics(target.statistics, run.extraction.extractor, run.protocol.resize)
    if target.real is None:
        return statistics
    reference = cached_reference(target.real, run.extraction, cache=run.cache, name=name)
    if reference is None or statistics is None:
        return reference
    # ADM's batches are a part of the data, the statistics beside them are of all of it.
    return dataclasses.replace(reference, gaussian=statistics.gaussian)


def _describe(reference: Reference, target: Target) -> dict[str, Any]:
    return {
        "name": reference.name,
        "statistics": None if target.statistics is None else str(target.statistics),
        "data": reference.data,
        "samples": reference.samples,
        "vectors": reference.gaussian.count,
        "resize": reference.resize,
        "size": list(reference.shape[1:]),
        "held_out": None if target.held_out is None else target.held_out.name,
    }


def evenly(count: int, shown: int) -> list[int]:
    """Numbers of at most ``shown`` evenly spaced samples."""
    return sorted({number * count // shown for number in range(shown)}) if shown else []


def _first_shape(samples: SampleSet) -> tuple[int, ...]:
    """Of the first sample; () if it cannot be read."""
    (sample,) = samples.read(0, 1)
    return () if isinstance(sample, Broken) else tuple(sample.shape)


def _without(samples: SampleSet, left_out: Iterable[int]) -> SampleSet:
    """What could be read: a classifier cannot be trained on the rest."""
    gone = set(left_out)
    return Subset(samples, [index for index in range(len(samples)) if index not in gone]) if gone else samples
