"""What samples are measured against: statistics of real data, computed once and kept.

A reference depends on the data, the extractor and the resize rule, and on nothing else; its file is named by a hash of the
three. ``.npz`` files of others are read as well: ADM's batches (``arr_0``), and statistics (``mu``, ``sigma``) as ADM,
pytorch-fid and clean-fid write them.

Shapes: R real samples, F features.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from maskgen.checkpoint import atomic_file
from maskgen.tasks.evaluation.features.base import FeatureExtractor
from maskgen.tasks.evaluation.features.extraction import Extraction, extract, tolerance
from maskgen.tasks.evaluation.features.protocols import Resize
from maskgen.tasks.evaluation.metrics.frechet import Gaussian
from maskgen.tasks.evaluation.sets.arrays import array_names, open_array, write_arrays
from maskgen.tasks.evaluation.sets.base import SampleSet

# 1: before clean-fid's clipping, and without the frames of clips; 2: before odd pictures, sounds and clips were read right.
_FORMAT = "maskgen-reference-3"

_INCEPTION = "inception-v3-2015-12-05-"  # what statistics that name no extractor were made by


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Real data as samples are compared with it.

    Attributes:
        name: of the data.
        data: hash of the data; "" where only statistics are known.
        extractor: identity of the extractor.
        resize: rule of the protocol; "" if nobody wrote it down.
        gaussian: of all real samples; its count is 0 if nobody wrote it down.
        features: float32 ``[R, F]``; None where only statistics are known.
        owners: long ``[R]``, number of the sample each vector is of.
        logits: float32 ``[R, C]`` of a classifier; else None.
        shape: of a sample; () if it is not known.
        samples: how many were read.
        skipped: why those that could not be were not, by their numbers.
    """

    name: str
    data: str
    extractor: str
    resize: str
    gaussian: Gaussian
    features: Tensor | None = None
    owners: Tensor | None = None
    logits: Tensor | None = None
    shape: tuple[int, ...] = ()
    samples: int = 0
    skipped: dict[int, str] = field(default_factory=dict)


def cached_reference(samples: SampleSet, how: Extraction, *, cache: Path, name: str = "reference") -> Reference | None:
    """The reference of some data, read from the cache or computed and written there.

    Args:
        samples: the real data.
        how: see ``extract``.
        cache: folder of references; those that were computed stay there.
        name: of this extraction, used once.

    Returns:
        The reference on the first process, None on the others.

    Raises:
        ValueError: what ``extract`` refuses, or a damaged file in the cache.
    """
    extractor, team, identity = how.extractor, how.team, how.extractor.identity()
    rule = how.resize if extractor.modality == "image" and extractor.input_size is not None else ""

    def look_up() -> dict[str, Any]:
        data = samples.digest()
        key = hashlib.sha256(json.dumps([_FORMAT, data, identity, rule, how.most]).encode()).hexdigest()[:24]
        path = cache / f"{key}.safetensors"
        return {"data": data, "path": str(path), "there": path.is_file()}

    found = team.share(f"{name}-lookup", look_up)
    path = Path(found["path"])
    if found["there"]:
        if not team.main:
            return None
        kept = _read(path)
        tolerance(samples, how.broken).check(kept.skipped.values())
        return kept
    made = extract(samples, how, name)
    if made is None:
        return None
    reference = Reference(name=samples.name, data=found["data"], extractor=identity, resize=rule, **vars(made))
    _write(path, reference)
    return reference


def is_statistics(path: Path) -> bool:
    """Whether an ``.npz`` holds statistics, with or without a batch of images beside them."""
    return path.suffix.lower() == ".npz" and {"mu", "sigma"} <= array_names(path)


def read_statistics(path: Path, extractor: FeatureExtractor, resize: Resize) -> Reference:
    """Statistics of an ``.npz``: ``mu`` [F] and ``sigma`` [F, F].

    Files of maskgen also say by which extractor and which rule they were made, and both must fit. Files of others say
    neither; they are taken for Inception's of 2,048 features.

    Args:
        path: the file.
        extractor: that samples will be measured with.
        resize: rule of the protocol.

    Raises:
        FileNotFoundError, ValueError: no such file, other arrays, another extractor or rule.
    """
    arrays = {name: open_array(path, name) for name in ("mu", "sigma", "extractor", "resize", "count", "shape", "name")}
    mu, sigma = arrays["mu"], arrays["sigma"]
    if mu is None or sigma is None or mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{path}: got no statistics, expected mu [F] and sigma [F, F]")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{path}: got statistics that are not finite; compute them anew from the data")
    told = {name: "" if (found := arrays[name]) is None else str(found) for name in ("extractor", "resize", "name")}
    identity = extractor.identity()
    made_by = told["extractor"] or f"{_INCEPTION}... of {len(mu)} features"
    fits = told["extractor"] == identity if told["extractor"] else identity.startswith(_INCEPTION) and len(mu) == 2048
    if not fits:
        raise ValueError(
            f"{path}: statistics made by {made_by}, but the samples are measured with {identity}; compute the reference "
            "anew from the data, or measure with the same extractor"
        )
    if told["resize"] and told["resize"] != resize:
        raise ValueError(
            f"{path}: statistics of images resized by {told['resize']}, but the protocol resizes by {resize}; choose the "
            "protocol they were made with"
        )
    count, shape = arrays["count"], arrays["shape"]
    gaussian = Gaussian(
        mean=torch.from_numpy(np.array(mu, dtype=np.float64)),
        covariance=torch.from_numpy(np.array(sigma, dtype=np.float64)),
        count=0 if count is None else int(count),
    )
    return Reference(
        name=told["name"] or str(path),
        data="",
        extractor=told["extractor"],
        resize=told["resize"],
        gaussian=gaussian,
        shape=() if shape is None else tuple(int(size) for size in shape),
        samples=gaussian.count,
    )


def read_count(path: Path) -> int:
    """How many samples the statistics of an ``.npz`` are of; 0 if it does not say."""
    count = open_array(path, "count")
    return 0 if count is None else int(count)


def write_statistics(path: Path, reference: Reference) -> None:
    """Write ``mu`` and ``sigma`` as others read them, and beside them by what they were made."""
    told = {"extractor": reference.extractor, "resize": reference.resize, "name": reference.name}
    write_arrays(
        path,
        {
            "mu": reference.gaussian.mean.numpy(),
            "sigma": reference.gaussian.covariance.numpy(),
            "count": np.asarray(reference.gaussian.count),
            "shape": np.asarray(reference.shape, dtype=np.int64),
            **{name: np.asarray(value) for name, value in told.items() if value},
        },
    )


def check_size(shape: tuple[int, ...], name: str, real: tuple[int, ...], reference: str) -> None:
    """Refuse samples of another size than the real ones: blur of resizing would be measured, not the model.

    Args:
        shape: of a sample; () if it is not known.
        name: of the samples.
        real: shape of a real one; () if it is not known.
        reference: name of the real ones.

    Raises:
        ValueError: naming both sizes.
    """
    if shape and real and shape != real:
        raise ValueError(
            f"{name}: samples of size {list(shape[1:])}, but the reference {reference} has {list(real[1:])}; resize one of "
            "them, and say so where you report the number"
        )


def _write(path: Path, reference: Reference) -> None:
    assert reference.features is not None
    assert reference.owners is not None
    tensors = {
        "mean": reference.gaussian.mean,
        "covariance": reference.gaussian.covariance,
        "features": reference.features,
        "owners": reference.owners,
    }
    if reference.logits is not None:
        tensors["logits"] = reference.logits
    names = ("name", "data", "extractor", "resize", "shape", "samples", "skipped")
    told = {name: getattr(reference, name) for name in names} | {"count": reference.gaussian.count}
    told["skipped"] = sorted(reference.skipped.items())
    with atomic_file(path) as temporary:
        try:
            whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(whole, temporary, metadata={"format": _FORMAT, "told": json.dumps(told)})
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written ({error})") from None


def _read(path: Path) -> Reference:
    try:
        with safe_open(path, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
            told = json.loads((handle.metadata() or {})["told"])
        count, skipped = told.pop("count"), told.pop("skipped")
        gaussian = Gaussian(mean=tensors["mean"], covariance=tensors["covariance"], count=count)
        told["shape"] = tuple(told["shape"])
        return Reference(
            **told,
            gaussian=gaussian,
            features=tensors["features"],
            owners=tensors["owners"],
            logits=tensors.get("logits"),
            skipped={int(index): str(reason) for index, reason in skipped},
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: truncated or no reference of maskgen ({error}); delete it") from None
