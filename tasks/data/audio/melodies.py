"""Synthesised melodies: sound to train on that nobody has to download, and whose gaps have a right answer.

Each clip repeats one bar of its own: eight steps of melody over a bass. A gap shorter than a bar can be filled from the
bars around it, but not by playing what came just before once more: a bar does not repeat inside itself.

Shapes: M clips, S samples, P steps of a bar, H partials of a tone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.data import TensorSource, item_seed
from maskgen.tasks.data.base import AudioData

_STEPS = 8  # of a bar

_DEGREES = 8  # of the scale: an octave and its top

_MAJOR, _MINOR, _PENTATONIC = (0, 2, 4, 5, 7, 9, 11, 12), (0, 2, 3, 5, 7, 8, 10, 12), (0, 2, 4, 7, 9, 12, 14, 16)

_SCALES = (_MAJOR, _MINOR, _PENTATONIC)

_KEYS = 5  # roots, whole tones apart, from C4 up

_PARTIALS = 6

_TIMBRES = ("organ", "reed", "plucked", "bell")

_BASS = 4  # its place among the instruments

_HOLD, _REST = -1, -2  # in place of a degree

_HISS = 0.003  # of a tape, about -50 dB: digital silence is in no recording

_FADE = 0.004  # seconds in which a note begins and ends, so that nothing clicks


@dataclass(frozen=True)
class _Score:
    """What M clips play, one bar each.

    Attributes:
        degrees: long ``[M, P]``, degree of the scale that begins at a step; -1 where the note before goes on.
        scale, key, timbre: long ``[M]``.
        step: long ``[M]``, samples of a step.
        bass: long ``[M, 2]``, degree under each half of the bar.
        phase: long ``[M]``, sample of the bar at which the clip begins.
    """

    degrees: Tensor
    scale: Tensor
    key: Tensor
    timbre: Tensor
    shaker: Tensor
    step: Tensor
    bass: Tensor
    phase: Tensor


class Melodies(AudioData):
    """Melodies of four timbres (organ, reed, plucked string, FM bell), in three scales, five keys and some tempi.

    A melody is its bar: which degrees of the scale begin at which of eight steps (its first step always begins one). No two
    clips have the same, so a test clip is never another rendering of a training clip. Mono.

    Args:
        count: training clips.
        held_out: test clips.
        seconds: length of a clip.
        sample_rate: samples a second.
        grid: seconds; steps last a whole number of it, and clips begin on it. A codec whose frames are this long sees equal
            notes as equal frames, which a small model learns from sooner.
        tempi: how many of the grid a step may last; each clip has one of them.
        seed: of everything that is drawn. The test clips do not depend on ``count``.

    Raises:
        ValueError: a size that is not positive, or a clip shorter than its bar.
    """

    def __init__(
        self,
        count: int = 512,
        held_out: int = 64,
        seconds: float = 4.096,
        sample_rate: int = 16000,
        grid: float = 0.032,
        tempi: tuple[int, ...] = (5, 6, 7),
        seed: int = 0,
    ) -> None:
        sizes = {"count": count, "held_out": held_out, "sample_rate": sample_rate, "grid": grid}
        for name, value in sizes.items():
            if value <= 0:
                raise ValueError(f"{name}: got {value}, expected more than 0")
        if not tempi or min(tempi) < 1:
            raise ValueError(f"tempi: got {tuple(tempi)}, expected one or more positive numbers")
        longest = max(tempi) * _STEPS * grid
        if seconds < longest:
            raise ValueError(f"seconds: got {seconds}, expected at least {longest:.3f}, the longest bar on this grid")
        self.count, self.held_out, self.seconds, self.grid, self.seed = count, held_out, seconds, grid, seed
        self.tempi, self.sample_rate, self.channels = tuple(tempi), sample_rate, 1
        self.size = (round(seconds * sample_rate),)
        self._sources: dict[str, TensorSource] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """None: melodies have no labels."""
        return ()

    def train(self) -> TensorSource:
        """``count`` clips, made at the first call and then held in memory."""
        return self._made("train", self.held_out, self.count)

    def test(self) -> TensorSource:
        """``held_out`` clips of other melodies."""
        return self._made("test", 0, self.held_out)

    def _made(self, name: str, first: int, count: int) -> TensorSource:
        """``count`` clips from the melody of that number on."""
        if name not in self._sources:
            bars = _different_bars(first + count, torch.Generator().manual_seed(self.seed))[first:]
            generator = torch.Generator().manual_seed(item_seed(self.seed, 1 + first))
            score = _compose(bars, self.tempi, self.grid * self.sample_rate, generator)
            audio = _render(score, self.sample_rate, self.size[0], generator)[:, None]
            self._sources[name] = TensorSource(audio=audio)
        return self._sources[name]


def _compose(bars: Tensor, tempi: Sequence[int], grid: float, generator: torch.Generator) -> _Score:
    """Draw what bars ``[M, P]`` are played with; ``grid`` in samples."""
    count = len(bars)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape or (count,), generator=generator)

    units, caller = torch.tensor(tempi)[draw(len(tempi))], draw(len(_TIMBRES))
    return _Score(
        degrees=bars,
        scale=draw(len(_SCALES)),
        key=draw(_KEYS),
        timbre=torch.stack((caller, (caller + 1 + draw(len(_TIMBRES) - 1)) % len(_TIMBRES)), dim=1),
        shaker=draw(2, count, _STEPS).bool(),
        step=(units * grid).round().long(),
        bass=torch.stack((torch.zeros(count, dtype=torch.long), 2 + draw(4)), dim=1),
        phase=(draw(1 << 30) % (units * _STEPS) * grid).round().long(),
    )


def _different_bars(count: int, generator: torch.Generator) -> Tensor:
    """``count`` bars ``[count, P]``, no two alike; the second half of a bar begins as the first does in none of them."""
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        # A walk over the scale with leaps: neighbours a step or a third apart, sometimes further.
        moves = torch.randint(1, 5, (_STEPS,), generator=generator) * (
            1 - 2 * torch.randint(2, (_STEPS,), generator=generator)
        )
        walk = (int(torch.randint(_DEGREES, (), generator=generator)) + moves.cumsum(0)) % _DEGREES
        begins = torch.rand(_STEPS, generator=generator) < 0.8
        begins[0] = begins[_STEPS // 2] = True
        bar = torch.where(begins, walk, _HOLD)
        bar = torch.where(begins & (torch.rand(_STEPS, generator=generator) < 0.25), _REST, bar)
        if bar[0] != bar[_STEPS // 2]:
            found[tuple(bar.tolist())] = None
    return torch.tensor([*found])


def _render(score: _Score, sample_rate: int, samples: int, generator: torch.Generator) -> Tensor:
    """Sound ``[M, S]`` of peak below 1: one bar is made, then played round and round from the clip's phase."""
    audio = torch.empty(len(score.step), samples)
    for step in score.step.unique().tolist():  # clips of one tempo have bars of one length
        chosen = (score.step == step).nonzero()[:, 0]
        for part in chosen.split(64):  # bounds the memory of the partials
            bar = _bars(score, part, step, sample_rate, generator)
            places = (score.phase[part, None] + torch.arange(samples)) % (step * _STEPS)
            audio[part] = bar.gather(1, places)
    return audio + _HISS * torch.randn(audio.shape, generator=generator)


def _bars(score: _Score, chosen: Tensor, step: int, sample_rate: int, generator: torch.Generator) -> Tensor:
    """One bar of each chosen clip, ``[m, P x step]``."""
    degrees = score.degrees[chosen]
    scales = torch.tensor(_SCALES)[score.scale[chosen]]
    root = 60 + 2 * score.key[chosen]
    places = torch.arange(_STEPS)
    since, lasts = _notes(degrees != _HOLD)
    sounding = degrees.gather(1, places - since)
    pitch = root[:, None] + scales.gather(1, sounding.clamp(min=0))
    timbre = score.timbre[chosen][:, places // (_STEPS // 2)].gather(1, places - since)
    melody = _tones(pitch, since, lasts, step, sample_rate, timbre)
    melody = melody * (sounding >= 0).float().repeat_interleave(step, 1)
    low = root[:, None] - 24 + scales.gather(1, score.bass[chosen])[:, places // (_STEPS // 2)]
    since = (places % (_STEPS // 2)).expand_as(degrees)
    bass = _tones(low, since, torch.full_like(since, _STEPS // 2), step, sample_rate, torch.full_like(since, _BASS))
    hit = score.shaker[chosen].float().repeat_interleave(step, 1)
    time = (torch.arange(step) / sample_rate).repeat(_STEPS)
    shaker = hit * torch.randn(hit.shape, generator=generator) * (-25 * time).exp()
    return 0.5 * melody + 0.3 * bass + 0.06 * shaker


def _notes(begins: Tensor) -> tuple[Tensor, Tensor]:
    """Steps since the note sounding in each step began, and how many it lasts in all, ``[m, P]`` each."""
    places = torch.arange(_STEPS)
    began = torch.where(begins, places, -1).cummax(1).values
    later = torch.where(begins, places, _STEPS).flip(1).cummin(1).values.flip(1)  # first beginning from here on
    end = torch.cat((later[:, 1:], torch.full_like(later[:, :1], _STEPS)), dim=1)  # ... after here
    return places - began, (end - places).gather(1, began)


def _tones(pitch: Tensor, since: Tensor, lasts: Tensor, step: int, sample_rate: int, timbre: Tensor) -> Tensor:
    """Sound ``[m, P x step]`` of one voice; all arguments but two are ``[m, P]``.

    Args:
        pitch: MIDI number that sounds in each step.
        since: steps since that note began.
        lasts: steps the note lasts in all.
        step: samples of a step.
        sample_rate: samples a second.
        timbre: which instrument plays the step.
    """
    inside = torch.arange(step) / sample_rate
    seconds = step / sample_rate
    time = since[..., None] * seconds + inside  # since the note began, [m, P, step]
    left = (lasts - since)[..., None] * seconds - inside  # until it ends
    angle = 2 * math.pi * (440 * 2 ** ((pitch - 69) / 12))[..., None] * time
    sound = torch.empty_like(time)
    for index, voice in enumerate((_organ, _reed, _plucked, _bell, _bass)):
        chosen = timbre == index
        sound[chosen] = voice(angle[chosen], time[chosen])
    return (sound * (time / _FADE).clamp(max=1) * (left / _FADE).clamp(0, 1)).flatten(1)


def _partials(angle: Tensor, amplitudes: Sequence[float]) -> Tensor:
    return torch.stack([size * (number * angle).sin() for number, size in enumerate(amplitudes, 1) if size]).sum(0)


def _organ(angle: Tensor, time: Tensor) -> Tensor:
    return _partials(angle, (0.6, 0.3, 0.0, 0.2, 0.0, 0.05, 0.0, 0.05)) * (0.7 + 0.3 * (-3 * time).exp())


def _reed(angle: Tensor, time: Tensor) -> Tensor:
    """Odd partials, as of a clarinet, swelling a little."""
    return _partials(angle, (0.6, 0.0, 0.35, 0.0, 0.2, 0.0, 0.1)) * (0.75 + 0.25 * (1 - (-12 * time).exp()))


def _plucked(angle: Tensor, time: Tensor) -> Tensor:
    """Higher partials die sooner."""
    parts = [(number * angle).sin() / number * (-1.2 * number * time).exp() for number in range(1, _PARTIALS + 1)]
    return 0.6 * torch.stack(parts).sum(0)


def _bell(angle: Tensor, time: Tensor) -> Tensor:
    """Frequency modulation (Chowning 1973), two to one, its index falling with time."""
    return 0.8 * (angle + 1.8 * (-4 * time).exp() * (2 * angle).sin()).sin() * (0.35 + 0.65 * (-2.5 * time).exp())


def _bass(angle: Tensor, time: Tensor) -> Tensor:
    return _partials(angle, [0.8 / number for number in range(1, _PARTIALS + 1)]) * (-1.5 * time).exp()
