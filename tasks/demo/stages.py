"""What the demos share: two training stages, then something is made, measured and shown; and their configs and times."""

import dataclasses
import importlib.resources
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from maskgen.checkpoint import write_json
from maskgen.tasks.commands.parser import build_parser, run
from maskgen.tasks.commands.training import TRAINING
from maskgen.tasks.media.clock import Clock
from maskgen.tasks.media.report import Figure, Table, write_report
from maskgen.tasks.pipeline import Pipeline

Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(Generic[Made]):
    """A reference task from nothing; interrupted, it goes on, and finished stages are reused.

    Attributes:
        title: of the report.
        introduction: its first words.
        notes: what each number means, by name.
        configs: both stages' files of ``configs/demo/``, by their names without the suffix.
        making: name of the stage that makes something with the model, for its time.
        make: makes it from the model and the folder of the run.
        measure: every number of ``metrics.json`` but the times.
        showing: name of the stage that writes figures, and of their folder.
        show: writes them from the model, what was made, and that folder; or tables.
        tokenizer: name of the first stage and of its folder.
        transformer: sub-command of the second stage.
    """

    title: str
    introduction: str
    notes: Mapping[str, str]
    configs: tuple[str, str]
    making: str
    make: Callable[[Pipeline, Path], Made]
    measure: Callable[[Pipeline, Made], dict[str, Any]]
    showing: str
    show: Callable[[Pipeline, Made, Path], Sequence[Figure | Table]]
    tokenizer: str = "tokenizer"
    transformer: str = "transformer"

    def run(self, out: Path, first: Path | None, second: Path | None, further: Sequence[str] = ()) -> None:
        """Train, make, measure, and write a report.

        Args:
            out: folder for everything.
            first: settings of stage 1 instead of the demo's own.
            second: settings of stage 2 instead of the demo's own.
            further: words after those of stage 2's command line.
        """
        clock, codes = Clock(out / "seconds.json"), out / self.tokenizer
        one, two = (
            f"--config={given or config_file(own)}" for given, own in zip((first, second), self.configs, strict=True)
        )
        stages = {
            self.tokenizer: ["train", "tokenizer", one, f"--out={codes}"],
            "transformer": ["train", self.transformer, two, f"--tokenizer={codes}", f"--out={out}", *further],
        }
        train_stages(clock, stages)
        pipe = Pipeline.from_pretrained(out)
        with clock(self.making):
            made = self.make(pipe, out)
        with clock("measure"):
            metrics = self.measure(pipe, made)
        with clock(self.showing):
            say(f"demo: making {self.showing}")
            figures = self.show(pipe, made, out / self.showing)
        metrics |= clock_metrics(clock)
        write_json(out / "metrics.json", metrics)
        write_report(out / "report.html", self.title, self.introduction, figures, metrics, {**self.notes, **_NOTES})
        say(f"demo: done in {metrics['seconds_total']:.0f} s; open {out / 'report.html'}")


_NOTES = {
    "seconds_total": "wall time of all stages, interruptions not counted",
    "peak_memory_mb": "largest resident memory of the last run of the program",
}


def clock_metrics(clock: Clock) -> dict[str, float]:
    """The seconds as entries of ``metrics.json``, their sum and the peak of the memory among them."""
    listed = {f"seconds_{name}": round(seconds, 1) for name, seconds in clock.seconds.items()}
    listed["seconds_total"] = round(sum(clock.seconds.values()), 1)
    return listed | {"peak_memory_mb": round(peak_memory_mb())}


def config_file(name: str) -> Path:
    """A YAML file of ``configs/demo/``, by its name without the suffix."""
    return Path(str(importlib.resources.files("maskgen") / "configs" / "demo" / f"{name}.yaml"))


def train_stages(clock: Clock, stages: dict[str, list[str]]) -> None:
    """Run ``maskgen train ...`` command lines, each timed as ``train_<name>``.

    Args:
        clock: keeps the times.
        stages: words of each command line, by the name of its stage.
    """
    for command in stages.values():
        build_parser(TRAINING).parse_args(command)  # a slip in a later config shows now, not after the first stage
    for name, command in stages.items():
        with clock(f"train_{name}"):
            run(command, TRAINING)


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024  # bytes there, kilobytes elsewhere


def say(text: str) -> None:
    """Print a line now."""
    print(text, flush=True)  # noqa: T201
