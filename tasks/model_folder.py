"""What a model folder holds: its description, its optional parts, and whether the parts belong together."""

import dataclasses
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from maskgen.checkpoint import (
    build_config,
    code_fingerprint,
    file_digest,
    load_module,
    read_json,
    save_module,
    write_json,
)
from maskgen.models.attention import AttentionBackend, check_backend
from maskgen.models.base import MaskedTransformer
from maskgen.sampling.settings import Sampling, with_current_sampling
from maskgen.tasks.conditions.preparation import USUAL_LOUDNESS, Preparation
from maskgen.tasks.conditions.text.base import TextEncoder
from maskgen.tasks.conditions.text.pretrained import OWN_FOLDER
from maskgen.tasks.conditions.trained import TrainedTasks
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.base import Tokenizer

_FORMAT = "maskgen-pipeline"


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """What a model folder says besides its weights.

    Attributes:
        signal_size: size of the signal the model was trained on: (H, W) for images, (T, H, W) for video, (S,) for sound.
        class_names: one name a class, or none.
        sampling: settings used when a call names none.
        fine_sampling: the same for the fine transformer of sound; None where there is none.
        tokenizer_identity: ``AudioTokenizer.identity()`` of the codec the transformers were trained with; else "".
        text_identity: ``TextEncoder.identity()`` of the encoder that the transformer was trained with; else "".
        video: what a model of video was trained to do, if it is known.
        prepared: what its training examples were brought to, if it is known.
    """

    signal_size: tuple[int, ...]
    class_names: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    fine_sampling: Sampling | None = None
    tokenizer_identity: str = ""
    text_identity: str = ""
    video: TrainedTasks | None = None
    prepared: Preparation | None = None


def read_description(folder: Path) -> PipelineConfig:
    """The settings in a model folder's ``pipeline.json``, also of one written before ``Sampling`` had groups.

    Raises:
        FileNotFoundError: there is none.
        ValueError: another file, or a key that is unknown or mistyped.
    """
    path = folder / "pipeline.json"
    description = read_json(path)
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise ValueError(f'{path}: not a maskgen model (expected "format": "{_FORMAT}")')
    values = description.get("config")
    current = with_current_sampling(values) if isinstance(values, Mapping) else values
    config: PipelineConfig = build_config(PipelineConfig, current, str(path))
    if isinstance(values, Mapping) and "prepared" in values:
        return config
    found = trained_on(folder / "transformer")
    if found is None and description.get("modality") == "audio":
        warnings.warn(
            f"{folder}: does not say how loud its training sounds were (saved by an earlier version); edits bring sounds to "
            f"{USUAL_LOUDNESS:g} LUFS unless loudness says otherwise",
            stacklevel=3,
        )
    return dataclasses.replace(config, prepared=found)


def trained_on(run: Path) -> Preparation | None:
    """What the examples of a training run were brought to; None where its ``run.json`` does not say, or there is none."""
    path = run / "run.json"
    found = read_json(path) if path.is_file() else None
    data = found.get("data") if isinstance(found, dict) else None
    if not isinstance(data, Mapping) or data.get("class") == "TokenShards":
        return None
    return Preparation.of(data)


def write_description(folder: Path, modality: str, config: PipelineConfig) -> None:
    """Write ``pipeline.json``, which makes a folder with ``tokenizer/`` and ``transformer/`` a model."""
    content = {"format": _FORMAT, "modality": modality, "config": dataclasses.asdict(config)}
    write_json(folder / "pipeline.json", content)


def check_parts(tokenizer: Tokenizer, transformer: MaskedTransformer, fine: MaskedTransformer | None = None) -> None:
    """Refuse transformers for other tokens than the tokenizer's.

    Args:
        tokenizer: V codes in each of K codebooks.
        transformer: the same; for sound it may have the first codebooks only.
        fine: a second one for sound, with all K codebooks.

    Raises:
        ValueError: naming both sides.
    """
    got = (tokenizer.vocab_size, tokenizer.num_codebooks)
    expected = (transformer.vocab_size, transformer.num_codebooks)
    coarse = isinstance(tokenizer, AudioTokenizer) and got[0] == expected[0] and got[1] > expected[1]
    if got != expected and not coarse:
        raise ValueError(
            f"tokenizer and transformer do not fit: {got[0]} codes x {got[1]} against {expected[0]} x {expected[1]}"
        )
    if fine is None:
        return
    if not coarse:
        raise ValueError(
            f"fine: got a second transformer, but the first has all {got[1]} codebooks of the tokenizer; leave one out"
        )
    if (fine.vocab_size, fine.num_codebooks) != got:
        raise ValueError(
            f"tokenizer and fine transformer do not fit: {got[0]} codes x {got[1]} against {fine.vocab_size} x "
            f"{fine.num_codebooks}"
        )


def check_codec(codec: AudioTokenizer, expected: str = "") -> str:
    """Refuse a codec other than the one that a transformer was trained with: its codes would be other sounds.

    Args:
        codec: the codec at hand.
        expected: identity of the other, or "" if nobody wrote it down.

    Returns:
        Identity of ``codec``.

    Raises:
        ValueError: another codec.
    """
    identity = codec.identity()
    if expected not in ("", identity):
        raise ValueError(
            f"tokenizer: got {identity}, but the transformer was trained on the codes of {expected}; put that codec back"
        )
    return identity


def check_text(text: TextEncoder | None, transformer: MaskedTransformer, expected: str = "") -> str:
    """Refuse a text encoder that a transformer was not trained with: its features would mean other things.

    Args:
        text: the encoder, if there is one.
        transformer: what it is for.
        expected: identity of the one it was trained with, or "" if nobody wrote it down.

    Returns:
        Identity of ``text``; what was expected where there is none.

    Raises:
        ValueError: a transformer that takes no text, features of another width, or another encoder.
    """
    if text is None:
        return expected
    name = type(transformer).__name__
    if not transformer.takes_text:
        raise ValueError(f"text: got an encoder, but {name} takes no text (context.width and context.pooled are 0)")
    for field_, takes, gives in (
        ("context", transformer.context_width, text.context_width),
        ("pooled", transformer.pooled_width, text.pooled_width),
    ):
        if takes and takes != gives:
            raise ValueError(f"text: the encoder's {field_} is {gives or 'none'}, but {name} takes a width of {takes}")
    identity = text.identity()
    if expected not in ("", identity):
        raise ValueError(
            f"text: got the encoder {identity}, but the transformer was trained with {expected}; put that one back"
        )
    return identity


@dataclass(frozen=True)
class Part:
    """A part of a model folder: a sub-folder and an attribute of ``Pipeline`` of the same name.

    Attributes:
        name: of both.
        kind: class it must have.
        required: whether every model has it.
    """

    name: str
    kind: type[Tokenizer] | type[MaskedTransformer] | type[TextEncoder]
    required: bool = False


PARTS = (
    Part("tokenizer", Tokenizer, required=True),
    Part("transformer", MaskedTransformer, required=True),
    Part("fine", MaskedTransformer),
    Part("critic", MaskedTransformer),
    Part("text", TextEncoder),
)
"""All that a model folder may hold; loading, saving, the Hub and ``maskgen info`` go by this table."""

FIRST_STAGE = "coarse"
"""Sub-folder with the first stage of a cascade, a model folder itself."""


def model_files() -> list[str]:
    """Patterns of what belongs to a model folder; nothing else is fetched from a Hub repository."""
    own = ["pipeline.json", *(f"{part.name}/*" for part in PARTS)]
    return own + [f"{FIRST_STAGE}/{pattern}" for pattern in own]


def read_parts(folder: Path, attention: AttentionBackend | None = None) -> dict[str, Any]:
    """The parts of a model folder by name; None where an optional one is missing.

    Args:
        folder: of the model.
        attention: back-end of the transformers instead of the saved one.

    Raises:
        FileNotFoundError: a required part is missing.
        ValueError: files that are damaged or do not fit each other.
    """
    if attention is not None:
        check_backend(attention)
    adjust = None if attention is None else partial(_with_attention, attention=attention)
    found: dict[str, Any] = {}
    for part in sorted(PARTS, key=lambda part: part.kind is Tokenizer):  # settings are refused before large codecs load
        missing = not part.required and not (folder / part.name / "config.json").is_file()
        change = {
            MaskedTransformer: adjust,
            TextEncoder: partial(_from_own_files, folder=folder / part.name / OWN_FOLDER),
        }
        found[part.name] = None if missing else load_module(folder / part.name, part.kind, change.get(part.kind))
    _check_codes(folder, found["tokenizer"])
    return found


def _check_codes(folder: Path, tokenizer: Tokenizer) -> None:
    """Say that a tokenizer was trained again after the transformer; codecs are refused, see ``check_codec``."""
    path = folder / "transformer" / "run.json"
    run = read_json(path) if path.is_file() and not isinstance(tokenizer, AudioTokenizer) else None
    if not isinstance(run, dict) or run.get("weights") != file_digest(path.with_name("model.safetensors")):
        return  # of no training, or of one that these weights are not from
    before, now = run.get("tokenizer"), code_fingerprint(tokenizer)
    if before != now:
        warnings.warn(
            f"{folder}: its tokenizer is not the one whose codes the transformer was trained on ({before} then, {now} now), "
            "so results may be noise; put that tokenizer back, or train the transformer again (--again)",
            stacklevel=4,
        )


def write_parts(folder: Path, parts: Mapping[str, Any]) -> None:
    """Write parts by name, and take away what an earlier save left of those that are None."""
    for part in PARTS:
        if parts[part.name] is not None:
            save_module(parts[part.name], folder / part.name)
            if isinstance(parts[part.name], TextEncoder):
                parts[part.name].save_files(folder / part.name)
            continue
        for name in ("config.json", "model.safetensors"):
            (folder / part.name / name).unlink(missing_ok=True)
        shutil.rmtree(folder / part.name / OWN_FOLDER, ignore_errors=True)


def _from_own_files(config: Any, folder: Path) -> Any:
    """The settings of a text encoder whose files lie in the model folder, where they do."""
    return dataclasses.replace(config, source=str(folder), revision=None) if folder.is_dir() else config


def _with_attention(config: Any, attention: AttentionBackend) -> Any:
    """The settings of a model with another back-end."""
    if not hasattr(config, "attention"):
        raise ValueError(
            f"attention: got {attention!r}, but {type(config).__name__} has no choice of back-end; leave it out"
        )
    return dataclasses.replace(config, attention=attention)


def upload(save: Callable[[str], None], repository: str, *, private: bool) -> str:
    """Upload what ``save(folder)`` writes to the Hugging Face Hub, see ``Pipeline.push_to_hub``; returns its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        return str(api.upload_folder(repo_id=repository, folder_path=folder))
