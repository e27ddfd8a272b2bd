"""The engine of the audio tasks: what is masked is decided window by window, and comes back on the caller's time axis.

The codec may run at another rate and number of channels than the caller. One window of sound is in memory at a time,
whatever the length of the source.

Shapes: R results (one a seed), I items a result, C channels of the caller, S samples, T frames, K codebooks.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from einops import rearrange
from torch import Tensor

from maskgen.published.vampnet.prompt import VampPrompt
from maskgen.tasks.audio.fades import fill_gap, gap_weights
from maskgen.tasks.audio.source import Grid, Source, plan_gap
from maskgen.tasks.conditions.request import Request
from maskgen.tasks.media.audio.files import resample
from maskgen.tasks.media.windows import Piece, blend, stitch, windows
from maskgen.tasks.pipeline import Pipeline
from maskgen.tokenizers.audio.base import AudioTokenizer

_ONSET_FRAMES = 4096  # frames whose onsets are looked for at a time

_LONGEST = 86_400  # seconds that are added at once; their tokens are held in memory
_SILENCE = -70.0  # LUFS: the absolute gate of ITU-R BS.1770-4, below which nothing counts as sound


@dataclass(frozen=True)
class EditPlan:
    """What is to be regenerated.

    Attributes:
        grid: see ``Grid``.
        mask: bool ``[M, T, K]`` with M = 1 or R, True = to be decided.
        gap: first sample and one past the last of what the model must not hear; equal if it may hear everything. It may
            reach beyond the end of the source.
        overlap: frames that neighbouring windows share, less than W.
        loudness: LUFS the sound is brought to before the codec hears it (undone afterwards); None leaves it as it is.
        gain: factor for that; None to measure each window.
    """

    grid: Grid
    mask: Tensor
    gap: tuple[int, int]
    overlap: int
    loudness: float | None = None
    gain: float | None = None

    @property
    def frames(self) -> int:
        """T."""
        return self.mask.shape[1]


def codec(pipe: Pipeline) -> AudioTokenizer:
    """The pipeline's tokenizer, which must be a codec.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(pipe.tokenizer, AudioTokenizer):
        raise ValueError(f"this task needs an audio model, but this model's modality is {pipe.modality}")
    return pipe.tokenizer


def codebooks(pipe: Pipeline) -> int:
    """K of the tokens the pipeline decides: the fine model's if it has one; a coarse model alone leaves finer ones out."""
    return (pipe.fine or pipe.transformer).num_codebooks


def seconds_to_gap(start: float | None, stop: float, source: Source) -> tuple[int, int]:
    """A span in seconds as (first sample, one past the last), at least one sample.

    Args:
        start: in seconds; None for the end of the source, and then ``stop`` counts from there.
        stop: in seconds.
        source: the sound.

    Raises:
        ValueError: reversed, empty, not inside the sound, or more than a day to add.
    """
    rate, length = source.sample_rate, source.frames
    if start is None:
        added = seconds_to_samples("seconds", stop, rate)
        if stop > _LONGEST:
            raise ValueError(
                f"seconds: got {stop:g}, expected at most {_LONGEST}, a day; go on from the result for more"
            )
        return length, length + added
    for name, value in (("start", start), ("stop", stop)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"{name}: got {value}, expected seconds from 0 to {length / rate:g}, the length of the sound"
            )
    if stop <= start:
        raise ValueError(f"got start {start} s and stop {stop} s, expected start before stop")
    first, last = round(start * rate), round(stop * rate)
    if first >= length or last > length:
        raise ValueError(
            f"got {start} s to {stop} s, expected a span inside the sound, which is {length / rate:g} s long; "
            "to add sound after the end, use continue_audio"
        )
    return first, max(last, first + 1)


def seconds_to_samples(name: str, seconds: float, rate: int, least: int = 1) -> int:
    """Seconds in samples, at least ``least``; ``name`` is what errors call them.

    Raises:
        ValueError: not a number, negative, or 0 where at least one sample is wanted.
    """
    if not math.isfinite(seconds) or seconds < 0 or (least and seconds == 0):
        raise ValueError(f"{name}: got {seconds}, expected {'more than 0' if least else '0 or more'} seconds")
    return max(round(seconds * rate), least)


def gap_pieces(
    pipe: Pipeline,
    source: Source,
    gap: tuple[int, int],
    request: Request,
    *,
    fade: int,
    context: int | None = None,
    loudness: float | None = None,
) -> Iterator[Piece]:
    """The samples that filling a gap changes, from left to right.

    Args:
        pipe: an audio model.
        source: the sound.
        gap: first sample and one past the last; it may begin at the end of the source, which continues it.
        request: of R rows.
        fade: samples on each side over which new and old mix.
        context: most samples of surroundings on each side; None for as many as fit.
        loudness: see ``EditPlan``; the surroundings are measured as a whole.

    Yields:
        (first sample, float32 ``[R, C, s]``), each starting where the last one ended.
    """
    tokenizer, window = codec(pipe), pipe.axes[0]
    hop = Fraction(tokenizer.stride[0] * source.sample_rate, tokenizer.sample_rate)
    reach = None if context is None else math.ceil(context / hop)
    grid, before, inside, after = plan_gap(gap, source.frames, hop, window, reach)
    mask = torch.zeros(1, before + inside + after, codebooks(pipe), dtype=torch.bool)
    mask[:, before : before + inside] = True
    end = grid.sample(mask.shape[1])
    # Where nothing follows the gap, what the last frame reaches over is gap as well, not silence to be heard.
    deaf = (gap[0], max(gap[1], end) if gap[1] >= source.frames else gap[1])
    around = [(grid.origin, gap[0]), (gap[1], min(end, source.frames))]
    gain = _gain([source.read(a, b - a) for a, b in around if a < b], source, loudness)
    plan = EditPlan(grid, mask, deaf, window // 2, loudness, gain)
    first = max(gap[0] - fade, grid.origin)
    last = max(gap[1], min(gap[1] + fade, end, source.frames))
    weight = gap_weights(gap[0] - first, gap[1] - gap[0], last - gap[1])
    for begin, piece in stitch(regenerate(pipe, source, plan, request), width=fade):
        low, high = max(begin, first), min(begin + piece.shape[-1], last)
        if low < high:
            part = weight[low - first : high - first]
            given = min(high, source.frames) - low
            old = torch.zeros(source.channels, high - low)
            if given > 0:
                old[:, :given] = source.read(low, given)
            yield low, blend(old, piece[..., low - begin : high - begin], part)


def vary_pieces(
    pipe: Pipeline, source: Source, prompt: VampPrompt, request: Request, *, fade: int, loudness: float | None = None
) -> Iterator[Piece]:
    """The samples of a variation of a whole sound, from left to right; see ``maskgen.tasks.audio.infilling.vary``.

    Args:
        pipe: an audio model.
        source: the sound.
        prompt: which tokens are kept.
        request: of R rows.
        fade: samples over which neighbouring windows change over.
        loudness: see ``EditPlan``.

    Yields:
        (first sample, float32 ``[R, C, s]``), each starting where the last one ended.
    """
    tokenizer, window = codec(pipe), pipe.axes[0]
    grid = Grid(0, Fraction(tokenizer.stride[0] * source.sample_rate, tokenizer.sample_rate))
    frames = math.ceil(source.frames / grid.hop)
    onsets = _onset_frames(source, tokenizer, grid, frames) if prompt.onset_width else []
    mask = prompt.mask(prompt.noise((len(request.seeds), frames, codebooks(pipe)), request.seeds), onsets)
    plan = EditPlan(grid, mask, (0, 0), window // 4, loudness)
    for begin, piece in stitch(regenerate(pipe, source, plan, request), width=fade):
        if begin < source.frames:
            yield begin, piece[..., : source.frames - begin]


def regenerate(pipe: Pipeline, source: Source, plan: EditPlan, request: Request) -> Iterator[Piece]:
    """Decide the tokens that a plan masks, window by window from the left.

    Tokens that a window shares with the one before it are given to it, decided ones too, so the music goes on. Window
    number n of a result with seed s is sampled with ``item_seed(s, n)``. Channels that the codec does not know are items of
    their own with the same seed (two equal channels stay equal); a mono sound on a stereo codec is doubled, and the
    result averaged.

    Args:
        pipe: an audio model.
        source: the sound.
        plan: what is masked.
        request: of R rows.

    Yields:
        (first sample, float32 ``[R, C, s]``) of each window, on the caller's time axis; neighbours overlap, see
        ``maskgen.tasks.media.windows.stitch``.
    """
    results, items = len(request.seeds), _items(source.channels, codec(pipe).channels)
    rows = [row for row in range(results) for _ in range(items)]
    decided: Tensor | None = None
    heard = _Heard(None, None, 1.0 if plan.gain is None else plan.gain)
    before = (0, 0)
    for number, (first, last) in enumerate(windows(plan.frames, pipe.axes[0], plan.overlap)):
        heard = _hear(pipe, source, plan, (first, last), heard)
        shape = (results, items, last - first, plan.mask.shape[2])
        tokens = torch.zeros(shape, dtype=torch.long) if heard.tokens is None else heard.tokens.expand(shape).clone()
        masked = plan.mask[:, None, first:last].expand(shape).clone()
        if decided is not None:
            shared = before[1] - first
            tokens[:, :, :shared] = decided[:, :, first - before[0] :]
            masked[:, :, :shared] = False
        of_items = [rearrange(each, "R I T K -> (R I) T K") for each in (tokens, masked)]
        filled = pipe.fill(of_items[0], of_items[1], request.window(number).rows(rows), axes=(last - first,))
        decided, before = rearrange(filled.cpu(), "(R I) T K -> R I T K", R=results), (first, last)
        scale = None if heard.scale is None else heard.scale.repeat(results)
        sound = pipe.decode(filled, (last - first,), scale) / heard.gain
        begin, end = plan.grid.sample(first), plan.grid.sample(last)
        yield begin, _from_codec(sound, codec(pipe).sample_rate, source, results, end - begin)


def recode(pipe: Pipeline, source: Source, gap: tuple[int, int], loudness: float | None) -> Tensor:
    """A sound through the codec and back, as loud as the codec hears it when its gap is filled.

    Args:
        pipe: an audio model.
        source: the sound, at the codec's rate and channels.
        gap: first sample and one past the last.
        loudness: see ``EditPlan``.

    Returns:
        float32 ``[C, S]``.
    """
    around = [(0, gap[0]), (gap[1], source.frames)]
    gain = _gain([source.read(a, b - a) for a, b in around if a < b], source, loudness)
    sound = source.read(0, source.frames)[None] * gain
    codes, scale = pipe.encode_scaled(sound)
    return pipe.decode(codes, codec(pipe).axes(tuple(sound.shape)), scale)[0, :, : source.frames] / gain


@dataclass(frozen=True)
class _Heard:
    """What the codec made of a window: tokens ``[I, T, K]`` if there was any sound, and how loud it was."""

    tokens: Tensor | None
    scale: Tensor | None
    gain: float


def _hear(pipe: Pipeline, source: Source, plan: EditPlan, span: tuple[int, int], before: _Heard) -> _Heard:
    """Encode what a window may hear of the source; a window inside the gap goes on as loud as the one before it."""
    begin, end = plan.grid.sample(span[0]), plan.grid.sample(span[1])
    stop = min(end, source.frames)
    first, last = (min(max(edge - begin, 0), end - begin) for edge in plan.gap)
    if stop <= begin or (first == 0 and last >= stop - begin):
        return _Heard(None, before.scale, before.gain)
    sound = source.read(begin, stop - begin).to(torch.float32)
    if last > first:
        sound = fill_gap(torch.nn.functional.pad(sound, (0, max(last - sound.shape[1], 0))), first, last)
    gain = _gain([sound], source, plan.loudness) if plan.gain is None else plan.gain
    tokenizer = codec(pipe)
    batch = _to_codec(sound * gain, source.sample_rate, tokenizer, (span[1] - span[0]) * tokenizer.stride[0])
    tokens, scale = pipe.encode_scaled(batch)
    return _Heard(tokens[..., : plan.mask.shape[2]].cpu(), scale, gain)


def _gain(parts: list[Tensor], source: Source, target: float | None) -> float:
    """Factor that brings a sound to a loudness in LUFS with no sample beyond 1, as VampNet does; 1 for silence."""
    if target is None or not parts:
        return 1.0
    from maskgen.tasks.media.audio.features import loudness

    sound = torch.cat([part.to(torch.float32) for part in parts], dim=1)
    level = loudness(sound, source.sample_rate)
    if level <= _SILENCE:
        return 1.0
    gain = 10.0 ** ((target - level) / 20)
    return gain / max(1.0, float(sound.abs().max()) * gain)


def _items(channels: int, codec_channels: int) -> int:
    """Items a result is made of: one for each channel if the codec is mono, else one."""
    return channels if codec_channels == 1 else 1


def _to_codec(sound: Tensor, sample_rate: int, tokenizer: AudioTokenizer, length: int) -> Tensor:
    """``[C, S]`` at the caller's rate -> ``[I, C', length]`` at the codec's, cropped or padded with silence."""
    channels = tokenizer.channels
    items = rearrange(sound, "I S -> I 1 S") if channels == 1 else sound.expand(channels, -1)[None]
    rows = resample(items, sample_rate, tokenizer.sample_rate)
    return torch.nn.functional.pad(rows[..., :length], (0, max(length - rows.shape[-1], 0)))


def _from_codec(sound: Tensor, rate: int, source: Source, results: int, length: int) -> Tensor:
    """``[R x I, C', S']`` at the codec's rate -> ``[R, C, length]`` at the caller's."""
    found = rearrange(resample(sound, rate, source.sample_rate), "(R I) C S -> R (I C) S", R=results)
    found = torch.nn.functional.pad(found[..., :length], (0, max(length - found.shape[-1], 0)))
    return found if found.shape[1] == source.channels else found.mean(1, keepdim=True)


def _onset_frames(source: Source, tokenizer: AudioTokenizer, grid: Grid, frames: int) -> list[int]:
    """Frames in which a sound begins, found in parts of the source of bounded length."""
    from maskgen.tasks.media.audio.features import onsets

    found: list[int] = []
    for first in range(0, frames, _ONSET_FRAMES):
        begin = grid.sample(first)
        stop = min(grid.sample(first + _ONSET_FRAMES), source.frames)
        if begin < stop:
            part = resample(source.read(begin, stop - begin), source.sample_rate, tokenizer.sample_rate)
            found += [first + int(frame) for frame in onsets(part, tokenizer.sample_rate, tokenizer.stride[0])]
    return found
