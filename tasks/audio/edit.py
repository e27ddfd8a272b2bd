"""What the audio tasks make: sounds, kept in memory or written block by block.

An hour of sound costs as much memory as a minute when it goes from file to file; only the tokens grow with what is made.

Shapes: R results, C channels, S samples.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from maskgen.tasks.audio.source import MemorySound
from maskgen.tasks.media.audio.files import SoundFile, SoundWriter
from maskgen.tasks.media.audio.originals import describe
from maskgen.tasks.media.edit import Edit
from maskgen.tasks.media.windows import Piece

_BLOCK = 1 << 18  # samples copied at a time: 6 s at 44.1 kHz


class SoundEdit(Edit[Tensor]):
    """Sounds ``[C, S]``, one a seed; see ``maskgen.tasks.media.edit.Edit``.

    Args:
        results: R.
        pieces: yields float ``[R, C, s]`` from left to right.
        sample_rate: samples a second.
        channels: C.
        at_once: compute now.
        source: file that the edit is made from, if there is one.
    """

    def __init__(
        self,
        results: int,
        pieces: Callable[[], Iterator[Tensor]],
        sample_rate: int,
        channels: int,
        *,
        at_once: bool,
        source: SoundFile | None = None,
    ) -> None:
        self.sample_rate, self.channels, self._source = sample_rate, channels, source
        super().__init__(results, pieces, at_once=at_once)

    def write(self, path: str | Path | Sequence[str | Path], *, bits: int | None = None) -> int:
        """Write each sound to a file, whole or not at all; the suffix chooses the format.

        In a file like the source, samples that were kept are the source's, bit for bit, and so are its tags; what gets lost
        is warned of, see ``maskgen.tasks.media.audio.originals``.

        Args:
            path: of the result, or one for each; it may be the file that the edit was made from.
            bits: where samples are stored as they are: 16, 24, or 32 for float; if left out, those of the source file, or
                16.

        Returns:
            How many samples lay beyond [-1, 1] and had to be clipped to fit into the format.

        Raises:
            ValueError: another number of paths than results, or a format that cannot be written.
            OSError: the place cannot be written to.
        """
        original = None
        if self._source is not None:
            with self._source as source:
                original = describe(source)

        def open_writer(one: Path) -> SoundWriter:
            kind, tags = (None, {}) if original is None else original.written(one, bits)
            return SoundWriter(one, self.sample_rate, self.channels, bits=bits or 16, kind=kind, tags=tags)

        return sum(writer.clipped for writer in self._write(path, open_writer))

    def _split(self, piece: Tensor) -> Sequence[Tensor]:
        return piece.unbind()

    def _join(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, dim=-1)


def edited(sound: MemorySound | SoundFile, results: int, changed: Callable[[], Iterator[Piece]]) -> SoundEdit:
    """A sound with some of its samples changed; what lies between and around these is copied.

    Args:
        sound: the source; what comes from memory is computed now.
        results: R.
        changed: starts to compute, and yields ``[R, C, s]`` from left to right; the last may lie beyond the source's end.
    """

    def pieces() -> Iterator[Tensor]:
        with contextlib.closing(sound):
            read: Callable[[int, int], Tensor] = sound.read
            if isinstance(sound, SoundFile) and sound.dtype == torch.float64:
                read = partial(sound.read, dtype=torch.float64)
            like, done = read(0, 1), 0
            for begin, piece in changed():
                yield from _copied(read, done, begin, results)
                if piece.shape[-1]:
                    yield piece.to(like)
                done = begin + piece.shape[-1]
            yield from _copied(read, done, sound.frames, results)

    source = sound if isinstance(sound, SoundFile) else None
    return SoundEdit(results, pieces, sound.sample_rate, sound.channels, at_once=source is None, source=source)


def _copied(read: Callable[[int, int], Tensor], start: int, stop: int, results: int) -> Iterator[Tensor]:
    """The source's own samples."""
    for first in range(start, stop, _BLOCK):
        yield read(first, min(_BLOCK, stop - first)).expand(results, -1, -1)
