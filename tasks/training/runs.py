"""Folders of training runs: what decided a run's outcome, whether it is finished, and what may go on in it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from maskgen.checkpoint import read_json
from maskgen.tasks.data.base import SignalData
from maskgen.tasks.data.broken import count_broken

__all__ = ["Say", "copy_files", "describe", "finished_before"]


def _tell_skipped(run: Path, title: str, say: Say) -> None:
    count = count_broken(run / "skipped.jsonl")
    if count:
        say(f"{title}: {count} broken examples were skipped, see {run / 'skipped.jsonl'}")


Say = Callable[[str], None]


def describe(**parts: Any) -> dict[str, Any]:
    """Everything that decides a run's outcome, as plain values.

    Args:
        **parts: settings (dataclasses), modules built from a config, data sets, and plain values.
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        if isinstance(value, nn.Module):
            return {"class": type(value).__name__, "config": dataclasses.asdict(value.config)}  # type: ignore[call-overload]
        if isinstance(value, SignalData):
            examples = {"train": len(value.train()), "test": len(value.test() or ())}
            arguments = {
                name: found
                for name, found in vars(value).items()
                if not name.startswith("_") and isinstance(found, bool | int | float | str | tuple)
            }
            return {"class": type(value).__name__, "class_names": value.class_names, **arguments, **examples}
        return value

    return {name: plain(value) for name, value in parts.items()}


def copy_files(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer's folder; its checkpoints, logs and samples stay behind."""
    if source.resolve() == target.resolve():
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file():
            shutil.copy(path, target)


def finished_before(run: Path, description: dict[str, Any], title: str, say: Say) -> bool:
    """Compare with what the folder holds; True if that run is finished and can be used as it is.

    Args:
        run: folder of the run, which need not exist.
        description: from ``describe``.
        title: of the stage, for ``say``.
        say: told of a run that is reused.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    path = run / "run.json"
    if not path.is_file():
        return False
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not written by maskgen; choose another output folder or delete this one")
    finished = bool(found.pop("finished", False))
    if not finished and not any((run / "checkpoints").glob("step-*")):
        return False  # it stopped before anything was kept, so other settings do no harm
    wanted = _plain_json(description)
    changed = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if changed:
        raise ValueError(
            f"{run}: holds a run with other settings ({', '.join(changed)}); choose another output folder or delete this one"
        )
    if finished:
        say(f"{title}: finished before, reused from {run}")
    return finished


def _plain_json(value: Any) -> Any:
    """What a value looks like after a trip through JSON: tuples become lists."""
    if isinstance(value, dict):
        return {str(key): _plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(item) for item in value]
    return value
