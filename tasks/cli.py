"""The ``maskgen`` command: every sub-command is a typed function, read by jsonargparse.

``--config FILE`` reads YAML, ``--print_config`` writes it, ``--a.b value`` overrides one value. Mistakes of the user end
in one line and status 2; an interrupted training, or data out of reach, in status 75 (run the same command to go on).
"""

import os
import re
import sys
import warnings
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from maskgen.data import DataUnavailable
from maskgen.tasks.commands import audio as audio_commands
from maskgen.tasks.commands import evaluate as evaluate_commands
from maskgen.tasks.commands import image as image_commands
from maskgen.tasks.commands import parser
from maskgen.tasks.commands import video as video_commands
from maskgen.tasks.commands import weights as weights_commands
from maskgen.tasks.commands.generate import generate_command
from maskgen.tasks.commands.messages import one_line
from maskgen.tasks.commands.parser import Command
from maskgen.tasks.commands.training import TRAINING
from maskgen.tasks.demo.digits import demo
from maskgen.tasks.demo.melodies import demo_audio
from maskgen.tasks.demo.moving_digits import demo_video
from maskgen.tasks.demo.text import demo_text
from maskgen.training.run import Interrupted

_TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h: stopped, saved, worth running again

_COMMANDS: dict[str, Command] = {
    "demo": demo,
    "demo audio": demo_audio,
    "demo text": demo_text,
    "demo video": demo_video,
    **TRAINING,
    "generate": generate_command,
    "inpaint": image_commands.inpaint_command,
    "outpaint": image_commands.outpaint_command,
    "swap-class": image_commands.swap_command,
    "edit": image_commands.edit_command,
    "revise": image_commands.revise_command,
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
    "models": weights_commands.models_command,
    "convert": weights_commands.convert_command,
    "info": weights_commands.info_command,
}


def build_parser() -> ArgumentParser:
    """The parser of the whole command line."""
    return parser.build_parser(_COMMANDS)


def run(argv: Sequence[str] | None = None) -> None:
    """Parse a command line and carry it out; errors are raised.

    Args:
        argv: arguments without the program's name; ``sys.argv`` by default.
    """
    parser.run(argv, _COMMANDS)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script: one line for a user's mistake, a traceback for ours."""
    usual, warnings.formatwarning = warnings.formatwarning, lambda message, *_: f"maskgen: {one_line(str(message))}\n"
    try:
        run(argv)
    except Interrupted as stopped:
        print(f"maskgen: {stopped}", file=sys.stderr)  # noqa: T201
        sys.exit(_TEMPORARY_FAILURE)
    except DataUnavailable as gone:
        print(f"maskgen: {one_line(_reason(gone))}", file=sys.stderr)  # noqa: T201
        sys.exit(_TEMPORARY_FAILURE)
    except KeyboardInterrupt:
        print("maskgen: interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("MASKGEN_TRACEBACK"):
            raise
        print(f"maskgen: error: {one_line(_reason(error))}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    finally:
        warnings.formatwarning = usual


def _reason(error: Exception) -> str:
    """An error's own words: without the number of the system and without the traceback of a data loader's process."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = str(error)
    inner = re.match(r"Caught (\w+) in DataLoader worker process.*\n(?:[\w.]+\.)?\1: (.*)", text, re.DOTALL)
    return inner[2] if inner else text
