"""Everything that features say about samples, and what makes the numbers incomparable with others.

Shapes: M samples, R real ones, F features.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskgen.checkpoint import settings_from
from maskgen.tasks.evaluation.features.extraction import FeatureSet, extract
from maskgen.tasks.evaluation.features.protocols import Protocol
from maskgen.tasks.evaluation.features.references import Reference, cached_reference
from maskgen.tasks.evaluation.metrics.base import Metric, bootstrap
from maskgen.tasks.evaluation.metrics.frechet import frechet_distance, frechet_infinity, kernel_distance
from maskgen.tasks.evaluation.metrics.manifold import Overlap, nearest, overlap
from maskgen.tasks.evaluation.metrics.retrieval import cosines, nearest_captions
from maskgen.tasks.evaluation.metrics.scores import inception_score
from maskgen.tasks.evaluation.sets.base import SampleSet, Subset
from maskgen.tasks.evaluation.sets.captions import read_all_captions
from maskgen.tasks.evaluation.settings import EvaluationRun

FRECHET = {"image": "fid", "video": "fvd", "audio": "fad"}
"""What the Frechet distance is called, by modality."""

_KERNEL = {"image": "kid", "video": "kvd", "audio": "kad"}

_COMPARABLE = 10_000  # samples below which an FID is mostly its own bias

_CURVE = (1, 2, 3, 5, 8, 10)  # neighbours of the precision-recall picture

_DENSITY = 5  # neighbours of density and coverage

_PUBLISHED = {"image": ("inception-v3-2015-12-05-",), "video": ("i3d-kinetics-400",), "audio": ()}


def feature_metrics(
    found: FeatureSet, reference: Reference, run: EvaluationRun
) -> tuple[dict[str, Metric], list[Overlap]]:
    """Distances and scores of samples against a reference.

    Args:
        found: features of the samples.
        reference: the real side.
        run: extractor that made both, settings of each measure, and which are enabled.

    Returns:
        The numbers by name, and precision, recall, density and coverage by the number of neighbours.

    Raises:
        ValueError: a measure that was named and cannot be taken, or too few samples for a covariance.
    """
    extractor, protocol, settings = run.extraction.extractor, run.protocol, run.settings
    metrics: dict[str, Metric] = {}
    curve: list[Overlap] = []
    if settings.enabled("fid"):
        metrics |= _frechet(found, reference, run)
    if reference.features is None:
        for name in ("kid", "prdc"):
            if settings.required(name):
                raise ValueError(
                    f"metrics: {name} needs features of real data, but {reference.name} has statistics only"
                )
    else:
        if settings.enabled("kid"):
            metrics[_KERNEL[extractor.modality]] = kernel_distance(
                found.features,
                reference.features,
                subsets=protocol.kid_subsets,
                size=protocol.kid_size,
                seed=protocol.kid_seed,
            )
        fewest = min(len(found.features), len(reference.features))
        if settings.enabled("prdc") and (settings.required("prdc") or fewest > max(protocol.neighbours, _DENSITY)):
            curve = _overlap(found.features, reference.features, protocol)
            needed = {protocol.neighbours, _DENSITY}
            by_k = {one.k: one.metrics(draws=settings.draws) for one in curve if one.k in needed}
            metrics |= {name: by_k[protocol.neighbours][name] for name in ("precision", "recall")}
            metrics |= {name: by_k[_DENSITY][name] for name in ("density", "coverage")}
    if settings.enabled("is") and found.logits is not None:
        metrics["inception_score"] = inception_score(
            found.logits,
            splits=min(protocol.splits, len(found.logits)),
            split_size=protocol.split_size,
            shuffle_seed=protocol.shuffle_seed,
        )
    elif settings.required("is"):
        raise ValueError(f"metrics: is needs a classifier, but {extractor.name} gives features only; leave it out")
    return metrics, curve


def check_enough(count: int, reference: Reference, run: EvaluationRun) -> None:
    """Refuse a Frechet distance of fewer vectors than a covariance needs, unless ``allow_few`` is set.

    Args:
        count: vectors of the samples.
        reference: the real side.
        run: see ``feature_metrics``.

    Raises:
        ValueError: not more vectors than features on a side.
    """
    settings = run.settings
    width, name = reference.gaussian.width, FRECHET[run.extraction.extractor.modality]
    fewest = min(number for number in (count, reference.gaussian.count) if number)
    if settings.enabled("fid") and fewest <= width and not settings.allow_few:
        raise ValueError(
            f"{name}: got {fewest} feature vectors of {width} numbers, whose covariance is singular; expected {width + 1} "
            "or more on both sides. Measure more samples, leave fid out of settings.metrics, or set settings.allow_few if "
            "the protocol you compare with did so, too"
        )


def _frechet(found: FeatureSet, reference: Reference, run: EvaluationRun) -> dict[str, Metric]:
    count, width, points = found.gaussian.count, found.gaussian.width, run.settings.points
    name = FRECHET[run.extraction.extractor.modality]
    check_enough(count, reference, run)
    value = Metric(
        value=frechet_distance(found.gaussian, reference.gaussian), count=count, note=f"{width} features, float64"
    )
    # Half of the samples must still be more than the features, else the bias is not linear.
    if count < max(2 * points, 2 * (width + 1)):
        return {name: value}
    limit = frechet_infinity(found.features, reference.gaussian, points=points)
    return {name: value, f"{name}_infinity": limit}


def floor_metrics(
    floor: Reference, reference: Reference, run: EvaluationRun
) -> tuple[dict[str, Metric], list[Overlap]]:
    """The same numbers of held-out real data: what no generator can be expected to fall below, at that number of samples.

    Args:
        floor: features of the held-out data.
        reference: see ``feature_metrics``.
        run: see ``feature_metrics``; what held-out data are too few for is left out.
    """
    assert floor.features is not None, "it was computed"
    protocol, settings = run.protocol, run.settings
    count, width = floor.gaussian.count, floor.gaussian.width
    names = [name for name in ("fid", "kid", "prdc", "is") if settings.enabled(name)]
    fewest = 0 if reference.features is None else min(len(floor.features), len(reference.features))
    small = {
        "fid": count <= width and not settings.allow_few,
        "kid": fewest < 2,
        "prdc": fewest <= max(protocol.neighbours, _DENSITY),
        "is": floor.logits is None,
    }
    kept = tuple(name for name in names if not small[name])
    return feature_metrics(settings_from(floor, FeatureSet), reference, run.measuring(metrics=kept))


@dataclass(frozen=True)
class CaptionScores:
    """What a dual encoder says of samples and their captions.

    Attributes:
        metrics: by the dual encoder's names.
        rows: see ``Evaluation.captions``.
        warnings: captions that are missing, or longer than the dual encoder's window.
    """

    metrics: dict[str, Metric]
    rows: list[dict[str, Any]]
    warnings: list[str]


def caption_scores(samples: SampleSet, run: EvaluationRun, name: str, *, keep: bool = False) -> CaptionScores | None:
    """Mean cosine of samples and their captions, and how often the own caption is the nearest of many.

    Args:
        samples: with captions.
        run: with a dual encoder.
        name: of the extraction, used once.
        keep: whether the samples' features stay in the run's cache, as those of real ones do.

    Returns:
        The scores on the first process, None on the others.

    Raises:
        ValueError: too many samples without a caption; see ``extract``.
    """
    dual_encoder, told = run.dual_encoder, read_all_captions(samples, run.settings.broken)
    assert dual_encoder is not None, "the text measures are enabled"
    good, how = Subset(samples, told.numbers) if told.missing else samples, run.extracting(dual_encoder)
    found = cached_reference(good, how, cache=run.cache, name=name) if keep else extract(good, how, name)
    if found is None or found.features is None or found.owners is None:  # not the first process
        return None
    owners, draws, warnings = found.owners.tolist(), run.settings.draws, told.warning(samples.name)
    captions = [told.captions[owner] for owner in owners]
    different = list(dict.fromkeys(captions))
    if long := dual_encoder.cut(different):
        warnings.append(f"{dual_encoder.name}: {long} of {len(different)} captions are longer than its window; cut")
    place = {caption: row for row, caption in enumerate(different)}
    texts = dual_encoder.embed_texts(different).float().cpu()[[place[caption] for caption in captions]]
    near = cosines(found.features, texts)
    rows = [
        {"sample": told.numbers[owner], "caption": caption, "cosine": float(cosine)}
        for owner, caption, cosine in zip(owners, captions, near, strict=True)
    ]
    metrics = {dual_encoder.score: bootstrap(near, draws=draws, note=dual_encoder.name)} if dual_encoder.score else {}
    if len(different) < 2:
        warnings.append(f"{dual_encoder.precision}: left out, all captions of {samples.name} are the same")
        return CaptionScores(metrics, rows, warnings)
    right, among = nearest_captions(found.features, texts, captions)
    metrics[dual_encoder.precision] = bootstrap(
        right, draws=draws, note=f"R = {among}, chance {1 / among:.4g}; {dual_encoder.name}"
    )
    rows = [row | {"nearest": float(one)} for row, one in zip(rows, right, strict=True)]
    return CaptionScores(metrics, rows, warnings)


def nearest_shown(found: FeatureSet, reference: Reference, count: int) -> list[tuple[int, int | None]]:
    """Evenly spaced samples for the page, and the real one whose features are nearest to each.

    Args:
        found: features of the samples.
        reference: the real side.
        count: how many, at most.

    Returns:
        Number of the sample and of the real one, which is None where only statistics are known.
    """
    if count == 0:
        return []
    rows = torch.linspace(0, len(found.features) - 1, min(count, len(found.features))).round().long().unique()
    samples = found.owners[rows].tolist()
    if reference.features is None or reference.owners is None:
        return [(sample, None) for sample in samples]
    _, places = nearest(found.features[rows], reference.features)
    return list(zip(samples, reference.owners[places].tolist(), strict=True))


def warnings_of(found: FeatureSet, reference: Reference, run: EvaluationRun) -> list[str]:
    """What keeps the numbers from being compared with published ones, one line each.

    Args:
        found: features of the samples.
        reference: the real side.
        run: see ``feature_metrics``.
    """
    extractor, protocol, settings = run.extraction.extractor, run.protocol, run.settings
    said = []
    name, count, width = FRECHET[extractor.modality], found.gaussian.count, found.gaussian.width
    few = count < _COMPARABLE
    if settings.enabled("fid") and few:
        said.append(
            f"{name} of {count} samples: not comparable. With fewer than {_COMPARABLE} most of the number may be bias, "
            f"which shrinks as 1 / samples; {name}_infinity, where it is given, is the value that the bias is taken out of"
        )
    if settings.enabled("fid") and 0 < min(count, reference.gaussian.count or count) <= width:
        said.append(
            f"{name}: not more vectors than features ({width}) on a side, so a covariance is singular (allow_few)"
        )
    if extractor.modality == "image" and found.samples != protocol.count:
        said.append(
            f"protocol {protocol.name}: published numbers are of {protocol.count} samples, these of {found.samples}"
        )
    if not extractor.identity().startswith(_PUBLISHED[extractor.modality]) or not _PUBLISHED[extractor.modality]:
        said.append(
            f"features of {extractor.name}: compare with numbers on these very features only, not with published {name}"
        )
    if extractor.modality == "video" and found.shape[1] != 16:
        said.append(f"{name} of clips of {found.shape[1]} frames: published numbers are of 16")
    size = 0 if reference.features is None else min(len(found.features), len(reference.features))
    if settings.enabled("kid") and 0 < size < protocol.kid_size:
        said.append(
            f"{_KERNEL[extractor.modality]}: subsets of {size} samples, the protocol's are of {protocol.kid_size}"
        )
    if settings.enabled("prdc") and 0 < size <= max(protocol.neighbours, _DENSITY):
        said.append(f"precision, recall, density, coverage: left out, {size} samples are too few for their neighbours")
    for side, rows in (("samples", found.skipped), ("real samples", reference.skipped)):
        if rows:
            said.append(f"{len(rows)} {side} could not be read and were left out")
    return said


def _overlap(features: Tensor, reference: Tensor, protocol: Protocol) -> list[Overlap]:
    """By numbers of neighbours, those of the protocol among them; of very many samples, of evenly spaced ones."""
    sides = []
    for side in (features, reference):
        kept = torch.linspace(0, len(side) - 1, min(len(side), protocol.most)).round().long()
        sides.append(side[kept])
    ks = sorted({*_CURVE, protocol.neighbours, _DENSITY})
    most = min(map(len, sides)) - 1
    if most < max(protocol.neighbours, _DENSITY):
        raise ValueError(
            f"precision and recall: got {len(sides[0])} samples and {len(sides[1])} real ones, expected more than "
            f"{max(protocol.neighbours, _DENSITY)} on both sides; leave prdc out of settings.metrics"
        )
    return overlap(sides[0], sides[1], [k for k in ks if k <= most])
