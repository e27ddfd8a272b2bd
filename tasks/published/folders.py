"""Copies of a published model's repository: where its files are, and what diffusers' settings beside them say."""

import dataclasses
import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskgen.checkpoint import read_json


def find_files(wanted: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """The files of a model in a copy of its repository, by part.

    Args:
        wanted: part to path in the repository.
        folder: the copy; see ``at_hand``.

    Raises:
        FileNotFoundError: one is missing.
    """
    found = {part: at_hand(folder / path) for part, path in wanted.items()}
    for part, file in found.items():
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder / wanted[part]}: no such file; give a whole copy of the model's repository"
            )
    return found


def at_hand(file: Path) -> Path:
    """A file of weights; where it is missing, the one in half precision (``.fp16.``) beside it, which is said."""
    half = file.with_name(f"{file.stem}.fp16{file.suffix}")
    if file.is_file() or not half.is_file():
        return file
    warnings.warn(f"{half}: weights in half precision, as no others are there", stacklevel=3)
    return half


def told_settings(module: str, file: Path) -> dict[str, Any]:
    """What diffusers' settings say of a file of weights, as arguments of its family's ``config_from``.

    Args:
        module: of the family; its ``settings_from`` knows the names, and without one nothing is told.
        file: weights; the settings are ``config.json`` beside them, and the scheduler's one folder further.

    Raises:
        ValueError: damaged settings, or those of another class.
    """
    function = getattr(importlib.import_module(module), "settings_from", None)
    path, scheduler = file.parent / "config.json", file.parent.parent / "scheduler" / "scheduler_config.json"
    if function is None or not path.is_file():
        return {}
    values, steps = read_json(path), read_json(scheduler) if scheduler.is_file() else {}
    try:
        told: dict[str, Any] = function(values, steps)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the settings of these weights ({type(error).__name__}: {error})") from None
    return told


def with_settings(config: Any, told: Mapping[str, Any], file: Path) -> Any:
    """Published sizes with what shapes do not show as the settings beside the weights have it; a difference is said."""
    own = dataclasses.replace(config, **{name: value for name, value in told.items() if name != "axes"})
    differ = [f"{name} {value}" for name, value in vars(own).items() if value != getattr(config, name)]
    if differ:
        warnings.warn(
            f"{file.parent}: says {', '.join(differ)}, other than what was published; that is taken", stacklevel=4
        )
    return own
