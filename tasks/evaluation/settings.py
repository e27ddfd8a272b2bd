"""What ``maskgen evaluate`` measures, and what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from maskgen.tasks.evaluation.features.base import FeatureExtractor, JointFeatures
from maskgen.tasks.evaluation.features.classifier import ClassifierConfig
from maskgen.tasks.evaluation.features.extraction import Extraction
from maskgen.tasks.evaluation.features.protocols import Protocol
from maskgen.tasks.evaluation.features.train_classifier import CLASSIFIER_SETTINGS
from maskgen.tasks.evaluation.made.gaps import GapSettings
from maskgen.tasks.evaluation.metrics.base import Metric
from maskgen.tasks.evaluation.metrics.manifold import Overlap
from maskgen.tasks.evaluation.metrics.scores import MaskedScore
from maskgen.tasks.evaluation.sets.processes import Processes
from maskgen.tasks.training.runs import Say
from maskgen.tokenizers.training.losses.perceptual import PerceptualNet
from maskgen.training.settings import TrainSettings

METRICS = {
    "fid": "Frechet distance (FID, FVD or FAD) and its limit for many samples",
    "kid": "kernel distance",
    "is": "Inception score",
    "prdc": "precision, recall, density, coverage",
    "cas": "classification accuracy score",
    "text": "of models of text: CLIP score and R-precision",
    "masked": "loss and accuracy of the model on masked tokens",
    "psnr": "PSNR of reconstructions and of clips that a task completed",
    "ssim": "SSIM of reconstructions and of completed clips",
    "lpips": "LPIPS of reconstructions and of completed clips",
    "codes": "usage and perplexity of the codebook",
    "log_mel": "log-mel distance of reconstructed sound and of filled gaps",
    "stft": "multi-resolution STFT distance of reconstructed sound and of filled gaps",
    "si_sdr": "signal-to-distortion ratio of reconstructed sound and of filled gaps",
}
"""Names of measures, as ``EvaluationSettings.metrics`` takes them."""

_CLIP = 16  # frames of published FVD

_PUBLISHED = 50_000  # samples of published FID

CAPTIONED = 30_000
"""Samples of the zero-shot FID of text to image: so many captions of COCO, one a picture, one sample each."""

OF_FEATURES = ("fid", "kid", "is", "prdc")
"""Those that need an extractor."""


@dataclass(frozen=True, kw_only=True)
class CasSettings:
    """How both classifiers are made.

    Attributes:
        classifier: their sizes.
        settings: how long they are trained.
        flip: whether training images are mirrored at random; not for digits and letters.
    """

    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    settings: TrainSettings = CLASSIFIER_SETTINGS
    flip: bool = False


@dataclass(frozen=True, kw_only=True)
class CasScores:
    """What the two classifiers say.

    Attributes:
        metrics: ``cas``: accuracy of the one trained on samples; ``cas_real``: of the one trained on real data;
            ``cas_over_real``: their ratio; ``label_agreement``: share of samples that the real one
            reads as the class they were generated for.
        class_names: one a class.
        per_class: accuracy of the first for each class; None for a class without test images.
        per_class_real: of the second.
    """

    metrics: dict[str, Metric]
    class_names: tuple[str, ...]
    per_class: list[float | None]
    per_class_real: list[float | None]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured, on how many samples.

    Attributes:
        metrics: names of ``METRICS``; None for all that can be measured. What is named and cannot be measured is an error.
        count: samples that a model generates, by default as many as the reference holds; of a tokenizer or a task, so many
            real ones, drawn over all there are. At most 50,000 if left out; of a model of text 30,000.
        seed: of the first sample; each further one takes the next. Also of masks.
        batch_size: samples at a time.
        frames: of video, the first so many; published FVD is of 16.
        paste: whether what a task of video gives comes back as it was, and not in the model's version of it; published
            numbers are of the latter (replace_condition_pixels of the official code).
        gap: which gap of held-out sounds is filled, for the task infill.
        allow_few: measure Frechet distances even of no more samples than there are features (published FVD of 256 clips).
        broken: share of the files that may be unreadable; and of those with captions, that may have none.
        draws: of bootstrap intervals.
        ratios: mask ratios at which the model's own loss is measured.
        points: of the extrapolation to infinitely many samples.
        shown: samples on the page.
        lpips: backbone of LPIPS.
        cas: how the classifiers of CAS are made.
    """

    metrics: tuple[str, ...] | None = None
    count: int | None = None
    seed: int = 0
    batch_size: int = 64
    frames: int = _CLIP
    paste: bool = False
    gap: GapSettings = field(default_factory=GapSettings)
    allow_few: bool = False
    broken: float = 0.01
    draws: int = 1000
    ratios: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    points: int = 10
    shown: int = 40
    lpips: PerceptualNet = "alex"
    cas: CasSettings = field(default_factory=CasSettings)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.metrics or ()) - METRICS.keys())
        if unknown:
            raise ValueError(f"metrics: got {', '.join(unknown)}, expected some of {', '.join(METRICS)}")
        for name, least in (("count", 2), ("batch_size", 1), ("frames", 1), ("draws", 1), ("points", 3), ("seed", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name}: got {value}, expected at least {least}")
        if not 0 <= self.broken < 1 or self.shown < 0:
            raise ValueError(
                f"got broken {self.broken}, shown {self.shown}; expected a share below 1 and 0 or more samples"
            )

    @property
    def most(self) -> int:
        """Samples that are made or taken at most."""
        return _PUBLISHED if self.count is None else self.count

    def enabled(self, name: str) -> bool:
        """Whether a measure is to be taken, if it can be."""
        return self.metrics is None or name in self.metrics

    def required(self, name: str) -> bool:
        """Whether a measure was named, so that leaving it out would be an error."""
        return self.metrics is not None and name in self.metrics

    def check_measures(self, what: str, able: Sequence[str]) -> None:
        """Refuse measures that were named and mean nothing here.

        Args:
            what: is measured.
            able: names of the measures it has.

        Raises:
            ValueError: naming the others.
        """
        foreign = [name for name in self.metrics or () if name not in able]
        if foreign:
            raise ValueError(
                f"metrics: got {', '.join(foreign)}, but {what} is measured by {', '.join(able)}; leave the rest out"
            )

    @property
    def needs_features(self) -> bool:
        """Whether anything that is enabled is a number of features."""
        return any(map(self.enabled, OF_FEATURES))

    @property
    def needs_real(self) -> bool:
        """Whether anything that is enabled compares samples with a set of real ones."""
        return self.needs_features or self.enabled("cas")

    @property
    def needs_samples(self) -> bool:
        """Whether anything that is enabled of a model needs samples of it."""
        return any(self.enabled(name) for name in METRICS if name not in ("masked", "codes"))


@dataclass(frozen=True, kw_only=True)
class EvaluationRun:
    """What an evaluation is carried out with.

    Attributes:
        settings: what is measured, on how many samples.
        protocol: how images are resized, and the settings of each measure.
        extractor: what makes features; None where no number of features is enabled.
        dual_encoder: what compares samples with their captions, if anything does.
        team: the processes.
        out: folder of the report; what is made goes below it.
        cache: folder of references.
        device: where the extractor runs, and classifiers are tested.
        say: told what happens.
    """

    settings: EvaluationSettings
    protocol: Protocol
    extractor: FeatureExtractor | None
    team: Processes
    out: Path
    cache: Path
    device: torch.device | str = "cpu"
    say: Say = print
    dual_encoder: JointFeatures | None = None

    @property
    def extraction(self) -> Extraction:
        """How this run makes features of samples."""
        assert self.extractor is not None, "a number of features is enabled"
        return self.extracting(self.extractor)

    def extracting(self, extractor: FeatureExtractor) -> Extraction:
        """How this run makes features of samples by an extractor that may be another than its own."""
        return Extraction(
            extractor=extractor,
            resize=self.protocol.resize,
            team=self.team,
            device=self.device,
            batch_size=self.settings.batch_size,
            most=max(self.protocol.most, self.protocol.count),
            broken=self.settings.broken,
        )

    def measuring(self, **settings: Any) -> EvaluationRun:
        """The same run with other settings, by their names."""
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, **settings))


@dataclass(kw_only=True)
class Evaluation:
    """Everything a report says.

    Attributes:
        subject: what was measured: its kind, name and how it was made.
        metrics: the numbers by name.
        floor: the same of held-out real data against the same reference.
        curve: precision, recall, density and coverage of samples by the number of neighbours.
        floor_curve: the same of held-out data.
        masked: loss and accuracy on masked tokens.
        cas: what the classifiers of CAS said, if they were trained.
        captions: each sample that was compared with its caption: ``sample`` (its number), ``caption``, ``cosine``, and
            ``nearest``, whether no other caption was nearer.
        protocol: how it was measured.
        extractor: identity of the extractor.
        dual_encoder: identity of what compared samples with their captions.
        reference: what it was measured against.
        counts: samples and features of each side.
        warnings: what makes numbers incomparable.
        skipped: unreadable samples, by side.
        shown: numbers of the samples on the page, and of the real one nearest to each.
        seconds: by stage.
    """

    subject: dict[str, Any]
    protocol: Protocol
    metrics: dict[str, Metric] = field(default_factory=dict)
    floor: dict[str, Metric] = field(default_factory=dict)
    curve: list[Overlap] = field(default_factory=list)
    floor_curve: list[Overlap] = field(default_factory=list)
    masked: list[MaskedScore] = field(default_factory=list)
    cas: CasScores | None = None
    captions: list[dict[str, Any]] = field(default_factory=list)
    extractor: str = ""
    dual_encoder: str = ""
    reference: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    shown: list[tuple[int, int | None]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
