"""Published weights into folders of our own: from local files (``maskgen convert``), or downloaded once by name.

A whole model becomes a folder for ``Pipeline.from_pretrained``, one part of it a folder for ``load_module`` (what
``--tokenizer`` of ``maskgen train transformer`` takes).
"""

import dataclasses
import inspect
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from maskgen.checkpoint import atomic_folder, check_state, save_state
from maskgen.tasks.conditions.classes import imagenet_classes
from maskgen.tasks.conditions.preparation import Preparation
from maskgen.tasks.conditions.text import PretrainedText
from maskgen.tasks.model_folder import PipelineConfig, check_parts, check_text, write_description
from maskgen.tasks.published.catalog import CATALOG, find
from maskgen.tasks.published.download import download
from maskgen.tasks.published.entries.base import Published, Weights
from maskgen.tasks.published.entries.families import FAMILIES, Family, load_name, looks_like
from maskgen.tasks.published.folders import find_files, told_settings, with_settings
from maskgen.tasks.published.readers import check_order, code_tables, read_part, state_names
from maskgen.tasks.published.text import obtain_text, read_text, write_text
from maskgen.weights.files import read_weights

_VERSION = "1"  # of the converted folders; raised when they change, so that nobody meets old ones in the cache


@dataclass(frozen=True)
class _Half:
    """A converted tokenizer or transformer.

    Attributes:
        kind: class of the module.
        config: what it is built from.
        state: its weights, views of the file.
        empty: the module without memory, for what can be asked of it.
    """

    kind: type[nn.Module]
    config: Any
    state: Mapping[str, Tensor]
    empty: Any


def convert_files(
    family: str,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    transformer: str | Path | None = None,
    fine: str | Path | None = None,
    text: str | Path | None = None,
    folder: str | Path | None = None,
    ema: bool | None = None,
    any_size: bool = False,
) -> None:
    """Turn files of published weights into a folder of ours, whole or not at all.

    Args:
        family: a published name, see ``maskgen.tasks.published.catalog``.
        out: folder to make; must not exist, or be empty.
        tokenizer: file of the tokenizer; for EnCodec and DAC it may be a folder of the Hub.
        transformer: file of the transformer. With both a model folder is made, with one alone a folder of that part.
        fine: file of the second transformer of sound, beside the other two.
        text: folder of the text encoder and its tokenizer, beside tokenizer and transformer.
        folder: a copy of the model's repository, which has all parts.
        ema: take the averaged copy of the weights, where a file has one; by default that of which figures were published.
        any_size: take whatever sizes the files show instead of the published ones, for weights of your own training.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no file, one the family has not, ``out`` in use, or a file that is damaged, of another family, of the
            other part or of another size; all names that do not fit are listed.
    """
    entry, target = find(family), Path(out)
    given = {"tokenizer": tokenizer, "transformer": transformer, "fine": fine}
    files = _files(entry, {part: Path(file) for part, file in given.items() if file}, folder)
    if text and not entry.text:
        raise ValueError(f"text: got {text}, but {family} has no text encoder")
    check_order(entry, files)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target}: exists and is not empty; name a new folder")
    halves: dict[str, _Half] = {}
    for (
        part,
        file,
    ) in files.items():  # the tokenizer first: it tells the number of codes, should sizes be read from files
        averaged = entry.parts[part].averaged if ema is None else ema
        halves[part] = _convert(entry, part, file, averaged, halves.get("tokenizer"), any_size)
    whole = len(halves) > 1
    encoder = _encoder(entry, text or folder, halves["transformer"]) if whole and entry.text else None
    with atomic_folder(target) as made:
        if whole:
            config = _pipeline_config(entry, halves)
            identity = "" if encoder is None else encoder.identity()
            write_description(made, entry.modality, dataclasses.replace(config, text_identity=identity))
        for part, half in halves.items():
            save_state(half.kind, half.config, half.state, made / part if whole else made)
        if encoder is not None:
            write_text(encoder, made / "text")


def _files(entry: Published, given: Mapping[str, Path], folder: str | Path | None) -> dict[str, Path]:
    """The files to read by part, the tokenizer first; those given go before those of the folder."""
    for part in given.keys() - entry.parts.keys():
        raise ValueError(f"{part}: got {given[part]}, but {entry.name} is a {' and '.join(entry.parts)} alone")
    found = dict(given)
    if folder:
        if len({weights.repository or weights.url for weights in entry.parts.values()}) > 1:
            raise ValueError(f"folder: got {folder}, but {entry.name} is not in one repository; give its files")
        wanted = {part: weights.file for part, weights in entry.parts.items() if part not in given and weights.file}
        found |= find_files(wanted, Path(folder))
    if not found:
        raise ValueError(
            f"{entry.name}: got no file, expected {' and '.join(f'--{part} FILE' for part in entry.parts)}"
            + (", or --folder FOLDER, a copy of its repository" if entry.text else "")
        )
    return {part: found[part] for part in entry.parts if part in found}


def _encoder(entry: Published, source: str | Path | None, transformer: _Half) -> PretrainedText | None:
    """The text encoder, or None, which is said, where there is no folder of it."""
    assert entry.text is not None
    if source is None:
        warnings.warn(
            f"{entry.name}: converted without its text encoder, so that it takes no prompts; give --text FOLDER",
            stacklevel=3,
        )
        return None
    encoder = read_text(entry.text, Path(source))
    check_text(encoder, transformer.empty)
    return encoder


def fetch(name: str) -> Path:
    """The folder of a published model in the cache; downloaded and converted the first time.

    The cache is that of the Hugging Face libraries (``HF_HOME``). Several processes may ask at once: one works, the others
    wait. Downloads that break off go on where they stopped.

    Args:
        name: a published name.

    Raises:
        ValueError: no such name, or files that are not what they should be.
        ConnectionError: not in the cache and no network; says how to convert local files instead.
        FileNotFoundError: the file is gone from its server.
        OSError: the cache cannot be written to.
    """
    entry = find(name)
    cache = cache_folder()
    target = cache / f"{name}-{_VERSION}"
    if _finished(target):
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not _finished(target):
                files = {part: _obtain(weights, cache / "downloads") for part, weights in entry.parts.items()}
                convert_files(
                    name,
                    target,
                    tokenizer=files.get("tokenizer"),
                    transformer=files.get("transformer"),
                    fine=files.get("fine"),
                    text=obtain_text(entry.text) if entry.text else None,
                )
                for file in files.values():
                    if file.parent == cache / "downloads":
                        file.unlink(missing_ok=True)  # the converted copy holds the same numbers
    except OSError as error:
        if isinstance(error, ConnectionError | FileNotFoundError) and error.errno is None:  # what _obtain says
            raise type(error)(f"{error}. With the files at hand: {entry.convert_command}") from None
        raise OSError(
            f"{cache}: the cache cannot be written to ({error.strerror or error}); set HF_HOME to a folder that can, or "
            f"convert files at hand: {entry.convert_command}"
        ) from None
    return target


def cache_folder() -> Path:
    """Where converted models are kept: ``maskgen`` in the assets cache of ``huggingface_hub``."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "maskgen"


def _finished(folder: Path) -> bool:
    return (folder / "pipeline.json").is_file() or (folder / "config.json").is_file()


def _obtain(weights: Weights, folder: Path) -> Path:
    """A published file on this machine."""
    if weights.url:
        return download(weights.url, folder / f"{weights.family}-{weights.sizes}", sha256=weights.sha256)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(weights.repository, weights.file))
    except LocalEntryNotFoundError:
        raise ConnectionError(
            f"{weights.source}: not in the cache, and the Hugging Face Hub cannot be reached"
        ) from None
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(f"{weights.source}: the Hugging Face Hub answers: {reason}") from None


def _convert(entry: Published, part: str, file: Path, ema: bool, tokenizer: _Half | None, any_size: bool) -> _Half:
    """One part; the tokenizer, which comes first, tells the others what they cannot know."""
    weights = entry.parts[part]
    if weights.kind.reader:
        if ema:
            raise ValueError(f"ema: got True, but {weights.kind.title} was published without averaged weights")
        _check_family(entry, weights, file, state_names(file))
        tables = code_tables(tokenizer.empty, tokenizer.state) if tokenizer else None
        config, converted = read_part(entry, part, file, tables, any_size=any_size)
    else:
        config, converted = _convert_names(entry, part, file, ema, tokenizer, any_size)
    empty = weights.kind.empty(config)
    check_state(converted, {name: tensor.shape for name, tensor in empty.state_dict().items()}, str(file))
    return _Half(weights.kind.model(), config, converted, empty)


def _convert_names(
    entry: Published, part: str, file: Path, ema: bool, tokenizer: _Half | None, any_size: bool
) -> tuple[Any, dict[str, Tensor]]:
    """Config and state dict of weights that are named and nothing more: published sizes, or those of the shapes."""
    weights = entry.parts[part]
    state = read_weights(file, ema=ema)
    kind = _check_family(entry, weights, file, state)
    config = weights.kind.published(weights.sizes)
    try:
        told = told_settings(kind.module, file)
        if any_size:
            known = told | ({"vocab_size": tokenizer.empty.vocab_size} if tokenizer else {})
            taken = inspect.signature(load_name(f"{weights.kind.module}:config_from")).parameters
            config = kind.config_from(state, **{name: value for name, value in known.items() if name in taken})
        else:
            config = with_settings(config, told, file)
        return config, kind.convert(state, config)
    except ValueError as error:
        raise ValueError(f"{file}: {'' if any_size else _size_problem(entry, part, state)}{error}") from None


def _check_family(entry: Published, weights: Weights, file: Path, state: Iterable[str]) -> Family:
    """The family of a file; another one, or another part, is refused, saying what it looks like and where it belongs."""
    named = sorted(state)
    seen = looks_like(named)
    if seen == weights.family or (seen is not None and FAMILIES[seen].marks == weights.kind.marks):
        return weights.kind
    if seen is not None and seen == weights.kind.also:
        return FAMILIES[seen]
    expected = weights.kind.title
    if seen is None:
        names = ", ".join(named[:3])
        raise ValueError(
            f"{file}: expected {expected}; its {len(named)} weights are of no family known here ({names}, ...)"
        )
    fits = {other.name: [w.family for w in other.parts.values()] for other in CATALOG.values()}
    fits = {name: [*found, *(FAMILIES[family].also for family in found)] for name, found in fits.items()}
    advice = next((f"give it as --{part}" for part, other in entry.parts.items() if other.family == seen), "")
    if not advice:
        names = ", ".join(name for name, found in fits.items() if seen in found)
        advice = f"use --{FAMILIES[seen].part} with --family {names}" if names else "it has no entry in the catalog"
    raise ValueError(f"{file}: expected {expected}, but this looks like {FAMILIES[seen].title}; {advice}")


def _size_problem(entry: Published, part: str, state: Mapping[str, Tensor]) -> str:
    """For weights of the right family that do not fit: the published model they are, or how their sizes differ."""
    weights = entry.parts[part]
    # Without data: only names and shapes matter.
    shapes = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in state.items()}
    expected = weights.kind.published(weights.sizes)
    for other in CATALOG.values():
        found = other.parts.get(part)
        if found is None or found.family != weights.family or weights.kind.published(found.sizes) == expected:
            continue
        try:
            weights.kind.convert(shapes, weights.kind.published(found.sizes))
        except (ValueError, RuntimeError):
            continue
        return f"these are the weights of {other.name}, use --family {other.name}: "
    try:
        own = weights.kind.config_from(shapes)
        weights.kind.convert(shapes, own)
    except (ValueError, RuntimeError):
        return ""
    told = ", ".join(
        f"{item.name} {getattr(own, item.name)} instead of {getattr(expected, item.name)}"
        for item in dataclasses.fields(expected)
        if getattr(own, item.name) != getattr(expected, item.name)
    )
    return f"sizes that {entry.name} has not ({told}; for weights of your own training give --any_size true): "


def _pipeline_config(entry: Published, halves: Mapping[str, _Half]) -> PipelineConfig:
    """What the model folder says, once the parts are known to fit each other."""
    tokenizer, transformer, fine = (halves.get(part) for part in ("tokenizer", "transformer", "fine"))
    assert tokenizer is not None
    assert transformer is not None
    check_parts(tokenizer.empty, transformer.empty, fine.empty if fine else None)
    axes, stride = tuple(transformer.config.axes), tokenizer.empty.stride
    size = tuple(cells * step for cells, step in zip(axes, stride, strict=True))
    names = imagenet_classes() if entry.class_names == "imagenet" else ()
    fitting = names if len(names) == transformer.empty.num_classes else ()
    return PipelineConfig(
        signal_size=size,
        class_names=fitting,
        sampling=entry.sampling,
        fine_sampling=entry.fine_sampling if fine else None,
        # The code tables of sound are in place: the transformers were given them.
        tokenizer_identity=tokenizer.empty.identity() if entry.modality == "audio" else "",
        prepared=Preparation(
            size=size, sample_rate=entry.sample_rate, channels=entry.channels, loudness=entry.loudness
        ),
    )
