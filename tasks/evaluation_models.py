"""Measuring a model: it makes samples, which are measured; and how well it predicts hidden tokens of held-out data.

Shapes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from maskgen.tasks.evaluation import Clock, Target, evaluate_samples, find_reference
from maskgen.tasks.evaluation_measures import check_enough
from maskgen.tasks.evaluation_samples import completing, described, even_labels, generating, write_samples
from maskgen.tasks.evaluation_settings import Evaluation, EvaluationSettings
from maskgen.tasks.features import FeatureExtractor
from maskgen.tasks.metrics import Metric
from maskgen.tasks.metrics_reconstruction import PixelScores, perceptual_net
from maskgen.tasks.metrics_scores import MaskedScore, masked_scores
from maskgen.tasks.pipeline import Pipeline, Sampling
from maskgen.tasks.processes import Processes
from maskgen.tasks.protocols import Protocol
from maskgen.tasks.references import check_size
from maskgen.tasks.sample_sets import FileSamples, SampleSet
from maskgen.tasks.signal_data import SignalData
from maskgen.tasks.token_sources import tokenize
from maskgen.tasks.training_runs import fingerprint
from maskgen.tokenizers.audio import AudioTokenizer

__all__ = ["evaluate_model", "pixel_measures"]

_PAIRED = ("psnr", "ssim", "lpips")


def evaluate_model(
    pipe: Pipeline,
    name: str,
    target: Target,
    extractor: FeatureExtractor,
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
    """Generate, or complete held-out clips, then measure.

    Args:
        pipe: the model.
        name: as it was named.
        target: what it is measured against.
        extractor: what makes features.
        protocol: how.
        settings: what, and on how many samples.
        state: this process among all.
        out: folder; the samples go into ``samples/`` below it.
        cache: folder of references.
        sampling: settings, instead of the model's own.
        task: of a video model: complete held-out clips by this task instead of generating; their frames are also compared
            with the true ones.
        data: for masked tokens, its test half.

    Returns:
        The evaluation on the first process, None on the others.

    Raises:
        ValueError: a model of another modality than the features, a task without held-out clips, or what
            ``evaluate_samples`` refuses.
    """
    if pipe.modality != extractor.modality:
        raise ValueError(
            f"features: got {extractor.name} for {extractor.modality}, but the model's modality is {pipe.modality}"
        )
    clock, team = Clock(), Processes(state, out / ".parts")
    clips = _conditions(target, pipe, task)
    count = settings.count if clips is None else min(settings.count, len(clips))
    _check_first(pipe, target, extractor, protocol, settings, team, cache, count)  # not after days of sampling
    warnings: list[str] = []
    paired = None
    if clips is not None:
        paired = pixel_measures(settings, min(pipe.config.signal_size[1:]), warnings, pipe.device)
    clock("reference")
    shared: dict[str, Any] = {"settings": settings, "team": team}
    chosen, place = pipe.sampling(sampling), out / "samples"
    subject = _generate(pipe, name, clips, task, sampling=chosen, state=state, out=place, count=count, **shared)
    clock("generate")
    samples = FileSamples(place, extractor.modality, settings.frames)
    shared |= {"out": out, "cache": cache, "device": pipe.device}
    result = evaluate_samples(samples, target, extractor, protocol, subject=subject, **shared)
    if result is not None:
        later = Clock()
        if clips is not None and paired is not None:
            result.metrics |= _paired(clips, samples, count, settings, paired)
            later("pairs")
        if settings.wants("masked"):
            result.masked = _masked(pipe, data, settings)
            later("masked")
        result.warnings += warnings
        result.seconds = result.seconds | clock.seconds | later.seconds
    team.close()
    return result


def _check_first(
    pipe: Pipeline,
    target: Target,
    extractor: FeatureExtractor,
    protocol: Protocol,
    settings: EvaluationSettings,
    team: Processes,
    cache: Path,
    count: int,
) -> None:
    """Compute the reference, and refuse what could not be measured against it."""
    reference = find_reference(
        target, extractor, protocol, settings, team=team, cache=cache, device=pipe.device, name="first"
    )
    if reference is None or pipe.modality == "audio":
        return
    size = pipe.config.signal_size
    shape = (3, *size) if pipe.modality == "image" else (3, min(size[0], settings.frames), *size[1:])
    check_size(shape, "model", reference)
    check_enough(count, reference, extractor, settings)


def _generate(
    pipe: Pipeline,
    name: str,
    clips: SampleSet | None,
    task: str | None,
    *,
    settings: EvaluationSettings,
    sampling: Sampling,
    team: Processes,
    state: PartialState,
    out: Path,
    count: int,
) -> dict[str, Any]:
    """Make the samples that are not there yet; what the report says about them."""
    parts = (pipe.tokenizer, pipe.transformer, pipe.fine)
    told: dict[str, Any] = {"model": name, "weights": "-".join(fingerprint(part) for part in parts if part is not None)}
    labels = even_labels(pipe, count) if clips is None else (clips.labels or [])[:count]
    make = generating(pipe, labels, settings.seed, sampling)
    if clips is not None and task is not None:
        make = completing(pipe, clips, task, settings.seed, sampling, paste=settings.paste)
        told |= {"video_task": task, "paste": settings.paste, "clips": team.share("clips", clips.digest)}
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
        state=state,
    )
    subject = {"kind": "model", "name": name, "count": count, "seeds": [settings.seed, settings.seed + count - 1]}
    return subject | {key: value for key, value in description.items() if key != "model"}


def pixel_measures(
    settings: EvaluationSettings, smallest: int, warnings: list[str], device: torch.device | str = "cpu"
) -> PixelScores | None:
    """PSNR, SSIM and LPIPS as far as they are wanted and can be had; what is left out is said in ``warnings``.

    Args:
        settings: what is wanted.
        smallest: shorter side of the pictures, in pixels.
        warnings: of the report; added to.
        device: where the network of LPIPS runs.

    Raises:
        ConnectionError, ImportError, ValueError: a measure that was named and cannot be taken.
    """
    measures = [name for name in _PAIRED if settings.wants(name)]
    if "ssim" in measures and smallest < 11 and not settings.asks("ssim"):
        measures.remove("ssim")
        warnings.append(f"ssim: left out, its window of 11 pixels is larger than pictures of {smallest}")
    network = None
    if "lpips" in measures:
        try:
            network = perceptual_net(settings.lpips).to(device)
        except (ConnectionError, ImportError) as error:
            if settings.asks("lpips"):
                raise
            measures.remove("lpips")
            warnings.append(f"lpips: left out ({error})")
    return PixelScores(measures, network) if measures else None


def _conditions(target: Target, pipe: Pipeline, task: str | None) -> SampleSet | None:
    """The clips that a task completes."""
    if task is None:
        return None
    pipe.require("video", "task")
    if target.held_out is None:
        raise ValueError("task: needs held-out clips to complete; give --held_out, or --data with a test half")
    return target.held_out


def _paired(
    clips: SampleSet, samples: SampleSet, count: int, settings: EvaluationSettings, scores: PixelScores
) -> dict[str, Metric]:
    """Frame by frame against the truth; given frames count, as in the published numbers."""
    for start in range(0, count, settings.batch_size):
        stop = min(start + settings.batch_size, count)
        truth, made = (_stack(one.read(start, stop)) for one in (clips, samples))
        scores.update(truth, made)
    return scores.metrics(draws=settings.draws)


def _stack(samples: list[Tensor | str]) -> Tensor:
    broken = [sample for sample in samples if isinstance(sample, str)]
    if broken:
        raise ValueError(broken[0])
    return torch.stack([sample for sample in samples if isinstance(sample, Tensor)]).float() / 255


def _masked(pipe: Pipeline, data: SignalData | None, settings: EvaluationSettings) -> list[MaskedScore]:
    """On the test half of a data set, which the tokenizer turns into tokens."""
    source = None if data is None else data.test()
    if data is None or source is None:
        if settings.asks("masked"):
            raise ValueError("metrics: masked needs held-out data of the model's size; give --data with a test half")
        return []
    if tuple(data.size) != tuple(pipe.config.signal_size) or data.modality != pipe.modality:
        raise ValueError(
            f"data: got {data.modality} of size {tuple(data.size)}, but the model's is {pipe.modality} of "
            f"{tuple(pipe.config.signal_size)}; leave masked out of settings.metrics, or give data of that size"
        )
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
