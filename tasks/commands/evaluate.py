"""What ``maskgen evaluate`` does: measure samples, a model or a tokenizer, or make a reference for others.

The signatures are the command line: names, types, defaults and help come from here; options that several commands have
stand in the dataclasses. Run under ``accelerate launch``, all
processes share the work; interrupted, the same command goes on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray

from maskgen.sampling.settings import Sampling
from maskgen.tasks.commands.parts import check_device, load_model
from maskgen.tasks.data.base import Modality, SignalData, modality_named
from maskgen.tasks.data.broken import Broken
from maskgen.tasks.evaluation.features.base import FeatureExtractor, JointFeatures, LogMelFeatures
from maskgen.tasks.evaluation.features.dual_encoder import open_dual_encoder
from maskgen.tasks.evaluation.features.inception import InceptionFeatures
from maskgen.tasks.evaluation.features.protocols import find_protocol
from maskgen.tasks.evaluation.features.references import cached_reference, write_statistics
from maskgen.tasks.evaluation.models import evaluate_model
from maskgen.tasks.evaluation.pairs import PICTURES, SOUNDS
from maskgen.tasks.evaluation.report import write_evaluation, write_sweep
from maskgen.tasks.evaluation.samples import evaluate_samples, open_target
from maskgen.tasks.evaluation.sets.arrays import write_batch
from maskgen.tasks.evaluation.sets.base import DataSamples, FileSamples, SampleSet, open_samples
from maskgen.tasks.evaluation.sets.processes import Processes, process_state
from maskgen.tasks.evaluation.settings import OF_FEATURES, Evaluation, EvaluationRun, EvaluationSettings
from maskgen.tasks.evaluation.tokenizers import evaluate_tokenizer, find_tokenizer
from maskgen.tasks.media.plots import check_plots
from maskgen.tasks.published.convert import cache_folder


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How something is measured.

    Attributes:
        features: extractor by class_path. If left out, Inception of torch-fidelity for images, log-mel features for sound;
            video needs I3D, whose weights are not downloaded.
        protocol: adm, clean-fid or torch-fidelity.
        settings: what is measured, on how many samples.
        cache: folder of references that were computed; among the cached models if left out.
        device: as cpu or cuda:1; chosen by itself if left out.
    """

    features: FeatureExtractor | None = None
    protocol: str = "torch-fidelity"
    settings: EvaluationSettings = field(default_factory=EvaluationSettings)
    cache: Path | None = None
    device: str | None = None

    def run(
        self,
        state: PartialState,
        extractor: FeatureExtractor | None,
        out: Path,
        parts: Path | None = None,
        dual_encoder: JointFeatures | None = None,
    ) -> EvaluationRun:
        """The run of a command.

        Args:
            state: this process among all.
            extractor: what makes features, if anything needs any.
            out: folder of the report.
            parts: folder for what the processes hand to each other, if not below that.
            dual_encoder: what compares samples with their captions, if anything does.
        """
        return EvaluationRun(
            settings=self.settings,
            protocol=find_protocol(self.protocol),
            extractor=extractor,
            team=Processes(state, parts or out / ".parts"),
            out=out,
            cache=cache_folder() / "references" if self.cache is None else self.cache.expanduser(),
            device=_device(self.device, state),
            dual_encoder=dual_encoder,
        )

    def extractor(self, modality: Modality) -> FeatureExtractor | None:
        """The extractor that was named, or the usual one of a modality; None where nothing needs any."""
        return _usual(modality) if self.features is None and self.settings.needs_features else self.features


@dataclass(frozen=True, kw_only=True)
class Reported(Measuring):
    """How something is measured, and where that is told.

    Attributes:
        out: folder for evaluation.json, evaluation.html, pictures/ and what was made.
    """

    out: Path = Path("evaluation")

    def __post_init__(self) -> None:
        check_plots()


@dataclass(frozen=True, kw_only=True)
class Against:
    """What samples are measured against.

    Attributes:
        reference: a folder, a .zip or an .npz of real samples, or an .npz of statistics (mu, sigma).
        data: instead, a data set by class_path: its training half is the reference, its test half held out.
        held_out: real test samples: for CAS, for the floor that real data set, what a task completes, and the captions that
            a model of text is asked for.
        dual_encoder: what compares samples with their captions: a CLIP (folder, or name on the Hub as
            openai/clip-vit-large-patch14), or a folder of ``maskgen train dual-encoder``.
    """

    reference: Path | None = None
    data: SignalData | None = None
    held_out: Path | None = None
    dual_encoder: str | None = None

    def usual(self, how: Reported) -> Reported:
        """How samples are measured where metrics are not named: against their captions alone, if there is no reference."""
        alone = self.dual_encoder is not None and self.reference is None and self.data is None
        if not alone or how.settings.metrics is not None:
            return how
        print("neither --reference nor --data: measuring the text alone")  # noqa: T201
        return replace(how, settings=replace(how.settings, metrics=("text",)))

    def open_dual_encoder(self, settings: EvaluationSettings, modality: Modality) -> JointFeatures | None:
        """The dual encoder that was named, of samples of a modality.

        Raises:
            FileNotFoundError, ImportError: see ``open_dual_encoder``.
            ValueError: the text measures without a dual encoder or the other way round, or another modality than images.
        """
        if self.dual_encoder is None:
            if settings.required("text"):
                raise ValueError(
                    "metrics: text needs a dual encoder; give --dual_encoder, a CLIP or a folder of `maskgen train "
                    "dual-encoder`"
                )
            return None
        if modality != "image":
            raise ValueError(
                f"dual_encoder: got one, but it looks at pictures and the samples are {modality}; leave it out"
            )
        if not settings.enabled("text"):
            raise ValueError(
                "dual_encoder: got one, but settings.metrics leaves text out; name it there, or leave dual_encoder out"
            )
        return open_dual_encoder(self.dual_encoder)


@dataclass(frozen=True, kw_only=True)
class Originals:
    """Real signals.

    Attributes:
        samples: a folder, a .zip or an .npz of them, of one size.
        data: instead, a data set by class_path.
    """

    samples: Path | None = None
    data: SignalData | None = None

    def open(self, split: str, modality: Modality, frames: int) -> SampleSet:
        """The signals.

        Args:
            split: half of the data set.
            modality: of the signals.
            frames: of video, at most so many.

        Raises:
            FileNotFoundError, ValueError: neither or both, nothing there, or another modality.
        """
        if self.data is not None and self.samples is None:
            return DataSamples(self.data, split, frames)
        if self.data is None and self.samples is not None:
            return open_samples(self.samples, modality, frames)
        raise ValueError(
            f"samples: give either a place of real samples (--samples) or a data set (--data); got "
            f"{'neither' if self.data is None else 'both'}"
        )


def evaluate_samples_command(how: Reported, against: Against, *, samples: Path) -> None:
    """Measure samples against real data: FID, KID, Inception score, precision, recall, density, coverage, CAS, CLIP score.

    Args:
        how: see ``Reported``.
        against: see ``Against``.
        samples: a folder, a .zip or an .npz batch of generated samples; for other modalities than images name features. What
            a dual encoder compares pictures with are the prompts of `maskgen generate`, or files name.txt beside
            the pictures.
    """
    how = against.usual(how)
    state, settings = process_state(how.device), how.settings
    modality: Modality = "image" if how.features is None else how.features.modality
    settings.check_measures(f"a set of {modality} samples", (*OF_FEATURES, *_of_pictures(modality, against, settings)))
    made = open_samples(samples, modality, settings.frames)
    target = open_target(
        *(against.reference, against.data, against.held_out, modality),
        frames=settings.frames,
        needed=settings.needs_real,
    )
    run = how.run(state, how.extractor(modality), how.out, dual_encoder=against.open_dual_encoder(settings, modality))
    _write(evaluate_samples(made, target, run), made, target.real, run)


def evaluate_model_command(
    how: Reported,
    against: Against,
    *,
    model: str,
    sampling: Sampling | None = None,
    guidance: float | tuple[float, ...] | None = None,
    task: str | None = None,
) -> None:
    """Let a model make samples, measure them, and measure the model on masked tokens of held-out data.

    Args:
        how: see ``Reported``.
        against: see ``Against``.
        model: model folder, published name or Hub repository.
        sampling: settings that lie over the model's own: what is not named stays as the model has it.
        guidance: guidance scale, instead of that in the settings; several, as 0,1,3, make a sweep: each is measured in
            guidance-SCALE/ below out, and sweep.html and sweep.json there have them side by side.
        task: complete what is held out instead of generating, and compare with the truth: of a video model, as FP5; of an
            audio model infill, which fills a gap (settings.gap).
    """
    how = against.usual(how)
    state, settings = process_state(how.device), how.settings
    pipe = load_model(model, str(state.device) if state.num_processes > 1 and how.device is None else how.device)
    modality = modality_named(pipe.modality)
    able = [*OF_FEATURES, *_of_pictures(modality, against, settings), "masked", *(_pairs(modality) if task else ())]
    settings.check_measures(f"a model of {modality}{'' if task else ' without a task'}", able)
    target = open_target(
        *(against.reference, against.data, against.held_out, modality),
        frames=settings.frames,
        whole=pipe.config.signal_size[0] if modality == "video" else None,
        needed=settings.needs_real,
    )
    dual_encoder, extractor = against.open_dual_encoder(settings, modality), how.extractor(modality)
    scales = guidance if isinstance(guidance, tuple) else (guidance,)
    if not scales or len(set(scales)) < len(scales):
        raise ValueError(f"guidance: got {list(scales)}, expected different scales")
    settled = {scale: pipe.sampling(sampling, guidance=scale) for scale in scales}  # which refuses before the work
    found: dict[float, Evaluation] = {}
    for scale, chosen in settled.items():
        out = how.out if len(scales) == 1 else how.out / f"guidance-{scale:g}"
        run = how.run(state, extractor, out, dual_encoder=dual_encoder)
        if pipe.coarse is not None and scale is not None:  # both stages of a cascade
            first = pipe.coarse.sampling(None, guidance=scale)
            pipe.coarse.config = replace(pipe.coarse.config, sampling=first)
        result = evaluate_model(pipe, model, target, run, sampling=chosen, task=task, data=against.data)
        made = FileSamples(out / "samples", modality, settings.frames) if settings.needs_samples else None
        _write(result, made, target.real, run)
        if result is not None and scale is not None:
            found[scale] = result
    if len(found) > 1:
        write_sweep(found, how.out)
        print(f"sweep.json and sweep.html in {how.out}")  # noqa: T201


def evaluate_tokenizer_command(
    how: Reported, real: Originals, *, tokenizer: Path, split: Literal["train", "test"] = "test"
) -> None:
    """Measure what a tokenizer gives back: rFID, PSNR, SSIM, LPIPS, use of the codebook; for sound, its distances.

    Args:
        how: see ``Reported``; for video, the Frechet distance of rebuilt and original is left out without features.
        real: see ``Originals``; settings.count of them, or all there are.
        tokenizer: its folder, or a model folder.
        split: which half of the data set.
    """
    state, settings = process_state(how.device), how.settings
    found = find_tokenizer(tokenizer)
    modality = modality_named(found.modality)
    originals = real.open(split, modality, settings.frames)
    settings.check_measures(f"a tokenizer of {modality}", ("fid", *_pairs(modality), "codes"))
    enabled = settings.enabled("fid") and (modality != "video" or settings.required("fid"))
    run = how.run(state, how.extractor(modality) if enabled else how.features, how.out)
    result = evaluate_tokenizer(found, str(tokenizer), originals, run)
    rebuilt = FileSamples(run.out / "rebuilt", originals.modality, settings.frames)
    _write(result, rebuilt, originals, run)


def evaluate_reference_command(
    how: Measuring,
    real: Originals,
    *,
    out: Path,
    split: Literal["train", "test"] = "train",
    kind: Literal["statistics", "batch"] = "statistics",
) -> None:
    """Write real data as others read them: an .npz of statistics (mu, sigma), or an ADM-style batch (arr_0).

    Args:
        how: see ``Measuring``; of the settings, batch_size and broken matter.
        real: see ``Originals``.
        out: the .npz file.
        split: which half of the data set.
        kind: statistics, which depend on features and protocol, or batch, which holds the images or clips themselves.
    """
    if out.suffix.lower() != ".npz":
        raise ValueError(f"out: got {out}, expected the name of an .npz file")
    state, settings = process_state(how.device), how.settings
    named = "image" if real.data is None else real.data.modality
    modality = modality_named(named) if how.features is None else how.features.modality
    if kind == "batch":
        if state.is_main_process:
            _write_batch(real.open(split, modality, settings.frames), out, settings)
        return
    run = how.run(state, how.features or _usual(modality), out, out.parent / f".{out.stem}-parts")
    reference = cached_reference(real.open(split, modality, settings.frames), run.extraction, cache=run.cache)
    run.team.close()
    if reference is not None:
        write_statistics(out, reference)
        print(f"{reference.samples} samples, {reference.gaussian.width} features in {out}")  # noqa: T201


def _usual(modality: Modality) -> FeatureExtractor:
    if modality == "video":
        raise ValueError(
            "features: got none, and FVD's I3D cannot be downloaded by itself: put MAGVIT's i3d_k400.flax or pytorch-i3d's "
            "rgb_imagenet.pt somewhere and give --features maskgen.tasks.evaluation.features.i3d.I3DFeatures "
            "--features.weights FILE, or name "
            "measures without features in settings.metrics"
        )
    return InceptionFeatures() if modality == "image" else LogMelFeatures()


def _of_pictures(modality: str, against: Against, settings: EvaluationSettings) -> tuple[str, ...]:
    """Measures that only samples of pictures have; those of text, where there is or should be a dual encoder."""
    text = against.dual_encoder is not None or settings.required("text")
    return ("cas", *(["text"] if text else [])) if modality == "image" else ()


def _pairs(modality: str) -> tuple[str, ...]:
    """Measures of a result against the truth."""
    return SOUNDS if modality == "audio" else PICTURES


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

    write_batch(out, shape, pieces(), samples.labels, samples.class_names)
    print(f"{shape[0]} samples of {list(shape[1:])} in {out}")  # noqa: T201


def _device(device: str | None, state: PartialState) -> str:
    """Where extractors run, each process on a device of its own; checked."""
    wanted = device or (
        str(state.device) if state.num_processes > 1 else "cuda" if torch.cuda.is_available() else "cpu"
    )
    check_device(wanted)
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
