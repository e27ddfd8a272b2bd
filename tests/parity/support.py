"""Where the official outputs live, and how they are read.

``MASKGEN_PARITY`` names a folder with one sub-folder a family (``maskgit``, ...). Without it ``../shared/parity`` beside
the checkout is used when it is there, else the small copy in ``tests/fixtures``.
"""

import filecmp
import functools
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
_SHARED_LAYOUTS = ROOT.parent / "shared" / "peers" / "STATE_DICTS.json"
LAYOUTS = _SHARED_LAYOUTS if _SHARED_LAYOUTS.is_file() else ROOT / "tests" / "fixtures" / "STATE_DICTS.json"
"""Names and shapes of published PyTorch checkpoints."""


def parity_folder(family: str) -> Path:
    """Folder of one family's fixtures."""
    named = os.environ.get("MASKGEN_PARITY")
    if named:
        folder = Path(named) / family
        if not folder.is_dir():
            raise FileNotFoundError(f"MASKGEN_PARITY={named} has no folder {family!r}")
        return folder
    shared = ROOT.parent / "shared" / "parity" / family
    return shared if shared.is_dir() else ROOT / "tests" / "fixtures" / family


def files(family: str, pattern: str) -> list[Path]:
    """Every fixture of a family whose name matches; none at all is an error, never a silent pass."""
    found = sorted(parity_folder(family).glob(pattern))
    if not found:
        raise FileNotFoundError(f"no {pattern} in {parity_folder(family)}")
    return found


@functools.cache
def own_set(family: str) -> bool:
    """Whether the recordings in use are those of the repository, byte for byte; another set may lack some kinds."""
    folder, own = parity_folder(family), ROOT / "tests" / "fixtures" / family
    kept = [path.relative_to(own) for path in own.rglob("*") if path.is_file() and path.suffix != ".md"]
    return all((folder / p).is_file() and filecmp.cmp(own / p, folder / p, shallow=False) for p in kept)


def check_kinds(family: str, found: Collection[object], expected: Collection[object]) -> None:
    """The repository's recordings hold exactly these kinds, so that none goes missing in silence; another set holds some."""
    assert found
    assert set(found) == set(expected) or not own_set(family), (set(found), set(expected))


def check_count(family: str, found: Collection[object], least: int) -> None:
    """The repository's recordings hold at least so many; another set holds some."""
    assert len(found) >= (least if own_set(family) else 1), found


def recordings(family: str, pattern: str) -> list[Path]:
    """As ``files``, but for a group of recordings that another set may lack; its tests then have nothing to compare."""
    return files(family, pattern) if own_set(family) else sorted(parity_folder(family).glob(pattern))


def facts(family: str, pattern: str) -> list[Path]:
    """Files that are the same whatever a set is made with; where it has none, the repository's."""
    found = sorted(parity_folder(family).glob(pattern))
    return found or sorted((ROOT / "tests" / "fixtures" / family).glob(pattern))


def load(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of one safetensors file."""
    with safe_open(path, framework="pt") as handle:
        return {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a dict)


def metadata(path: Path) -> dict[str, Any]:
    """The file's settings; values that are JSON are parsed."""
    with safe_open(path, framework="pt") as handle:
        raw = handle.metadata() or {}
    parsed: dict[str, Any] = {}
    for key, value in sorted(raw.items()):  # the library gives them in another order each time
        try:
            parsed[key] = json.loads(value)
        except json.JSONDecodeError:
            parsed[key] = value
    return parsed
