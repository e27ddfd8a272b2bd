"""The parts of a model folder that not every model has.

A sound model may have a second transformer in ``fine/``, any model a critic in ``critic/``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskgen.checkpoint import load_module, save_module
from maskgen.transformer import MaskedTransformer

__all__ = ["OPTIONAL_PARTS", "model_files", "read_part", "write_part"]

OPTIONAL_PARTS = ("fine", "critic")


def model_files() -> list[str]:
    """Patterns of what belongs to a model folder; nothing else is fetched from a Hub repository."""
    return ["pipeline.json", *(f"{part}/*" for part in ("tokenizer", "transformer", *OPTIONAL_PARTS))]


def read_part(folder: Path, adjust: Callable[[Any], Any] | None = None) -> MaskedTransformer | None:
    """The transformer in a folder, or None if there is none.

    Args:
        folder: of the part.
        adjust: see ``maskgen.checkpoint.load_module``.

    Raises:
        ValueError: files that are damaged or do not fit each other.
    """
    if not (folder / "config.json").is_file():
        return None
    return load_module(folder, MaskedTransformer, adjust)  # type: ignore[type-abstract]


def write_part(part: MaskedTransformer | None, folder: Path) -> None:
    """Write a part, or take away what an earlier save left there if it is None."""
    if part is not None:
        save_module(part, folder)
        return
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink(missing_ok=True)
