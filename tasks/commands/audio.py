"""What the sub-commands for sound do: read a file, call a task, write a sound file for each seed and a manifest.

The signatures are the command line: names, types, defaults and help come from here. Libraries of sound are imported when a
command runs, so that the commands for images need none of them.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from maskgen.tasks.commands.parts import EditRun, ProgressBar, describe_part
from maskgen.tasks.conditions.preparation import Loudness, loudness_of
from maskgen.tasks.pipeline import Pipeline
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.base import OwnModality

if TYPE_CHECKING:
    from maskgen.tasks.audio.edit import SoundEdit


def infill_command(
    run: EditRun, *, source: Path, start: float, stop: float, crossfade: float = 0.01, loudness: Loudness = "model"
) -> None:
    """Regenerate a span of a sound from its surroundings; the rest comes back untouched.

    Args:
        run: see ``EditRun``.
        source: sound file of any length, rate and number of channels up to two, or a video with sound. The results are files
            like it, or wav where its own coding is lossy. For a modality of your own, a file that its tokenizer reads.
        start: of the span, in seconds; for a modality of your own, in units of the signal's first axis.
        stop: end of the span, likewise.
        crossfade: seconds outside the span over which new and old mix.
        loudness: LUFS the model hears, undone afterwards; null for as loud as the sound is, model for as it was trained.
    """
    pipe = run.load()
    if isinstance(pipe.tokenizer, OwnModality):
        _infill_own(run, pipe, pipe.tokenizer, source, (start, stop))
        return
    from maskgen.tasks.audio import infill

    _edit(run, pipe, "infill", infill, source, start=start, stop=stop, crossfade=crossfade, loudness=loudness)


def continue_command(
    run: EditRun, *, source: Path, seconds: float, crossfade: float = 0.01, loudness: Loudness = "model"
) -> None:
    """Go on with a sound for any length.

    Args:
        run: see ``EditRun``.
        source: sound file of any length, rate and number of channels up to two.
        seconds: how much to add.
        crossfade: seconds before the end of the input over which the new sound fades in.
        loudness: LUFS the model hears, undone afterwards; null for as loud as the sound is, model for as it was trained.
    """
    from maskgen.tasks.audio import continue_audio

    _edit(run, run.load(), "continue", continue_audio, source, seconds=seconds, crossfade=crossfade, loudness=loudness)


def vary_command(
    run: EditRun,
    *,
    source: Path,
    period: int = 7,
    keep_codebooks: int | None = None,
    onset_width: int = 0,
    loudness: Loudness = "model",
) -> None:
    """Make variations of a sound: some of its tokens are kept, all others are decided anew (VampNet's "vamp").

    Args:
        run: see ``EditRun``.
        source: sound file of any length, rate and number of channels up to two.
        period: frames between two that are kept; higher is freer, 0 keeps none, 1 all.
        keep_codebooks: how many codebooks of a kept frame are kept, from the coarsest; all of the model's if left out.
        onset_width: frames kept on each side of every onset; 0 for none.
        loudness: LUFS the model hears, undone afterwards; null for as loud as the sound is, model for as it was trained.
    """
    from maskgen.tasks.audio import vary

    kept = {"period": period, "keep_codebooks": keep_codebooks, "onset_width": onset_width}
    _edit(run, run.load(), "vary", vary, source, **kept, loudness=loudness)


def loop_command(
    run: EditRun, *, source: Path, seam: float = 0.5, crossfade: float = 0.01, loudness: Loudness = "model"
) -> None:
    """Make a sound that can be repeated without a break: what lies around the change from end to start is regenerated.

    Args:
        run: see ``EditRun``.
        source: sound file of any length, rate and number of channels up to two.
        seam: seconds regenerated, half of them at the end and half at the start.
        crossfade: seconds beyond the seam over which new and old mix.
        loudness: LUFS the model hears, undone afterwards; null for as loud as the sound is, model for as it was trained.
    """
    from maskgen.tasks.audio import loop

    _edit(run, run.load(), "loop", loop, source, seam=seam, crossfade=crossfade, loudness=loudness)


def _edit(
    run: EditRun, pipe: Pipeline, task: str, function: Callable[..., SoundEdit], source: Path, **settings: Any
) -> None:
    """A task on one file: a sound a seed, made and written one after the other, and the manifest."""
    pipe.require("audio", task)
    sampling, trained = run.settings(pipe), loudness_of("model", pipe.config.prepared)
    settings["loudness"] = loudness_of(settings["loudness"], pipe.config.prepared)
    if settings["loudness"] != trained:
        warnings.warn(f"loudness: {settings['loudness']} LUFS in place of the model's own {trained}", stacklevel=2)
    from maskgen.tasks.media.audio.files import SoundFile
    from maskgen.tasks.media.audio.originals import describe

    with SoundFile(source) as file:
        suffix = describe(file).suffix

    def write(path: Path, seed: int) -> int:
        options = {**run.options(sampling, callback), "seeds": [seed]}
        return function(pipe, source, **options, **settings).write(path)

    with ProgressBar() as callback:
        items, _ = run.write(task, suffix, (partial(write, seed=seed) for seed in run.seeds))
    run.finish(pipe, task, items, sampling, {"source": str(source), **settings}, f"{len(items)} sound(s)")


def _infill_own(run: EditRun, pipe: Pipeline, tokenizer: OwnModality, source: Path, span: tuple[float, float]) -> None:
    """A span of a signal of another modality, along its first axis."""
    signal, (start, stop) = tokenizer.read(source), span
    length = signal.shape[2]
    if not (0 <= start < stop <= length and start == int(start) and stop == int(stop)):
        raise ValueError(
            f"got start {start:g} and stop {stop:g}, expected whole numbers, 0 <= start < stop <= {length}"
        )
    region = torch.zeros(signal.shape[2:], dtype=torch.bool)
    region[int(start) : int(stop)] = True
    sampling = run.settings(pipe)
    with ProgressBar(sampling.steps) as callback:
        made = pipe.edit(signal, region, pipe.request(run.options(sampling, callback)))
    run.out.mkdir(parents=True, exist_ok=True)
    items, _ = run.write("infill", tokenizer.suffix, [partial(tokenizer.write, one) for one in made])
    told = {"source": str(source), "start": start, "stop": stop}
    run.finish(pipe, "infill", items, sampling, told, f"{len(items)} file(s)")


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
        "loudness": loudness_of("model", pipe.config.prepared),
        "tokenizer_identity": pipe.config.tokenizer_identity,
    }
    if pipe.fine is not None:
        found["codebooks"]["fine"] = pipe.fine.num_codebooks
        found["fine"] = describe_part(pipe.fine)
        settings = pipe.config.fine_sampling
        found["fine_sampling"] = None if settings is None else dataclasses.asdict(settings)
    return found
