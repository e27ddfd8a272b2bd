"""Measuring a model: it makes samples, which are measured; and how well it predicts masked tokens of held-out data."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskgen.checkpoint import fingerprint
from maskgen.conditioning import NO_LABEL, Cond
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.classes import class_places
from maskgen.tasks.conditions.preparation import loudness_of
from maskgen.tasks.conditions.text.prompts import Wording
from maskgen.tasks.conditions.trained import named_task
from maskgen.tasks.data.base import SignalData, modality_named
from maskgen.tasks.data.identity import short_hash
from maskgen.tasks.data.tokens.cache import CaptionedTokens, tokenize
from maskgen.tasks.evaluation.cas import Labels
from maskgen.tasks.evaluation.features.references import check_size, read_count
from maskgen.tasks.evaluation.made.making import completing, described, even_labels, filling, generating, read_good
from maskgen.tasks.evaluation.made.writing import MadeSet, write_samples
from maskgen.tasks.evaluation.measures import check_enough
from maskgen.tasks.evaluation.metrics.scores import MaskedScore, masked_scores
from maskgen.tasks.evaluation.pairs import compare_clips, compare_gaps, pixel_measures, readable
from maskgen.tasks.evaluation.samples import Target, can_classify, evaluate_samples, find_reference
from maskgen.tasks.evaluation.sets.base import FileSamples, SampleSet, Subset, drawn
from maskgen.tasks.evaluation.sets.captions import read_all_captions
from maskgen.tasks.evaluation.sets.classes import MatchedSamples
from maskgen.tasks.evaluation.settings import CAPTIONED, Evaluation, EvaluationRun, EvaluationSettings
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
    if run.dual_encoder is not None and not pipe.takes_prompts:
        raise ValueError(f"dual_encoder: got one, but {name} was not trained with texts; leave it out")
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
    pipe, task = making.pipe, making.task
    with clock("reference"):
        truth = _conditions(target, making, warnings)
        source, prompts = (None, []) if truth is not None else _captioned(target, making, warnings)
        if source is not None:
            target = dataclasses.replace(target, captioned=source)
            protocol = dataclasses.replace(making.run.protocol, count=CAPTIONED)
            making = dataclasses.replace(making, run=dataclasses.replace(making.run, protocol=protocol))
        run = making.run
        real = truth or source
        count = _usual_count(target, run) if real is None else len(real)
        labels = even_labels(pipe, count) if real is None else real.labels or []
        _check_first(pipe, target, run, labels, count)  # not after days of sampling
        pixels = None
        if truth is not None and pipe.modality == "video":
            pixels = pixel_measures(run.settings, min(pipe.config.signal_size[1:]), warnings, pipe.device)
    with clock("generate"):
        subject = _generate(making, truth, labels, count, prompts)
        if source is not None:
            subject["captions"] = {"of": source.name, "hash": short_hash(prompts)}
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


def _check_first(pipe: Pipeline, target: Target, run: EvaluationRun, labels: list[int], count: int) -> None:
    """Compute the reference, and refuse what could not be measured against it."""
    can_classify(Labels("model", labels, pipe.config.class_names), target, run.settings, [])
    if run.extractor is None:
        return
    reference = find_reference(target, run, "first")
    if reference is None or pipe.modality == "audio":
        return
    size = pipe.config.signal_size
    shape = (3, *size) if pipe.modality == "image" else (3, min(size[0], run.settings.frames), *size[1:])
    check_size(shape, "model", reference.shape, reference.name)
    check_enough(count, reference, run)


def _generate(
    making: _Making, truth: SampleSet | None, labels: list[int], count: int, prompts: Sequence[str]
) -> dict[str, Any]:
    """Make the samples that are not there yet; what the report says about them."""
    pipe, sampling, task, run = making.pipe, making.sampling, making.task, making.run
    settings = run.settings
    told: dict[str, Any] = {"model": making.name, "weights": _weights(pipe)}
    if pipe.text is not None:
        told["text"] = pipe.text.identity()
    make = generating(pipe, labels, settings.seed, sampling, prompts)
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
        prompts=prompts,
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


def _captioned(target: Target, making: _Making, warnings: list[str]) -> tuple[SampleSet | None, list[str]]:
    """Real samples whose captions a model of text is asked for, and these: held out if any are, else the reference's."""
    pipe, settings = making.pipe, making.run.settings
    if not pipe.takes_prompts:
        return None, []
    sides = [side for side in (target.held_out, target.real) if side is not None]
    side = next((side for side in sides if side.captions(range(1)) is not None), None)
    if side is None:
        told = f"none of {' and '.join(side.name for side in sides) or 'no real data'} has captions"
        if not pipe.transformer.num_classes:
            raise ValueError(
                f"captions: {making.name} is asked for texts, but {told}; say where they are (--data.captions txt), or give "
                "--held_out, a folder with a file name.txt beside each picture"
            )
        warnings.append(f"captions: {told}, so the model was asked for classes alone")
        return None, []
    wanted = CAPTIONED if settings.count is None else settings.count
    some = drawn(side, wanted)
    found = read_all_captions(some, settings.broken)
    warnings += found.warning(side.name)
    if settings.count is not None and len(found.numbers) < wanted:
        warnings.append(f"captions: {side.name} has {len(found.numbers)}, fewer than settings.count {wanted}")
    source: SampleSet = Subset(some, found.numbers)
    making.run.say(f"making {len(source)} samples, one for the caption of each of so many of {side.name}")
    if _labelled(source, pipe):
        source = MatchedSamples(source, pipe.config.class_names, "the model")
    else:
        source.labels = None  # of classes that the model knows nothing of
    return source, found.captions


def _labelled(samples: SampleSet, pipe: Pipeline) -> bool:
    return bool(samples.labels and pipe.transformer.num_classes)


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
    if _labelled(truth, pipe):
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
    if pipe.coarse is not None:
        told = "the second stage of a cascade is told the tokens of a smaller picture, too"
        if settings.required("masked"):
            raise ValueError(f"metrics: got masked, but {told}; measure masked tokens of the first stage")
    elif tuple(data.size) != tuple(pipe.config.signal_size) or data.modality != pipe.modality:
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
    elif pipe.text is not None and not data.has_captions:
        warnings.append("masked tokens: the data have no captions, so the model was told the empty prompt")
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
    made = tokenize(source, pipe.tokenizer, key=data.key)
    tokens = made.tensors
    labels = tokens.get("labels") if pipe.transformer.num_classes else None
    labels = None if labels is None else _model_classes(pipe, data)[labels.long()]
    captions = []
    if pipe.text is not None and isinstance(made, CaptionedTokens):
        captions = [made.texts[number] for number in tokens["caption"].tolist()]

    def cond(part: slice) -> Cond:
        count = len(tokens["tokens"][part])
        ids = [NO_LABEL] * count if labels is None else labels[part].tolist()
        return pipe.cond(ids, Wording(captions[part]) if captions else None)

    return masked_scores(
        pipe.transformer,
        tokens["tokens"][..., : pipe.transformer.num_codebooks],
        cond=cond,
        ratios=settings.ratios,
        seed=settings.seed,
        batch_size=settings.batch_size,
        draws=settings.draws,
    )
