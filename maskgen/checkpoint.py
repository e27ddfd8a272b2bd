"""Modules on disk: a folder with ``model.safetensors`` and a readable ``config.json``.

Files are written under a temporary name and renamed, so a crash or a full disk leaves what was there before.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import inspect
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import jsonargparse
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
S = TypeVar("S")


# Names of the element types in a safetensors header.
_DTYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
}


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; it takes the name ``path`` when the block ends well, and goes away otherwise.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` (which must not exist) when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None


def save_module(module: nn.Module, folder: Path) -> None:
    """Write a module that was built as ``Class(config)`` with a dataclass config.

    Args:
        module: anything with a ``config`` dataclass.
        folder: made if missing; files of an earlier save are replaced.
    """
    with atomic_file(folder / "model.safetensors") as temporary:
        state = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
        try:
            save_file(state, temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{folder / 'model.safetensors'}: cannot be written ({error})") from None
    write_json(folder / "config.json", _description(type(module), module.config))


def save_state(kind: type[nn.Module], config: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """Write what ``save_module`` would for ``kind(config)`` with these weights, byte for byte, without building it.

    Weights may be views of a memory map in any layout: one tensor at a time is copied.

    Args:
        kind: class of the module.
        config: the dataclass it is built from.
        state: its state dict.
        folder: made if missing; files of an earlier save are replaced.

    Raises:
        TypeError: weights of an element type that safetensors cannot hold.
    """
    with atomic_file(folder / "model.safetensors") as temporary:
        _write_weights(temporary, {name: tensor.detach() for name, tensor in state.items()})
    write_json(folder / "config.json", _description(kind, config))


def _description(kind: type[nn.Module], config: Any) -> dict[str, Any]:
    return {"class_path": class_path(kind), "config": dataclasses.asdict(config)}


def class_path(kind: type) -> str:
    """The import path by which a class is saved: the outermost package that offers it, so that its file may move."""
    module = kind.__module__
    if module == "__main__" and (spec := getattr(sys.modules["__main__"], "__spec__", None)) is not None:
        module = spec.name  # a file run with ``python -m`` is imported by its own name later
    packages = module.split(".")[:-1]
    for depth in range(1, len(packages) + 1):
        door = ".".join(packages[:depth])
        if getattr(sys.modules.get(door), kind.__name__, None) is kind:
            return f"{door}.{kind.__name__}"
    return f"{module}.{kind.__qualname__}"


def _write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """A safetensors file (header size, JSON header, data), where the library wants all tensors contiguous at once."""
    unknown = sorted(name for name, tensor in state.items() if tensor.dtype not in _DTYPES)
    if unknown:
        raise TypeError(f"{unknown[0]}: got {state[unknown[0]].dtype}, which safetensors cannot hold")
    names = sorted(state, key=lambda name: (-state[name].itemsize, name))  # the library's order: all data stay aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + state[name].nbytes
        entry = {"dtype": _DTYPES[state[name].dtype], "shape": list(state[name].shape), "data_offsets": [start, end]}
        header[name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            handle.write(state[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def load_module(folder: Path, expected: type[M], adjust: Callable[[Any], Any] | None = None) -> M:
    """Read what ``save_module`` wrote, in evaluation mode on the CPU.

    Args:
        folder: where it is.
        expected: the class, or a base class, it must have.
        adjust: changes the config before the module is built (for instance the attention back-end).

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a foreign or truncated file, another kind of module, names or shapes that do not fit.
    """
    description = read_json(folder / "config.json")
    if not isinstance(description, dict) or set(description) != {"class_path", "config"}:
        raise ValueError(
            f"{folder / 'config.json'}: not written by maskgen (expected the keys 'class_path' and 'config')"
        )
    kind = _find_class(description["class_path"], folder, expected)
    if not (isinstance(kind, type) and issubclass(kind, expected)):
        raise ValueError(f"{folder}: holds a {getattr(kind, '__name__', kind)}, expected a {expected.__name__}")
    config_class = get_type_hints(kind.__init__).get("config")  # the contract: Class(config) with a dataclass
    if config_class is None:
        raise ValueError(f"{folder}: {kind.__name__} is not built from a config; name one of its concrete classes")
    config = build_config(config_class, description["config"], str(folder / "config.json"))
    module = kind(adjust(config) if adjust else config)
    _load_weights(module, folder / "model.safetensors")
    return module.eval()


def build_config(kind: type, values: Any, where: str) -> Any:
    """A config dataclass from plain JSON or YAML values, every key and type checked.

    Raises:
        ValueError: naming the key that is unknown or mistyped.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", type=kind)
    try:
        return parser.instantiate(parser.parse_object({"config": values})).config
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def settings_from(source: object, kind: type[S], **others: Any) -> S:
    """A dataclass of settings that takes what another object has under the same names.

    Args:
        source: has them as attributes.
        kind: the dataclass; what ``source`` lacks keeps its default.
        others: fields that have other names there, or other values here.
    """
    names = (one.name for one in dataclasses.fields(kind) if hasattr(source, one.name))  # type: ignore[arg-type]
    return kind(**{name: getattr(source, name) for name in names} | others)


def _find_class(path: str, folder: Path, expected: type) -> Any:
    """Classes come from maskgen or from modules the user imported: a downloaded folder must not choose what is imported."""
    module, _, name = current_path(str(path)).rpartition(".")
    if module in sys.modules or module.startswith("maskgen."):
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(module), name)
        known = known_classes(expected)
        near = [known[match] for match in difflib.get_close_matches(name, known)]
        hint = f"the nearest known are {', '.join(near)}" if near else "was it written by a newer maskgen?"
        raise ValueError(f"{folder}: unknown class {path!r}; {hint}")
    raise ValueError(f"{folder}: class {path!r} is not maskgen's; import its module before loading, if you trust it")


def known_classes(kind: type) -> dict[str, str]:
    """Import paths, by name, of the classes below a class that were imported and can be built."""
    return {found.__name__: class_path(found) for found in _subclasses(kind)}


def _subclasses(kind: type) -> Iterator[type]:
    """All that were imported and can be built."""
    below: list[type] = kind.__subclasses__()
    for found in below:
        if not inspect.isabstract(found) and not found.__name__.startswith("_"):
            yield found
        yield from _subclasses(found)


def _load_weights(module: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: truncated or not a safetensors file ({error})") from None
    check_state(found, {name: tensor.shape for name, tensor in module.state_dict().items()}, str(path))
    with torch.no_grad():
        module.load_state_dict(found)


def check_state(found: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], where: str) -> None:
    """Compare names and shapes of weights with what a model needs.

    Args:
        found: the weights.
        expected: shape of each weight by name.
        where: file or model, named in the error.

    Raises:
        ValueError: one line with every name that is missing (and the nearest unexpected one), unexpected or mis-shaped.
    """
    unexpected = sorted(found.keys() - expected.keys())
    problems = []
    for name in sorted(expected.keys() - found.keys()):
        near = difflib.get_close_matches(name, unexpected, n=1)
        problems.append(f"missing {name} {tuple(expected[name])}" + (f" (nearest: {near[0]})" if near else ""))
    problems += [f"unexpected {name} {tuple(found[name].shape)}" for name in unexpected]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, expected {tuple(expected[name])}"
        for name in sorted(expected.keys() & found.keys())
        if tuple(found[name].shape) != tuple(expected[name])
    ]
    if problems:
        raise ValueError(f"{where}: {len(problems)} weights do not fit: " + "; ".join(problems))


def empty_shapes(kind: Callable[[Any], nn.Module], config: Any) -> dict[str, torch.Size]:
    """Name to shape of the weights of ``kind(config)``, which is built without memory."""
    with torch.device("meta"):
        return {name: weight.shape for name, weight in kind(config).state_dict().items()}


def renamed(
    state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], official: Callable[[str], str], where: str
) -> dict[str, Tensor]:
    """Official weights as a state dict of ours: the given tensors themselves, in the precision they came in.

    Args:
        state: official name to weight.
        shapes: our name to the expected shape.
        official: our name to the official one.
        where: named in the error.

    Raises:
        ValueError: every official name that is missing, unexpected or mis-shaped.
    """
    names = {name: official(name) for name in shapes}
    check_state(state, {names[name]: shape for name, shape in shapes.items()}, where)
    return {name: state[names[name]] for name in shapes}


def fingerprint(module: nn.Module) -> str:
    """Of a module's class, config and weights: codes of another tokenizer mean something else."""
    digest = hashlib.sha256(repr((type(module).__name__, module.config)).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def code_fingerprint(tokenizer: nn.Module) -> str:
    """Of what a tokenizer's codes mean: one whose decoder alone was trained anew has that of the one before."""
    return getattr(tokenizer.config, "codes_of", "") or fingerprint(tokenizer)


def file_digest(path: Path) -> str:
    """Of a file's bytes; "none" for one that is not there."""
    if not path.is_file():
        return "none"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# Where classes that folders and settings name by import path stood before they moved; new folders name doors.
_MOVED = {
    "modern": "models.modern",
    "transformer": "models.bert",
    "published.amused": "published.amused.transformer",
    "published.halton": "published.halton.transformer",
    "published.imagebert": "published.onedtok.imagebert",
    "published.maskbit": "published.maskbit.transformer",
    "published.uvitbert": "published.onedtok.uvitbert",
    "published.vampnet": "published.vampnet.transformer",
    "tokenizers.audio_codec": "tokenizers.audio.codec",
    "tokenizers.magvit2": "tokenizers.magvit2.tokenizer",
    "tokenizers.published.amused": "tokenizers.published.image.amused",
    "tokenizers.published.dac": "tokenizers.published.audio.dac",
    "tokenizers.published.encodec": "tokenizers.published.audio.encodec",
    "tokenizers.published.encodec_package": "tokenizers.published.audio.encodec_package",
    "tokenizers.published.ibq": "tokenizers.published.image.ibq",
    "tokenizers.published.lac": "tokenizers.published.audio.lac",
    "tokenizers.published.llamagen": "tokenizers.published.image.llamagen",
    "tokenizers.published.maskbit": "tokenizers.published.image.maskbit",
    "tokenizers.published.taming": "tokenizers.published.image.taming",
    "tokenizers.toy": "tokenizers.image.toy",
    "tokenizers.toy_audio": "tokenizers.audio.toy",
    "tokenizers.toy_video": "tokenizers.video.toy",
    "tokenizers.vq2d_frames": "tokenizers.video.frames",
    "tokenizers.vq3d": "tokenizers.video.vq3d",
    "tokenizers.vqgan": "tokenizers.image.vqgan",
    "tasks.audio_data": "tasks.data",
    "tasks.cifar10": "tasks.data",
    "tasks.classifier": "tasks.evaluation.features.classifier",
    "tasks.datasets": "tasks.data",
    "tasks.features_inception": "tasks.evaluation.features",
    "tasks.hub_images": "tasks.data",
    "tasks.i3d": "tasks.evaluation.features",
    "tasks.image_folders": "tasks.data",
    "tasks.image_shards": "tasks.data",
    "tasks.melodies": "tasks.data",
    "tasks.moving_digits": "tasks.data",
    "tasks.token_shards": "tasks.data",
    "tasks.video_data": "tasks.data",
}

# Single classes that left a module which stays.
_CLASSES = {"maskgen.tasks.data.images.digits.Folder": "maskgen.tasks.data.Folder"}


def current_path(path: str) -> str:
    """Today's import path of a class of ours; the same path where nothing moved."""
    if path in _CLASSES:
        return _CLASSES[path]
    module, _, name = path.rpartition(".")
    moved = _MOVED.get(module.removeprefix("maskgen.")) if module.startswith("maskgen.") else None
    return path if moved is None else f"maskgen.{moved}.{name}"
