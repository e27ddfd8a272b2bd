"""The text encoder of a published model: a folder of transformers becomes the part ``text`` of a model folder, with its weights."""

import json
import tempfile
import warnings
from pathlib import Path

from maskgen.checkpoint import read_json, save_module
from maskgen.tasks.conditions.text import PretrainedText, PretrainedTextConfig
from maskgen.tasks.published.entries.base import TextFiles

_WEIGHTS = "model.safetensors"


def read_text(files: TextFiles, folder: Path) -> PretrainedText:
    """The encoder of a published model.

    Args:
        files: what the catalog says of it.
        folder: a folder with its sub-folders, as on the Hub, or one that holds encoder and tokenizer side by side.

    Raises:
        FileNotFoundError: no such folder, or one without encoder or tokenizer.
        ImportError: ``transformers`` is not installed.
        ValueError: what is there is no such encoder.
    """
    parts = [folder / name if (folder / name).is_dir() else folder for name in (files.encoder, files.tokenizer)]
    for part, needed in zip(parts, ("config.json", "tokenizer_config.json"), strict=True):
        if not (part / needed).is_file():
            raise FileNotFoundError(
                f"text: {part} has no {needed}; give a folder with {files.encoder}/ and {files.tokenizer}/, as the model's "
                "repository has them"
            )
    with tempfile.TemporaryDirectory() as scratch:  # transformers reads both from one folder
        for source in (file for part in reversed(parts) for file in part.iterdir() if file.is_file()):
            target = Path(scratch) / source.name
            target.unlink(missing_ok=True)
            target.symlink_to(source.resolve())
        _take_half_precision(Path(scratch), parts[0])
        length = files.length or read_json(Path(scratch) / "tokenizer_config.json").get("model_max_length")
        return PretrainedText(
            PretrainedTextConfig(
                source=scratch,
                length=length,
                layer=files.layer,
                pooled=files.pooled,
                attend_padding=files.attend_padding,
                keep_weights=True,
            )
        )


def write_text(encoder: PretrainedText, folder: Path) -> None:
    """Write the part ``text`` of a model folder."""
    save_module(encoder, folder)
    encoder.save_files(folder)


def find_files(wanted: dict[str, str], folder: Path) -> dict[str, Path]:
    """The files of a model in a copy of its repository, by part.

    Args:
        wanted: part to path in the repository.
        folder: the copy. Where a file is missing, the one in half precision (``.fp16.``) is taken, which is said.

    Raises:
        FileNotFoundError: neither is there.
    """
    found = {part: _half(folder / path) for part, path in wanted.items()}
    for part, file in found.items():
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder / wanted[part]}: no such file; give a whole copy of the model's repository"
            )
    return found


def settings_beside(file: Path) -> dict[str, object]:
    """What a folder in diffusers' layout says of a file of weights; nothing where there is no such folder.

    Returns:
        ``config.json`` beside the weights, and the scheduler's ``mask_token_id``.

    Raises:
        ValueError: damaged settings.
    """
    told: dict[str, object] = {}
    for path in (file.parent / "config.json", file.parent.parent / "scheduler" / "scheduler_config.json"):
        if not path.is_file():
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if isinstance(values, dict) and "_class_name" in values:
            keep = values if path.name == "config.json" else {"mask_token_id": values.get("mask_token_id")}
            told |= {name: value for name, value in keep.items() if value is not None}
    return told


def _half(file: Path) -> Path:
    half = file.with_name(f"{file.stem}.fp16{file.suffix}")
    if file.is_file() or not half.is_file():
        return file
    warnings.warn(f"{half}: weights in half precision, as no others are there", stacklevel=4)
    return half


def _take_half_precision(scratch: Path, encoder: Path) -> None:
    """Where the encoder has no other weights, those in half precision are what transformers looks for."""
    file = _half(encoder / _WEIGHTS)
    if file.name != _WEIGHTS:
        (scratch / _WEIGHTS).symlink_to(file.resolve())
