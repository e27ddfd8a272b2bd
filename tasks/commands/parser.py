"""How a typed function becomes a sub-command: jsonargparse, with mistakes in one line.

A command's keyword-only parameters are its options. Options that several commands have stand once, as the fields of a frozen
dataclass; a command takes one as a parameter before the ``*``, and its fields appear flat beside the command's own, on the
command line and in YAML, with their help from the ``Attributes`` of its docstring and those of its bases:

    def loop_command(run: EditRun, *, audio: Path, seam: float = 0.5) -> None:  # --audio --seam --model --seed --out ...

A keyword-only parameter that is a dataclass is a group instead: ``clip: ClipOptions`` gives ``--clip.start``.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings

from maskgen.checkpoint import current_path, known_classes
from maskgen.sampling.layers import Layer
from maskgen.tasks.commands.former import FORMER_COMMANDS, current_paths, former_options, mentioned_settings
from maskgen.tasks.commands.messages import missing_words, nearest_classes, one_line

_MODALITY = "modality"  # of the demo chosen
_PLAIN = (int, float, str, bool)

_GROUPS = {
    "train": "Train a tokenizer, then a transformer on its tokens.",
    "evaluate": "Measure samples, a model or a tokenizer.",
}


@dataclasses.dataclass(frozen=True)
class ByClass:
    """A command one of whose settings has the type that another one's class asks for.

    Attributes:
        function: the command.
        option: names the class.
        base: what the class is derived from.
        setting: whose type follows.
        kind: the type for a class; None stands for no class, or none that can be found.
        check: refuses a class.
        example: import path of a class, for an error.
    """

    function: Callable[..., Any]
    option: str
    base: type
    setting: str
    kind: Callable[[Any], type]
    check: Callable[[Any], None]
    example: str

    def settle(self, leaf: Leaf, mentioned: Mapping[str, Any]) -> None:
        """Add the setting to the parser of a command line."""
        name = mentioned.get(f"{self.option}.class_path", mentioned.get(self.option))
        inner = [key for key in mentioned if key.startswith(f"{self.option}.")]
        if inner and not isinstance(name, str):
            leaf.error(
                f"{self.option}: got settings ({inner[0]}) without a class; name one, as in "
                f"{self.option}: {{class_path: {self.example}, init_args: {{config: ...}}}}"
            )
        chosen = None if not isinstance(name, str) else _class_named(name, self.base)
        try:
            if chosen is not None:
                self.check(chosen)
            kind = self.kind(chosen)
        except (TypeError, ValueError) as error:
            leaf.error(f"{self.option}: {str(error).removeprefix(f'{self.option}: ')}")
        leaf.add_class_arguments(kind, self.setting)
        leaf.kinds = {**(leaf.kinds or {}), self.setting: kind}


Command = Callable[..., Any] | ByClass


_MODE = "yaml of words"


def _load_words(text: str) -> Any:
    """YAML; but what it takes for a comment or a bare anchor ("#1 dad", "&c") is a text, as a prompt may be."""
    found = get_loader("yaml")(text)
    is_none = text.strip().lower() in ("", "null", "~") or "\n" in text
    return text if found is None and not is_none else found


class Parser(ArgumentParser):
    """A parser whose mistakes take one line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **({"parser_mode": _MODE} | options))

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """See ``jsonargparse.ArgumentParser``; ``--per-class`` is the same as ``--per_class``."""
        given = args[0] if args else kwargs.pop("args", None)
        words = sys.argv[1:] if given is None else given
        return super().parse_args([current_paths(_underscored(word)) for word in words], *args[1:], **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """See ``jsonargparse.ArgumentParser``; config files come here, too, in which classes may have their former paths."""
        return super().parse_string(current_paths(content), *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and where to read more, and leave with status 2."""
        if not self.exit_on_error:  # jsonargparse asks a copy of this parser about each class; the outer one reports
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        said, command = missing_words(message, parser._option_string_actions.keys() - {"--help", "--print_config"}) or (
            one_line(message),
            "",
        )
        program = f"{str(parser.prog).replace(' [options]', '')} {command}".strip()
        self.exit(2, f"maskgen: error: {said}; see `{program} --help`\n")


class Leaf(Parser):
    """A parser whose unknown and empty config keys are named.

    (Nested sub-commands of jsonargparse 4.53 print only the command, and it lets ``settings: 5`` and ``steps: null`` pass.)
    """

    kinds: dict[str, Any] | None = None  # type of each argument
    by_class: ByClass | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """As ``Parser``; of a class that does not exist, those that are meant perhaps."""
        super().error(nearest_classes(message, self.kinds or {}) or message, ex)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """See ``jsonargparse.ArgumentParser``."""
        words = [_underscored(word) for word in (args[0] if args else kwargs.pop("args", None)) or ()]
        words = words if self._subcommands_action else _configs_first(words)
        mentioned = mentioned_settings(words)
        for former, now in former_options(self.kinds or {}, mentioned).items():
            self.error(f"{former}: this option is called {now} now")
        if self.by_class is not None:
            self.by_class.settle(self, mentioned)
            self.by_class = None
        try:
            found: Namespace = super().parse_args(_bracketed(words, self.kinds or {}), *args[1:], **kwargs)
        except UnicodeDecodeError as error:
            self.error(f"config: got a file that is no text ({error}), expected YAML", error)
        try:
            self.validate(found, skip_required=True)
            _check_values(self.kinds or {}, found, "")
        except (KeyError, TypeError) as error:
            self.error(str(error), error)
        return found


def build_parser(commands: Mapping[str, Command]) -> ArgumentParser:
    """The parser of a table of commands, whose names may have two words."""
    set_parsing_settings(docstring_parse_style=None)
    set_loader(_MODE, _load_words, (yaml.YAMLError,))
    parser = Parser(
        prog="maskgen", description="Generate and edit images, video and sound with masked-token transformers."
    )
    top = parser.add_subcommands(required=True)
    groups: dict[str, Any] = {"": top}
    for group, description in _GROUPS.items():
        if any(name.startswith(f"{group} ") for name in commands):
            parser_of_group = Parser(description=description)
            top.add_subcommand(group, parser_of_group, help=description)
            groups[group] = parser_of_group.add_subcommands(required=True)
    for name, command in commands.items():
        group, _, own = name.rpartition(" ")
        by_class = command if isinstance(command, ByClass) else None
        function = _function_of(command)
        skipped: set[str | int] = {"say"} if by_class is None else {"say", by_class.setting}
        summary = (function.__doc__ or "").strip().split("\n")[0]
        leaf = Leaf(description=summary)
        leaf.add_argument("--config", action="config", help="YAML file with any of these settings")
        shared = _shared_options(function)
        leaf.add_function_arguments(function, skip={*skipped, *shared})
        leaf.kinds, leaf.by_class = _kinds(function), by_class
        for kind in shared.values():
            leaf.add_class_arguments(kind)
            leaf.kinds |= _kinds(kind)
        for action in leaf._actions:
            if leaf.kinds.get(action.dest) is bool:  # ``--again`` alone says true
                action.nargs, action.const = "?", True
        groups[group].add_subcommand(own, leaf, help=summary)
        if name == "demo":  # complete by itself, and the group of the other demos
            groups[name] = leaf.add_subcommands(required=False, dest=_MODALITY)
    return parser


def run(argv: Sequence[str] | None, commands: Mapping[str, Command]) -> None:
    """Parse a command line and carry it out; errors are raised.

    Args:
        argv: arguments without the program's name; ``sys.argv`` if None.
        commands: functions by their names.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    former = " ".join(words[:2])
    if former in FORMER_COMMANDS:
        raise ValueError(f"{former}: is `maskgen {FORMER_COMMANDS[former]}` now")
    parser = build_parser(commands)
    parsed = parser.instantiate(parser.parse_args(argv))
    name = parsed.subcommand
    chosen = parsed[name]
    if name in ("train", "evaluate"):
        name, chosen = f"{name} {chosen.subcommand}", chosen[chosen.subcommand]
    elif name == "demo" and chosen[_MODALITY]:
        name, chosen = f"demo {chosen[_MODALITY]}", chosen[chosen[_MODALITY]]
    values = {key: value for key, value in vars(chosen).items() if key not in ("config", _MODALITY)}
    mentioned = mentioned_settings([_underscored(word) for word in words])
    values = {
        key: _layer(value, mentioned, key) if isinstance(value, Layer) else value for key, value in values.items()
    }
    if values.get("out") is not None:
        _check_writable(values["out"])
    function = _function_of(commands[name])
    for parameter, kind in _shared_options(function).items():
        values[parameter] = kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
    function(**values)


def _function_of(command: Command) -> Callable[..., Any]:
    return command.function if isinstance(command, ByClass) else command


def _shared_options(function: Callable[..., Any]) -> dict[str, Any]:
    """The dataclasses whose fields are options of a command, by the parameters before its ``*``."""
    kinds = get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {one.name: kinds[one.name] for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD}


def _kinds(function: Callable[..., Any]) -> dict[str, Any]:
    """Types of parameters by name, without plain ones that have no default: jsonargparse refuses to go without those."""
    kinds, parameters = get_type_hints(function), inspect.signature(function).parameters.values()
    return {
        one.name: kinds[one.name] for one in parameters if one.default is not one.empty or kinds[one.name] not in _PLAIN
    }


def _configs_first(words: Sequence[str]) -> list[str]:
    """Words with the config files in front: options lie over them, wherever they stand."""
    configs = {place for place, word in enumerate(words) if re.match(r"--config(=|$)", word)}
    configs |= {place + 1 for place in configs if words[place] == "--config"}
    return [words[place] for place in sorted(range(len(words)), key=lambda place: place not in configs)]


def _layer(settings: Layer, mentioned: Mapping[str, Any], prefix: str) -> Layer:
    """Settings that lie over others, without the defaults that jsonargparse filled in: they name what the user named."""
    named = {}
    for field in dataclasses.fields(settings):
        key, value = f"{prefix}.{field.name}", getattr(settings, field.name)
        if any(one == key or one.startswith(f"{key}.") for one in mentioned):
            named[field.name] = _layer(value, mentioned, key) if isinstance(value, Layer) else value
    return type(settings)(**named)


def _underscored(word: str) -> str:
    """Options are named like Python arguments; people also write them with dashes."""
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if re.match(r"--[a-z]", name) else word


def _bracketed(words: Sequence[str], kinds: Mapping[str, Any]) -> list[str]:
    """Lists as people type them, ``--box 16,16,32,32``, in the brackets that YAML wants."""
    found = list(words)
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        at = place if equals else place + 1
        value = value if equals else next(iter(words[at : at + 1]), "")
        if name.startswith("--") and "," in value and value[0] not in "[({" and _is_list(kinds, name[2:].split(".")):
            found[at] = f"{name}=[{value}]" if equals else f"[{value}]"
    return found


def _is_list(kinds: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether an option takes several values and no text; ``names`` are those between its dots."""
    kind = kinds.get(names[0])
    parts = (kind, *get_args(kind))
    if len(names) == 1:
        return str not in parts and any(get_origin(part) in (tuple, list, Sequence) for part in parts)
    groups = [part for part in parts if isinstance(part, type) and dataclasses.is_dataclass(part)]
    return any(_is_list(_kinds(part), names[1:]) for part in groups)


def _class_named(name: str, base: type) -> type | None:
    """A class by its import path, or one of the known ones by its own name; None if there is none."""
    module, _, own = (current_path(name) if "." in name else known_classes(base).get(name, "")).rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module), own, None) if module else None
    except ImportError:
        return None
    return found if isinstance(found, type) and issubclass(found, base) else None


def _check_values(
    kinds: Mapping[str, Any], values: Namespace, prefix: str, required: Collection[str] = frozenset()
) -> None:
    """Refuse a plain value where a group of settings belongs, and none where something does or has to be given."""
    for name, value in vars(values).items():
        key, kind = f"{prefix}{name}", kinds.get(name)
        if isinstance(value, Namespace) and "class_path" in value:
            module, _, found = str(value.class_path).rpartition(".")
            kind = getattr(sys.modules.get(module), found, None)
            value = value.get("init_args")
            key += ".init_args"
        if isinstance(value, Namespace):
            inner = kind if isinstance(kind, type) else object
            _check_values(_kinds_of(inner), value, f"{key}.", _required(inner))
        elif dataclasses.is_dataclass(kind):
            expected = ", ".join(field.name for field in dataclasses.fields(kind))
            raise TypeError(f"{key}: got {value!r}, expected settings ({expected})")
        elif value is None and kind in _PLAIN:
            remedy = "give one" if name in required else "leave the key out for its default"
            raise TypeError(f"{key}: got nothing, expected {kind.__name__}; {remedy}")


def _kinds_of(kind: type) -> dict[str, Any]:
    """Types of what a class takes; data sets take those of their ``rules`` as well, see ``SignalData``."""
    rules = getattr(kind, "rules", None)
    return get_type_hints(kind.__init__) | (get_type_hints(rules) if isinstance(rules, type) else {})  # type: ignore[misc]


def _required(kind: type) -> set[str]:
    """Names of what a class takes and has no default for."""
    parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    return {name for name, one in parameters.items() if one.default is one.empty}


def _check_writable(out: Path) -> None:
    """Find out before the work, not after it; leaves nothing behind."""
    try:
        place = out
        while not place.exists() and place != place.parent:
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(f"out: cannot write to {out} ({error.strerror}); name another folder") from None
