"""Edits of a sound: fill a gap, go on, vary, close a loop. What is kept is the caller's own samples, bit for bit.

The steps, with choices that no official code makes (VampNet re-synthesises the whole sound):

1. the frame grid is laid so that the gap begins with a frame; a frame that touches the gap is hidden, the others are known;
2. the gap is filled with mirror images of its surroundings before the codec hears it (``audio_paste.fill_gap``), so that the
   result cannot depend on what stood there, and each window is brought to -24 LUFS, as VampNet's training data;
3. decide the hidden tokens, decode, undo the loudness, resample the regenerated part back;
4. the result fades into the kept sound over ``crossfade`` seconds just *outside* the gap, where the codec's own version of
   the kept sound is at hand. Everything farther away is the input, whatever the codec's rate and channels.

The model's context is its training excerpt. A gap that leaves a quarter of it for the surroundings is filled at once; longer
ones, continuations and whole files go window by window (``audio_edits``). A coarse model without a fine one leaves the
finer codebooks out in all it decodes. Both channels of a stereo sound on a mono codec get the same seed.

Shapes: R results (one a seed), C channels, S samples, T frames, K codebooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from maskgen.tasks.audio.source import Memory
from maskgen.tasks.audio.windows import LOUDNESS, drawing, gap_pieces, seconds_to_gap, seconds_to_samples, vary_pieces
from maskgen.tasks.pipeline import Label, Pipeline

__all__ = ["continue_audio", "infill", "loop", "vary"]


def infill(
    pipe: Pipeline,
    waveform: Tensor,
    sample_rate: int,
    *,
    start: float,
    stop: float,
    seeds: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    crossfade: float = 0.01,
    context: float | None = None,
    loudness: float | None = LOUDNESS,
    label: Label | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> list[Tensor]:
    """Regenerate a span of a sound from its surroundings.

    Args:
        pipe: an audio model.
        waveform: float ``[C, S]``, mono or stereo, about [-1, 1].
        sample_rate: its samples a second; need not be the codec's.
        start: of the span, in seconds.
        stop: end of the span, in seconds. Shorter than a frame fills one frame's worth; of any length above.
        seeds: one integer a result; (0,) if left out. A result depends on its own seed alone.
        sampling: settings, instead of the model's own.
        crossfade: seconds outside the span, on each side, over which new and old mix; 0 changes the span alone.
        context: most seconds of surroundings the model hears on each side; None for as many as it can.
        loudness: LUFS the codec hears, undone afterwards; None leaves the sound as loud as it is.
        label: class of a model with classes.
        callback: sees each step.

    Returns:
        One ``[C, S]`` a seed, in the input's type. Samples farther than ``crossfade`` from the span are the input's, bit
        for bit.

    Raises:
        TypeError: not a floating point tensor.
        ValueError: no such sound (see ``maskgen.tasks.media.audio.files.check_waveform``), an empty or reversed span or
            one that is not inside the sound, settings out of range, or a model of another modality.
    """
    pipe.require("audio", "infilling")
    source = Memory(waveform, sample_rate)
    gap = seconds_to_gap(start, stop, source)
    draw = drawing(pipe, seeds, sampling, label, loudness, callback)
    results = [waveform.clone() for _ in draw.request.seeds]
    for begin, piece in gap_pieces(pipe, source, gap, draw, crossfade=crossfade, context=context):
        _put(results, begin, piece)
    return results


def continue_audio(
    pipe: Pipeline,
    waveform: Tensor,
    sample_rate: int,
    *,
    seconds: float,
    seeds: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    crossfade: float = 0.01,
    context: float | None = None,
    loudness: float | None = LOUDNESS,
    label: Label | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> list[Tensor]:
    """Go on with a sound for any length, in windows that each hear the end of the one before.

    Args:
        pipe: an audio model.
        waveform: float ``[C, S]``, mono or stereo, about [-1, 1].
        sample_rate: its samples a second.
        seconds: how much to add.
        seeds: one integer a result; (0,) if left out.
        sampling: settings, instead of the model's own.
        crossfade: seconds before the end of the input over which the new sound fades in.
        context: most seconds of the input that the model hears; None for as many as it can.
        loudness: see ``infill``.
        label: class of a model with classes.
        callback: sees each step.

    Returns:
        One ``[C, S + round(seconds x sample_rate)]`` a seed; the input's part is the input, bit for bit, up to the last
        ``crossfade`` seconds.

    Raises:
        TypeError, ValueError: see ``infill``.
    """
    pipe.require("audio", "continuing")
    source = Memory(waveform, sample_rate)
    gap = seconds_to_gap(None, seconds, source)
    draw = drawing(pipe, seeds, sampling, label, loudness, callback)
    longer = torch.nn.functional.pad(waveform, (0, gap[1] - gap[0]))
    results = [longer.clone() for _ in draw.request.seeds]
    for begin, piece in gap_pieces(pipe, source, gap, draw, crossfade=crossfade, context=context):
        _put(results, begin, piece)
    return results


def loop(
    pipe: Pipeline,
    waveform: Tensor,
    sample_rate: int,
    *,
    seam: float = 0.5,
    seeds: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    crossfade: float = 0.01,
    context: float | None = None,
    loudness: float | None = LOUDNESS,
    label: Label | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> list[Tensor]:
    """Make a sound that can be repeated without a break: what lies around the change from end to start is regenerated.

    The sound is turned so that its end and start meet in the middle, the seam is filled as a gap, and turned back.

    Args:
        pipe: an audio model.
        waveform: float ``[C, S]``, mono or stereo, about [-1, 1].
        sample_rate: its samples a second.
        seam: seconds regenerated, half of them at the end and half at the start; less than the sound.
        seeds: one integer a result; (0,) if left out.
        sampling: settings, instead of the model's own.
        crossfade: see ``infill``.
        context: see ``infill``.
        loudness: see ``infill``.
        label: class of a model with classes.
        callback: sees each step.

    Returns:
        One ``[C, S]`` a seed, to be played in a circle. Samples farther than ``seam`` / 2 + ``crossfade`` from the ends are
        the input's, bit for bit.

    Raises:
        TypeError, ValueError: see ``infill``; a seam as long as the sound.
    """
    pipe.require("audio", "closing a loop")
    samples = Memory(waveform, sample_rate).frames
    length = seconds_to_samples("seam", seam, sample_rate)
    if length >= samples:
        raise ValueError(f"seam: got {seam} s, expected less than the {samples / sample_rate:g} s of the sound")
    middle = samples // 2
    turned = Memory(waveform.roll(middle, -1), sample_rate)
    first = max(middle - length // 2, 0)
    draw = drawing(pipe, seeds, sampling, label, loudness, callback)
    results = [waveform.roll(middle, -1) for _ in draw.request.seeds]
    for begin, piece in gap_pieces(
        pipe, turned, (first, min(first + length, samples)), draw, crossfade=crossfade, context=context
    ):
        _put(results, begin, piece)
    return [result.roll(-middle, -1) for result in results]


def vary(
    pipe: Pipeline,
    waveform: Tensor,
    sample_rate: int,
    *,
    period: int = 7,
    keep_codebooks: int | None = None,
    onset_width: int = 0,
    seeds: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    loudness: float | None = LOUDNESS,
    label: Label | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> list[Tensor]:
    """Make variations of a sound: some frames and codebooks are kept as a prompt, all others are decided anew.

    VampNet's "compression" prompt (arXiv 2307.04686, section 3.3): every ``period``-th frame, from a first one drawn from
    the seed, and the frames around onsets; of these, the coarse codebooks. The whole result comes out of the codec. Each
    window is measured for its loudness.

    Args:
        pipe: an audio model.
        waveform: float ``[C, S]``, mono or stereo, about [-1, 1], of any length.
        sample_rate: its samples a second.
        period: frames between two that are kept; higher is freer, 0 keeps none, 1 all.
        keep_codebooks: how many codebooks of a kept frame are kept, from the coarsest; None for all of the model's.
            VampNet's application keeps 3.
        onset_width: frames kept on each side of every onset; 0 for none.
        seeds: one integer a result; (0,) if left out.
        sampling: settings, instead of the model's own.
        loudness: see ``infill``.
        label: class of a model with classes.
        callback: sees each step.

    Returns:
        One ``[C, S]`` a seed, in the input's type.

    Raises:
        TypeError, ValueError: see ``infill``; a number out of range.
    """
    pipe.require("audio", "a variation")
    source = Memory(waveform, sample_rate)
    draw = drawing(pipe, seeds, sampling, label, loudness, callback)
    results = [torch.empty_like(waveform) for _ in draw.request.seeds]
    for begin, piece in vary_pieces(
        pipe, source, draw, period=period, keep_codebooks=keep_codebooks, onset_width=onset_width
    ):
        _put(results, begin, piece)
    return results


def _put(results: Sequence[Tensor], begin: int, piece: Tensor) -> None:
    """Write one piece ``[R, C, s]`` into the results."""
    for result, new in zip(results, piece, strict=True):
        result[:, begin : begin + new.shape[-1]] = new.to(result)
