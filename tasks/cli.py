"""The ``maskgen`` command: every sub-command is a typed function, read by jsonargparse.

``--config FILE`` reads YAML, ``--print_config`` writes it, ``--a.b value`` overrides one value. Mistakes of the user end
in one line and status 2; an interrupted training, or data out of reach, in status 75 (run the same command to go on).
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

import maskgen.modern
import maskgen.published.vampnet
import maskgen.tasks.audio_data
import maskgen.tasks.cifar10
import maskgen.tasks.datasets
import maskgen.tasks.hub_images
import maskgen.tasks.image_shards
import maskgen.tasks.melodies
import maskgen.tasks.moving_digits
import maskgen.tasks.token_shards
import maskgen.tasks.video_data
import maskgen.tokenizers.vq3d  # noqa: F401
from maskgen.data import DataUnavailable
from maskgen.tasks import audio_commands, commands, evaluate_commands, video_commands
from maskgen.tasks.demo import demo
from maskgen.tasks.demo_audio import demo_audio
from maskgen.tasks.demo_video import demo_video
from maskgen.tasks.tokenize_data import tokenize_data
from maskgen.tasks.train import train_tokenizer, train_transformer
from maskgen.tasks.train_classifier import train_classifier
from maskgen.tasks.train_codec import train_codec
from maskgen.tasks.train_critic import train_critic
from maskgen.tasks.train_video import train_video_tokenizer, train_video_transformer
from maskgen.trainer import Interrupted

__all__ = ["Leaf", "Parser", "build_parser", "main", "run"]

_MODALITY = "modality"  # of the demo chosen
_TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h: stopped, saved, worth running again

_COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "demo audio": demo_audio,
    "demo video": demo_video,
    "train tokenizer": train_tokenizer,
    "train codec": train_codec,
    "train classifier": train_classifier,
    "train transformer": train_transformer,
    "train critic": train_critic,
    "train video-tokenizer": train_video_tokenizer,
    "train video-transformer": train_video_transformer,
    "tokenize": tokenize_data,
    "generate": commands.generate_command,
    "inpaint": commands.inpaint_command,
    "outpaint": commands.outpaint_command,
    "swap-class": commands.swap_command,
    "infill": audio_commands.infill_command,
    "continue-audio": audio_commands.continue_command,
    "vary": audio_commands.vary_command,
    "loop": audio_commands.loop_command,
    "predict-frames": video_commands.predict_frames_command,
    "interpolate": video_commands.interpolate_command,
    "inpaint-video": video_commands.inpaint_video_command,
    "outpaint-video": video_commands.outpaint_video_command,
    "evaluate samples": evaluate_commands.evaluate_samples_command,
    "evaluate model": evaluate_commands.evaluate_model_command,
    "evaluate tokenizer": evaluate_commands.evaluate_tokenizer_command,
    "evaluate reference": evaluate_commands.evaluate_reference_command,
    "models": commands.models_command,
    "convert": commands.convert_command,
    "info": commands.info_command,
}


class Parser(ArgumentParser):
    """A parser whose mistakes take one line."""

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """See ``jsonargparse.ArgumentParser``; ``--per-class`` is the same as ``--per_class``."""
        given = args[0] if args else kwargs.pop("args", None)
        words = sys.argv[1:] if given is None else given
        return super().parse_args([_underscored(word) for word in words], *args[1:], **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and where to read more, and leave with status 2."""
        if not self.exit_on_error:  # jsonargparse asks a copy of this parser about each class; the outer one reports
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        program = str(parser.prog).replace(" [options]", "")
        self.exit(2, f"maskgen: error: {_one_line(message)}; see `{program} --help`\n")


class Leaf(Parser):
    """A parser whose unknown and empty config keys are named.

    (Nested sub-commands of jsonargparse 4.53 print only the command, and it lets ``settings: 5`` and ``steps: null`` pass.)
    """

    kinds: dict[str, Any] | None = None  # type of each argument

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """See ``jsonargparse.ArgumentParser``."""
        try:
            found: Namespace = super().parse_args(*args, **kwargs)
        except UnicodeDecodeError as error:
            self.error(f"config: got a file that is no text ({error}), expected YAML", error)
        try:
            self.validate(found, skip_required=True)
            _check_values(self.kinds or {}, found, "")
        except (KeyError, TypeError) as error:
            self.error(str(error), error)
        return found


def build_parser() -> ArgumentParser:
    """The parser of the whole command line."""
    set_parsing_settings(docstring_parse_style=None)
    parser = Parser(
        prog="maskgen", description="Generate and edit images, video and sound with masked-token transformers."
    )
    top = parser.add_subcommands(required=True)
    train = Parser(description="Train a tokenizer, then a transformer on its tokens.")
    top.add_subcommand("train", train, help="train a tokenizer or a transformer")
    evaluate = Parser(description="Measure samples, a model or a tokenizer.")
    top.add_subcommand("evaluate", evaluate, help="measure samples, a model or a tokenizer")
    groups: dict[str, Any] = {"": top}
    groups |= {"train": train.add_subcommands(required=True), "evaluate": evaluate.add_subcommands(required=True)}
    for name, function in _COMMANDS.items():
        group, _, own = name.rpartition(" ")
        summary = (function.__doc__ or "").strip().split("\n")[0]
        leaf = Leaf(description=summary)
        leaf.add_argument("--config", action="config", help="YAML file with any of these settings")
        leaf.add_function_arguments(function, skip={"say"})
        leaf.kinds = get_type_hints(function)
        groups[group].add_subcommand(own, leaf, help=summary)
        if name == "demo":  # complete by itself, and the group of the other demos
            groups[name] = leaf.add_subcommands(required=False, dest=_MODALITY)
    return parser


def run(argv: Sequence[str] | None = None) -> None:
    """Parse a command line and carry it out; errors are raised.

    Args:
        argv: arguments without the program's name; ``sys.argv`` by default.
    """
    parser = build_parser()
    parsed = parser.instantiate(parser.parse_args(argv))
    name = parsed.subcommand
    chosen = parsed[name]
    if name in ("train", "evaluate"):
        name, chosen = f"{name} {chosen.subcommand}", chosen[chosen.subcommand]
    elif name == "demo" and chosen[_MODALITY]:
        name, chosen = f"demo {chosen[_MODALITY]}", chosen[chosen[_MODALITY]]
    values = {key: value for key, value in vars(chosen).items() if key not in ("config", _MODALITY)}
    if values.get("out") is not None:
        _check_writable(values["out"])
    _COMMANDS[name](**values)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script: one line for a user's mistake, a traceback for ours."""
    try:
        run(argv)
    except Interrupted as stopped:
        print(f"maskgen: {stopped}", file=sys.stderr)  # noqa: T201
        sys.exit(_TEMPORARY_FAILURE)
    except DataUnavailable as gone:
        print(f"maskgen: {_one_line(_reason(gone))}", file=sys.stderr)  # noqa: T201
        sys.exit(_TEMPORARY_FAILURE)
    except KeyboardInterrupt:
        print("maskgen: interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("MASKGEN_TRACEBACK"):
            raise
        print(f"maskgen: error: {_one_line(_reason(error))}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


def _underscored(word: str) -> str:
    """Options are named like Python arguments; people also write them with dashes."""
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if re.match(r"--[a-z]", name) else word


def _check_values(kinds: Mapping[str, Any], values: Namespace, prefix: str) -> None:
    """Refuse a plain value where a group of settings belongs, and none where something does."""
    for name, value in vars(values).items():
        key, kind = f"{prefix}{name}", kinds.get(name)
        if isinstance(value, Namespace) and "class_path" in value:
            module, _, found = str(value.class_path).rpartition(".")
            kind = getattr(sys.modules.get(module), found, None)
            value = value.get("init_args")
            key += ".init_args"
        if isinstance(value, Namespace):
            _check_values(get_type_hints(kind.__init__) if isinstance(kind, type) else {}, value, f"{key}.")  # type: ignore[misc]
        elif dataclasses.is_dataclass(kind):
            expected = ", ".join(field.name for field in dataclasses.fields(kind))
            raise TypeError(f"{key}: got {value!r}, expected settings ({expected})")
        elif value is None and kind in (int, float, str, bool):
            raise TypeError(f"{key}: got nothing, expected {kind.__name__}; leave the key out for its default")


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


def _reason(error: Exception) -> str:
    """An error's own words: without the number of the system and without the traceback of a data loader's process."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = str(error)
    inner = re.match(r"Caught (\w+) in DataLoader worker process.*\n(?:[\w.]+\.)?\1: (.*)", text, re.DOTALL)
    return inner[2] if inner else text


def _one_line(text: str) -> str:
    """Without line breaks and without what jsonargparse says about types that nobody asked for."""
    noise = ("Does not validate against any of the Union", "Subtypes:", "Errors:", "Given value type:")
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
    line = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", " ".join(kept))
    line = re.sub(r"Expected an? (?:typing\.)?", "expected ", re.sub(r'Parser key "([\w.]+)":', r"\1:", line))
    return line.replace(". Got value: ", ", got ").removesuffix(".")
