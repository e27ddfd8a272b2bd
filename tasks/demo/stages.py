"""What the demos share: their configs, their times, and how they run both training stages."""

from __future__ import annotations

import importlib.resources
import resource
import sys
from pathlib import Path

from maskgen.tasks.commands.parser import build_parser, run
from maskgen.tasks.commands.training import TRAINING
from maskgen.tasks.media.clock import Clock

__all__ = ["clock_metrics", "config_file", "peak_memory_mb", "say", "train_stages"]


def clock_metrics(clock: Clock) -> dict[str, float]:
    """The seconds as entries of ``metrics.json``, their sum and the peak of the memory among them."""
    listed = {f"seconds_{name}": round(seconds, 1) for name, seconds in clock.seconds.items()}
    listed["seconds_total"] = round(sum(clock.seconds.values()), 1)
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
