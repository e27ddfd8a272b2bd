"""Weights files of Descript's codecs, and what their names and shapes tell: DAC's and LAC's share names and weight norm.

Official names are those of descript-audio-codec and of LAC: ``encoder.block.1.block.4.weight`` and so on.
"""

import dataclasses
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskgen.weights.files import guess_container, read_weights

# How both of torch's weight norms name the length and the direction.
_WEIGHT_NORM = {"weight_g": "weight_v", "parametrizations.weight.original0": "parametrizations.weight.original1"}


def fold_weight_norm(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Plain weights: ``g v / |v|``, the norm over all but the first axis (Salimans & Kingma 2016).

    Args:
        state: weights, with pairs ``weight_g, weight_v`` or ``parametrizations.weight.original0, original1``. A pair that
            does not fit together stays as it is, for ``check_state`` to complain about.
        where: named in the error.

    Raises:
        ValueError: a direction ``v`` of length 0 or values that are not finite: the weight would be NaN.
    """
    found = dict(state)
    for name in state:
        ending = next((ending for ending in _WEIGHT_NORM if name.endswith(ending)), "")
        stem = name.removesuffix(ending)
        partner = stem + _WEIGHT_NORM.get(ending, "")
        if not ending or partner not in state:
            continue
        length, direction = state[name], state[partner]
        if direction.ndim < 2 or length.shape != (len(direction), *(1,) * (direction.ndim - 1)):
            continue
        axes = tuple(range(1, direction.ndim))
        weight = direction * (length / torch.linalg.vector_norm(direction, dim=axes, keepdim=True))
        if not weight.is_meta and not bool(torch.isfinite(weight).all()):
            raise ValueError(
                f"{where}: {stem}weight is not finite: its weight norm holds NaN, or a direction of length 0"
            )
        del found[name], found[partner]
        found[f"{stem}weight"] = weight
    return found


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a codec is built from, by the names of the official constructors; rates outermost layer first.

    ``latent_dim`` is 0 where the file does not tell it: what the encoder's levels make of ``encoder_dim``.
    """

    sample_rate: int
    encoder_dim: int
    encoder_rates: tuple[int, ...]
    latent_dim: int
    decoder_dim: int
    decoder_rates: tuple[int, ...]
    n_codebooks: int
    codebook_size: int
    codebook_dim: int


def find_sizes(state: Mapping[str, Tensor], stated: Mapping[str, Any], sample_rate: int | None, where: str) -> Sizes:
    """Sizes of a codec: what its file states, and what it does not, as its weights show it.

    Args:
        state: official name to plain weight.
        stated: settings beside the weights, by their official names; others are not looked at.
        sample_rate: the caller's, which comes first; no weight shows it.
        where: named in the error.

    Raises:
        ValueError: when a size is found nowhere, or the codes of the levels differ in width.
    """
    names = [field.name for field in dataclasses.fields(Sizes)]
    found = {"latent_dim": 0} | _measure(state) | {key: stated[key] for key in names if stated.get(key) is not None}
    if sample_rate is not None:
        found["sample_rate"] = sample_rate
    if missing := [key for key in names if key not in found]:
        hint = "; give sample_rate=..." if missing == ["sample_rate"] else ""
        raise ValueError(f"{where}: neither settings nor weights tell {', '.join(missing)}{hint}")
    widths = found["codebook_dim"]
    if isinstance(widths, list | tuple):
        if not widths or any(width != widths[0] for width in widths):
            raise ValueError(f"{where}: codes of widths {tuple(widths)}, expected one width for all codebooks")
        found["codebook_dim"] = widths[0]
    for key in ("encoder_rates", "decoder_rates"):
        found[key] = tuple(found[key]) if isinstance(found[key], list | tuple) else (found[key],)
    return Sizes(**found)


def _measure(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes as far as the weights show them; a strided layer's kernel is twice its stride."""
    shapes = {name: tuple(weight.shape) for name, weight in state.items() if weight.ndim > 1}
    sizes: dict[str, Any] = {}
    for key, pattern in (
        ("encoder_rates", r"encoder\.block\.(\d+)\.block\.4\.weight"),
        ("decoder_rates", r"decoder\.model\.(\d+)\.block\.1\.weight"),
    ):
        levels = {int(match[1]): shapes[name] for name in shapes if (match := re.fullmatch(pattern, name))}
        sizes[key] = tuple(levels[level][-1] // 2 for level in sorted(levels))
    tables = [
        shape for name, shape in shapes.items() if re.fullmatch(r"quantizer\.quantizers\.\d+\.codebook\.weight", name)
    ]
    sizes["n_codebooks"] = len(tables)
    sizes["codebook_size"], sizes["codebook_dim"] = tables[0][:2] if tables else (0, 0)
    last = f"encoder.block.{len(sizes['encoder_rates']) + 2}.weight"
    for key, name in (
        ("encoder_dim", "encoder.block.0.weight"),
        ("latent_dim", last),
        ("decoder_dim", "decoder.model.0.weight"),
    ):
        sizes[key] = shapes.get(name, (0,))[0]
    return {key: value for key, value in sizes.items() if value}


def read_descript(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and constructor arguments of what audiotools' ``BaseModel.save(path, package=False)`` wrote.

    Args:
        path: such a file, or bare weights of any kind ``read_weights`` knows.

    Returns:
        Official name to plain weight (weight norm folded), and the arguments; none where the file has none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a torch.package archive, a damaged file, or one that cannot be read without running code.
    """
    if _is_package(path):
        raise ValueError(
            f"{path}: refused: a torch.package archive, which holds code to be run; load it where it came from and save it "
            'by model.save(..., package=False), which gives {"state_dict", "metadata"}'
        )
    state = fold_weight_norm(read_weights(path), str(path))
    return state, _arguments(path)


def _is_package(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".data/extern_modules") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False  # damaged, which ``read_weights`` says


def _arguments(path: Path) -> dict[str, Any]:
    kind = guess_container(path)
    if kind not in ("torch", "pickle"):
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files make torch talk about its own past
            content = torch.load(str(path), map_location="meta", weights_only=True, mmap=kind == "torch" or None)
    except pickle.UnpicklingError:
        return {}  # a training script's record beside the weights, which ``read_weights`` passed over
    metadata = content.get("metadata") if isinstance(content, Mapping) else None
    found = metadata.get("kwargs") if isinstance(metadata, Mapping) else None
    return {str(key): value for key, value in found.items()} if isinstance(found, Mapping) else {}
