"""Edits of sound files of any length: only what the model hears is read into memory, the rest is copied block by block.

An hour of sound costs as much memory as a minute; only ``infill_file``'s tokens grow with the gap. The results are those
of ``maskgen.tasks.audio.infilling``, sample for sample, up to what the output's format can hold.

Shapes: C channels, S samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from maskgen.tasks.audio.source import Source
from maskgen.tasks.audio.windows import LOUDNESS, drawing, gap_pieces, seconds_to_gap, vary_pieces
from maskgen.tasks.media.audio.files import SoundFile, SoundWriter
from maskgen.tasks.pipeline import Label, Pipeline

__all__ = ["continue_file", "infill_file", "vary_file"]

_BLOCK = 1 << 18  # samples copied at a time: 6 s at 44.1 kHz


def infill_file(
    pipe: Pipeline,
    path: str | Path,
    out_path: str | Path,
    *,
    start: float,
    stop: float,
    seed: int = 0,
    sampling: Sampling | None = None,
    crossfade: float = 0.01,
    loudness: float | None = LOUDNESS,
    label: Label | None = None,
    bits: int = 16,
    callback: Callable[[SampleStep], None] | None = None,
) -> int:
    """Regenerate a span of a sound file; see ``maskgen.tasks.audio.infilling.infill``.

    Args:
        pipe: an audio model.
        path: the file, mono or stereo.
        out_path: the new file, whole or not at all; its suffix chooses the format. It may be ``path``.
        start: of the span, in seconds.
        stop: end of the span, in seconds.
        seed: of the new sound.
        sampling: settings, instead of the model's own.
        crossfade: seconds outside the span over which new and old mix.
        loudness: LUFS the codec hears, undone afterwards; None leaves the sound as loud as it is.
        label: class of a model with classes.
        bits: of wav, flac and aiff: 16, 24, or 32 for float. With the source's own bits, or more, kept samples are the
            source's, bit for bit.
        callback: sees each step.

    Returns:
        How many samples had to be clipped to fit into the format.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not sound or more than two channels; a span that is not inside; settings out of range; a format that
            cannot be written; a model of another modality.
        OSError: the place cannot be written to.
    """
    pipe.require("audio", "infilling")
    with SoundFile(path) as source:
        _check_channels(source, path)
        gap = seconds_to_gap(start, stop, source)
        draw = drawing(pipe, (seed,), sampling, label, loudness, callback)
        pieces = gap_pieces(pipe, source, gap, draw, crossfade=crossfade)
        return _write(source, pieces, out_path, bits)


def continue_file(
    pipe: Pipeline,
    path: str | Path,
    out_path: str | Path,
    *,
    seconds: float,
    seed: int = 0,
    sampling: Sampling | None = None,
    crossfade: float = 0.01,
    loudness: float | None = LOUDNESS,
    label: Label | None = None,
    bits: int = 16,
    callback: Callable[[SampleStep], None] | None = None,
) -> int:
    """Go on with a sound file for any length; see ``maskgen.tasks.audio.infilling.continue_audio`` and ``infill_file``.

    Args:
        pipe: an audio model.
        path: the file, mono or stereo.
        out_path: the new file.
        seconds: how much to add.
        seed: of the new sound.
        sampling: settings, instead of the model's own.
        crossfade: seconds before the end of the input over which the new sound fades in.
        loudness: see ``infill_file``.
        label: class of a model with classes.
        bits: see ``infill_file``.
        callback: sees each step.

    Returns:
        How many samples had to be clipped.

    Raises:
        FileNotFoundError, ValueError, OSError: see ``infill_file``.
    """
    pipe.require("audio", "continuing")
    with SoundFile(path) as source:
        _check_channels(source, path)
        gap = seconds_to_gap(None, seconds, source)
        draw = drawing(pipe, (seed,), sampling, label, loudness, callback)
        return _write(source, gap_pieces(pipe, source, gap, draw, crossfade=crossfade), out_path, bits)


def vary_file(
    pipe: Pipeline,
    path: str | Path,
    out_path: str | Path,
    *,
    period: int = 7,
    keep_codebooks: int | None = None,
    onset_width: int = 0,
    seed: int = 0,
    sampling: Sampling | None = None,
    loudness: float | None = LOUDNESS,
    label: Label | None = None,
    bits: int = 16,
    callback: Callable[[SampleStep], None] | None = None,
) -> int:
    """Make a variation of a sound file; see ``maskgen.tasks.audio.infilling.vary`` and ``infill_file``.

    Args:
        pipe: an audio model.
        path: the file, mono or stereo.
        out_path: the new file.
        period: see ``vary``.
        keep_codebooks: see ``vary``.
        onset_width: see ``vary``.
        seed: of the new sound.
        sampling: settings, instead of the model's own.
        loudness: see ``infill_file``.
        label: class of a model with classes.
        bits: see ``infill_file``.
        callback: sees each step.

    Returns:
        How many samples had to be clipped.

    Raises:
        FileNotFoundError, ValueError, OSError: see ``infill_file``.
    """
    pipe.require("audio", "a variation")
    with SoundFile(path) as source:
        _check_channels(source, path)
        draw = drawing(pipe, (seed,), sampling, label, loudness, callback)
        pieces = vary_pieces(pipe, source, draw, period=period, keep_codebooks=keep_codebooks, onset_width=onset_width)
        return _write(source, pieces, out_path, bits)


def _check_channels(source: Source, path: str | Path) -> None:
    if source.channels > 2:
        raise ValueError(f"{path}: got {source.channels} channels, expected 1 or 2; downmix the file first")


def _write(source: Source, pieces: Iterator[tuple[int, Tensor]], out_path: str | Path, bits: int) -> int:
    """The source with pieces ``[1, C, s]`` in place of its own samples; what lies between and around them is copied."""
    with SoundWriter(out_path, source.sample_rate, source.channels, bits=bits) as writer:
        for begin, piece in pieces:
            _copy(source, writer, begin)
            writer.write(piece[0])
        _copy(source, writer, source.frames)
    return writer.clipped


def _copy(source: Source, writer: SoundWriter, stop: int) -> None:
    """Copy the source's samples from where the writer is up to ``stop``."""
    while writer.frames < stop:
        writer.write(source.read(writer.frames, min(_BLOCK, stop - writer.frames)))
