"""What jsonargparse says is wrong, in one line and in words of ours."""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

from maskgen.checkpoint import known_classes


def nearest_classes(message: str, kinds: Mapping[str, Any]) -> str | None:
    """What to say where jsonargparse found no class of ours; None where that is not what is wrong."""
    found = re.match(
        r"Parser key \"(?P<key>\w+)\":.*?(?:Expected a dot import path string: (?P<name>\S+)|Problem with given class_path "
        r"'maskgen\.(?P<path>[\w.]+)':\s*(?:module '[\w.]+' has no attribute|No module named))",
        message,
        re.DOTALL,
    )
    if found is None:
        return None
    kind = kinds.get(found["key"])
    known = {
        name: path
        for part in (kind, *get_args(kind))
        if isinstance(part, type)
        for name, path in known_classes(part).items()
    }
    name = found["name"] or found["path"].rpartition(".")[2]
    near = difflib.get_close_matches(name, known, n=3) or sorted(known)
    if not near:
        return None
    return f"{found['key']}: no class {name!r} is known; the nearest are {', '.join(known[one] for one in near)}"


def missing_words(message: str, options: Collection[str]) -> tuple[str, str] | None:
    """What to say of a command or an option that is missing or misspelt, and the command it is about; None otherwise.

    Args:
        message: of jsonargparse.
        options: of the command, as ``--model``.
    """
    if found := re.match(r"the following arguments are required: (.*)", message):
        names = found[1].split(", ")
        given, command = ", ".join(f"--{name.rpartition('.')[2]}" for name in names), names[0].rpartition(".")[0]
        return f"{given}: missing; give {'it' if len(names) == 1 else 'them'}", command.replace(".", " ")
    if found := re.match(r'expected "(?:([\w.-]+)\.)?subcommand" to be one of', message):
        return "a command is missing; give one of those that --help lists", found[1] or ""
    if found := re.match(r"argument [\w.]*subcommand: invalid choice: '(.*?)' \(choose from (.*)\)", message):
        known = re.findall(r"[\w-]+", found[2])
        near = difflib.get_close_matches(found[1], known, n=3)
        return f"{found[1]}: no such command; {_meant(near) or 'expected one of ' + ', '.join(known)}", ""
    if found := re.match(r"unrecognized arguments: (\S+)", message):
        bare = {option.lstrip("-"): option for option in sorted(options)}
        name = found[1].partition("=")[0].lstrip("-")
        near = [one for one in bare if one.endswith(f".{name}")] or difflib.get_close_matches(name, bare, n=3)
        return f"{message}{'; ' if near else ''}{_meant([bare[one] for one in near])}", ""
    return None


def _meant(near: Sequence[str]) -> str:
    return f"perhaps {' or '.join(near)} is meant" if near else ""


def one_line(text: str) -> str:
    """Without line breaks and without what jsonargparse says about types that nobody asked for."""
    noise = (
        *("Does not validate against any of the Union", "Subtypes:", "Errors:", "Given value type:"),
        *("Subclass types expect one of", "a class path (str)", "a dict with"),
    )
    kept: list[str] = []
    for line in text.splitlines():
        bare = line.strip().removeprefix("- ")
        value = bare.removeprefix("Given value: ")
        if (
            bare.startswith(noise)
            or bare == "Expected a <class 'NoneType'>"
            or value.startswith(("NestedArg", "Namespace"))
        ):
            continue
        if value == bare or not kept:
            kept.append(bare)
        else:
            kept[-1] += f", got {value}"
    line = re.sub(r"tuple with (\d+) elements", r"\1 values", " ".join(kept))
    line = re.sub(r"Expected a (?:typing\.)?Literal\[(.*?)\]", _choices, line)
    line = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", line)
    line = re.sub(r"Expected a (?:tuple|list)\b", "Expected a values separated by commas", line)
    line = re.sub(
        r"Problem with given class_path '[\w.]+': ", "", line.replace("Not a valid subclass of ", "expected ")
    )
    line = re.sub(r"Expected an? (?:typing\.)?", "expected ", re.sub(r'Parser key "([\w.]+)":', r"\1:", line))
    line = re.sub(r"(expected \w+) expected (?=\w+, got )", r"\1 or ", line)
    return line.replace(". Got value: ", ", got ").removesuffix(".")


def _choices(found: re.Match[str]) -> str:
    *most, last = re.findall(r"'(.*?)'", found[1]) or found[1].split(", ")
    return f"expected {', '.join(most)}{' or ' if most else ''}{last}"
