"""Which library reads and writes a sound file, and how long the file is.

libsndfile reads what it knows. Its word for the length of MP3, Ogg and FLAC files comes from a header, so the packets are
counted; where they say otherwise, and for what it does not know (m4a, AAC, sound of videos), FFmpeg reads, as players do.

Shapes: C channels, S samples.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from maskgen.tasks.media.audio import ffmpeg, headers, libsndfile
from maskgen.tasks.media.audio.libsndfile import SoundfileDecoder, SoundfileEncoder, SoundKind, joined

_MISSING = 'sound files need soundfile: pip install "maskgen[audio]"'

_PADDING = 3 * 1152  # samples that MP3 encoders put around a sound, at most


def check_writing() -> None:
    """Say before a work what would be missing after it.

    Raises:
        ImportError: without soundfile, which writes sounds.
    """
    if libsndfile.library() is None:
        raise ImportError(_MISSING)


class Decoder(Protocol):
    """A sound file open for reading.

    Attributes:
        sample_rate: samples a second.
        channels: C.
        kind: how the samples are stored.
        tags: title, artist and so on, by the library's names.
        lost: what an edit of the file cannot keep, in words.
    """

    sample_rate: int
    channels: int
    kind: SoundKind
    tags: dict[str, str]
    lost: list[str]

    @property
    def frames(self) -> int:
        """S."""
        ...

    def read(self, start: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Float ``[C, count]``, fewer where the file breaks off; RuntimeError where it is damaged."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class Encoder(Protocol):
    """A sound file open for writing."""

    def write(self, samples: Tensor) -> None:
        """Add float ``[C, n]`` on the CPU."""
        ...


def open_decoder(source: str | Path | BinaryIO, name: str) -> Decoder:
    """Open a sound file for reading.

    Args:
        source: path of an existing file, or an open binary file.
        name: how errors call it.

    Raises:
        ValueError: no sound, cut off, or without samples.
        ImportError: neither soundfile nor PyAV.
    """
    package, other, reason = libsndfile.library(), ffmpeg.library(), "soundfile is not installed"
    if package is not None:
        try:
            return SoundfileDecoder(package, source, name)
        except package.LibsndfileError as error:
            reason = _reason(error)
        except TypeError:  # soundfile wants to know the rate of what is called .raw
            reason = libsndfile.RAW
        _refuse_joined(source, name)
    elif other is None:
        raise ImportError(_MISSING)
    if other is None:
        raise ValueError(
            f"{name}: no sound file, or damaged ({reason}); expected wav, flac, ogg, mp3, opus or aiff (others, as m4a, "
            'need PyAV: pip install "maskgen[audio]")'
        )
    return _by_ffmpeg(other, source, name)


def settle(decoder: Decoder, source: str | Path | BinaryIO, name: str) -> Decoder:
    """The decoder that knows how long a file is: this one, or FFmpeg's where the header is silent or wrong.

    Raises:
        ValueError: a file shorter than its header says.
    """
    if not isinstance(decoder, SoundfileDecoder) or not decoder.is_unsure:
        return decoder
    package = ffmpeg.library()
    if package is None:
        warnings.warn(
            f'{name}: without PyAV its header is trusted to say how long it is: pip install "maskgen[audio]"',
            stacklevel=3,
        )
        return decoder
    with libsndfile.opened(source) as stream:
        if _is_right(decoder, package, source, stream, name):
            return decoder
    decoder.close()
    return _by_ffmpeg(package, source, name)


def _is_right(
    decoder: SoundfileDecoder, package: Any, source: str | Path | BinaryIO, stream: BinaryIO, name: str
) -> bool:
    """Whether libsndfile reads all of a file and reads it right; errors are those of ``settle``."""
    container, coding, claimed = decoder.kind.container, decoder.kind.coding, decoder.frames
    if container == "OGG":  # of several streams it reads the first; of a single one FFmpeg counts the end too long
        return not headers.whole_file(headers.is_chained_ogg, source)
    if container == "FLAC" and (place := headers.whole_file(headers.second_flac, source)):
        raise joined(name, place)
    mpeg = coding.startswith("MPEG")
    if coding.startswith("ALAC") or (mpeg and not (container == "MP3" and headers.says_its_length(stream))):
        return False
    found = ffmpeg.packet_samples(package, source, name)
    if found is None or 0 <= found - claimed <= (_PADDING if mpeg else 0):
        return True
    if found < claimed < 1 << 48:  # FLAC of unknown length claims 2^63
        raise ValueError(
            f"{name}: damaged or cut off: its header promises {claimed} samples, there are {max(found, 0)}; expected a "
            "complete file"
        )
    return False


@contextlib.contextmanager
def open_encoder(
    path: Path, name: Path, sample_rate: int, channels: int, kind: SoundKind, tags: dict[str, str]
) -> Iterator[Encoder]:
    """Open a sound file for writing; it is complete when the block ends.

    Args:
        path: where to write.
        name: how errors call it.
        sample_rate: samples a second.
        channels: C.
        kind: how samples are stored.
        tags: title, artist and so on, those that the container has.

    Raises:
        ValueError: a rate or coding that the library cannot write.
        ImportError: without soundfile.
    """
    package = libsndfile.library()
    if package is None:
        raise ImportError(_MISSING)
    how: dict[str, Any] = {"subtype": kind.coding, "endian": kind.endian, "format": kind.container}
    try:
        file = package.SoundFile(path, "w", sample_rate, channels, **how)
    except package.LibsndfileError as error:
        raise ValueError(
            f"{name}: {kind.coding} at {sample_rate} Hz cannot be written ({_reason(error)}); "
            "resample to 48000 Hz, or choose .wav or .flac"
        ) from None
    with file:
        for tag, value in tags.items():
            setattr(file, tag, value)
        yield SoundfileEncoder(file, kind.coding)


def _by_ffmpeg(package: Any, source: str | Path | BinaryIO, name: str) -> Decoder:
    try:
        return ffmpeg.FfmpegDecoder(package, source, name)
    except RuntimeError as error:
        raise ValueError(
            f"{name}: no sound file, or damaged ({_reason(error)}); expected wav, flac, ogg, mp3, opus, aiff or m4a"
        ) from None


def _refuse_joined(source: str | Path | BinaryIO, name: str) -> None:
    with libsndfile.opened(source) as stream:
        if place := headers.second_file(stream, 0):
            raise joined(name, place)


def _reason(error: Exception) -> str:
    told = str(getattr(error, "error_string", "") or error)
    return " ".join(told.split()).rstrip(".") or type(error).__name__
