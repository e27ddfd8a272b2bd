"""Weights files of other groups, read without their code: flax msgpack, PyTorch and safetensors.

What a file is shows in its first bytes; names are not trusted. Nothing in a file is ever run: a pickle that would have to
call code to be read is refused.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from maskgen.weights.flax_msgpack import flatten_tree, read_flax

Container = Literal["msgpack", "torch", "pickle", "safetensors"]


# Where training scripts put the weights inside what they save, and where the averaged ones.
_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "shadow")

_AVERAGED = (
    *("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "model_ema_state_dict"),
    *("ema_model_state_dict", "params_ema", "ema_params"),
)

_FLAX_NESTED = ("optimizer", "target", "model", "state")

_FLAT_AVERAGED = "model_ema."  # latent-diffusion's copy stands beside the weights, its names without dots


# Records that old training scripts left beside the weights, by the start of their full name. They become inert
# placeholders: neither the library they come from nor anything they name is imported or called.
_RECORDS = ("pytorch_lightning.", "lightning.pytorch.", "lightning_fabric.", "omegaconf.", "argparse.Namespace")

_HARMLESS = ("typing.Any", "collections.defaultdict", "builtins.dict", "builtins.list", "builtins.int", "builtins.str")


def read_weights(path: str | Path, *, ema: bool = False) -> dict[str, Tensor]:
    """The weights in a file, by their official names.

    The tensors are views of the file (a private memory map), so a model much larger than the free memory can be
    converted. Containers in containers (Lightning's ``state_dict``, ``model``, ``model_state_dict``) are opened;
    ``module.`` and ``_orig_mod.``, which wrappers put before each name, are taken off. Names of flax are "/"-joined.

    Args:
        path: a flax msgpack file, what ``torch.save`` wrote, or safetensors.
        ema: take the averaged copy of the weights that some training scripts save beside them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: truncated, of no known kind, without weights, without averaged ones where ``ema`` needs them, or a
            pickle that cannot be read without running code.
    """
    source = Path(path)
    kind = guess_container(source)
    if kind == "msgpack":
        found = _from_flax(read_flax(source), source, ema)
    elif kind == "safetensors":
        found = _select(_read_safetensors(source), source, ema)
    else:
        found = _select(_read_torch(source, zipped=kind == "torch"), source, ema)
    return _bare(found, source)


def guess_container(path: Path) -> Container:
    """What a weights file is, from its first bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, a folder, or none of the kinds known here.
    """
    if path.is_dir():
        raise ValueError(f"{path}: got a folder, expected a weights file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, expected a weights file")
    with path.open("rb") as handle:
        head = handle.read(512)
    if not head:
        raise ValueError(f"{path}: got an empty file, expected weights")
    if head.startswith(b"PK\x03\x04"):
        return "torch"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000:  # safetensors' own limit
        return "safetensors"
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if 0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF):  # a map that is not empty
        return "msgpack"
    if head.startswith(b"version https://git-lfs"):
        reason = "a Git LFS pointer; fetch the file itself (git lfs pull)"
    elif head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        reason = "a web page, perhaps the error page of a download; download the file again"
    else:
        reason = "no flax msgpack, PyTorch or safetensors file"
    raise ValueError(f"{path}: {reason}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: truncated or not a safetensors file ({error})") from None


def _read_torch(path: Path, zipped: bool) -> Any:
    try:
        with warnings.catch_warnings(), _placeholders(path if zipped else None):
            warnings.simplefilter("ignore")  # old files make torch talk about its own past
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped or None)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        needed = re.search(r"GLOBAL (\S+)|reduce for unrecognized function (.+)|new object .* got (.+)", str(error))
        if needed or "TorchScript" in str(error):
            name = next((group for group in needed.groups() if group), "") if needed else "TorchScript"
            raise _refusal(path, [name]) from None
        if isinstance(error, _CodeError):
            raise _refusal(path, error.names) from None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path}: truncated, damaged or not written by torch.save ({reason})") from None


class _CodeError(ValueError):
    """A pickle names classes or functions that are not known to be harmless."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))
        self.names = names


def _refusal(path: Path, names: list[str]) -> ValueError:
    shown = ", ".join(sorted(names)[:4]) + (", ..." if names[4:] else "")
    return ValueError(
        f"{path}: refused: reading it would run code ({shown}); only plain weights are read. If you trust its source, load "
        "it where it came from and save its state_dict() alone, best as safetensors"
    )


class _Placeholder:
    """Stands for a record of a training script: takes whatever a pickle hands it and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __new__(cls, *args: object, **kwargs: object) -> _Placeholder:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...


@contextlib.contextmanager
def _placeholders(path: Path | None) -> Iterator[None]:
    """Let the records of known training libraries pass as placeholders, and nothing else."""
    if path is None:
        yield
        return
    named = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    harmful = [name for name in named if not name.startswith(_RECORDS) and name not in _HARMLESS]
    if harmful:
        raise _CodeError(harmful)
    kinds = [(type(name.rpartition(".")[2], (_Placeholder,), {}), name) for name in named]
    with torch.serialization.safe_globals(kinds):  # type: ignore[arg-type]
        yield


def _select(content: Any, path: Path, ema: bool) -> dict[str, Tensor]:
    """The mapping of names to tensors inside whatever was saved."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected named weights")
    found = _search(content, ema)
    if not found:
        what = "averaged weights (ema)" if ema else "weights"
        raise ValueError(f"{path}: holds no {what}; its entries are {_list(content)}")
    return found


def _search(content: Mapping[Any, Any], ema: bool) -> dict[str, Tensor]:
    if ema and (copy := _averaged(content)) is not None:
        return _search(copy, ema=False)
    for key in _NESTED:
        inner = content.get(key)
        if isinstance(inner, Mapping) and (found := _search(inner, ema)):
            return found
    found = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    flat = {name for name in found if name.startswith(_FLAT_AVERAGED)}
    plain = {name: value for name, value in found.items() if name not in flat}
    if not ema:
        return plain
    averaged = {name: _FLAT_AVERAGED + name.replace(".", "") for name in plain}
    # Buffers have no averaged copy.
    return {name: found.get(averaged[name], value) for name, value in plain.items()} if flat else {}


def _averaged(content: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    return next((content[key] for key in _AVERAGED if isinstance(content.get(key), Mapping)), None)


def _from_flax(tree: Any, path: Path, ema: bool) -> dict[str, Tensor]:
    """The ``params`` of a tree, be they at its top or inside a saved training state; without any, all arrays."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path}: holds a {type(tree).__name__}, expected a tree of arrays")
    if ema and _averaged(tree) is None:
        raise ValueError(f"{path}: holds no averaged weights (ema); its entries are {_list(tree)}")
    chosen: Any = _averaged(tree) if ema else tree
    while isinstance(chosen, Mapping) and "params" not in chosen:
        inner = next((chosen[key] for key in _FLAX_NESTED if isinstance(chosen.get(key), Mapping)), None)
        if inner is None:
            break
        chosen = inner
    found = flatten_tree({"params": chosen["params"]} if "params" in chosen else chosen)
    if not found:
        raise ValueError(f"{path}: holds no weights; its entries are {_list(tree)}")
    return found


def _bare(found: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Names without what DistributedDataParallel and torch.compile put before them."""
    names = [name.replace("_orig_mod.", "") for name in found]
    while all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: holds the same weights twice, with and without '_orig_mod.' in their names")
    return dict(zip(names, found.values(), strict=True))


def _list(content: Mapping[Any, Any]) -> str:
    names = [str(name) for name in content]
    return (", ".join(names[:8]) or "none") + (", ..." if names[8:] else "")
