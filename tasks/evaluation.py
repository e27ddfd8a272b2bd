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

from maskgen.tasks.evaluation_cas import CasScores, cas_scores
from maskgen.tasks.evaluation_measures import feature_metrics, floor_metrics, nearest_shown, warnings_of
from maskgen.tasks.evaluation_settings import Evaluation, EvaluationSettings
from maskgen.tasks.extraction import FeatureSet, extract
from maskgen.tasks.features import FeatureExtractor
from maskgen.tasks.processes import Processes
from maskgen.tasks.protocols import Protocol
from maskgen.tasks.references import Reference, cached_reference, check_size, is_statistics, read_statistics
from maskgen.tasks.sample_arrays import array_names
from maskgen.tasks.sample_sets import DataSamples, SampleSet, open_samples
from maskgen.tasks.signal_data import SignalData
from maskgen.tasks.training_runs import Say

__all__ = ["Clock", "Target", "evaluate_samples", "find_reference", "open_target"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What samples are measured against.

    Attributes:
        real: real data; None where only statistics are known.
        statistics: an ``.npz`` with the Gaussian of real data.
        held_out: real test data, for CAS and for the floor: what real data score against the reference.
    """

    real: SampleSet | None = None
    statistics: Path | None = None
    held_out: SampleSet | None = None


def open_target(
    reference: Path | None,
    data: SignalData | None,
    held_out: Path | None,
    extractor: FeatureExtractor,
    *,
    frames: int = 16,
) -> Target:
    """Real data by their place, or the halves of a data set.

    Args:
        reference: folder, ``.zip`` or ``.npz`` of real samples, or an ``.npz`` of statistics.
        data: instead, a data set: its training half is the reference, its test half held out.
        held_out: place of held-out samples.
        extractor: of the same modality.
        frames: of video, see ``EvaluationSettings``.

    Raises:
        FileNotFoundError, ValueError: neither or both, nothing there, or another modality.
    """
    if (reference is None) == (data is None):
        raise ValueError(
            "reference: give either a place of real samples or statistics (--reference), or a data set (--data); got "
            f"{'neither' if data is None else 'both'}"
        )
    test = None if held_out is None else open_samples(held_out, extractor.modality, frames)
    if data is not None:
        if test is None and data.test() is not None:
            test = DataSamples(data, "test", frames)
        return Target(real=DataSamples(data, "train", frames), held_out=test)
    assert reference is not None
    statistics = reference if is_statistics(reference) else None
    batch = statistics is None or "arr_0" in array_names(reference)
    real = open_samples(reference, extractor.modality, frames) if batch else None
    return Target(real=real, statistics=statistics, held_out=test)


def evaluate_samples(
    samples: SampleSet,
    target: Target,
    extractor: FeatureExtractor,
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
        extractor: what makes features.
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
        ValueError: what cannot be measured; see the head of ``maskgen.tasks.extraction`` and of ``references``.
    """
    clock = Clock()
    shared = _shared(protocol, settings, device)
    reference = find_reference(target, extractor, protocol, settings, team=team, cache=cache, device=device)
    clock("reference")
    found = extract(samples, extractor, resize=protocol.resize, team=team, name="samples", **shared)
    clock("features")
    real = target.held_out
    floor = None
    if real is not None and settings.metrics != ("cas",):
        floor = cached_reference(
            real, extractor, resize=protocol.resize, team=team, cache=cache, name="held-out", **shared
        )
    clock("floor")
    if found is None or reference is None:  # not the first process
        return None
    check_size(found.shape, samples.name, reference)
    result = Evaluation(
        subject=subject or {"kind": "samples", "name": samples.name},
        protocol=protocol,
        extractor=extractor.identity(),
        reference=_describe(reference, target),
        counts={"samples": found.samples, "vectors": found.gaussian.count, "features": found.gaussian.width},
        skipped=_named_skipped(found, reference),
    )
    result.metrics, result.curve = feature_metrics(found, reference, extractor, protocol, settings)
    if floor is not None:
        result.floor, result.floor_curve = floor_metrics(floor, reference, extractor, protocol, settings)
    result.shown = nearest_shown(found, reference, settings.shown)
    result.warnings = warnings_of(found, reference, extractor, protocol, settings)
    clock("metrics")
    if settings.wants("cas") and extractor.modality == "image":
        result.cas = _cas(samples, target, settings, out / "cas", team, device, say)
        result.metrics |= result.cas.metrics if result.cas else {}
        clock("cas")
    result.seconds = clock.seconds
    return result


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
    samples: SampleSet,
    target: Target,
    settings: EvaluationSettings,
    out: Path,
    team: Processes,
    device: torch.device | str,
    say: Say,
) -> CasScores | None:
    """The score, or None where nobody asked for it and something it needs is missing."""
    sides = {"samples": samples, "reference": target.real, "held_out": target.held_out}
    missing = [name for name, side in sides.items() if side is None or side.labels is None]
    real, held_out = target.real, target.held_out
    if missing or real is None or held_out is None:
        if settings.asks("cas"):
            raise ValueError(
                "metrics: cas needs labelled samples, labelled real data and labelled held-out data; got no labels or "
                f"nothing for {', '.join(missing)}"
            )
        return None
    return cas_scores(
        samples,
        real,
        held_out,
        settings=settings.cas,
        out=out,
        alone=team.count == 1,
        device=device,
        draws=settings.draws,
        say=say,
    )
