"""Where a model's folder is: on this disk, in the catalog of published names, or on the Hugging Face Hub."""

import difflib
import os
from pathlib import Path

from maskgen.tasks.model_folder import model_files
from maskgen.tasks.published.catalog import CATALOG
from maskgen.tasks.published.convert import fetch


def find_model(name: str | Path, revision: str | None = None) -> Path:
    """A local folder, a published model, or the cached copy of a Hub repository.

    Args:
        name: see ``Pipeline.from_pretrained``.
        revision: branch, tag or commit on the Hub.

    Returns:
        A folder with ``pipeline.json``.

    Raises:
        FileNotFoundError: no such folder, or it is not a model folder.
        ConnectionError: neither cached nor to be reached.
        ValueError: a published name of a part, not of a model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "pipeline.json").is_file():
            raise FileNotFoundError(f"{folder}: not a model folder (no pipeline.json); train one or name another")
        return folder
    text = str(name)
    if "/" not in text and (found := _published(text)) is not None:
        return found
    if isinstance(name, Path) or text.count("/") != 1 or text.startswith((".", "/", "~", "runs" + os.sep)):
        near = difflib.get_close_matches(text.lower().replace("_", "-"), CATALOG, n=3)
        raise FileNotFoundError(
            f"{name}: no such model folder; train one (maskgen demo) or name a Hub repository (owner/name) or a published "
            f"model ({'perhaps ' + ' or '.join(near) if near else 'maskgen models lists them'})"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=model_files()))
    except LocalEntryNotFoundError:
        raise ConnectionError(
            f"{name}: no such folder, not in the cache, and the Hugging Face Hub cannot be reached"
        ) from None
    except HfHubHTTPError as error:
        raise FileNotFoundError(f"{name}: no such folder, and the Hugging Face Hub answers: {error}") from None


def _published(name: str) -> Path | None:
    """The cached folder of a name of the catalog; None for any other name."""
    entry = CATALOG.get(name)
    if entry is None:
        return None
    if len(entry.parts) < 2:
        (part,) = entry.parts
        raise ValueError(
            f"{name}: a {part} alone, not a whole model; maskgen.tasks.published.convert.fetch({name!r}) gives "
            "its folder for "
            "maskgen.checkpoint.load_module"
        )
    return fetch(name)
