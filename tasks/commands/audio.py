"""What the sub-commands for sound do: read a file, call a task, write a sound file for each seed and a manifest.

The signatures are the command line: names, types, defaults and help come from here. Libraries of sound are imported when a
command runs, so that the commands for images need none of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskgen.sampling.settings import Sampling
from maskgen.tasks.commands.parts import ProgressBar, describe_part, load_model, seed_list, write_manifest
from maskgen.tasks.pipeline import Label, Pipeline
from maskgen.tokenizers.audio.base import AudioTokenizer

if TYPE_CHECKING:
    from maskgen.tasks.audio.edit import SoundEdit

__all__ = ["continue_command", "describe_audio", "infill_command", "loop_command", "vary_command"]


# Formats that can hold what is kept of a file as it is, and the bits for that: a wav file may hold 32-bit floats.
_BITS = {".wav": 32, ".flac": 24, ".aiff": 24}


def infill_command(
    *,
    model: str,
    audio: Path,
    start: float,
    stop: float,
    count: int = 1,
    seed: int = 0,
    out: Path = Path("out"),
    crossfade: float = 0.01,
    label: str | int | None = None,
    steps: int | None = None,
    sampling: Sampling | None = None,
    device: str | None = None,
) -> None:
    """Regenerate a span of a sound from its surroundings; the rest comes back untouched.

    Args:
        model: model folder, published name or Hub repository.
        audio: sound file of any length, rate and number of channels up to two. The results are wav (32-bit float samples),
            flac or aiff like it (24 bits), or wav.
        start: of the span, in seconds.
        stop: end of the span, in seconds.
        count: variants, with seeds ``seed``, ``seed`` + 1, ...
        seed: of the first variant.
        out: folder to write to.
        crossfade: seconds outside the span over which new and old mix.
        label: class number or name, for models with classes.
        steps: decoding steps, instead of the model's own number.
        sampling: all sampling settings, instead of the model's own.
        device: as ``cpu`` or ``cuda:1``; chosen by itself if left out.
    """
    from maskgen.tasks.audio import infill

    options = {"start": start, "stop": stop, "crossfade": crossfade}
    job = _Job("infill", infill, model, audio, out, options, label)
    job.run(seed_list(seed, count), steps, sampling, device)


def continue_command(
    *,
    model: str,
    audio: Path,
    seconds: float,
    count: int = 1,
    seed: int = 0,
    out: Path = Path("out"),
    crossfade: float = 0.01,
    label: str | int | None = None,
    steps: int | None = None,
    sampling: Sampling | None = None,
    device: str | None = None,
) -> None:
    """Go on with a sound for any length.

    Args:
        model: model folder, published name or Hub repository.
        audio: sound file of any length, rate and number of channels up to two.
        seconds: how much to add.
        count: variants, with seeds ``seed``, ``seed`` + 1, ...
        seed: of the first variant.
        out: folder to write to.
        crossfade: seconds before the end of the input over which the new sound fades in.
        label: class number or name, for models with classes.
        steps: decoding steps, instead of the model's own number.
        sampling: all sampling settings, instead of the model's own.
        device: as ``cpu`` or ``cuda:1``; chosen by itself if left out.
    """
    from maskgen.tasks.audio import continue_audio

    options = {"seconds": seconds, "crossfade": crossfade}
    job = _Job("continue", continue_audio, model, audio, out, options, label)
    job.run(seed_list(seed, count), steps, sampling, device)


def vary_command(
    *,
    model: str,
    audio: Path,
    period: int = 7,
    keep_codebooks: int | None = None,
    onset_width: int = 0,
    count: int = 1,
    seed: int = 0,
    out: Path = Path("out"),
    label: str | int | None = None,
    steps: int | None = None,
    sampling: Sampling | None = None,
    device: str | None = None,
) -> None:
    """Make variations of a sound: some of its tokens are kept, all others are decided anew (VampNet's "vamp").

    Args:
        model: model folder, published name or Hub repository.
        audio: sound file of any length, rate and number of channels up to two.
        period: frames between two that are kept; higher is freer, 0 keeps none, 1 all.
        keep_codebooks: how many codebooks of a kept frame are kept, from the coarsest; all of the model's if left out.
        onset_width: frames kept on each side of every onset; 0 for none.
        count: variants, with seeds ``seed``, ``seed`` + 1, ...
        seed: of the first variant.
        out: folder to write to.
        label: class number or name, for models with classes.
        steps: decoding steps, instead of the model's own number.
        sampling: all sampling settings, instead of the model's own.
        device: as ``cpu`` or ``cuda:1``; chosen by itself if left out.
    """
    from maskgen.tasks.audio import vary

    options = {"period": period, "keep_codebooks": keep_codebooks, "onset_width": onset_width}
    job = _Job("vary", vary, model, audio, out, options, label)
    job.run(seed_list(seed, count), steps, sampling, device)


def loop_command(
    *,
    model: str,
    audio: Path,
    seam: float = 0.5,
    count: int = 1,
    seed: int = 0,
    out: Path = Path("out"),
    crossfade: float = 0.01,
    label: str | int | None = None,
    steps: int | None = None,
    sampling: Sampling | None = None,
    device: str | None = None,
) -> None:
    """Make a sound that can be repeated without a break: what lies around the change from end to start is regenerated.

    Args:
        model: model folder, published name or Hub repository.
        audio: sound file of any length, rate and number of channels up to two.
        seam: seconds regenerated, half of them at the end and half at the start.
        count: variants, with seeds ``seed``, ``seed`` + 1, ...
        seed: of the first variant.
        out: folder to write to.
        crossfade: seconds beyond the seam over which new and old mix.
        label: class number or name, for models with classes.
        steps: decoding steps, instead of the model's own number.
        sampling: all sampling settings, instead of the model's own.
        device: as ``cpu`` or ``cuda:1``; chosen by itself if left out.
    """
    from maskgen.tasks.audio import loop

    job = _Job("loop", loop, model, audio, out, {"seam": seam, "crossfade": crossfade}, label)
    job.run(seed_list(seed, count), steps, sampling, device)


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


@dataclasses.dataclass(frozen=True)
class _Job:
    """One task on one file.

    Attributes:
        task: its name in the files and the manifest.
        function: one of ``maskgen.tasks.audio``.
        model: see the commands.
        audio: see the commands.
        out: see the commands.
        options: settings of the task itself.
        label: see the commands.
    """

    task: str
    function: Callable[..., SoundEdit]
    model: str
    audio: Path
    out: Path
    options: dict[str, Any]
    label: Label | None

    def run(self, seeds: list[int], steps: int | None, sampling: Sampling | None, device: str | None) -> None:
        """Write a sound file for each seed, and the manifest."""
        pipe = load_model(self.model, device)
        pipe.require("audio", self.task)
        chosen = pipe.sampling(sampling, steps)
        suffix = self.audio.suffix.lower()
        suffix = suffix if suffix in _BITS else ".wav"
        items, clipped = [], 0
        with ProgressBar(None) as callback:
            for seed in seeds:
                name = f"{self.task}_seed-{seed:08d}{suffix}"
                edit = self.function(
                    pipe,
                    self.audio,
                    seeds=[seed],
                    sampling=chosen,
                    label=self.label,
                    callback=callback,
                    **self.options,
                )
                clipped += edit.write(self.out / name, bits=_BITS[suffix])
                items.append({"file": name, "seed": seed})
        details = {"audio": str(self.audio), **self.options, "label": self.label}
        write_manifest(self.task, self.model, items, self.out, details | {"sampling": dataclasses.asdict(chosen)})
        note = f" ({clipped} samples beyond [-1, 1] had to be clipped)" if clipped else ""
        print(f"{len(items)} sound(s) and manifest.json in {self.out}{note}")  # noqa: T201
