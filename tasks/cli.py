"""The ``maskgen`` command: every sub-command is a typed function, read by jsonargparse.

``--config FILE`` reads YAML, ``--print_config`` writes it, ``--a.b value`` overrides one value. Mistakes of the user end
in one line and status 2; an interrupted training in status 75 (run the same command to go on).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

import maskgen.modern
import maskgen.tasks.datasets  # noqa: F401
from maskgen.tasks import commands
from maskgen.tasks.demo import demo
from maskgen.tasks.train import train_tokenizer, train_transformer
from maskgen.trainer import Interrupted

__all__ = ["Leaf", "build_parser", "main", "run"]

_TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h: stopped, saved, worth running again

_COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "train tokenizer": train_tokenizer,
    "train transformer": train_transformer,
    "generate": commands.generate_command,
    "inpaint": commands.inpaint_command,
    "outpaint": commands.outpaint_command,
    "swap-class": commands.swap_command,
    "info": commands.info_command,
}


class Leaf(ArgumentParser):
    """A parser whose unknown config keys are named (nested sub-commands of jsonargparse 4.53 print only the command)."""

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """See ``jsonargparse.ArgumentParser``."""
        found: Namespace = super().parse_args(*args, **kwargs)
        try:
            self.validate(found, skip_required=True)
        except (KeyError, TypeError) as error:
            self.error(str(error), error)
        return found


def build_parser() -> ArgumentParser:
    """The parser of the whole command line."""
    set_parsing_settings(docstring_parse_style=None)
    parser = ArgumentParser(prog="maskgen", description="Generate and edit images with masked-token transformers.")
    top = parser.add_subcommands(required=True)
    train = ArgumentParser(description="Train a tokenizer, then a transformer on its tokens.")
    top.add_subcommand("train", train, help="train a tokenizer or a transformer")
    stages = train.add_subcommands(required=True)
    for name, function in _COMMANDS.items():
        summary = (function.__doc__ or "").strip().split("\n")[0]
        leaf = Leaf(description=summary)
        leaf.add_argument("--config", action="config", help="YAML file with any of these settings")
        leaf.add_function_arguments(function, skip={"say"})
        group = stages if name.startswith("train ") else top
        group.add_subcommand(name.removeprefix("train "), leaf, help=summary)
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """Parse a command line and carry it out; errors are raised.

    Args:
        argv: arguments without the program's name; ``sys.argv`` by default.
    """
    parser = build_parser()
    parsed = parser.instantiate_classes(parser.parse_args(argv))
    name = parsed.subcommand
    chosen = parsed[name]
    if name == "train":
        name, chosen = f"train {chosen.subcommand}", chosen[chosen.subcommand]
    values = {key: value for key, value in vars(chosen).items() if key != "config"}
    _COMMANDS[name](**values)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script: one line for a user's mistake, a traceback for ours."""
    try:
        run(argv)
    except Interrupted as stopped:
        print(f"maskgen: {stopped}", file=sys.stderr)  # noqa: T201
        sys.exit(_TEMPORARY_FAILURE)
    except KeyboardInterrupt:
        print("maskgen: interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("MASKGEN_TRACEBACK"):
            raise
        print(f"maskgen: error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
