"""Classification accuracy score: a classifier that saw generated samples only, tested on real ones.

Ravuri and Vinyals 2019 (arXiv 1905.10887): a generator that misses part of the data, or labels it wrongly, teaches less than
the data do. Two equal classifiers are trained, one on the samples, one on real data, and both see the same real test images.

Shapes: M images, C classes.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from maskgen.checkpoint import load_module, write_json
from maskgen.tasks.conditions.classes import class_places, listed
from maskgen.tasks.data.identity import describe, short_hash
from maskgen.tasks.evaluation.features.classifier import Classifier, predict
from maskgen.tasks.evaluation.features.train_classifier import train_classifier
from maskgen.tasks.evaluation.metrics.base import Metric
from maskgen.tasks.evaluation.metrics.scores import accuracy, check_classes, per_class_accuracy
from maskgen.tasks.evaluation.sets.arrays import write_batch
from maskgen.tasks.evaluation.sets.base import ArraySamples, FileSamples, SampleSet
from maskgen.tasks.evaluation.sets.classes import MatchedSamples
from maskgen.tasks.evaluation.sets.labelled import LabelledSource, SampleImages, class_names
from maskgen.tasks.evaluation.settings import CasScores, EvaluationRun
from maskgen.training.run import Interrupted

_STOPPED = 75  # how `maskgen train` ends when it was told to stop

_LAUNCHER = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "ROLE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def cas_scores(samples: SampleSet, reference: SampleSet, held_out: SampleSet, run: EvaluationRun) -> CasScores:
    """Train both classifiers and test them; trainings that are finished are reused.

    Args:
        samples: generated images with the classes they were generated for.
        reference: real training images.
        held_out: real test images.
        run: see ``CasSettings``; the classifiers go into ``cas/`` below its folder. Of several processes, the first trains
            in a process of its own.

    Raises:
        ValueError: images without labels, of a single class, or of other classes or sizes than the rest.
        Interrupted: the training was stopped; the same command goes on.
    """
    settings, out, device, draws = run.settings.cas, run.out / "cas", run.device, run.settings.draws
    names = class_names(reference)
    check_labels(samples, reference, held_out)
    samples, held_out = (MatchedSamples(one, reference.class_names, reference.name) for one in (samples, held_out))
    sources = {
        what: LabelledSource(one, flip=settings.flip and what != "test")
        for what, one in (("generated", samples), ("real", reference), ("test", held_out))
    }
    _check_sizes(sources)
    said: dict[str, Any] = {}
    test = _place(held_out, out)
    for what, one in (("generated", samples), ("real", reference)):
        run.say(f"CAS: training a classifier on {len(one)} {what} images")
        # A training of other images, of either side, or with other settings is another one and has its own folder.
        made_of = describe(of=[one.digest(), one.labels, held_out.digest(), held_out.labels, len(names)], cas=settings)
        folder = out / f"{what}-{short_hash(made_of)[:8]}"
        _train(_place(one, out), test, folder, reference, run)
        network = load_module(folder, Classifier).to(device)
        said[what] = predict(network, _batches(sources["test"]), device).numpy()
        if what == "real":
            said["agreement"] = predict(network, _batches(sources["generated"]), device).numpy()
    labels = sources["test"].labels.numpy()
    made, real = (accuracy(said[what], labels, draws=draws) for what in ("generated", "real"))
    metrics = {
        "cas": made,
        "cas_real": real,
        "cas_over_real": _ratio(said["generated"] == labels, said["real"] == labels, draws),
        "label_agreement": accuracy(said["agreement"], sources["generated"].labels.numpy(), draws=draws),
    }
    shares = (per_class_accuracy(said[what], labels, len(names)) for what in ("generated", "real"))
    return CasScores(metrics=metrics, class_names=names, per_class=next(shares), per_class_real=next(shares))


@dataclass(frozen=True)
class Labels:
    """What is known of the classes of samples before there are any.

    Attributes:
        name: of the samples.
        labels: class of each; None if nobody knows.
        class_names: one a class, or none.
    """

    name: str
    labels: list[int] | None
    class_names: tuple[str, ...] = ()


def check_labels(made: Labels | SampleSet, reference: SampleSet | None, held_out: SampleSet | None) -> str:
    """Refuse what no such score can be taken of, as far as labels show it; names classes that no samples were made of.

    Args:
        made: the samples, or what will be known of them.
        reference: real training data.
        held_out: real test data.

    Raises:
        ValueError: a side or its labels are missing, have a single class, or classes that the reference lacks.
    """
    sides = {"samples": made, "reference": reference, "held_out": held_out}
    missing = [name for name, side in sides.items() if side is None or not side.labels]
    if missing or reference is None:
        raise ValueError(
            "metrics: cas needs labelled samples, labelled real data and labelled held-out data; got no labels or nothing "
            f"for {', '.join(missing)}"
        )
    classes = len(class_names(reference))
    lost: set[int] = set()
    for side in sides.values():
        assert side is not None
        assert side.labels is not None
        check_classes(np.asarray(side.labels), f"{side.name}: its images")
        places = class_places(side.labels, side.class_names, reference.class_names, side.name, reference.name)
        if max(places.values()) >= classes:
            raise ValueError(
                f"CAS: {side.name} has the class {max(places.values())}, but {reference.name} only 0 to {classes - 1}"
            )
        if side is made:
            lost = set(reference.labels or ()) - set(places.values())
    return listed([class_names(reference)[number] for number in sorted(lost)])


def _check_sizes(sources: dict[str, LabelledSource]) -> None:
    real = sources["real"]
    for source in sources.values():
        if source.size != real.size:
            raise ValueError(
                f"CAS: {source.samples.name} has images of {source.size} pixels, but {real.samples.name} of {real.size}; "
                "resize one of them"
            )


def _batches(source: LabelledSource) -> Iterator[Tensor]:
    plain = LabelledSource(source.samples)  # never mirrored
    return (
        plain.batch(range(first, min(first + 256, len(plain))), range(256))["images"]
        for first in range(0, len(plain), 256)
    )


def _ratio(made: Any, real: Any, draws: int) -> Metric:
    """Of two accuracies on the same test images, which are drawn together."""
    generator = np.random.default_rng(0)
    count = len(made)
    found = []
    for _ in range(draws):
        chosen = generator.integers(count, size=count)
        found.append(made[chosen].mean() / max(1 / count, real[chosen].mean()))
    low, high = np.quantile(found, [0.025, 0.975])
    return Metric(
        value=float(made.mean() / max(1 / count, real.mean())),
        count=count,
        low=float(low),
        high=float(high),
        interval=f"95 % of {draws} bootstrap draws of the test images, the same for both",
    )


def _place(samples: SampleSet, out: Path) -> Path:
    """Where the images are on the disk; those of a data set are written there."""
    whole = samples.whole if isinstance(samples, MatchedSamples) else samples
    if isinstance(whole, FileSamples | ArraySamples):
        return Path(whole.name)
    path = out / f"data-{samples.digest()[:8]}.npz"
    if not path.is_file():
        source = LabelledSource(samples)
        pieces = (
            rearrange((batch * 255).round().to(torch.uint8), "b c h w -> b h w c").numpy() for batch in _batches(source)
        )
        write_batch(path, (len(source), *source.size, 3), pieces, samples.labels, samples.class_names)
    return path


def _train(root: Path, test_root: Path, out: Path, reference: SampleSet, run: EvaluationRun) -> None:
    """Train here, or in a process that knows nothing of the others: the loop would wait for all of them."""
    settings = run.settings.cas
    chosen: dict[str, Any] = {"root": str(root), "test_root": str(test_root), "flip": settings.flip}
    chosen |= {"num_classes": len(class_names(reference)), "names": reference.class_names}
    if run.team.count == 1:
        data = SampleImages(**chosen)
        train_classifier(data=data, out=out, classifier=settings.classifier, settings=settings.settings, say=run.say)
        return
    config = {
        "data": {"class_path": "maskgen.tasks.evaluation.sets.labelled.SampleImages", "init_args": chosen},
        "classifier": dataclasses.asdict(settings.classifier),
        "settings": dataclasses.asdict(settings.settings),
        "out": str(out),
    }
    path = out.parent / f"{out.name}.yaml"
    write_json(path, config)  # which is YAML, too
    environment = {
        name: value for name, value in os.environ.items() if name not in _LAUNCHER and "TORCHELASTIC" not in name
    }
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # sums over other numbers of threads round otherwise
    command = [sys.executable, "-m", "maskgen", "train", "classifier", f"--config={path}"]
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode == _STOPPED:
        raise Interrupted("CAS: stopped and saved; run the same command again to go on")
    if done.returncode:
        raise ValueError(f"CAS: training on {root} failed with status {done.returncode}; what it said stands above")
