"""What commands, options and classes on the command line and in its YAML were called before.

Classes keep working, with a note; of a command or an option one line says the new name. Fields of settings that were renamed
or grouped stand in the ``former_names`` of their dataclass, see ``maskgen.sampling.settings.Sampling``.
"""

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from maskgen.checkpoint import current_path

FORMER_COMMANDS = {
    "train codec": "train tokenizer --tokenizer AudioCodec",
    "train video-tokenizer": "train tokenizer --tokenizer VQ3D",
}
"""Commands, and what is typed instead."""

_FORMER_SETTINGS = {
    "audio": "source",
    "codec": "tokenizer (as class_path: maskgen.tokenizers.audio.AudioCodec, init_args: {config: ...})",
    "judging": "critic_settings",
    "settings.guard.most_in_a_row": "settings.guard.max_consecutive_skips",
}


def current_paths(text: str) -> str:
    """Class paths from before a class moved, as they are today."""

    def replaced(found: re.Match[str]) -> str:
        path = current_path(found[0])
        if path != found[0]:
            print(f"maskgen: note: {found[0]} is {path} now", file=sys.stderr)  # noqa: T201
        return path

    return re.sub(r"(?<![\w./-])maskgen(?:\.\w+)+", replaced, text)


def former_options(kinds: Mapping[str, Any], mentioned: Mapping[str, Any]) -> dict[str, str]:
    """Those options of before that are given, and what they are called now.

    Args:
        kinds: type of each option of the command.
        mentioned: see ``mentioned_settings``.
    """
    renamed = {
        f"{option}.{former}": f"{option}.{name}"
        for option, kind in kinds.items()
        for part in (kind, *get_args(kind))
        for former, name in getattr(part, "former_names", {}).items()
    }
    # A group may have the name that a plain value had before.
    given = [name for name, value in mentioned.items() if name not in renamed or not isinstance(value, Mapping)]
    return {
        former: now
        for former, now in (_FORMER_SETTINGS | renamed).items()
        if former in given and former not in kinds and re.split(r"\W", now)[0] in kinds
    }


def mentioned_settings(words: Sequence[str]) -> dict[str, Any]:
    """Settings as a command line and its config files name them, with dots, and their values; later ones count."""
    return dict(_mentioned(words))


def _mentioned(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for place, word in enumerate(words):
        name, equals, value = word.removeprefix("--").partition("=")
        if name == word or not name:
            continue
        if not equals:
            value = next(iter(words[place + 1 : place + 2]), "")
        if name != "config":
            yield from _flat({name: _plain(value)})
            continue
        with contextlib.suppress(OSError, UnicodeDecodeError):  # which the parser reports
            yield from _flat(_plain(Path(value).read_text(encoding="utf-8")))


def _plain(text: str) -> Any:
    """What YAML makes of a text."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items() if isinstance(content, dict) else ():
        yield f"{prefix}{name}", value
        yield from _flat(value, f"{prefix}{name}.")
