"""Measuring a model: it makes samples, which are measured; and how well it predicts masked tokens of held-out data."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskgen.checkpoint import fingerprint
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.classes import class_places
from maskgen.tasks.conditions.preparation import loudness_of
from maskgen.tasks.conditions.trained import named_task
from maskgen.tasks.data.base import SignalData, modality_named
from maskgen.tasks.data.tokens.cache import tokenize
from maskgen.tasks.evaluation.cas import Labels
from maskgen.tasks.evaluation.features.references import check_size, read_count
from maskgen.tasks.evaluation.made.making import completing, described, even_labels, filling, generating, read_good
from maskgen.tasks.evaluation.made.writing import MadeSet, write_samples
from maskgen.tasks.evaluation.measures import check_enough
from maskgen.tasks.evaluation.metrics.scores import MaskedScore, masked_scores
from maskgen.tasks.evaluation.pairs import compare_clips, compare_gaps, pixel_measures, readable
from maskgen.tasks.evaluation.samples import Target, can_classify, evaluate_samples, find_reference
from maskgen.tasks.evaluation.sets.base import FileSamples, SampleSet, drawn
from maskgen.tasks.evaluation.sets.classes import MatchedSamples
from maskgen.tasks.evaluation.settings import Evaluation, EvaluationRun, EvaluationSettings
from maskgen.tasks.media.clock import Clock
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.checks import check_preparation
from maskgen.tasks.video.completion import trained
from maskgen.tokenizers.audio.base import AudioTokenizer

INFILL = "infill"
"""The task of an audio model: a gap in the middle of held-out sounds is filled."""


def evaluate_model(
    pipe: Pipeline,
    name: str,
    target: Target,
    run: EvaluationRun,
    *,
    sampling: Sampling | None = None,
    task: str | None = None,
    data: SignalData | None = None,
) -> Evaluation | None:
    """Generate, or complete held-out clips or sounds, then measure.

    Args:
        pipe: the model.
        name: as it was named.
        target: what it is measured against.
        run: how and where; the samples go into ``samples/`` below its folder. Everything runs on the model's device.
        sampling: settings that lie over the model's own.
        task: complete what is held out instead of generating: one of MAGVIT's tasks for a video model, ``infill`` for an
            audio model. The results are also compared with the truth.
        data: for masked tokens, its test half.

    Returns:
        The evaluation on the first process, None on the others.

    Raises:
        ValueError: a model of another modality than the features, a task without held-out data, or what
            ``evaluate_samples`` refuses.
    """
    extractor = run.extractor
    if extractor is not None and pipe.modality != extractor.modality:
        raise ValueError(
            f"features: got {extractor.name} for {extractor.modality}, but the model's modality is {pipe.modality}"
        )
    run, warnings, clock = dataclasses.replace(run, device=pipe.device), list[str](), Clock()
    masked = _held_out(pipe, data, run.settings, warnings)
    if data is not None and (masked is not None or task is not None):
        check_preparation("model", pipe.config.prepared, data)
    result: Evaluation | None = None
    if run.settings.needs_samples:
        making = _Making(pipe, name, pipe.sampling(sampling), task, run)
        result = _measure_samples(making, target, warnings, clock)
    elif run.team.main:
        parts = {"kind": "model", "name": name, "weights": _weights(pipe)}
        result = Evaluation(subject=parts, protocol=run.protocol, counts={"samples": 0})
    if result is not None:
        if masked is not None:
            with clock("masked"):
                result.masked = _masked(pipe, masked, run.settings)
        result.warnings += warnings
        result.seconds |= clock.seconds
    return result


@dataclass(frozen=True)
class _Making:
    """A model that makes samples.

    Attributes:
        pipe: the model.
        name: as it was named.
        sampling: settings.
        task: what it completes, if it does.
        run: how and where it is measured.
    """

    pipe: Pipeline
    name: str
    sampling: Sampling
    task: str | None
    run: EvaluationRun


def _measure_samples(making: _Making, target: Target, warnings: list[str], clock: Clock) -> Evaluation | None:
    """Everything that needs samples."""
    pipe, run, task = making.pipe, making.run, making.task
    with clock("reference"):
        truth = _conditions(target, making, warnings)
        count = _usual_count(target, run) if truth is None else len(truth)
        _check_first(pipe, target, run, count)  # not after days of sampling
        pixels = None
        if truth is not None and pipe.modality == "video":
            pixels = pixel_measures(run.settings, min(pipe.config.signal_size[1:]), warnings, pipe.device)
    with clock("generate"):
        subject = _generate(making, truth, count)
    place = run.out / "samples"
    samples = FileSamples(place, modality_named(pipe.modality), run.settings.frames)
    result = evaluate_samples(samples, target, run, subject=subject)
    if truth is not None and task is not None:
        whole = FileSamples(place, samples.modality, pipe.config.signal_size[0])  # as many frames as were made
        with clock("pairs"):
            if pipe.modality == "audio":
                found = compare_gaps(pipe, truth, whole, count=count, run=run)
            else:
                found = {} if pixels is None else compare_clips(pipe, truth, whole, task, pixels, count=count, run=run)
        if result is not None:
            result.metrics |= found
    return result


def _usual_count(target: Target, run: EvaluationRun) -> int:
    """As many samples as asked for; else as the reference holds, for its own number is what theirs is compared with."""
    if run.settings.count is not None:
        return run.settings.count
    held = 0 if target.statistics is None else read_count(target.statistics)
    held = (held if target.real is None else len(target.real)) or run.settings.most
    count = max(2, min(held, run.settings.most))
    run.say(
        f"making {count} samples, as many as the reference holds (at most {run.settings.most}); settings.count changes it"
    )
    return count


def _check_first(pipe: Pipeline, target: Target, run: EvaluationRun, count: int) -> None:
    """Compute the reference, and refuse what could not be measured against it."""
    can_classify(Labels("model", even_labels(pipe, count), pipe.config.class_names), target, run.settings, [])
    if run.extractor is None:
        return
    reference = find_reference(target, run, "first")
    if reference is None or pipe.modality == "audio":
        return
    size = pipe.config.signal_size
    shape = (3, *size) if pipe.modality == "image" else (3, min(size[0], run.settings.frames), *size[1:])
    check_size(shape, "model", reference.shape, reference.name)
    check_enough(count, reference, run)


def _generate(making: _Making, truth: SampleSet | None, count: int) -> dict[str, Any]:
    """Make the samples that are not there yet; what the report says about them."""
    pipe, sampling, task, run = making.pipe, making.sampling, making.task, making.run
    settings = run.settings
    told: dict[str, Any] = {"model": making.name, "weights": _weights(pipe)}
    labels = even_labels(pipe, count) if truth is None else truth.labels or []
    make = generating(pipe, labels, settings.seed, sampling)
    if truth is not None and task is not None:
        told |= {"completed": task, "truth": run.team.share("truth", truth.digest)}
        if pipe.modality == "audio":
            loudness = loudness_of(settings.gap.loudness, pipe.config.prepared)
            gap = dataclasses.replace(settings.gap, loudness=loudness)
            make = filling(pipe, truth, settings.seed, sampling, gap)
            told |= {"gap": dataclasses.asdict(gap)}
        else:
            make = completing(pipe, truth, task, settings.seed, sampling, paste=settings.paste)
            told |= {"paste": settings.paste}
    codec, description = pipe.tokenizer, described(pipe, sampling, **told)
    what = MadeSet(
        count=count,
        modality=pipe.modality,
        labels=labels,
        class_names=pipe.config.class_names,
        seed=settings.seed,
        sample_rate=codec.sample_rate if isinstance(codec, AudioTokenizer) else 0,
        description=description,
    )
    place = run.out / "samples"
    write_samples(make, what, place, batch_size=settings.batch_size, state=run.team.state, say=run.say)
    subject = {"kind": "model", "name": making.name, "count": count}
    subject["seeds"] = [settings.seed, settings.seed + count - 1]
    return subject | {key: value for key, value in description.items() if key != "model"}


def _weights(pipe: Pipeline) -> str:
    own = "-".join(fingerprint(part) for part in pipe.parts.values() if part is not None)
    return own if pipe.coarse is None else f"{own}-{_weights(pipe.coarse)}"


def _conditions(target: Target, making: _Making, warnings: list[str]) -> SampleSet | None:
    """What a task completes: held-out clips or sounds that can be read."""
    pipe, task, run = making.pipe, making.task, making.run
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
    truth, skipped = readable(source, run, "truth")
    size = pipe.config.signal_size
    if pipe.modality == "video" and tuple(read_good(truth, 0).shape[1:]) != tuple(size):
        raise ValueError(
            f"task: {source.name} has clips of {list(read_good(truth, 0).shape[1:])} (frames, height, width), expected the "
            f"model's {list(size)}; maskgen.tasks.data.video.folders.VideoFolder as --data brings them to it"
        )
    if skipped:
        warnings.append(f"{len(skipped)} of the held-out samples could not be read and were left out")
    if truth.labels and pipe.transformer.num_classes:
        truth = MatchedSamples(truth, pipe.config.class_names, "the model")
    return drawn(truth, run.settings.most)


def _held_out(
    pipe: Pipeline, data: SignalData | None, settings: EvaluationSettings, warnings: list[str]
) -> SignalData | None:
    """Data whose test half the model can be measured on; what is wrong with it shows before there are samples."""
    if not settings.enabled("masked"):
        return None
    told = ""
    if data is None or data.test() is None:
        if settings.required("masked"):
            raise ValueError("metrics: masked needs held-out data of the model's size; give --data with a test half")
        return None
    if tuple(data.size) != tuple(pipe.config.signal_size) or data.modality != pipe.modality:
        told = (
            f"data: got {data.modality} of size {tuple(data.size)}, but the model's is {pipe.modality} of "
            f"{tuple(pipe.config.signal_size)}"
        )
        if settings.required("masked"):
            raise ValueError(f"{told}; leave masked out of settings.metrics, or give data of that size")
    elif pipe.transformer.num_classes:
        try:
            _model_classes(pipe, data)
        except ValueError as error:
            if settings.required("masked"):
                raise
            told = str(error)
    if told:
        warnings.append(f"masked tokens: left out ({told})")
    return None if told else data


def _model_classes(pipe: Pipeline, data: SignalData) -> Tensor:
    """The model's number of each class of a data set, long ``[C]``.

    Raises:
        ValueError: see ``class_places``.
    """
    names = data.class_names
    places = class_places(range(len(names)), names, pipe.config.class_names, "the data", "the model")
    return torch.tensor(list(places.values()), dtype=torch.long)


def _masked(pipe: Pipeline, data: SignalData, settings: EvaluationSettings) -> list[MaskedScore]:
    """On the test half of a data set, which the tokenizer turns into tokens."""
    source = data.test()
    assert source is not None, "it was found to be there"
    tokens = tokenize(source, pipe.tokenizer, key=data.key).tensors
    labels = tokens.get("labels") if pipe.transformer.num_classes else None
    labels = None if labels is None else _model_classes(pipe, data)[labels.long()]
    return masked_scores(
        pipe.transformer,
        tokens["tokens"][..., : pipe.transformer.num_codebooks],
        labels,
        ratios=settings.ratios,
        seed=settings.seed,
        batch_size=settings.batch_size,
        draws=settings.draws,
    )
