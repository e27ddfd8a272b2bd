"""Measuring a model: it makes samples, which are measured; and how well it predicts hidden tokens of held-out data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from accelerate import PartialState

from maskgen.checkpoint import fingerprint
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.trained import named_task
from maskgen.tasks.data.base import SignalData, modality_named
from maskgen.tasks.data.tokens.cache import tokenize
from maskgen.tasks.evaluation.features.base import FeatureExtractor
from maskgen.tasks.evaluation.features.protocols import Protocol
from maskgen.tasks.evaluation.features.references import check_size
from maskgen.tasks.evaluation.made.making import completing, described, even_labels, filling, generating, read_good
from maskgen.tasks.evaluation.made.writing import write_samples
from maskgen.tasks.evaluation.measures import check_enough
from maskgen.tasks.evaluation.metrics.scores import MaskedScore, masked_scores
from maskgen.tasks.evaluation.pairs import compare_clips, compare_gaps, pixel_measures, readable
from maskgen.tasks.evaluation.samples import Clock, Target, can_judge, evaluate_samples, find_reference
from maskgen.tasks.evaluation.sets.base import FileSamples, SampleSet
from maskgen.tasks.evaluation.sets.processes import Processes
from maskgen.tasks.evaluation.settings import Evaluation, EvaluationSettings
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import trained
from maskgen.tokenizers.audio.base import AudioTokenizer

__all__ = ["INFILL", "evaluate_model"]

INFILL = "infill"
"""The task of an audio model: a gap in the middle of held-out sounds is filled."""


def evaluate_model(
    pipe: Pipeline,
    name: str,
    target: Target,
    extractor: FeatureExtractor | None,
    protocol: Protocol,
    *,
    settings: EvaluationSettings,
    state: PartialState,
    out: Path,
    cache: Path,
    sampling: Sampling | None = None,
    task: str | None = None,
    data: SignalData | None = None,
) -> Evaluation | None:
    """Generate, or complete held-out clips or sounds, then measure.

    Args:
        pipe: the model.
        name: as it was named.
        target: what it is measured against.
        extractor: what makes features; None where no number of features is wanted.
        protocol: how.
        settings: what, and on how many samples.
        state: this process among all.
        out: folder; the samples go into ``samples/`` below it.
        cache: folder of references.
        sampling: settings, instead of the model's own.
        task: complete what is held out instead of generating: one of MAGVIT's tasks for a video model, ``infill`` for an
            audio model. The results are also compared with the truth.
        data: for masked tokens, its test half.

    Returns:
        The evaluation on the first process, None on the others.

    Raises:
        ValueError: a model of another modality than the features, a task without held-out data, or what
            ``evaluate_samples`` refuses.
    """
    if extractor is not None and pipe.modality != extractor.modality:
        raise ValueError(
            f"features: got {extractor.name} for {extractor.modality}, but the model's modality is {pipe.modality}"
        )
    team, warnings = Processes(state, out / ".parts"), list[str]()
    masked = _held_out(pipe, data, settings, warnings)
    result: Evaluation | None = None
    if settings.needs_samples:
        result = _measure_samples(
            *(pipe, name, target, extractor, protocol, warnings),
            settings=settings,
            sampling=pipe.sampling(sampling),
            team=team,
            out=out,
            cache=cache,
            task=task,
        )
    elif team.main:
        parts = {"kind": "model", "name": name, "weights": _weights(pipe)}
        result = Evaluation(subject=parts, protocol=protocol, counts={"samples": 0})
    if result is not None:
        later = Clock()
        if masked is not None:
            result.masked = _masked(pipe, masked, settings)
            later("masked")
        result.warnings += warnings
        result.seconds |= later.seconds
    team.close()
    return result


def _measure_samples(
    pipe: Pipeline,
    name: str,
    target: Target,
    extractor: FeatureExtractor | None,
    protocol: Protocol,
    warnings: list[str],
    *,
    settings: EvaluationSettings,
    sampling: Sampling,
    team: Processes,
    out: Path,
    cache: Path,
    task: str | None,
) -> Evaluation | None:
    """Everything that needs samples."""
    clock = Clock()
    truth = _conditions(target, pipe, task, settings, team, warnings)
    count = settings.count if truth is None else min(settings.count, len(truth))
    _check_first(pipe, target, extractor, protocol, settings, team, cache, count)  # not after days of sampling
    pixels = None
    if truth is not None and pipe.modality == "video":
        pixels = pixel_measures(settings, min(pipe.config.signal_size[1:]), warnings, pipe.device)
    clock("reference")
    shared: dict[str, Any] = {"settings": settings, "team": team}
    place = out / "samples"
    subject = _generate(pipe, name, truth, task, sampling=sampling, out=place, count=count, **shared)
    clock("generate")
    samples = FileSamples(place, modality_named(pipe.modality), settings.frames)
    more: dict[str, Any] = {"out": out, "cache": cache, "device": pipe.device, "subject": subject}
    result = evaluate_samples(samples, target, extractor, protocol, **shared, **more)
    if result is not None:
        result.seconds |= clock.seconds
    if truth is not None and task is not None:
        later = Clock()
        whole = FileSamples(place, samples.modality, pipe.config.signal_size[0])  # as many frames as were made
        if pipe.modality == "audio":
            found = compare_gaps(pipe, truth, whole, count=count, **shared)
        else:
            found = {} if pixels is None else compare_clips(pipe, truth, whole, task, pixels, count=count, **shared)
        later("pairs")
        if result is not None:
            result.metrics |= found
            result.seconds |= later.seconds
    return result


def _check_first(
    pipe: Pipeline,
    target: Target,
    extractor: FeatureExtractor | None,
    protocol: Protocol,
    settings: EvaluationSettings,
    team: Processes,
    cache: Path,
    count: int,
) -> None:
    """Compute the reference, and refuse what could not be measured against it."""
    can_judge(even_labels(pipe, count), (), "model", target, settings, [])
    if extractor is None:
        return
    reference = find_reference(
        target, extractor, protocol, settings, team=team, cache=cache, device=pipe.device, name="first"
    )
    if reference is None or pipe.modality == "audio":
        return
    size = pipe.config.signal_size
    shape = (3, *size) if pipe.modality == "image" else (3, min(size[0], settings.frames), *size[1:])
    check_size(shape, "model", reference.shape, reference.name)
    check_enough(count, reference, extractor, settings)


def _generate(
    pipe: Pipeline,
    name: str,
    truth: SampleSet | None,
    task: str | None,
    *,
    settings: EvaluationSettings,
    sampling: Sampling,
    team: Processes,
    out: Path,
    count: int,
) -> dict[str, Any]:
    """Make the samples that are not there yet; what the report says about them."""
    told: dict[str, Any] = {"model": name, "weights": _weights(pipe)}
    labels = even_labels(pipe, count) if truth is None else (truth.labels or [])[:count]
    make = generating(pipe, labels, settings.seed, sampling)
    if truth is not None and task is not None:
        told |= {"completed": task, "truth": team.share("truth", truth.digest)}
        if pipe.modality == "audio":
            make = filling(pipe, truth, settings.seed, sampling, settings.gap)
            told |= {"gap": dataclasses.asdict(settings.gap)}
        else:
            make = completing(pipe, truth, task, settings.seed, sampling, paste=settings.paste)
            told |= {"paste": settings.paste}
    codec, description = pipe.tokenizer, described(pipe, sampling, **told)
    write_samples(
        make,
        count,
        out,
        modality=pipe.modality,
        labels=labels,
        seed=settings.seed,
        batch_size=settings.batch_size,
        sample_rate=codec.sample_rate if isinstance(codec, AudioTokenizer) else 0,
        description=description,
        state=team.state,
    )
    subject = {"kind": "model", "name": name, "count": count, "seeds": [settings.seed, settings.seed + count - 1]}
    return subject | {key: value for key, value in description.items() if key != "model"}


def _weights(pipe: Pipeline) -> str:
    return "-".join(fingerprint(part) for part in (pipe.tokenizer, pipe.transformer, pipe.fine) if part is not None)


def _conditions(
    target: Target,
    pipe: Pipeline,
    task: str | None,
    settings: EvaluationSettings,
    team: Processes,
    warnings: list[str],
) -> SampleSet | None:
    """What a task completes: held-out clips or sounds that can be read."""
    if task is None:
        return None
    if pipe.modality == "audio":
        if task != INFILL:
            raise ValueError(f"task: got {task!r}, but an audio model does {INFILL} only")
    else:
        pipe.require("video", "task")
        trained(pipe).check(named_task(task).kind, task)
    source = target.truth or target.held_out
    if source is None:
        what = "sounds" if pipe.modality == "audio" else "clips"
        raise ValueError(f"task: needs held-out {what} to complete; give --held_out, or --data with a test half")
    shared: dict[str, Any] = {"team": team, "name": "truth", "batch_size": settings.batch_size}
    truth, skipped = readable(source, broken=settings.broken, **shared)
    size = pipe.config.signal_size
    if pipe.modality == "video" and tuple(read_good(truth, 0).shape[1:]) != tuple(size):
        raise ValueError(
            f"task: {source.name} has clips of {list(read_good(truth, 0).shape[1:])} (frames, height, width), expected the "
            f"model's {list(size)}; maskgen.tasks.data.video.folders.VideoFolder as --data brings them to it"
        )
    if skipped:
        warnings.append(f"{len(skipped)} of the held-out samples could not be read and were left out")
    return truth


def _held_out(
    pipe: Pipeline, data: SignalData | None, settings: EvaluationSettings, warnings: list[str]
) -> SignalData | None:
    """Data whose test half the model can be measured on; what is wrong with it shows before there are samples."""
    if not settings.wants("masked"):
        return None
    told = ""
    if data is None or data.test() is None:
        if settings.asks("masked"):
            raise ValueError("metrics: masked needs held-out data of the model's size; give --data with a test half")
        return None
    if tuple(data.size) != tuple(pipe.config.signal_size) or data.modality != pipe.modality:
        told = (
            f"data: got {data.modality} of size {tuple(data.size)}, but the model's is {pipe.modality} of "
            f"{tuple(pipe.config.signal_size)}"
        )
        if settings.asks("masked"):
            raise ValueError(f"{told}; leave masked out of settings.metrics, or give data of that size")
        warnings.append(f"masked tokens: left out ({told})")
    return None if told else data


def _masked(pipe: Pipeline, data: SignalData, settings: EvaluationSettings) -> list[MaskedScore]:
    """On the test half of a data set, which the tokenizer turns into tokens."""
    source = data.test()
    assert source is not None, "it was found to be there"
    tokens = tokenize(source, pipe.tokenizer, key=data.key).tensors
    labels = tokens.get("labels") if pipe.transformer.num_classes else None
    return masked_scores(
        pipe.transformer,
        tokens["tokens"][..., : pipe.transformer.num_codebooks],
        labels,
        ratios=settings.ratios,
        seed=settings.seed,
        batch_size=settings.batch_size,
        draws=settings.draws,
    )
