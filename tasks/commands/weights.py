"""``maskgen models``, ``convert`` and ``info``: what weights there are, and what a model folder holds."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from maskgen.tasks.commands.audio import describe_audio
from maskgen.tasks.commands.parts import describe_part, load_model
from maskgen.tasks.commands.video import describe_video
from maskgen.tasks.media.results import environment
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.published import catalog
from maskgen.tasks.published.convert import convert_files


def info_command(*, model: str | None = None) -> None:
    """Describe a model folder, or this installation.

    Args:
        model: model folder or Hub repository; versions and devices if left out.
    """
    if model is None:
        print(json.dumps(environment(), indent=2))  # noqa: T201
        return
    print(json.dumps({"model": model, **_described(load_model(model, "cpu"))}, indent=2))  # noqa: T201


def _described(pipe: Pipeline) -> dict[str, Any]:
    """What a model folder holds; of a cascade its first stage likewise."""
    description: dict[str, Any] = {
        "modality": pipe.modality,
        "signal_size": list(pipe.config.signal_size),
        "token_axes": list(pipe.axes),
        "tokenizer": describe_part(pipe.tokenizer) | {"vocab_size": pipe.tokenizer.vocab_size},
        "transformer": describe_part(pipe.transformer) | {"num_classes": pipe.transformer.num_classes},
        "class_names": list(pipe.config.class_names),
        "sampling": dataclasses.asdict(pipe.config.sampling),
    }
    if pipe.modality == "audio":
        description |= describe_audio(pipe)
    if pipe.modality == "video":
        description |= describe_video(pipe)
    description |= {
        name: describe_part(part) for name, part in pipe.parts.items() if part is not None and name not in description
    }
    if pipe.coarse is not None:
        description["coarse"] = _described(pipe.coarse)
    return description


def models_command() -> None:
    """List the published models that can be used by name, with their files, figures and licences."""
    print(catalog.table())  # noqa: T201


def convert_command(
    *,
    family: str,
    out: Path,
    tokenizer: Path | None = None,
    transformer: Path | None = None,
    fine: Path | None = None,
    text: Path | None = None,
    folder: Path | None = None,
    ema: bool | None = None,
    any_size: bool = False,
) -> None:
    """Turn local files of published weights into a model folder; nothing is downloaded.

    Args:
        family: published name of the weights, see ``maskgen models``.
        out: folder to make.
        tokenizer: file of the tokenizer.
        transformer: file of the transformer.
        fine: file of the second transformer, for models of sound that have one.
        text: folder of the text encoder and its tokenizer, for models that take prompts.
        folder: a copy of the model's repository with all its parts, instead of the files.
        ema: take the averaged copy of the weights, where a file has one; by default that of which figures were published.
        any_size: take whatever sizes the files show, for weights of your own training in a published layout.
    """
    files = {"tokenizer": tokenizer, "transformer": transformer, "fine": fine, "text": text, "folder": folder}
    convert_files(family, out, **files, ema=ema, any_size=any_size)
    print(f"{family} in {out}")  # noqa: T201
