"""Every config is a claim that can be checked: its header names the command, and that command line parses."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))
BACKSLASH = chr(92)
each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def header(path: Path) -> dict[str, str]:
    """The ``# Key: value`` lines at the top of a config; a line without a key goes on with the one before it."""
    found: dict[str, str] = {}
    key = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("#").strip()
        if match := re.match(r"([A-Z][a-z]+):\s*(.*)", text):
            key = match[1]
            found[key] = match[2]
        elif not text:
            key = ""
        elif key:
            found[key] = f"{found[key].removesuffix(BACKSLASH).rstrip()} {text}"
    return found


def arguments(command: str) -> list[str]:
    """What follows ``maskgen`` in a command, started directly, with ``python -m`` or with ``accelerate launch -m``."""
    words = shlex.split(command)
    program = next((i for i, word in enumerate(words) if word.rsplit("/", maxsplit=1)[-1] == "maskgen"), None)
    assert program is not None, f"no maskgen in the command {command!r}"
    assert program == 0 or words[program - 1] == "-m", f"cannot read the command {command!r}"
    return words[program + 1 :]


def parse(words: list[str]) -> Any:
    from maskgen.tasks.cli import build_parser

    return build_parser().parse_args(words)


def test_there_are_configs() -> None:
    assert CONFIGS


@each_config
def test_the_header_makes_a_claim(path: Path) -> None:
    missing = [key for key in ("Command", "Hardware", "Time", "Claim") if not header(path).get(key)]
    assert missing == [], f"{path.name} needs comment lines like '# {missing[0]}: ...' at its top"
    assert f"configs/{path.relative_to(ROOT / 'configs')}" in header(path)["Command"]


@each_config
def test_the_command_parses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parse(arguments(header(path)["Command"]))


def misspelt(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings with one key too many: at the top, and inside the first group of settings."""
    broken = [{**settings, "stpes": 1}]
    for key, value in settings.items():
        if isinstance(value, dict):
            inner = {**value, "init_args": {**value["init_args"], "stpes": 1}} if "init_args" in value else None
            return [*broken, {**settings, key: inner or {**value, "stpes": 1}}]
    return broken


@each_config
def test_a_misspelt_key_is_named(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    words = arguments(header(path)["Command"])
    named = f"configs/{path.relative_to(ROOT / 'configs')}"
    for settings in misspelt(yaml.safe_load(path.read_text(encoding="utf-8"))):
        broken = tmp_path / path.name
        broken.write_text(yaml.safe_dump(settings), encoding="utf-8")
        with pytest.raises(SystemExit) as stopped:
            parse([word.replace(named, str(broken)) for word in words])
        assert stopped.value.code == 2
        assert "stpes" in capsys.readouterr().err


def test_the_header_is_read(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    lines = (
        "# A title.",
        "# Command: maskgen train \\",
        "#   --a 1",
        "# Time: 5 min, say: short",
        "#",
        "# A word.",
        "a: 1",
    )
    config.write_text("\n".join([*lines, "# Claim: too late"]), encoding="utf-8")
    assert header(config) == {"Command": "maskgen train --a 1", "Time": "5 min, say: short"}


@pytest.mark.parametrize(
    "command", ["maskgen demo --a 1", "python -m maskgen demo --a 1", "accelerate launch --cpu -m maskgen demo --a 1"]
)
def test_commands_are_read(command: str) -> None:
    assert arguments(command) == ["demo", "--a", "1"]
