"""Sound files by soundfile (libsndfile): samples that are stored as they are, FLAC, Ogg, MP3.

Shapes: C channels, S samples.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from maskgen.tasks.media.audio import headers

_PREROLL = 16_384  # samples: two of Vorbis's longest blocks, and more than Opus and MP3 remember

_BITS = {**{"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "ULAW": 16, "ALAW": 16}}

EXACT = frozenset({*_BITS, "FLOAT", "DOUBLE"})
"""Codings that give back what was written into them, so that a sound may be written again and again."""

RAW = (
    "raw samples without a header, whose rate, channels and coding stand nowhere; expected a file that says what it holds, "
    "as wav or flac"
)

FORMATS = {
    **{".wav": ("WAV", ""), ".flac": ("FLAC", ""), ".w64": ("W64", ""), ".rf64": ("RF64", ""), ".caf": ("CAF", "")},
    **{".aif": ("AIFF", ""), ".aiff": ("AIFF", ""), ".aifc": ("AIFF", ""), ".au": ("AU", ""), ".snd": ("AU", "")},
    **{
        ".ogg": ("OGG", "VORBIS"),
        ".oga": ("OGG", "VORBIS"),
        ".opus": ("OGG", "OPUS"),
        ".mp3": ("MP3", "MPEG_LAYER_III"),
    },
}
"""libsndfile's container and coding of the files that are written, by their suffix; no coding where there is a choice."""

CODINGS = {16: "PCM_16", 24: "PCM_24", 32: "FLOAT"}
"""How samples are stored where there is a choice, by their bits."""

# Codings whose length libsndfile knows from a header alone, as that of FLAC; ALAC of more than 16 bits it gets wrong.
_UNSURE = ("MPEG", "VORBIS", "OPUS", "ALAC")


@dataclass(frozen=True)
class SoundKind:
    """How samples are stored: libsndfile's names of container, coding and byte order."""

    container: str
    coding: str
    endian: str = "FILE"

    @property
    def exact(self) -> bool:
        """Whether what is read can be written again bit for bit."""
        return self.coding in EXACT

    @property
    def bits(self) -> int:
        """Bits of a whole number; 0 for others."""
        return _BITS.get(self.coding, 0)


def library() -> ModuleType | None:
    """The package soundfile, if it works."""
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the Python part is there, libsndfile is not
        return None
    found: ModuleType = soundfile
    return found


class SoundfileDecoder:
    """A ``maskgen.tasks.media.audio.backends.Decoder`` through libsndfile; its errors are RuntimeErrors.

    Attributes:
        kind: how the samples are stored.
        tags: title, artist and so on, by libsndfile's names.
        lost: what an edit of the file cannot keep, in words.
    """

    def __init__(self, package: ModuleType, source: str | Path | BinaryIO, name: str) -> None:
        self._name, self._own, self._position = name, None, 0

        def reopen() -> Any:
            if not isinstance(source, str | Path):
                source.seek(0)
            return package.SoundFile(source)

        self._reopen = reopen
        file = self._file = reopen()
        self.sample_rate, self.channels, self.frames = file.samplerate, file.channels, file.frames
        self.kind = SoundKind(file.format, file.subtype, _endian(file))
        self.tags, self.lost = dict(file.copy_metadata()), headers.further_parts(file.extra_info)
        try:
            if self.kind.container == "RAW":  # which libsndfile guesses from names such as .gsm and .vox
                raise ValueError(f"{name}: {RAW}")
            with opened(source) as stream:
                self._hold_against(stream, package, source)
        except ValueError:
            self.close()
            raise

    @property
    def is_unsure(self) -> bool:
        """Whether length or samples may be others than libsndfile finds."""
        return self.kind.container == "FLAC" or self.kind.coding.startswith(_UNSURE)

    def read(self, start: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """See ``maskgen.tasks.media.audio.backends.Decoder``."""
        early = 0
        if self._position != start:
            # After a jump, blocks that overlap with what was not decoded come out wrong: begin earlier, throw that away.
            early = min(start, _PREROLL if self.kind.container in ("OGG", "MP3") else 0)
            self._jump(start - early)
        found = self._file.read(early + count, dtype=str(dtype).removeprefix("torch."), always_2d=True)
        self._position = start - early + len(found)
        samples: Tensor = torch.from_numpy(found)
        return samples[early:].T.contiguous()

    def _jump(self, place: int) -> None:
        """Go to a sample; some codings can only be read from the start on."""
        if self._file.seekable():
            self._file.seek(place)
            return
        if self._position > place:
            self._file.close()
            self._file, self._position = self._reopen(), 0
        self._file.read(place - self._position)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
        if self._own is not None:
            self._own.close()

    def _hold_against(self, stream: BinaryIO, package: ModuleType, source: str | Path | BinaryIO) -> None:
        """Compare what the header says with the file; a WAV file that does not know its size is read to the end.

        Raises:
            ValueError: cut off, without samples, two files joined, or longer than the header can say.
        """
        if headers.nist_samples(stream) > self.frames:
            raise ValueError(
                f"{self._name}: cut off: {self.frames} of {headers.nist_samples(stream)} samples are there"
            )
        log, first, promised = self._file.extra_info, *headers.wav_samples(stream)
        size, told = headers.file_size(stream), headers.broken_promise(log, self.frames)
        unknown = promised >= headers.UNKNOWN_SIZE or (promised == 0 and not headers.holds_chunks(stream, first))
        width = self.kind.bits // 8 or {"FLOAT": 4, "DOUBLE": 8}.get(self.kind.coding, 0)
        width = 1 if self.kind.coding in ("ULAW", "ALAW") else width
        if self.kind.container in ("WAV", "WAVEX") and first and unknown and width and first < size:
            self._read_raw(package, source, first, (size - first) // (width * self.channels))
        elif first and size - first - promised >= 1 << 32:
            raise ValueError(
                f"{self._name}: longer than the 4 GiB that a WAV header can say (it says {promised} bytes); write it again "
                "as RF64, W64 or FLAC"
            )
        elif first and (place := headers.unread_from(log)):
            warnings.warn(
                f"{self._name}: the last {size - place} of its {size} bytes belong to nothing by its header; left out",
                stacklevel=2,
            )
        if not headers.ends_as_ogg(stream) or told or self.frames < 1:
            raise ValueError(
                f"{self._name}: cut off or without samples{': ' if told else ''}{told}; expected a complete sound file"
            )
        if width and (place := headers.second_file(stream, self.frames * self.channels * width)):
            raise joined(self._name, place)

    def _read_raw(self, package: ModuleType, source: str | Path | BinaryIO, first: int, frames: int) -> None:
        """Read the samples without the header."""
        if frames == self.frames:
            return
        self._file.close()
        if isinstance(source, str | Path):
            self._own = Path(source).open("rb")  # noqa: SIM115 (closed with the file)
        window = _Window(self._own or source, first)
        self._file = package.SoundFile(
            window, "r", self.sample_rate, self.channels, self.kind.coding, endian="LITTLE", format="RAW"
        )
        self.frames = self._file.frames


class SoundfileEncoder:
    """A ``maskgen.tasks.media.audio.backends.Encoder`` through libsndfile.

    Whole numbers are made here, since libsndfile's own scale would not give back what was read.
    """

    def __init__(self, file: Any, coding: str) -> None:
        self._file, self._coding = file, coding

    def write(self, samples: Tensor) -> None:
        """Add float ``[C, n]`` on the CPU."""
        if bits := _BITS.get(self._coding, 0):
            top, room = 1 << (bits - 1), 16 if bits <= 16 else 32  # libsndfile takes the upper bits
            steps = (samples.double() * top).round().clamp(-top, top - 1).long() << (room - bits)
            samples = steps.to(torch.int16 if room == 16 else torch.int32)
        elif self._coding not in ("FLOAT", "DOUBLE"):
            samples = samples.clamp(-1, 1)
        self._file.write(samples.T.contiguous().numpy())


def joined(name: str, place: int) -> ValueError:
    """The error about two files behind each other, of which players play the first."""
    return ValueError(
        f"{name}: two sound files joined, the second from byte {place} on, of which players play the first alone; split the "
        "file there, or join the sounds with a sound editor"
    )


@contextlib.contextmanager
def opened(source: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    """The file open for a look at its bytes; what was given open stays open, and where it was."""
    if isinstance(source, str | Path):
        with Path(source).open("rb") as stream:
            yield stream
        return
    place = source.tell()
    try:
        yield source
    finally:
        source.seek(place)


def _endian(file: Any) -> str:
    """Byte order, where it is not the container's usual one."""
    log = str(file.extra_info)
    return "BIG" if log.startswith(("RIFX",)) or "\nRIFX" in log else str(file.endian)


class _Window(io.RawIOBase):
    """An open file from some byte on."""

    def __init__(self, whole: BinaryIO, first: int) -> None:
        self._whole, self._first = whole, first
        self.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._whole.seek(offset + (self._first if whence == 0 else 0), whence) - self._first

    def tell(self) -> int:
        return self._whole.tell() - self._first

    def readinto(self, buffer: Any) -> int:
        found = self._whole.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)
