"""Published weights of sound: files that tell their own settings, checked against the catalog and put together.

A VampNet reads tokens as its codec's vectors, so its transformers are converted with the codec at hand.

Shapes: K codebooks, V codes, D width of a code.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskgen.tasks.published.catalog import CATALOG
from maskgen.tasks.published.entries.base import Published, Weights
from maskgen.tasks.published.entries.families import load_name
from maskgen.weights.files import read_weights

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")

_NOT_SIZES = ("dropout", "bandwidth", "codebooks")  # choices of who trains or uses a model, not what it is


def check_order(entry: Published, files: Iterable[str]) -> None:
    """Refuse parts of a model that cannot be converted without the others.

    Args:
        entry: what is to be made.
        files: the parts there are files for.

    Raises:
        ValueError: naming what is missing.
    """
    given = set(files)
    for part, needed in (("fine", {"tokenizer", "transformer"}), ("transformer", {"tokenizer"})):
        weights = entry.parts.get(part)
        missing = " and ".join(f"--{name} FILE" for name in sorted(needed - given))
        if weights is not None and weights.kind.reader and part in given and missing:
            raise ValueError(
                f"{part}: give {missing} as well; {weights.kind.title} holds no code tables and works with its codec only"
            )


def state_names(path: Path) -> list[str]:
    """Names of the weights in a file, or in a folder of the Hub.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no weights that can be read.
    """
    if not path.is_dir():
        return list(read_weights(path))
    there = [path / name for name in _FOLDER_FILES if (path / name).is_file()]
    if not there:
        raise FileNotFoundError(f"{path}: holds neither {' nor '.join(_FOLDER_FILES)}")
    return list(read_weights(there[0]))


def code_tables(empty: Any, state: Mapping[str, Tensor]) -> Tensor:
    """The code tables ``[K, V, D]`` of a codec without memory, which takes its weights in."""
    empty.load_state_dict(state, assign=True)
    with torch.no_grad():
        tables: Tensor = empty.code_tables()
    return tables


def read_part(
    entry: Published, part: str, file: Path, tables: Tensor | None, *, any_size: bool
) -> tuple[Any, dict[str, Tensor]]:
    """Config and state dict of one part.

    Args:
        entry: what is to be made.
        part: "tokenizer", "transformer" or "fine".
        file: where it is.
        tables: code tables ``[K, V, D]`` for a transformer.
        any_size: take other sizes than the published ones.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: damaged, the other one of two transformers, of other sizes, or for another codec.
    """
    weights = entry.parts[part]
    config, state = load_name(weights.kind.reader)(file)
    if weights.kind.part == "transformer":
        _check_role(entry, part, file, config)
    if weights.sizes and not any_size:
        _check_sizes(entry, part, file, config)
    if weights.kind.part == "transformer":
        assert tables is not None  # check_order
        add_tables = load_name(f"{weights.kind.module}:with_code_tables")
        try:
            state = add_tables(state, tables, config)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    return config, state


def _check_role(entry: Published, part: str, file: Path, config: Any) -> None:
    """Refuse the coarse model in place of the fine one and the other way round."""
    roles = {"transformer": "the coarse transformer", "fine": "the coarse-to-fine transformer"}
    seen = "fine" if config.conditioning_codebooks else "transformer"
    if seen == part:
        return
    proof = f"{config.conditioning_codebooks} of its {config.num_codebooks} codebooks are only read"
    raise ValueError(
        f"{file}: expected {roles[part]} of {entry.name}, but this looks like {roles[seen]} ({proof}); give it as --{seen}"
    )


def _check_sizes(entry: Published, part: str, file: Path, config: Any) -> None:
    """Refuse sizes that were not published under this name."""
    differ = _differences(config, entry.parts[part])
    if not differ:
        return
    for other in CATALOG.values():
        found = other.parts.get(part)
        if found and found.family == entry.parts[part].family and found.sizes and not _differences(config, found):
            raise ValueError(f"{file}: these are the weights of {other.name}, use --family {other.name}")
    raise ValueError(
        f"{file}: sizes that {entry.name} has not ({', '.join(differ)}; for weights of your own training give "
        "--any_size true)"
    )


def _differences(config: Any, weights: Weights) -> list[str]:
    expected = weights.kind.published(weights.sizes)
    return [
        f"{item.name} {getattr(config, item.name)} instead of {getattr(expected, item.name)}"
        for item in dataclasses.fields(expected)
        if item.name not in _NOT_SIZES and getattr(config, item.name) != getattr(expected, item.name)
    ]
