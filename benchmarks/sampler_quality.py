"""How good every order is at every number of steps, on the handwritten digits of the demo.

``python benchmarks/sampler_quality.py --model runs/demo`` makes as many digits as there are training digits for each order
and number of steps, and prints a table of

- CAS: accuracy on real test digits of a classifier trained on generated digits only;
- label agreement: share of generated digits that a classifier trained on real ones reads as the asked class;
- Frechet: Frechet distance of 64 features, the grey pixels averaged down to 8 x 8, to the training digits;
- forwards: passes of the transformer (and of the critic) that a batch took;
- cost: FLOPs of such a loop over those of one whole pass without guidance, for one digit whose first step nobody shares.

Numbers are means over ``--sets`` sets of seeds; 360 test digits resolve an accuracy to a third of a percent. The order
``critic`` takes part if the model has one (``maskgen train critic``), ``self-critic`` if asked for. With --speed the ways to
be faster that change the samples are compared instead of the orders, each beside its exact form (``SPEED``): that table is
their price. With --json and --report the table is written, too.
"""

import argparse
import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts.measuring import machine
from parts.meters import counted

from maskgen.checkpoint import atomic_file, write_json
from maskgen.conditioning import Cond
from maskgen.data import TensorSource
from maskgen.published.loops import Decoding, decide
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.loop import SampleStep
from maskgen.sampling.selectors.named import NEEDS_CRITIC
from maskgen.sampling.settings import Sampling, Speed
from maskgen.tasks.conditions.request import Request
from maskgen.tasks.data.images.digits import Digits
from maskgen.tasks.evaluation.features.base import pixel_features
from maskgen.tasks.evaluation.metrics.frechet import Gaussian, Moments, frechet_distance
from maskgen.tasks.evaluation.metrics.scores import classifier_scores
from maskgen.tasks.pipeline import Pipeline

__all__ = ["RealDigits", "Row", "contestants", "cost_of", "main", "markdown", "measure", "report"]

SETTINGS: dict[str, dict[str, Any]] = {
    "confidence": {"select": "confidence", "choice_temperature": 4.5},
    "confidence, much noise": {"select": "confidence", "choice_temperature": 30.0},
    "random": {"select": "random"},
    "halton": {"select": "halton", "schedule": "arccos"},
    "moment": {"select": "moment", "choice_temperature": 4.5},
    "entropy, 4 nats": {"select": "entropy:4", "choice_temperature": 4.5},
    "remdm-cap": {"select": "remdm-cap"},
    "remdm-rescale": {"select": "remdm-rescale"},
    "remdm-conf": {"select": "remdm-conf"},
    "critic": {"select": "critic", "choice_temperature": 4.5},
    "self-critic": {"select": "self-critic", "choice_temperature": 4.5},
}
"""What each order is run with; everything else is the model's own setting."""

_GUIDED: dict[str, Any] = {"guidance": Guidance(scale=2.0), "select": "confidence"}
_HALTON: dict[str, Any] = {"select": "halton", "schedule": "arccos"}
SPEED: dict[str, dict[str, Any]] = {
    "confidence, exact": {"select": "confidence"},
    "confidence, reuse 2": {"select": "confidence", "speed": Speed(reuse=2)},
    "confidence, reuse 4": {"select": "confidence", "speed": Speed(reuse=4)},
    "halton, exact": _HALTON,
    "halton, reuse 2": {**_HALTON, "speed": Speed(reuse=2)},
    "halton, reuse 4": {**_HALTON, "speed": Speed(reuse=4)},
    "guided, exact": _GUIDED,
    "guided, last 60 %": {**_GUIDED, "guidance": Guidance(scale=2.0, interval=(0.4, 1.0))},
    "guided, middle 60 %": {**_GUIDED, "guidance": Guidance(scale=2.0, interval=(0.2, 0.8))},
    "guided, first 60 %": {**_GUIDED, "guidance": Guidance(scale=2.0, interval=(0.0, 0.6))},
    "bf16": {"select": "confidence", "speed": Speed(bfloat16=True)},
}
"""What costs less and changes the samples, each after what it stands against; fewer steps are the other lines of each."""

HEADINGS = ("order", "steps", "CAS", "label agreement", "Frechet", "forwards", "cost")


@dataclass(frozen=True)
class Row:
    """One line of the table: means over the sets."""

    order: str
    steps: int | None
    cas: float
    label_agreement: float
    frechet: float
    forwards: int | None
    cost: float | None = None
    sampling: dict[str, Any] | None = None


class RealDigits:
    """The real digits, and what generated ones are compared with.

    Args:
        train: real digits, whose labels are those that are generated.
        test: real digits that classifiers are tested on.
    """

    def __init__(self, train: TensorSource, test: TensorSource) -> None:
        self.images, self.labels = train.tensors["images"], train.tensors["labels"]
        self.train = (pixel_features(train.tensors["images"]), self.labels.numpy())
        self.test = (pixel_features(test.tensors["images"]), test.tensors["labels"].numpy())
        self._real = _gaussian(self.train[0])

    def row(self, order: str, images: Sequence[torch.Tensor], **more: Any) -> Row:
        """Scores of one or more sets of digits, each with the labels of the training digits."""
        sets = [pixel_features(one) for one in images]
        scores = [classifier_scores(self.train, self.test, (found, self.train[1])) for found in sets]
        return Row(
            order=order,
            cas=float(np.mean([score["cas"] for score in scores])),
            label_agreement=float(np.mean([score["label_agreement"] for score in scores])),
            frechet=float(np.mean([frechet_distance(_gaussian(found), self._real) for found in sets])),
            **{"steps": None, "forwards": None, **more},
        )


def contestants(pipe: Pipeline, names: Sequence[str] | None = None, speed: bool = False) -> dict[str, Sampling]:
    """Settings of the orders, or the fast ways, that this model can take, by name.

    Args:
        pipe: the model.
        names: those that are wanted; if left out, all of ``SETTINGS`` but ``self-critic``, and ``critic`` only if the model
            has one.
        speed: if no names are given, all of ``SPEED`` instead, guided ones only if the model knows "no class".

    Raises:
        ValueError: a name that is not there.
    """
    known = SETTINGS | SPEED
    skipped = {"self-critic"} | (set() if pipe.critic is not None else {"critic"})
    if not pipe.transformer.null_class:
        skipped |= {name for name, changes in SPEED.items() if changes.get("guidance")}
    wanted = [name for name in (SPEED if speed else SETTINGS) if name not in skipped] if names is None else list(names)
    if unknown := sorted(set(wanted) - known.keys()):
        raise ValueError(f"orders: got {unknown[0]!r}, expected some of {list(known)}")
    return {name: dataclasses.replace(pipe.config.sampling, **known[name]) for name in wanted}


def cost_of(pipe: Pipeline, sampling: Sampling) -> float | None:
    """FLOPs of a loop for one item in which all is hidden, over those of one forward; None for ``entropy``.

    The models are copied to the meta device, where nothing is computed; an order that stops when it likes cannot run there.
    """
    if sampling.select.startswith("entropy"):
        return None
    model, critic = (
        None if part is None else copy.deepcopy(part).to("meta") for part in (pipe.transformer, pipe.critic)
    )
    assert model is not None
    with torch.device("meta"):
        tokens = torch.full((1, math.prod(pipe.axes), model.num_codebooks), model.vocab_size)
        cond = Cond(labels=torch.zeros(1, dtype=torch.long)) if model.num_classes else Cond()
    plain = dataclasses.replace(sampling, speed=Speed(reuse=sampling.speed.reuse))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    decoding = Decoding(model=model, cond=cond, tokens=tokens, mask=mask, axes=pipe.axes, seeds=[0], critic=critic)
    return counted(lambda: decide(decoding, plain)) / counted(lambda: model(tokens, cond, pipe.axes))


def measure(
    pipe: Pipeline, real: RealDigits, order: str, sampling: Sampling, sets: int = 2, batch_size: int = 64
) -> Row:
    """Generate the digits of one line and score them.

    Args:
        pipe: the model.
        real: the real digits.
        order: name of the line.
        sampling: settings.
        sets: of as many digits as there are training digits, with seeds of their own.
        batch_size: digits at a time.
    """
    labels, count = real.labels.tolist(), _Counter(sampling)
    tokens = torch.zeros(len(labels), math.prod(pipe.axes), pipe.transformer.num_codebooks, dtype=torch.long)
    cond = pipe.cond(labels)
    images = []
    for number in range(sets):
        seeds = range(number * len(labels), (number + 1) * len(labels))
        request = Request(seeds=seeds, sampling=pipe.sampling(sampling), cond=cond, callback=count)
        filled = pipe.fill(tokens, torch.ones_like(tokens, dtype=torch.bool), request, batch_size=batch_size)
        images.append(pipe.decode(filled))
    more = {"forwards": count.most, "cost": cost_of(pipe, sampling), "sampling": dataclasses.asdict(sampling)}
    return real.row(order, images, steps=sampling.steps, **more)


class _Counter:
    """A callback that counts the passes of the longest batch; a critic makes one at each step but the last."""

    def __init__(self, sampling: Sampling) -> None:
        self.most, self._now, self._critic = 0, 0, sampling.select in NEEDS_CRITIC

    def __call__(self, step: SampleStep) -> None:
        before = self._now if step.step else 0
        self._now = before + 1 + int(self._critic and step.step < step.steps - 1)
        self.most = max(self.most, self._now)


def report(
    pipe: Pipeline,
    real: RealDigits,
    chosen: dict[str, Sampling],
    steps: Sequence[int],
    sets: int,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """All lines: what could be reached at best, then every order at every number of steps.

    Args:
        pipe: the model.
        real: the real digits.
        chosen: settings by name, see ``contestants``.
        steps: numbers of steps.
        sets: see ``measure``.
        say: told each line as it is there.
    """
    rows = []

    def add(row: Row) -> None:
        rows.append(row)
        say(_line(_cells(row)))

    say(_line(HEADINGS))
    say(_line(["---"] * len(HEADINGS)))
    add(real.row("(real training digits)", [real.images]))
    add(real.row("(training digits through the tokenizer)", [pipe.decode(pipe.encode(real.images))]))
    for name, sampling in chosen.items():
        for count in steps:
            add(measure(pipe, real, name, dataclasses.replace(sampling, steps=count), sets))
    return rows


def markdown(rows: Sequence[Row], facts: dict[str, Any], settings: dict[str, Any]) -> str:
    """The report: what was measured, on what, and the table."""
    lines = ["# Orders and steps on handwritten digits", "", *(__doc__ or "").strip().split("\n")[2:], ""]
    for part in (facts, settings):
        lines += [", ".join(f"{name}: {value}" for name, value in part.items() if value is not None), ""]
    lines += [_line(HEADINGS), _line(["---"] * len(HEADINGS)), *(_line(_cells(row)) for row in rows), ""]
    lines += ["Settings, where they are not the model's own:", ""]
    orders = dict.fromkeys(row.order for row in rows if row.sampling is not None)
    lines += [
        f"- {name}: " + ", ".join(f"{key} {value}" for key, value in (SETTINGS | SPEED)[name].items())
        for name in orders
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; write JSON and markdown if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/demo"), help="a model of the digits, from `make demo`")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16, 32], help="numbers of steps")
    parser.add_argument("--orders", nargs="+", help="orders, by their names in the table; all that the model can take")
    parser.add_argument("--speed", action="store_true", help="compare ways to be faster instead of orders")
    parser.add_argument("--sets", type=int, default=2, help="sets of as many digits as there are training digits")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--report", type=Path, help="write the table here, as markdown")
    given = parser.parse_args(arguments)
    pipe = Pipeline.from_pretrained(given.model)
    data = Digits(size=pipe.config.signal_size[0])
    train, test = data.train(), data.test()
    assert isinstance(train, TensorSource), "digits without shifts are held in memory"
    facts = machine()
    rows = report(pipe, RealDigits(train, test), contestants(pipe, given.orders, given.speed), given.steps, given.sets)
    settings = {"model": str(given.model), "sets": given.sets, "digits a set": len(train)}
    if given.json:
        content = {"machine": facts, "settings": settings, "results": [dataclasses.asdict(row) for row in rows]}
        write_json(given.json, content)
    if given.report:
        with atomic_file(given.report) as temporary:
            temporary.write_text(markdown(rows, facts, settings), encoding="utf-8")


def _gaussian(features: np.ndarray[Any, np.dtype[np.float64]]) -> Gaussian:
    moments = Moments(features.shape[1])
    moments.update(torch.from_numpy(features))
    return moments.gaussian()


def _cells(row: Row) -> list[str]:
    steps, forwards = ("" if number is None else str(number) for number in (row.steps, row.forwards))
    cost = "" if row.cost is None else f"{row.cost:.2f}"
    return [row.order, steps, f"{row.cas:.4f}", f"{row.label_agreement:.4f}", f"{row.frechet:.4f}", forwards, cost]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
