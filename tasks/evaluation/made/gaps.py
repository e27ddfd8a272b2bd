"""Sounds with a gap: what a model puts there, beside what had been there and what anyone could have put there.

Distances are taken inside the gap alone. Three answers without a model stand beside the filled one: silence; the sound just
before the gap played once more; and the true sound through the codec and back, the bound of what its tokens can say.

Shapes: C channels, S samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.tasks.conditions.preparation import Loudness
from maskgen.tasks.evaluation.metrics.audio import SoundScores
from maskgen.tasks.evaluation.metrics.pairs import PairScores

Gap = tuple[int, int]

_ANSWERS = {
    "filled": "as the model filled it",
    "silence": "left silent",
    "repeated": "with the sound before it once more",
    "codec": "the true sound through the codec and back",
}

_KEPT = "gap_kept_identical"


@dataclass(frozen=True, kw_only=True)
class GapSettings:
    """Which gap is filled, and how.

    Attributes:
        share: of each sound that is missing, in its middle, on whole frames of the codec.
        crossfade: seconds over which the filled part fades into the kept sound on both sides.
        loudness: LUFS that the codec hears, see ``maskgen.tasks.conditions.preparation.Loudness``.
    """

    share: float = 0.125
    crossfade: float = 0.01
    loudness: Loudness = "model"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 0.5 or not self.crossfade >= 0:
            raise ValueError(
                f"gap: got share {self.share}, crossfade {self.crossfade}; expected a share above 0 and at most 0.5, and 0 "
                "or more seconds"
            )


def middle_gap(samples: int, share: float, hop: int) -> Gap:
    """First sample of a gap in the middle of a sound, and one past its last: whole hops, at least one.

    Args:
        samples: S.
        share: of them that is missing.
        hop: samples a frame of the codec.

    Raises:
        ValueError: a sound of so few frames that nothing as long as the gap lies before it.
    """
    length = max(1, round(share * samples / hop)) * hop
    start = (samples - length) // 2 // hop * hop
    if start < length:
        raise ValueError(
            f"gap: got a sound of {samples} samples, in whose middle a gap of {length} (frames of {hop}) leaves less than "
            "its own length before it; expected longer sounds or a smaller share"
        )
    return start, start + length


def silenced(sound: Tensor, gap: Gap) -> Tensor:
    """The sound with silence in the gap."""
    found = sound.clone()
    found[:, gap[0] : gap[1]] = 0
    return found


def repeated(sound: Tensor, gap: Gap) -> Tensor:
    """The sound with what came just before the gap played once more in it."""
    found, (start, stop) = sound.clone(), gap
    found[:, start:stop] = sound[:, 2 * start - stop : start]
    return found


def is_kept(original: Tensor, result: Tensor, gap: Gap, margin: int) -> bool:
    """Whether a sound came back bit for bit, the gap and ``margin`` samples on both sides of it not counted."""
    left, right = max(0, gap[0] - margin), gap[1] + margin
    same = (torch.equal(result[:, :left], original[:, :left]), torch.equal(result[:, right:], original[:, right:]))
    return all(same) and result.shape == original.shape


class GapScores(PairScores):
    """Distances inside the gaps of sounds that come one at a time.

    ``gap_log_mel_filled`` is the log-mel distance of what the model put there to what had been there, and so on for the
    other measures and answers; ``gap_kept_identical`` is the share of sounds that came back bit for bit outside of gap and
    cross-fade. Silence has no signal-to-distortion ratio.

    Args:
        sample_rate: of all sounds.
        measures: which of ``log_mel``, ``stft`` and ``si_sdr``.
        crossfade: seconds on both sides of the gap in which the result may differ.

    Raises:
        ValueError: an unknown measure.
    """

    def __init__(
        self, sample_rate: int, measures: Sequence[str] = ("log_mel", "stft", "si_sdr"), crossfade: float = 0.0
    ) -> None:
        self._margin = round(crossfade * sample_rate) + 1
        without = [name for name in measures if name != "si_sdr"]
        self._sounds = {name: SoundScores(sample_rate, without if name == "silence" else measures) for name in _ANSWERS}
        notes = {
            f"gap_{measure}_{name}": f"the gap {_ANSWERS[name]}; {note}"
            for name, sound in self._sounds.items()
            for measure, note in sound.notes.items()
        }
        super().__init__("sound", notes | {_KEPT: ""}, [name for name in notes if name.startswith("gap_si_sdr")])

    def update(self, original: Tensor, filled: Tensor, rebuilt: Tensor, gap: Gap) -> None:
        """Compare one sound.

        Args:
            original: float ``[C, S]``.
            filled: what the model made of it without the gap, ``[C, S]``.
            rebuilt: the original through the codec and back, ``[C, S]``.
            gap: first sample and one past the last.

        Raises:
            ValueError: shapes that differ.
        """
        answers = (filled, silenced(original, gap), repeated(original, gap), rebuilt)
        inside = slice(*gap)
        found = {_KEPT: torch.tensor([is_kept(original, filled, gap, self._margin)])}
        for (name, sound), answer in zip(self._sounds.items(), answers, strict=True):
            compared = sound.compare(original[None, :, inside], answer[None, :, inside])
            found |= {f"gap_{measure}_{name}": value for measure, value in compared.items()}
        self.add(found)
