"""Folders and archives of sound to train on: which files, which part of each, how loud.

Shapes: B batch, C channels, S samples.
"""

import io
import math
import random
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from maskgen.tasks.conditions.preparation import loudness_of
from maskgen.tasks.data.base import AudioData
from maskgen.tasks.data.file_sets import FileData, FileRules
from maskgen.tasks.media.audio.features import limit_peak, normalize_loudness
from maskgen.tasks.media.audio.features import loudness as measure
from maskgen.tasks.media.audio.files import SOUND_SUFFIXES, SoundFile, resample, to_channels
from maskgen.tasks.media.shelf import Shelf

_TRIES = 8  # excerpts of a file that are listened to, as in audiotools


class SoundFolder(FileData, AudioData):
    """Sounds below a folder or in a zip archive; each example is an excerpt loud enough to hold something (VampNet).

    An example of a file (Flores García et al. 2023, section 3):

    1. Draw a place for an excerpt of the wanted length, from the example's seed.
    2. Unless it is louder than ``cutoff``, draw again, up to eight times; then take the loudest (VampNet: the last).
    3. Channels, sample rate, loudness, peak at most 1; a shorter sound is followed by silence.

    Only that part of the file is read, when it is needed (of an archive: that one file). Held-out examples never change.
    For files held out and files that cannot be read see ``maskgen.tasks.data.file_sets.FileData``.

    Args:
        root: a folder with sound files at any depth, or a ``.zip`` of them.
        sample_rate: samples a second of the examples.
        seconds: their length.
        channels: 1 or 2.
        loudness: LUFS of the examples; None leaves them as loud as they are.
        cutoff: LUFS that an excerpt must exceed.
        **rules: see ``maskgen.tasks.data.file_sets.FileRules``.

    Raises:
        FileNotFoundError: no such folder or archive.
        ValueError: settings out of range, no sound files, too many unreadable ones, all held out, or files outside of the
            class folders.
        ImportError: neither soundfile nor PyAV.
    """

    def __init__(
        self,
        root: Path,
        sample_rate: int,
        seconds: float,
        channels: int = 1,
        loudness: float | None = -24.0,
        cutoff: float = -30.0,
        **rules: Any,
    ) -> None:
        size = round(seconds * sample_rate) if math.isfinite(seconds) else 0
        if size < 1 or channels not in (1, 2):
            raise ValueError(
                f"SoundFolder: got {seconds} s at {sample_rate} Hz, {channels} channels; "
                "expected at least one sample and 1 or 2 channels"
            )
        self.sample_rate, self.channels, self.size = sample_rate, channels, (size,)
        self.loudness, self.cutoff = loudness_of(loudness, None), cutoff
        settled = FileRules(**rules)
        self._shelf = Shelf(Path(root), "sound files")
        self._mixed: list[str] = []
        self._arrange(self._shelf, self._shelf.names("audio", SOUND_SUFFIXES), self._try_out, settled)
        if self._mixed:
            told = f"{len(self._mixed)} files of more than two channels are mixed down to one, such as {self._mixed[0]}"
            warnings.warn(f"{root}: {told}", stacklevel=2)

    def example(self, name: str, seed: int, *, fixed: bool = False) -> Tensor:
        """One excerpt.

        Args:
            name: path below the root.
            seed: all the randomness there is.
            fixed: for held-out files; the seed alone decides here.

        Returns:
            float32 ``[C, S]``.

        Raises:
            ValueError: a file that cannot be read.
        """
        with self._open(name) as file:
            waveform, rate = to_channels(self._salient(file, random.Random(seed)), self.channels), file.sample_rate
        waveform = resample(waveform, rate, self.sample_rate)[:, : self.size[0]]
        if self.loudness is not None:
            waveform = normalize_loudness(waveform, self.sample_rate, self.loudness)
        return F.pad(limit_peak(waveform), (0, self.size[0] - waveform.shape[1]))

    def _try_out(self, name: str) -> None:
        """Refuse a file that does not open, or whose channels make no stereo; note one that is mixed down."""
        with self._open(name) as file:
            if file.channels > 2 and self.channels == 2:
                raise ValueError(
                    f"{self._shelf.told(name)}: got {file.channels} channels, expected 1 or 2; mix it down first"
                )
            if file.channels > 2:
                self._mixed.append(name)

    def _open(self, name: str) -> SoundFile:
        """One file; inside an archive, all of it in memory."""
        path = self._shelf.path(name)
        return SoundFile(io.BytesIO(self._shelf.read(name)) if path is None else path, self._shelf.told(name))

    def _salient(self, file: SoundFile, draw: random.Random) -> Tensor:
        """The first excerpt above the cutoff, else the loudest of eight; ``[channels of the file, samples at its rate]``."""
        wanted = min(file.frames, math.ceil(self.size[0] * file.sample_rate / self.sample_rate))
        best, found = -math.inf, None
        for _ in range(_TRIES):
            start = draw.randint(0, file.frames - wanted)
            excerpt = file.read(start, wanted)
            level = measure(to_channels(excerpt, self.channels), file.sample_rate)
            if level > best:
                best, found = level, excerpt
            if level > self.cutoff or wanted == file.frames:
                break
        assert found is not None
        return found
