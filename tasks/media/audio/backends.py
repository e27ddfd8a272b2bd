"""The libraries behind ``tasks.sound``: soundfile, and torchcodec where soundfile is missing or does not know a file.

Shapes: C channels, S samples; samples are float32.
"""

import contextlib
import importlib
import io
import re
import wave
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

_MISSING = (
    'sound files need soundfile: pip install "maskgen[audio]"; or torchcodec with the libraries of FFmpeg, which is not '
    "installed or does not work here either: pip install torchcodec"
)

_UNKNOWN_LENGTH = 0x7FFF0000  # programs that write wav into a pipe promise about 2^31 or 2^32 bytes

_PREROLL = 16_384  # samples: two of Vorbis's longest blocks, and more than Opus and MP3 remember

_STEPS = {
    "PCM_16": (16, torch.int16, 0),
    "PCM_24": (24, torch.int32, 8),
}  # bits, type for libsndfile, shift into its top


class Decoder(Protocol):
    """A sound file open for reading.

    Attributes:
        sample_rate: samples a second.
        channels: C.
        frames: S.
    """

    sample_rate: int
    channels: int
    frames: int

    def read(self, start: int, count: int) -> Tensor:
        """Float32 ``[C, count]``, fewer where the file breaks off; RuntimeError where it is damaged."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class Encoder(Protocol):
    """A sound file open for writing."""

    def write(self, samples: Tensor) -> None:
        """Add float32 ``[C, n]`` on the CPU."""
        ...


def open_decoder(source: str | Path | BinaryIO, name: str) -> Decoder:
    """Open a sound file for reading.

    Args:
        source: path of an existing file, or an open binary file.
        name: how errors call it.

    Raises:
        ValueError: no sound, cut off, or without samples.
        ImportError: neither soundfile nor a working torchcodec.
    """
    library = _soundfile()
    if library is not None:
        try:
            return _SoundfileDecoder(library, source, name)
        except library.LibsndfileError as error:
            reason = _reason(error)
    codec = _torchcodec()
    if codec is None:
        if library is None:
            raise ImportError(_MISSING)
        raise ValueError(
            f"{name}: no sound file, or damaged ({reason}); expected wav, flac, ogg, mp3, opus or aiff "
            "(others, such as m4a, need torchcodec and FFmpeg)"
        )
    try:
        return _TorchcodecDecoder(codec, source, name)
    except RuntimeError as error:
        raise ValueError(
            f"{name}: no sound file, or damaged ({_reason(error)}); expected one FFmpeg can read"
        ) from None


@contextlib.contextmanager
def open_encoder(path: Path, name: Path, sample_rate: int, channels: int, kind: tuple[str, str]) -> Iterator[Encoder]:
    """Open a sound file for writing; it is complete when the block ends.

    Args:
        path: where to write.
        name: how errors call it.
        sample_rate: samples a second.
        channels: C.
        kind: libsndfile's names of container and coding.

    Raises:
        ValueError: a rate or coding that the library cannot write.
        ImportError: neither soundfile nor a working torchcodec.
    """
    library = _soundfile()
    if library is None:
        encoder = _TorchcodecEncoder(kind[1])
        yield encoder
        encoder.finish(path, name, sample_rate)
        return
    try:
        file = library.SoundFile(path, "w", sample_rate, channels, kind[1], format=kind[0])
    except library.LibsndfileError as error:
        raise ValueError(
            f"{name}: {kind[1]} at {sample_rate} Hz cannot be written ({_reason(error)}); "
            "resample to 48000 Hz, or choose .wav or .flac"
        ) from None
    with file:
        yield _SoundfileEncoder(file, kind[1])


class _SoundfileDecoder:
    """Reads through libsndfile."""

    def __init__(self, library: ModuleType, source: str | Path | BinaryIO, name: str) -> None:
        if isinstance(source, str | Path):
            with Path(source).open("rb") as stream:
                whole = _ends_as_ogg(stream)
        else:
            whole = _ends_as_ogg(source)
        self._file = library.SoundFile(source)
        self.sample_rate, self.channels, self.frames = self._file.samplerate, self._file.channels, self._file.frames
        promised = _promised(self._file.extra_info)
        if not whole or promised or self.frames < 1:
            self.close()
            why = f": {promised}" if promised else ""
            raise ValueError(f"{name}: cut off or without samples{why}; expected a complete sound file")

    def read(self, start: int, count: int) -> Tensor:
        # After a jump, blocks that overlap with what was not decoded come out wrong: begin earlier and throw that away.
        early = min(start, _PREROLL if self._file.format in ("OGG", "MP3") else 0)
        if self._file.tell() == start:
            early = 0
        else:
            self._file.seek(start - early)
        samples: Tensor = torch.from_numpy(self._file.read(early + count, dtype="float32", always_2d=True))
        return samples[early:].T.contiguous()

    def close(self) -> None:
        self._file.close()


class _SoundfileEncoder:
    """Writes through libsndfile; whole numbers are made here, since its own scale would not give back what was read."""

    def __init__(self, file: Any, coding: str) -> None:
        self._file, self._coding = file, coding

    def write(self, samples: Tensor) -> None:
        if self._coding in _STEPS:
            bits, kind, shift = _STEPS[self._coding]
            top = 1 << (bits - 1)
            steps = (samples.double() * top).round().clamp(-top, top - 1).to(torch.int32) << shift
            samples = steps.to(kind)
        elif self._coding != "FLOAT":
            samples = samples.clamp(-1, 1)
        self._file.write(samples.T.contiguous().numpy())


class _TorchcodecDecoder:
    """Reads through FFmpeg."""

    def __init__(self, library: Any, source: str | Path | BinaryIO, name: str) -> None:
        if not isinstance(source, str | Path):
            source.seek(0)
        self._decoder = library.AudioDecoder(str(source) if isinstance(source, Path) else source)
        found = self._decoder.metadata
        self.sample_rate, self.channels = int(found.sample_rate), int(found.num_channels)
        # Compressed streams may begin a little late, and their headers only estimate the length: see where they end.
        self._begin = float(found.begin_stream_seconds_from_header or 0.0)
        near_end = max(self._begin, self._begin + float(found.duration_seconds_from_header or 0.0) - 1)
        tail = self._decoder.get_samples_played_in_range(near_end)
        self.frames = round((tail.pts_seconds - self._begin) * self.sample_rate) + tail.data.shape[1]
        if tail.data.shape[1] < 1:
            raise ValueError(f"{name}: cut off or without samples; expected a complete sound file")

    def read(self, start: int, count: int) -> Tensor:
        # A range holds the samples whose time is at least its start: half a sample early is safe against rounding.
        begin, end = (self._begin + (place - 0.5) / self.sample_rate for place in (start, start + count))
        found = self._decoder.get_samples_played_in_range(max(self._begin, begin), end)
        samples: Tensor = found.data[:, :count]
        return samples.float().contiguous()

    def close(self) -> None:
        del self._decoder


class _TorchcodecEncoder:
    """Collects blocks, since torchcodec writes whole sounds only."""

    def __init__(self, coding: str) -> None:
        self._library, self._blocks = _torchcodec("encoders"), list[Tensor]()
        if self._library is None:
            raise ImportError(_MISSING)
        if coding in ("PCM_24", "FLOAT"):
            raise ImportError(f'{coding} files are written by soundfile: pip install "maskgen[audio]"')

    def write(self, samples: Tensor) -> None:
        self._blocks.append(samples.clamp(-1, 1))

    def finish(self, path: Path, name: Path, sample_rate: int) -> None:
        assert self._library is not None
        if not self._blocks:
            return
        try:
            self._library.AudioEncoder(torch.cat(self._blocks, 1), sample_rate=sample_rate).to_file(str(path))
        except RuntimeError as error:
            raise ValueError(f"{name}: cannot be written at {sample_rate} Hz ({_reason(error)})") from None


def _soundfile() -> ModuleType | None:
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the Python part is there, libsndfile is not
        return None
    found: ModuleType = soundfile
    return found


def _torchcodec(part: str = "decoders") -> Any:
    """``torchcodec.decoders`` or ``.encoders`` if they work: without FFmpeg some versions fail only when they are used."""
    probe = io.BytesIO()
    with wave.open(probe, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(1600))
    try:
        importlib.import_module("torchcodec.decoders").AudioDecoder(probe.getvalue()).get_all_samples()
        return importlib.import_module(f"torchcodec.{part}")
    except Exception:  # whatever a half-installed FFmpeg makes of it
        return None


def _ends_as_ogg(stream: BinaryIO) -> bool:
    """False for an Ogg file that was cut off: its last page is not whole or not marked as the last. True for other files."""
    stream.seek(0)
    ogg = stream.read(4) == b"OggS"
    stream.seek(max(0, stream.seek(0, 2) - (1 << 17)))  # a page has at most 65,307 bytes
    tail = stream.read() if ogg else b""
    stream.seek(0)
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if not ogg or len(page) < 27 + (page[26] if len(page) > 26 else 0):
        return not ogg
    size = 27 + page[26] + sum(page[27 : 27 + page[26]])  # header, table of segments, segments
    return bool(page[5] & 4) and len(page) >= size


def _promised(log: str) -> str:
    """What libsndfile noted about a wav or aiff file shorter than its header says; empty if nothing."""
    for chunk, promised, there in re.findall(r"^ *(data|SSND) *: (\d+) \(should be (\d+)\)", log, re.MULTILINE):
        if int(there) < int(promised) < _UNKNOWN_LENGTH:
            return f"its {chunk} chunk has {there} of {promised} bytes"
    return ""


def _reason(error: Exception) -> str:
    told = str(getattr(error, "error_string", "") or error)
    return " ".join(told.split()).rstrip(".") or type(error).__name__
