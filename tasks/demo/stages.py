"""What the demos share: their configs, their clock, and how they run both training stages."""

from __future__ import annotations

import contextlib
import importlib.resources
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from maskgen.checkpoint import read_json, write_json
from maskgen.tasks.commands.parser import build_parser, run
from maskgen.tasks.commands.training import TRAINING

__all__ = ["Clock", "config_file", "peak_memory_mb", "say", "train_stages"]


class Clock:
    """Seconds by stage, kept in a file so that an interrupted demo adds up its parts.

    Args:
        path: the file, read if it is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = read_json(path) if path.is_file() else {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            # Stages that train add up over interruptions; the others are made anew each time.
            before = self.seconds.get(stage, 0.0) if stage.startswith("train") else 0.0
            self.seconds[stage] = before + time.perf_counter() - begun
            if self.path.parent.is_dir():  # else nothing was begun
                write_json(self.path, self.seconds)

    def metrics(self) -> dict[str, float]:
        """The seconds as entries of ``metrics.json``, their sum and the peak of the memory among them."""
        listed = {f"seconds_{name}": round(seconds, 1) for name, seconds in self.seconds.items()}
        listed["seconds_total"] = round(sum(self.seconds.values()), 1)
        return listed | {"peak_memory_mb": round(peak_memory_mb())}


def config_file(name: str) -> Path:
    """A YAML file of ``configs/``, by its name without the suffix."""
    return Path(str(importlib.resources.files("maskgen") / "configs" / f"{name}.yaml"))


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
