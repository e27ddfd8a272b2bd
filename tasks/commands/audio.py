"""What the sub-commands for sound do: read a file, call a task, write a sound file for each seed and a manifest.

The signatures are the command line: names, types, defaults and help come from here. Libraries of sound are imported when a
command runs, so that the commands for images need none of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from maskgen.tasks.commands.parts import EditRun, ProgressBar, describe_part
from maskgen.tasks.pipeline import Pipeline
from maskgen.tokenizers.audio.base import AudioTokenizer

__all__ = ["continue_command", "describe_audio", "infill_command", "loop_command", "vary_command"]


# Formats that can hold what is kept of a file as it is, and the bits for that: a wav file may hold 32-bit floats.
_BITS = {".wav": 32, ".flac": 24, ".aiff": 24}


def infill_command(run: EditRun, *, audio: Path, start: float, stop: float, crossfade: float = 0.01) -> None:
    """Regenerate a span of a sound from its surroundings; the rest comes back untouched.

    Args:
        run: see ``EditRun``.
        audio: sound file of any length, rate and number of channels up to two. The results are wav (32-bit float samples),
            flac or aiff like it (24 bits), or wav.
        start: of the span, in seconds.
        stop: end of the span, in seconds.
        crossfade: seconds outside the span over which new and old mix.
    """
    from maskgen.tasks.audio.files import infill_file

    _edit(run, "infill", infill_file, audio, start=start, stop=stop, crossfade=crossfade)


def continue_command(run: EditRun, *, audio: Path, seconds: float, crossfade: float = 0.01) -> None:
    """Go on with a sound for any length.

    Args:
        run: see ``EditRun``.
        audio: sound file of any length, rate and number of channels up to two.
        seconds: how much to add.
        crossfade: seconds before the end of the input over which the new sound fades in.
    """
    from maskgen.tasks.audio.files import continue_file

    _edit(run, "continue", continue_file, audio, seconds=seconds, crossfade=crossfade)


def vary_command(
    run: EditRun, *, audio: Path, period: int = 7, keep_codebooks: int | None = None, onset_width: int = 0
) -> None:
    """Make variations of a sound: some of its tokens are kept, all others are decided anew (VampNet's "vamp").

    Args:
        run: see ``EditRun``.
        audio: sound file of any length, rate and number of channels up to two.
        period: frames between two that are kept; higher is freer, 0 keeps none, 1 all.
        keep_codebooks: how many codebooks of a kept frame are kept, from the coarsest; all of the model's if left out.
        onset_width: frames kept on each side of every onset; 0 for none.
    """
    from maskgen.tasks.audio.files import vary_file

    kept = {"period": period, "keep_codebooks": keep_codebooks, "onset_width": onset_width}
    _edit(run, "vary", vary_file, audio, **kept)


def loop_command(run: EditRun, *, audio: Path, seam: float = 0.5, crossfade: float = 0.01) -> None:
    """Make a sound that can be repeated without a break: what lies around the change from end to start is regenerated.

    Args:
        run: see ``EditRun``.
        audio: sound file of any rate and number of channels up to two; all of it is held in memory.
        seam: seconds regenerated, half of them at the end and half at the start.
        crossfade: seconds beyond the seam over which new and old mix.
    """
    _edit(run, "loop", _loop_file, audio, seam=seam, crossfade=crossfade)


def _edit(run: EditRun, task: str, function: Callable[..., int], audio: Path, **settings: Any) -> None:
    """A task on one file: a sound a seed, made and written one after the other, and the manifest."""
    pipe = run.load()
    pipe.require("audio", task)
    sampling = run.settings(pipe)
    suffix = audio.suffix.lower() if audio.suffix.lower() in _BITS else ".wav"

    def write(path: Path, seed: int) -> int:
        return function(
            *(pipe, audio, path),
            seed=seed,
            sampling=sampling,
            label=run.label,
            bits=_BITS[suffix],
            callback=callback,
            **settings,
        )

    with ProgressBar() as callback:
        items, clipped = run.write(task, suffix, (partial(write, seed=seed) for seed in run.seeds))
    run.finish(task, items, sampling, {"audio": str(audio), **settings}, f"{len(items)} sound(s)")
    if sum(clipped):
        print(f"({sum(clipped)} samples beyond [-1, 1] had to be clipped)")  # noqa: T201


def describe_audio(pipe: Pipeline) -> dict[str, Any]:
    """What ``maskgen info`` adds for a model of sound."""
    codec = pipe.tokenizer
    if not isinstance(codec, AudioTokenizer):
        return {}
    found: dict[str, Any] = {
        "sample_rate": codec.sample_rate,
        "channels": codec.channels,
        "frames_per_second": float(codec.frame_rate),
        "codebooks": {"tokenizer": codec.num_codebooks, "transformer": pipe.transformer.num_codebooks},
        "tokenizer_identity": pipe.config.tokenizer_identity,
    }
    if pipe.fine is not None:
        found["codebooks"]["fine"] = pipe.fine.num_codebooks
        found["fine"] = describe_part(pipe.fine)
        settings = pipe.config.fine_sampling
        found["fine_sampling"] = None if settings is None else dataclasses.asdict(settings)
    return found


def _loop_file(pipe: Pipeline, path: Path, out_path: Path, *, seed: int, bits: int, **options: Any) -> int:
    """``loop`` on a file, in memory: a loop is short."""
    from maskgen.tasks.audio.infilling import loop
    from maskgen.tasks.media.audio.files import load_sound, save_sound

    waveform, sample_rate = load_sound(path)
    (result,) = loop(pipe, waveform, sample_rate, seeds=[seed], **options)
    return save_sound(result, out_path, sample_rate, bits=bits)
