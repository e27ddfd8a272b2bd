"""Feature vectors of many samples, shared by several processes.

1. Samples are read in blocks of ``batch_size`` that start at multiples of it; the processes take the blocks in turn;
2. the rule of the protocol brings images to the extractor's size, sound to its sample rate;
3. a sample that cannot be read is counted and left out; too many are an error;
4. all processes' parts come together in the order of the samples, so numbers do not depend on how many there were.

Shapes: M feature vectors, F features, C classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from maskgen.precision import fast_matmul
from maskgen.tasks.data.broken import Broken, Tolerance
from maskgen.tasks.evaluation.features.base import FeatureBatch, FeatureExtractor
from maskgen.tasks.evaluation.features.protocols import Resize, resize_images
from maskgen.tasks.evaluation.metrics.frechet import Gaussian, Moments, check_features
from maskgen.tasks.evaluation.sets.base import SampleSet
from maskgen.tasks.evaluation.sets.processes import Part, Processes
from maskgen.tasks.media.audio.files import resample, to_channels

_QUIET = 2  # seconds before a progress bar shows: a mistake that is found at once is one line


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How features are made of samples.

    Attributes:
        extractor: what makes them.
        resize: rule of the protocol.
        team: the processes.
        device: where the extractor runs.
        batch_size: samples at a time.
        most: vectors that are kept; the Gaussian is of all.
        broken: share of samples that may be unreadable.
    """

    extractor: FeatureExtractor
    resize: Resize
    team: Processes
    device: torch.device | str = "cpu"
    batch_size: int = 64
    most: int = 100_000
    broken: float = 0.01


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Features of a set of samples.

    Attributes:
        features: float32 ``[M, F]``, of all samples or, of very many, of evenly spaced ones.
        owners: long ``[M]``, number of the sample that each vector is of.
        logits: float32 ``[M, C]`` of a classifier; else None.
        gaussian: of all samples.
        shape: of a sample: (3, H, W), (3, T, H, W), or () for sounds, which may differ in length.
        samples: how many were read.
        skipped: why those that could not be were not, by their numbers.
    """

    features: Tensor
    owners: Tensor
    logits: Tensor | None
    gaussian: Gaussian
    shape: tuple[int, ...]
    samples: int
    skipped: dict[int, str]


def extract(samples: SampleSet, how: Extraction, name: str) -> FeatureSet | None:
    """Features of all samples.

    Args:
        samples: of the extractor's modality.
        how: extractor, rule and processes.
        name: of this extraction, used once.

    Returns:
        The features on the first process, None on the others.

    Raises:
        ValueError: another modality; samples of different sizes; too many that cannot be read; fewer than two that can.
    """
    extractor, team = how.extractor, how.team
    if samples.modality != extractor.modality:
        raise ValueError(
            f"features: got {extractor.name} for {extractor.modality}, but {samples.name} holds samples of "
            f"{samples.modality}"
        )
    extractor.to(how.device)
    reader, blocks = _Reader(samples, how), list(team.blocks(len(samples), how.batch_size))
    with (
        fast_matmul(how.device),
        tqdm(total=sum(map(len, blocks)), desc=name, disable=not team.main, leave=False, delay=_QUIET) as bar,
    ):
        for block in blocks:
            reader.read(block)
            bar.update(len(block))
    parts = team.gather(name, reader.tensors(), reader.told())
    return _join(parts, samples, how.broken) if parts else None


class _Reader:
    """One process's part."""

    def __init__(self, samples: SampleSet, how: Extraction) -> None:
        self.samples, self.how, self.extractor = samples, how, how.extractor
        self.moments: Moments | None = None  # of what is not kept
        self.found: list[tuple[Tensor, Tensor, Tensor | None]] = []  # features, owners, logits
        self.shape: tuple[int, ...] | None = None
        self.first = -1
        self.skipped: dict[int, str] = {}
        self.count = 0

    def read(self, block: range) -> None:
        """Read, embed and keep one block."""
        good: list[tuple[int, Tensor]] = []
        for index, sample in zip(block, self.samples.read(block.start, block.stop), strict=True):
            if isinstance(sample, Broken):
                self.skipped[index] = sample.reason
                tolerance(self.samples, self.how.broken).check(self.skipped.values(), at_least=True)
            else:
                self._check_shape(index, sample)
                good.append((index, sample))
        if not good:
            return
        self.count += len(good)
        batch, owners = self._embed(good)
        features = batch.features.float().cpu()
        check_features(features)
        logits = None if batch.logits is None else batch.logits.float().cpu()
        if len(self.samples) > self.how.most:
            self.moments = self.moments or Moments(features.shape[1])
            self.moments.update(features)
            kept = self._kept(owners)
            features, owners, logits = features[kept], owners[kept], None if logits is None else logits[kept]
        self.found.append((features, owners, logits))

    def tensors(self) -> dict[str, Tensor]:
        """What ``_join`` needs of this process."""
        kept = {}
        if self.found:
            kept = {"features": torch.cat([part[0] for part in self.found])}
            kept["owners"] = torch.cat([part[1] for part in self.found])
            if self.found[0][2] is not None:
                kept["logits"] = torch.cat([part[2] for part in self.found if part[2] is not None])
        return kept | ({} if self.moments is None else self.moments.state())

    def told(self) -> Any:
        """What ``_join`` needs beside the tensors."""
        return {"shape": self.shape, "first": self.first, "skipped": sorted(self.skipped.items()), "count": self.count}

    def _embed(self, good: list[tuple[int, Tensor]]) -> tuple[FeatureBatch, Tensor]:
        """Features, and whose they are; sounds one by one, for they differ in length, anything else together."""
        numbers = torch.tensor([index for index, _ in good])
        if self.samples.modality == "audio":
            each = [self.extractor.embed(self._sound(index, sample)).features for index, sample in good]
            rows = torch.tensor([len(features) for features in each])
            return FeatureBatch(torch.cat(each)), numbers.repeat_interleave(rows)
        if len({sample.shape for _, sample in good}) > 1:  # see ``FeatureExtractor.any_size``
            each = [self._embed([one])[0].features for one in good]
            return FeatureBatch(torch.cat(each)), numbers
        signal = torch.stack([sample for _, sample in good]).to(self.how.device)
        if self.samples.modality == "image":
            return self.extractor.embed(resize_images(signal, self.extractor.input_size, self.how.resize)), numbers
        return self.extractor.embed(signal.float() / 255), numbers

    def _sound(self, index: int, sample: Tensor) -> Tensor:
        """One channel at the extractor's rate, ``[1, 1, S]``."""
        rate = self.extractor.sample_rate
        assert rate is not None, "an extractor for sound has a sample rate"
        return resample(to_channels(sample.float(), 1), self.samples.sample_rate(index), rate)[None].to(self.how.device)

    def _check_shape(self, index: int, sample: Tensor) -> None:
        if self.samples.modality == "audio" or self.extractor.any_size:
            return
        shape = tuple(sample.shape)
        if self.shape is None:
            self.shape, self.first = shape, index
        if shape != self.shape:
            raise mixed_sizes(self.samples, self.first, self.shape, index, shape)

    def _kept(self, owners: Tensor) -> Tensor:
        """Evenly spaced samples: those at which floor(i most / M) moves on."""
        total = len(self.samples)
        return (owners * self.how.most // total) != ((owners - 1) * self.how.most // total)


def _join(parts: list[Part], samples: SampleSet, broken: float) -> FeatureSet:
    """The parts of all processes as one set, in the order of the samples."""
    tensors, told = [part for part, _ in parts], [said for _, said in parts]
    skipped = dict(sorted((int(index), str(reason)) for said in told for index, reason in said["skipped"]))
    tolerance(samples, broken).check(skipped.values())
    seen = sorted((said["first"], tuple(said["shape"])) for said in told if said["shape"] is not None)
    for first, shape in seen[1:]:
        if shape != seen[0][1]:
            raise mixed_sizes(samples, *seen[0], first, shape)
    filled = [part for part in tensors if "features" in part]
    if not filled:
        raise ValueError(f"{samples.name}: got no samples that can be read")
    order = torch.cat([part["owners"] for part in filled]).argsort(stable=True)
    joined = {
        key: torch.cat([part[key] for part in filled])[order]
        for key in ("features", "owners", "logits")
        if key in filled[0]
    }
    moments = Moments(joined["features"].shape[1])
    whole = [Moments.from_state(part) for part in tensors if "scatter" in part]
    if whole:
        for part in whole:
            moments.merge(part)
    else:
        moments.update(joined["features"])
    return FeatureSet(
        features=joined["features"],
        owners=joined["owners"],
        logits=joined.get("logits"),
        gaussian=moments.gaussian(),
        shape=seen[0][1] if seen else (),
        samples=sum(said["count"] for said in told),
        skipped=skipped,
    )


def mixed_sizes(
    samples: SampleSet, first: int, shape: tuple[int, ...], other: int, found: tuple[int, ...]
) -> ValueError:
    """What is said of samples of different sizes: number and shape of two of them."""
    return ValueError(
        f"{samples.name}: got samples of different sizes: {list(shape[1:])} (number {first}) and {list(found[1:])} (number "
        f"{other}); expected one size, resize them first"
    )


def tolerance(samples: SampleSet, broken: float) -> Tolerance:
    """How many samples of a set may be unreadable.

    Args:
        samples: the set.
        broken: share of it.
    """
    return Tolerance(
        place=samples.name, total=len(samples), share=broken, fault="samples cannot be read", option="settings.broken"
    )
