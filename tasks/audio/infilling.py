"""Edits of a sound: fill a gap, go on, vary, close a loop. What is kept is the caller's own samples, bit for bit.

The steps, with choices that no official code makes (VampNet re-synthesises the whole sound):

1. the frame grid is laid so that the gap begins with a frame; a frame that touches the gap is masked, the others are given;
2. the gap is filled with mirror images of its surroundings before the codec hears it (``maskgen.tasks.audio.fades``), so
   that the result cannot depend on what stood there, and each window is brought to the loudness the model was trained at;
3. decide the masked tokens, decode, undo the loudness, resample the regenerated part back;
4. the result fades into the kept sound over ``crossfade`` seconds just *outside* the gap, where the codec's own version of
   the kept sound is at hand. Everything farther away is the input, whatever the codec's rate and channels.

The model's context is its training excerpt. A gap that leaves a quarter of it for the surroundings is filled at once; longer
ones, continuations and whole files go window by window (``maskgen.tasks.audio.windows``). A coarse model without a fine one
leaves the finer codebooks out in all it decodes. Both channels of a stereo sound on a mono codec get the same seed.

Shapes: C channels, S samples.
"""

from collections.abc import Iterator
from typing import Unpack, cast

import torch

from maskgen.published.vampnet.prompt import VampPrompt
from maskgen.tasks.audio.edit import SoundEdit, edited
from maskgen.tasks.audio.source import MemorySound, Sound, Turned, open_sound
from maskgen.tasks.audio.windows import codebooks, gap_pieces, seconds_to_gap, seconds_to_samples, vary_pieces
from maskgen.tasks.conditions.preparation import Loudness, loudness_of
from maskgen.tasks.conditions.request import Options
from maskgen.tasks.media.audio.files import SoundFile
from maskgen.tasks.media.windows import Piece
from maskgen.tasks.pipeline import Pipeline

_CROSSFADE = 0.01  # seconds


class FillOptions(Options, total=False):
    """Keyword arguments of the edits that fill a gap, all optional: besides those of ``Options``, these three.

    Attributes:
        crossfade: seconds outside the gap, on each side that is kept, over which new and old mix, by default 0.01; 0
            changes the gap alone.
        context: most seconds of surroundings the model hears on each side; None for as many as it can.
        loudness: LUFS the codec hears, undone afterwards; by default what the model was trained at, see
            ``maskgen.tasks.conditions.preparation.Loudness``.
    """

    crossfade: float
    context: float | None
    loudness: Loudness


def infill(
    pipe: Pipeline,
    source: Sound,
    sample_rate: int | None = None,
    *,
    start: float,
    stop: float,
    **options: Unpack[FillOptions],
) -> SoundEdit:
    """Regenerate a span of a sound from its surroundings.

    Args:
        pipe: an audio model.
        source: float ``[C, S]``, mono or stereo, about [-1, 1], or the path of a file of any length.
        sample_rate: samples a second of a sound in memory; need not be the codec's.
        start: of the span, in seconds.
        stop: end of the span, in seconds. Shorter than a frame fills one frame's worth; of any length above.
        options: see ``FillOptions``.

    Returns:
        One ``[C, S]`` a seed, in the input's type; from a file, float32 that is computed when it is read or written.
        Samples farther than ``crossfade`` from the span are the input's, bit for bit.

    Raises:
        FileNotFoundError: no such file.
        TypeError: not a floating point sound, or one in memory without its sample rate.
        ValueError: no such sound (see ``maskgen.tasks.media.audio.files.check_waveform``), an empty or reversed span or
            one that is not inside the sound, settings out of range, or a model of another modality.
    """
    pipe.require("audio", "infilling")
    sound = open_sound(source, sample_rate)
    gap = seconds_to_gap(start, stop, sound)
    return _filled(pipe, sound, gap, options)


def continue_audio(
    pipe: Pipeline, source: Sound, sample_rate: int | None = None, *, seconds: float, **options: Unpack[FillOptions]
) -> SoundEdit:
    """Go on with a sound for any length, in windows that each hear the end of the one before.

    Args:
        pipe: an audio model.
        source: see ``infill``.
        sample_rate: see ``infill``.
        seconds: how much to add.
        options: see ``FillOptions``.

    Returns:
        One ``[C, S + round(seconds x sample_rate)]`` a seed, see ``infill``; the input's part is the input, bit for bit,
        up to the last ``crossfade`` seconds.

    Raises:
        FileNotFoundError, TypeError, ValueError: see ``infill``.
    """
    pipe.require("audio", "continuing")
    sound = open_sound(source, sample_rate)
    gap = seconds_to_gap(None, seconds, sound)
    return _filled(pipe, sound, gap, options)


def loop(
    pipe: Pipeline, source: Sound, sample_rate: int | None = None, *, seam: float = 0.5, **options: Unpack[FillOptions]
) -> SoundEdit:
    """Make a sound that can be repeated without a break: what lies around the change from end to start is regenerated.

    The sound is turned so that its end and start meet in the middle, the seam is filled as a gap, and turned back.

    Args:
        pipe: an audio model.
        source: see ``infill``.
        sample_rate: see ``infill``.
        seam: seconds regenerated, half of them at the end and half at the start; less than the sound.
        options: see ``FillOptions``.

    Returns:
        One ``[C, S]`` a seed, see ``infill``, to be played in a circle. Samples farther than ``seam`` / 2 + ``crossfade``
        from the ends are the input's, bit for bit.

    Raises:
        FileNotFoundError, TypeError, ValueError: see ``infill``; a seam as long as the sound.
    """
    pipe.require("audio", "closing a loop")
    sound = open_sound(source, sample_rate)
    length, samples = seconds_to_samples("seam", seam, sound.sample_rate), sound.frames
    if length >= samples:
        raise ValueError(f"seam: got {seam} s, expected less than the {samples / sound.sample_rate:g} s of the sound")
    middle = samples // 2
    first = max(middle - length // 2, 0)
    gap = (first, min(first + length, samples))
    return _filled(pipe, sound, gap, options, turn=middle)


def vary(
    pipe: Pipeline,
    source: Sound,
    sample_rate: int | None = None,
    *,
    period: int = 7,
    keep_codebooks: int | None = None,
    onset_width: int = 0,
    loudness: Loudness = "model",
    **options: Unpack[Options],
) -> SoundEdit:
    """Make variations of a sound: some frames and codebooks are kept as a prompt, all others are decided anew.

    VampNet's "compression" prompt (arXiv 2307.04686, section 3.3): every ``period``-th frame, from a first one that the
    seed chooses, and the frames around onsets; of these, the coarse codebooks. The whole result comes out of the codec.
    Each window is measured for its loudness.

    Args:
        pipe: an audio model.
        source: see ``infill``.
        sample_rate: see ``infill``.
        period: frames between two that are kept; higher is freer, 0 keeps none, 1 all.
        keep_codebooks: how many codebooks of a kept frame are kept, from the coarsest; None for all of the model's.
            VampNet's application keeps 3.
        onset_width: frames kept on each side of every onset; 0 for none.
        loudness: see ``FillOptions``.
        options: see ``maskgen.tasks.conditions.request.Options``.

    Returns:
        One ``[C, S]`` a seed, see ``infill``.

    Raises:
        FileNotFoundError, TypeError, ValueError: see ``infill``; a number out of range.
    """
    pipe.require("audio", "a variation")
    sound = open_sound(source, sample_rate)
    books = codebooks(pipe)
    kept = books if keep_codebooks is None else keep_codebooks
    if not 0 <= kept <= books:
        raise ValueError(f"keep_codebooks: got {kept}, expected 0 to {books}, the model's codebooks")
    prompt = VampPrompt(period=period, onset_width=onset_width, mask_from=kept)
    heard, request = loudness_of(loudness, pipe.config.prepared), pipe.request(options)
    fade = seconds_to_samples("crossfade", _CROSSFADE, sound.sample_rate, least=0)
    return edited(
        sound, len(request.seeds), lambda: vary_pieces(pipe, sound, prompt, request, fade=fade, loudness=heard)
    )


def _filled(
    pipe: Pipeline, sound: MemorySound | SoundFile, gap: tuple[int, int], options: FillOptions, *, turn: int = 0
) -> SoundEdit:
    """The sound with a gap filled; the gap may be one of the sound turned by some samples, see ``Turned``."""
    rate, context = sound.sample_rate, options.get("context")
    level = loudness_of(options.get("loudness", "model"), pipe.config.prepared)
    own = FillOptions.__optional_keys__ - Options.__optional_keys__
    request = pipe.request(cast(Options, {name: value for name, value in options.items() if name not in own}))
    fade = seconds_to_samples("crossfade", options.get("crossfade", _CROSSFADE), rate, least=0)
    reach = None if context is None else seconds_to_samples("context", context, rate, least=0)
    heard = Turned(sound, turn) if turn else sound

    def changed() -> Iterator[Piece]:
        pieces = gap_pieces(pipe, heard, gap, request, fade=fade, context=reach, loudness=level)
        return _turned_back(pieces, turn, sound.frames) if turn else pieces

    return edited(sound, len(request.seeds), changed)


def _turned_back(pieces: Iterator[Piece], turn: int, frames: int) -> Iterator[Piece]:
    """The pieces of a seam, which surrounds sample ``turn`` of the turned sound, at the start and the end of the sound."""
    begins, parts = zip(*pieces, strict=True)
    before, seam = turn - begins[0], torch.cat(parts, dim=-1)
    yield 0, seam[..., before:]
    yield frames - before, seam[..., :before]
