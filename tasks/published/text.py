"""The text encoder of a published model: files of transformers become the part ``text`` of a model folder."""

import tempfile
from pathlib import Path

from maskgen.checkpoint import read_json, save_module
from maskgen.tasks.conditions.text import PretrainedText, PretrainedTextConfig
from maskgen.tasks.published.entries.base import TextFiles
from maskgen.tasks.published.folders import at_hand

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


def obtain_text(files: TextFiles) -> Path:
    """A published encoder on this machine, in the layout of its repository; downloaded the first time.

    Raises:
        ConnectionError: neither cached nor to be reached.
        FileNotFoundError: it is gone from the Hub.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [f"{files.encoder}/*.json", f"{files.encoder}/{_WEIGHTS}", f"{files.tokenizer}/*"]
    try:
        return Path(snapshot_download(files.repository, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        raise ConnectionError(
            f"{files.repository}: not in the cache, and the Hugging Face Hub cannot be reached"
        ) from None
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(f"{files.repository}: the Hugging Face Hub answers: {reason}") from None


def _take_half_precision(scratch: Path, encoder: Path) -> None:
    """Where the encoder has no other weights, those in half precision are what transformers looks for."""
    file = at_hand(encoder / _WEIGHTS)
    if file.name != _WEIGHTS:
        (scratch / _WEIGHTS).symlink_to(file.resolve())
