"""The engine of ``maskgen evaluate``: samples on one side, real data on the other, every number between them.

1. Features of the real data come from the cache, or are computed once (``references``);
2. features of the samples are computed by all processes (``extraction``);
3. the first process computes distances, scores and intervals, and says what makes them incomparable with others.

Shapes: M samples, R real ones, F features.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maskgen.tasks.data.base import Modality, SignalData
from maskgen.tasks.evaluation.cas import CasScores, cas_scores, check_labels
from maskgen.tasks.evaluation.features.base import FeatureExtractor
from maskgen.tasks.evaluation.features.extraction import FeatureSet, extract
from maskgen.tasks.evaluation.features.protocols import Protocol
from maskgen.tasks.evaluation.features.references import (
    Reference,
    cached_reference,
    check_size,
    is_statistics,
    read_statistics,
)
from maskgen.tasks.evaluation.measures import check_enough, feature_metrics, floor_metrics, nearest_shown, warnings_of
from maskgen.tasks.evaluation.sets.arrays import array_names
from maskgen.tasks.evaluation.sets.base import DataSamples, SampleSet, Subset, open_samples
from maskgen.tasks.evaluation.sets.processes import Processes
from maskgen.tasks.evaluation.settings import Evaluation, EvaluationSettings
from maskgen.tasks.training.runs import Say

__all__ = ["Clock", "Target", "can_judge", "evaluate_samples", "evenly", "find_reference", "open_target"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What samples are measured against.

    Attributes:
        real: real data; None where only statistics are known.
        statistics: an ``.npz`` with the Gaussian of real data.
        held_out: real test data, for CAS and for the floor: what real data score against the reference.
        truth: the same for a task to complete: clips with as many frames as the model has.
    """

    real: SampleSet | None = None
    statistics: Path | None = None
    held_out: SampleSet | None = None
    truth: SampleSet | None = None


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
    samples: SampleSet,
    target: Target,
    extractor: FeatureExtractor | None,
    protocol: Protocol,
    *,
    settings: EvaluationSettings,
    team: Processes,
    out: Path,
    cache: Path,
    device: torch.device | str = "cpu",
    subject: dict[str, Any] | None = None,
    say: Say = print,
) -> Evaluation | None:
    """Measure samples against real data.

    Args:
        samples: what is measured.
        target: what it is measured against.
        extractor: what makes features; None where no number of features is wanted.
        protocol: how images are resized, and the settings of each measure.
        settings: what is measured.
        team: the processes.
        out: folder of the report; the classifiers of CAS go below it.
        cache: folder of references.
        device: where the extractor runs.
        subject: what the report says about the samples.
        say: told what happens.

    Returns:
        The evaluation on the first process, None on the others.

    Raises:
        ValueError: what cannot be measured; see the head of ``maskgen.tasks.evaluation.features.extraction`` and of
            ``references``.
    """
    clock, warnings = Clock(), list[str]()
    # What shows before the work is said before the work.
    judged = can_judge(samples.labels, samples.class_names, samples.name, target, settings, warnings)
    if target.real is not None and samples.modality != "audio":
        check_size(_first_shape(samples), samples.name, _first_shape(target.real), target.real.name)
    result = Evaluation(
        subject=subject or {"kind": "samples", "name": samples.name},
        protocol=protocol,
        counts={"samples": len(samples)},
        shown=[(number, None) for number in evenly(len(samples), settings.shown)],
        warnings=warnings,
    )
    if extractor is not None:
        left_out = _measure_features(
            *(result, samples, target, extractor, settings, clock), team=team, cache=cache, device=device
        )
    if not team.main:
        return None
    if judged:
        sides = {"samples": samples, "real": target.real, "held_out": target.held_out}
        if extractor is not None:
            sides = {name: _without(side, left_out.get(name, [])) for name, side in sides.items()}
        result.cas = _cas(sides, settings, out / "cas", team, device, say)
        result.metrics |= result.cas.metrics
        clock("cas")
    result.seconds = clock.seconds
    return result


def can_judge(
    labels: list[int] | None,
    names: tuple[str, ...],
    name: str,
    target: Target,
    settings: EvaluationSettings,
    warnings: list[str],
) -> bool:
    """Whether the classification accuracy score can be taken; why not, if labels were there, is said in ``warnings``.

    Args:
        labels: classes of the samples.
        names: one a class, or none.
        name: of the samples.
        target: see ``evaluate_samples``.
        settings: whether it is wanted, or asked for by name.
        warnings: of the report; added to.

    Raises:
        ValueError: it was asked for by name and cannot be taken.
    """
    sides = (target.real, target.held_out)
    if not settings.wants("cas") or any(side is not None and side.modality != "image" for side in sides):
        return False
    try:
        check_labels(labels, names, name, *sides)
    except ValueError as error:
        if settings.asks("cas"):
            raise
        if labels and all(side is not None and side.labels for side in sides):
            warnings.append(f"cas: left out ({error})")
        return False
    return True


def _measure_features(
    result: Evaluation,
    samples: SampleSet,
    target: Target,
    extractor: FeatureExtractor,
    settings: EvaluationSettings,
    clock: Clock,
    *,
    team: Processes,
    cache: Path,
    device: torch.device | str,
) -> dict[str, list[int]]:
    """Put every number of features into the result of the first process; numbers of the unreadable, by side."""
    protocol = result.protocol
    shared = _shared(protocol, settings, device)
    reference = find_reference(target, extractor, protocol, settings, team=team, cache=cache, device=device)
    if reference is not None and samples.modality != "audio":
        check_enough(len(samples), reference, extractor, settings)
    clock("reference")
    found = extract(samples, extractor, resize=protocol.resize, team=team, name="samples", **shared)
    clock("features")
    floor = None
    if target.held_out is not None:
        shared |= {"resize": protocol.resize, "team": team, "cache": cache}
        floor = cached_reference(target.held_out, extractor, name="held-out", **shared)
    clock("floor")
    if found is None or reference is None:  # not the first process
        return {}
    check_size(found.shape, samples.name, reference.shape, reference.name)
    result.extractor, result.reference = extractor.identity(), _describe(reference, target)
    result.counts = {"samples": found.samples, "vectors": found.gaussian.count, "features": found.gaussian.width}
    result.skipped = _named_skipped(found, reference)
    result.metrics, result.curve = feature_metrics(found, reference, extractor, protocol, settings)
    if floor is not None:
        result.floor, result.floor_curve = floor_metrics(floor, reference, extractor, protocol, settings)
    result.shown = nearest_shown(found, reference, settings.shown)
    result.warnings += warnings_of(found, reference, extractor, protocol, settings)
    clock("metrics")
    skipped = {"samples": found.skipped, "real": reference.skipped, "held_out": () if floor is None else floor.skipped}
    return {name: [index for index, _ in rows] for name, rows in skipped.items()}


class Clock:
    """Seconds since the last call, by stage, in ``seconds``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, stage: str) -> None:
        """A stage ends."""
        now = time.perf_counter()
        self.seconds[stage] = round(now - self._last, 3)
        self._last = now


def find_reference(
    target: Target,
    extractor: FeatureExtractor,
    protocol: Protocol,
    settings: EvaluationSettings,
    *,
    team: Processes,
    cache: Path,
    device: torch.device | str = "cpu",
    name: str = "reference",
) -> Reference | None:
    """The reference of a target: statistics that are read, features that are cached or computed, or both.

    Args:
        target: what samples are measured against.
        extractor: what makes features.
        protocol: how images are resized.
        settings: batch size and share of broken files.
        team: the processes.
        cache: folder of references.
        device: where the extractor runs.
        name: of this look-up, used once.

    Returns:
        The reference on the first process, None on the others.
    """
    statistics = None
    if target.statistics is not None and team.main:
        statistics = read_statistics(target.statistics, extractor, protocol.resize)
    if target.real is None:
        return statistics
    shared = _shared(protocol, settings, device)
    reference = cached_reference(
        target.real, extractor, resize=protocol.resize, team=team, cache=cache, name=name, **shared
    )
    if reference is None or statistics is None:
        return reference
    # ADM's batches are a part of the data, the statistics beside them are of all of it.
    return dataclasses.replace(reference, gaussian=statistics.gaussian)


def _shared(protocol: Protocol, settings: EvaluationSettings, device: torch.device | str) -> dict[str, Any]:
    """Settings of every extraction."""
    return {
        "device": device,
        "batch_size": settings.batch_size,
        "broken": settings.broken,
        "most": max(protocol.most, protocol.count),
    }


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


def _named_skipped(found: FeatureSet, reference: Reference) -> dict[str, list[str]]:
    sides = {"samples": found.skipped, "reference": list(reference.skipped)}
    return {side: [reason for _, reason in rows] for side, rows in sides.items() if rows}


def _cas(
    sides: dict[str, SampleSet | None],
    settings: EvaluationSettings,
    out: Path,
    team: Processes,
    device: torch.device | str,
    say: Say,
) -> CasScores:
    made, real, held_out = sides.values()
    assert made is not None, "there are samples"
    assert real is not None, "it was found to be there"
    assert held_out is not None, "it was found to be there"
    return cas_scores(
        made,
        real,
        held_out,
        settings=settings.cas,
        out=out,
        alone=team.count == 1,
        device=device,
        draws=settings.draws,
        say=say,
    )


def evenly(count: int, shown: int) -> list[int]:
    """Numbers of at most ``shown`` evenly spaced samples."""
    return sorted({number * count // shown for number in range(shown)}) if shown else []


def _first_shape(samples: SampleSet) -> tuple[int, ...]:
    """Of the first sample; () if it cannot be read."""
    (sample,) = samples.read(0, 1)
    return () if isinstance(sample, str) else tuple(sample.shape)


def _without(samples: SampleSet | None, left_out: list[int]) -> SampleSet | None:
    """What could be read: a classifier cannot be trained on the rest."""
    if samples is None or not left_out:
        return samples
    gone = set(left_out)
    return Subset(samples, [index for index in range(len(samples)) if index not in gone])
