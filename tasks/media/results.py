"""The files of a command's results: their names, what earlier runs left beside them, and versions and devices."""

import itertools
import platform
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from maskgen.checkpoint import read_json, write_json
from maskgen.conditioning import NO_LABEL

MANIFEST = "manifest.json"

_RESULT = re.compile(r".*seed-[0-9]{8,}\.\w+")


def result_name(seed: int, suffix: str, label: int | None = None, prefix: str = "") -> str:
    """File name of a result, by its seed and the class it was made for (None or ``NO_LABEL`` for none)."""
    named = "" if label in (None, NO_LABEL) else f"label-{label:04d}_"
    return f"{prefix}{named}seed-{seed:08d}{suffix}"


def classes_told(ids: Iterable[int], names: Sequence[str]) -> dict[str, str]:
    """Names of classes by their numbers, for a manifest; none for a model without names."""
    return {str(number): names[number] for number in sorted(set(ids)) if names and number != NO_LABEL}


def check_results_folder(out: Path) -> None:
    """Refuse to write a few results into an evaluation set.

    Raises:
        ValueError: its manifest says that it is one.
    """
    if "complete" in _manifest(out):
        raise ValueError(f"out: {out} holds an evaluation set, which other results would spoil; name another folder")


def keep_earlier(out: Path, names: Iterable[str]) -> str:
    """Before a manifest is written: results of earlier runs stay, and keep a manifest of their own.

    Args:
        out: folder of the results.
        names: of the files that the new manifest lists.

    Returns:
        What is to be said of them; nothing if there are none.
    """
    mine = set(names)
    others = [
        path.name for path in sorted(out.glob("*seed-*")) if _RESULT.fullmatch(path.name) and path.name not in mine
    ]
    if not others:
        return ""
    told = (
        f"{len(others)} results of earlier runs are there, too ({', '.join(others[:2])}{', ...' if others[2:] else ''})"
    )
    earlier = _manifest(out)
    kept = [item for item in earlier.get("items", ()) if isinstance(item, dict) and item.get("file") in others]
    if kept:
        free = next(path for number in itertools.count(1) if not (path := out / f"manifest-{number}.json").exists())
        write_json(free, {**earlier, "items": kept})
        told += f"; {free.name} has what their manifest said"
    return told


def environment() -> dict[str, Any]:
    """Versions and devices, as manifests, reports and ``maskgen info`` give them."""
    versions = {}
    packages = "maskgen torch torchvision accelerate xformers av decord torchaudio soundfile"
    for name in packages.split():
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"python": platform.python_version(), **versions, "devices": devices or ["cpu"]}


def _manifest(out: Path) -> dict[str, Any]:
    """What a folder's manifest says; nothing without one, or with a file of another kind."""
    try:
        found = read_json(out / MANIFEST)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
