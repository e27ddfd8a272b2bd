"""What the sub-commands share: loading a model with clear errors, seeds, a progress bar, a note on the installation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from maskgen.checkpoint import write_json
from maskgen.sampling.loop import SampleStep
from maskgen.tasks.media.environment import environment
from maskgen.tasks.pipeline import Pipeline

__all__ = ["ProgressBar", "describe_part", "load_model", "seed_list", "write_manifest"]


def load_model(model: str | None, device: str | None) -> Pipeline:
    """``Pipeline.from_pretrained`` on a device that is known to work.

    Raises:
        ValueError: no model named, or no such device here.
    """
    if model is None:
        raise ValueError(
            "model: got none, expected a model folder, a published name or a Hub repository (--model runs/demo)"
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device: {device!r} cannot be used here ({str(error).splitlines()[0]}); leave it out"
        ) from None
    return Pipeline.from_pretrained(model, device=device)


def seed_list(seed: int, count: int) -> list[int]:
    """``count`` seeds from ``seed`` on.

    Raises:
        ValueError: fewer than one.
    """
    if count < 1:
        raise ValueError(f"count: got {count}, expected at least 1")
    return list(range(seed, seed + count))


def describe_part(module: torch.nn.Module) -> dict[str, Any]:
    """Class and number of parameters."""
    return {"class": type(module).__name__, "parameters": sum(p.numel() for p in module.parameters())}


def write_manifest(task: str, model: str, items: list[dict[str, Any]], out: Path, details: dict[str, Any]) -> None:
    """Write ``manifest.json``: what was asked, of which model, and which file came of which seed.

    Args:
        task: its name.
        model: as it was named.
        items: one for each file written.
        out: folder of the files.
        details: settings of the task.
    """
    content = {"task": task, "model": model, **details, "items": items, "environment": environment()}
    write_json(out / "manifest.json", content)


class ProgressBar:
    """A progress bar that is also a sampler callback; shown from the first step on, so that a mistake is one line.

    Args:
        total: steps to come, or None if nobody knows.
    """

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._bar: Any = None

    def __enter__(self) -> Callable[[SampleStep], None]:
        def advance(step: SampleStep) -> None:
            if self._bar is None:
                self._bar = tqdm(total=self._total, desc="sample", unit="step")
            self._bar.update()

        return advance

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
