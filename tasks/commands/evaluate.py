"""What ``maskgen evaluate`` does: measure samples, a model or a tokenizer, or make a reference for others.

The signatures are the command line: names, types, defaults and help come from here. Run under ``accelerate launch``, all
processes share the work; interrupted, the same command goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray

from maskgen.sampling.settings import Sampling
from maskgen.tasks.commands.parts import load_model
from maskgen.tasks.data.base import Modality, SignalData, modality_named
from maskgen.tasks.data.broken import Broken
from maskgen.tasks.evaluation.features.base import FeatureExtractor, LogMelFeatures
from maskgen.tasks.evaluation.features.inception import InceptionFeatures
from maskgen.tasks.evaluation.features.protocols import find_protocol
from maskgen.tasks.evaluation.features.references import cached_reference, write_statistics
from maskgen.tasks.evaluation.models import evaluate_model
from maskgen.tasks.evaluation.pairs import PICTURES, SOUNDS
from maskgen.tasks.evaluation.report import write_evaluation
from maskgen.tasks.evaluation.samples import evaluate_samples, open_target
from maskgen.tasks.evaluation.sets.arrays import write_batch
from maskgen.tasks.evaluation.sets.base import DataSamples, FileSamples, SampleSet, open_samples
from maskgen.tasks.evaluation.sets.processes import Processes, process_state
from maskgen.tasks.evaluation.settings import OF_FEATURES, Evaluation, EvaluationRun, EvaluationSettings
from maskgen.tasks.evaluation.tokenizers import evaluate_tokenizer, find_tokenizer
from maskgen.tasks.published.convert import cache_folder

__all__ = [
    "evaluate_model_command",
    "evaluate_reference_command",
    "evaluate_samples_command",
    "evaluate_tokenizer_command",
]

_SETTINGS = EvaluationSettings()


def evaluate_samples_command(
    *,
    samples: Path,
    reference: Path | None = None,
    data: SignalData | None = None,
    held_out: Path | None = None,
    features: FeatureExtractor | None = None,
    protocol: str = "torch-fidelity",
    settings: EvaluationSettings = _SETTINGS,
    out: Path = Path("evaluation"),
    cache: Path | None = None,
    device: str | None = None,
) -> None:
    """Measure samples against real data: FID, KID, Inception score, precision, recall, density, coverage, CAS.

    Args:
        samples: a folder, a .zip or an .npz batch of generated samples.
        reference: a folder, a .zip or an .npz of real samples, or an .npz of statistics (mu, sigma).
        data: instead, a data set by class_path: its training half is the reference, its test half held out.
        held_out: real test samples: for CAS, and for the floor that real data set.
        features: extractor by class_path, for samples of other modalities than images, too; Inception of torch-fidelity if
            left out.
        protocol: adm, clean-fid or torch-fidelity.
        settings: what is measured, on how many samples.
        out: folder for evaluation.json, evaluation.html and pictures/.
        cache: folder of references that were computed; among the cached models if left out.
        device: as cpu or cuda:1; chosen by itself if left out.
    """
    state = process_state(device)
    place, rules = _device(device, state), find_protocol(protocol)
    modality: Modality = "image" if features is None else features.modality
    settings.check_measures(f"a set of {modality} samples", (*OF_FEATURES, *(["cas"] if modality == "image" else [])))
    made = open_samples(samples, modality, settings.frames)
    target = open_target(reference, data, held_out, modality, frames=settings.frames)
    chosen = _features(features, modality, settings)
    run = EvaluationRun(
        settings=settings,
        protocol=rules,
        extractor=chosen,
        team=Processes(state, out / ".parts"),
        out=out,
        cache=_references(cache),
        device=place,
    )
    _write(evaluate_samples(made, target, run), made, target.real, run)


def evaluate_model_command(
    *,
    model: str,
    reference: Path | None = None,
    data: SignalData | None = None,
    held_out: Path | None = None,
    features: FeatureExtractor | None = None,
    protocol: str = "torch-fidelity",
    sampling: Sampling | None = None,
    task: str | None = None,
    settings: EvaluationSettings = _SETTINGS,
    out: Path = Path("evaluation"),
    cache: Path | None = None,
    device: str | None = None,
) -> None:
    """Let a model make samples, measure them, and measure the model on masked tokens of held-out data.

    Args:
        model: model folder, published name or Hub repository.
        reference: a folder, a .zip or an .npz of real samples, or an .npz of statistics (mu, sigma).
        data: instead, a data set by class_path: its training half is the reference, its test half held out.
        held_out: real test samples: for CAS, for the floor that real data set, and what a task completes.
        features: extractor by class_path. If left out, Inception of torch-fidelity for images, log-mel features for sound;
            video needs I3D, whose weights are not downloaded.
        protocol: adm, clean-fid or torch-fidelity.
        sampling: all sampling settings, instead of the model's own.
        task: complete what is held out instead of generating, and compare with the truth: of a video model, as FP5; of an
            audio model infill, which fills a gap (settings.gap).
        settings: what is measured, on how many samples (settings.count).
        out: folder for samples/, evaluation.json, evaluation.html and pictures/.
        cache: folder of references that were computed; among the cached models if left out.
        device: as cpu or cuda:1; chosen by itself if left out.
    """
    state = process_state(device)
    pipe = load_model(model, str(state.device) if state.num_processes > 1 and device is None else device)
    rules, modality = find_protocol(protocol), modality_named(pipe.modality)
    able = [*OF_FEATURES, *(["cas"] if modality == "image" else []), "masked", *(_pairs(modality) if task else ())]
    settings.check_measures(f"a model of {modality}{'' if task else ' without a task'}", able)
    target = open_target(
        *(reference, data, held_out, modality),
        frames=settings.frames,
        whole=pipe.config.signal_size[0] if modality == "video" else None,
        needed=settings.needs_real,
    )
    chosen = _features(features, modality, settings)
    run = EvaluationRun(
        settings=settings,
        protocol=rules,
        extractor=chosen,
        team=Processes(state, out / ".parts"),
        out=out,
        cache=_references(cache),
    )
    result = evaluate_model(pipe, model, target, run, sampling=sampling, task=task, data=data)
    made = FileSamples(out / "samples", modality, settings.frames) if settings.needs_samples else None
    _write(result, made, target.real, run)


def evaluate_tokenizer_command(
    *,
    tokenizer: Path,
    samples: Path | None = None,
    data: SignalData | None = None,
    split: Literal["train", "test"] = "test",
    features: FeatureExtractor | None = None,
    protocol: str = "torch-fidelity",
    settings: EvaluationSettings = _SETTINGS,
    out: Path = Path("evaluation"),
    cache: Path | None = None,
    device: str | None = None,
) -> None:
    """Measure what a tokenizer gives back: rFID, PSNR, SSIM, LPIPS, use of the codebook; for sound, its distances.

    Args:
        tokenizer: its folder, or a model folder.
        samples: a folder, a .zip or an .npz of real signals of one size.
        data: instead, a data set by class_path.
        split: which half of it.
        features: extractor by class_path, for the Frechet distance of rebuilt and original. If left out, Inception for
            images and log-mel features for sound; for video that distance is left out.
        protocol: adm, clean-fid or torch-fidelity.
        settings: what is measured, on how many signals (settings.count, or all there are).
        out: folder for rebuilt/, evaluation.json, evaluation.html and pictures/.
        cache: folder of references that were computed; among the cached models if left out.
        device: as cpu or cuda:1; chosen by itself if left out.
    """
    state = process_state(device)
    place = _device(device, state)
    found, rules = find_tokenizer(tokenizer), find_protocol(protocol)
    modality = modality_named(found.modality)
    originals = _originals(samples, data, split, modality, settings.frames)
    settings.check_measures(f"a tokenizer of {modality}", ("fid", *_pairs(modality), "codes"))
    chosen = features
    if settings.enabled("fid") and (modality != "video" or settings.required("fid")):
        chosen = _features(features, modality, settings)
    run = EvaluationRun(
        settings=settings,
        protocol=rules,
        extractor=chosen,
        team=Processes(state, out / ".parts"),
        out=out,
        cache=_references(cache),
        device=place,
    )
    result = evaluate_tokenizer(found, str(tokenizer), originals, run)
    rebuilt = FileSamples(out / "rebuilt", originals.modality, settings.frames)
    _write(result, rebuilt, originals, run)


def evaluate_reference_command(
    *,
    out: Path,
    samples: Path | None = None,
    data: SignalData | None = None,
    split: Literal["train", "test"] = "train",
    kind: Literal["statistics", "batch"] = "statistics",
    features: FeatureExtractor | None = None,
    protocol: str = "torch-fidelity",
    settings: EvaluationSettings = _SETTINGS,
    cache: Path | None = None,
    device: str | None = None,
) -> None:
    """Write real data as others read them: an .npz of statistics (mu, sigma), or an ADM-style batch (arr_0).

    Args:
        out: the .npz file.
        samples: a folder, a .zip or an .npz of real samples.
        data: instead, a data set by class_path.
        split: which half of it.
        kind: statistics, which depend on features and protocol, or batch, which holds the images or clips themselves.
        features: extractor by class_path; Inception of torch-fidelity if left out.
        protocol: adm, clean-fid or torch-fidelity.
        settings: batch_size and broken matter.
        cache: folder of references that were computed; among the cached models if left out.
        device: as cpu or cuda:1; chosen by itself if left out.
    """
    if out.suffix.lower() != ".npz":
        raise ValueError(f"out: got {out}, expected the name of an .npz file")
    state = process_state(device)
    place = _device(device, state)
    named = "image" if data is None else data.modality
    modality = modality_named(named) if features is None else features.modality
    if kind == "batch":
        if state.is_main_process:
            _write_batch(_originals(samples, data, split, modality, settings.frames), out, settings)
        return
    chosen, rules = features or _usual(modality), find_protocol(protocol)
    run = EvaluationRun(
        settings=settings,
        protocol=rules,
        extractor=chosen,
        team=Processes(state, out.parent / f".{out.stem}-parts"),
        out=out,
        cache=_references(cache),
        device=place,
    )
    originals = _originals(samples, data, split, chosen.modality, settings.frames)
    reference = cached_reference(originals, run.extraction, cache=run.cache)
    run.team.close()
    if reference is not None:
        write_statistics(out, reference)
        print(f"{reference.samples} samples, {reference.gaussian.width} features in {out}")  # noqa: T201


def _features(
    given: FeatureExtractor | None, modality: Modality, settings: EvaluationSettings
) -> FeatureExtractor | None:
    """The extractor that was named, or the usual one of a modality; None where nothing needs any."""
    return _usual(modality) if given is None and settings.needs_features else given


def _usual(modality: Modality) -> FeatureExtractor:
    if modality == "video":
        raise ValueError(
            "features: got none, and FVD's I3D cannot be downloaded by itself: put MAGVIT's i3d_k400.flax or pytorch-i3d's "
            "rgb_imagenet.pt somewhere and give --features maskgen.tasks.evaluation.features.i3d.I3DFeatures "
            "--features.weights FILE, or name "
            "measures without features in settings.metrics"
        )
    return InceptionFeatures() if modality == "image" else LogMelFeatures()


def _pairs(modality: str) -> tuple[str, ...]:
    """Measures of a result against the truth."""
    return SOUNDS if modality == "audio" else PICTURES


def _references(cache: Path | None) -> Path:
    return cache_folder() / "references" if cache is None else cache.expanduser()


def _originals(samples: Path | None, data: SignalData | None, split: str, modality: Modality, frames: int) -> SampleSet:
    if (samples is None) == (data is None):
        raise ValueError(
            f"samples: give either a place of real samples (--samples) or a data set (--data); got "
            f"{'neither' if data is None else 'both'}"
        )
    if data is not None:
        return DataSamples(data, split, frames)
    assert samples is not None
    return open_samples(samples, modality, frames)


def _write_batch(samples: SampleSet, out: Path, settings: EvaluationSettings) -> None:
    (first,) = samples.read(0, 1)
    if isinstance(first, Broken) or samples.modality == "audio":
        reason = first.reason if isinstance(first, Broken) else "sounds make no such batch"
        raise ValueError(f"{samples.name}: {reason}")
    shape = (len(samples), *first.movedim(0, -1).shape)

    def pieces() -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(samples), settings.batch_size):
            read = samples.read(start, start + settings.batch_size)
            broken = [sample for sample in read if isinstance(sample, Broken)]
            if broken:
                raise ValueError(f"{broken[0].reason}; take it out, a batch has no gaps")
            yield torch.stack([sample for sample in read if not isinstance(sample, Broken)]).movedim(1, -1).numpy()

    write_batch(out, shape, pieces(), samples.labels)
    print(f"{shape[0]} samples of {list(shape[1:])} in {out}")  # noqa: T201


def _device(device: str | None, state: PartialState) -> str:
    """Where extractors run, each process on a device of its own; checked, so that a slip is one line."""
    wanted = device or (
        str(state.device) if state.num_processes > 1 else "cuda" if torch.cuda.is_available() else "cpu"
    )
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device: {device!r} cannot be used here ({str(error).splitlines()[0]}); leave it out"
        ) from None
    return wanted


def _write(result: Evaluation | None, samples: SampleSet | None, real: SampleSet | None, run: EvaluationRun) -> None:
    run.team.close()
    if result is None:  # not the first process
        return
    write_evaluation(result, samples, real, run.out, settings=run.settings, processes=run.team.count)
    for name, metric in result.metrics.items():
        print(f"{name}: {metric}")  # noqa: T201
    for one in result.masked:
        print(f"masked {one.ratio:.0%}: loss {one.loss} nats, accuracy {one.accuracy}")  # noqa: T201
    for line in result.warnings:
        print(f"warning: {line}")  # noqa: T201
    print(f"evaluation.json and evaluation.html in {run.out}")  # noqa: T201
