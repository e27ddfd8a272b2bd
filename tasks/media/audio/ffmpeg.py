"""Sound files by PyAV (FFmpeg): what libsndfile does not know, and files whose headers say nothing or something wrong.

FFmpeg is what players use: what comes out is what is heard, without the silence that encoders put around it. A file is
decoded from its start to where it is read, since places in such files cannot be trusted.

Shapes: C channels, S samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskgen.tasks.media.audio.headers import KEPT_FILES, file_key
from maskgen.tasks.media.audio.libsndfile import RAW, SoundKind

# What says itself how it is to be read; FFmpeg would take any bytes for samples, were the file so named.
_NAMES = (
    "aac ac3 aiff ape asf au avi caf dsf dts eac3 flac flv mp3 mpeg mpegts mpc mpc8 mxf ogg rm tak tta voc w64 wav wv"
)
_CONTAINERS = {*_NAMES.split(), "xwma", "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}

_STREAMS = {"mp3", "aac", "ac3", "eac3", "mpegts"}  # which are cut anywhere, as broadcasts are

_PROMISING = {"flac", "aiff", "au", "tta", "w64", "wav", "wv", "ape", "tak"}

_WRITABLE = {"flac": "FLAC", "wav": "WAV", "aiff": "AIFF", "caf": "CAF", "au": "AU", "w64": "W64"}

_CODINGS = {
    **{"pcm_u8": "PCM_U8", "pcm_s8": "PCM_S8", "pcm_mulaw": "ULAW", "pcm_alaw": "ALAW"},
    **{f"pcm_s{bits}{order}": f"PCM_{bits}" for bits in (16, 24, 32) for order in ("le", "be")},
    **{f"pcm_f{bits}{order}": name for bits, name in ((32, "FLOAT"), (64, "DOUBLE")) for order in ("le", "be")},
}

_LOSSLESS = ("flac", "alac", "wavpack", "tta", "ape", "tak", "truehd", "mlp")

_LATE = 0.02  # seconds that sound may begin after its picture without a word

_FRAME = 8192  # samples: no frame of a codec has more

_SLACK = 2048  # samples: a frame, which containers of lossy codecs may count or not


class Found(NamedTuple):
    """What a walk through a file finds: samples of each channel, and what was said about them."""

    samples: int
    told: str = ""


def library() -> Any:
    """The package PyAV, or None."""
    try:
        import av
    except ImportError:
        return None
    return av


class FfmpegDecoder:
    """A ``maskgen.tasks.media.audio.backends.Decoder`` through FFmpeg.

    Args:
        package: PyAV.
        source: path of an existing file, or an open binary file.
        name: how errors call it.

    Raises:
        ValueError: no file of a container that says what it holds, or none with sound.
        RuntimeError: FFmpeg's own errors.
    """

    def __init__(self, package: Any, source: str | Path | BinaryIO, name: str) -> None:
        self._package, self._source, self._name = package, source, name
        self._container: Any = None
        self._kept: Tensor | None = None
        self._begin()
        try:
            first = next(self._blocks, None)
            if first is None:
                raise ValueError(f"{name}: cut off or without samples; expected a complete sound file")
        except package.FFmpegError as error:  # some are ValueErrors as well
            self.close()
            raise RuntimeError(_reason(error)) from None
        except (ValueError, RuntimeError):
            self.close()
            raise
        self._kept = first
        self.channels = len(first)
        self._say_more()
        self.kind = self._kind()
        self.tags, codec = read_tags(self._container, self._stream), self._stream.codec_context.codec.canonical_name
        same = codec not in _LOSSLESS or (codec == "flac" and self.kind.container == "FLAC")
        self.lost = [] if same else [f"the coding {codec}"]
        self._length: int | None = None

    @property
    def frames(self) -> int:
        """S, found by decoding the whole file once.

        Raises:
            ValueError: cut off or damaged.
        """
        if self._length is None:
            found = _decoded(*file_key(self._source), self._name) if file_key(self._source) else self._count()
            if found.told:
                warnings.warn(f"{self._name}: {found.told}", stacklevel=3)
            self._length = found.samples
        return self._length

    def read(self, start: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """See ``maskgen.tasks.media.audio.backends.Decoder``."""
        if start < self._position:
            self._begin()
        parts, end = list[Tensor](), start + count
        while self._position < end:
            if self._kept is None:
                self._kept = next(self._blocks, None)
                if self._kept is None:
                    break
            first, last = (min(max(edge - self._position, 0), self._kept.shape[1]) for edge in (start, end))
            if first < last:
                parts.append(self._kept[:, first:last].to(dtype))
            self._position += last
            self._kept = self._kept[:, last:] if last < self._kept.shape[1] else None
        return torch.cat(parts, dim=1) if parts else torch.zeros(self.channels, 0, dtype=dtype)

    def close(self) -> None:
        """Let go of the file."""
        if self._container is not None:
            self._container.close()

    def _say_more(self) -> None:
        """Warn of further sound tracks, and of sound that begins after its picture."""
        streams = self._container.streams
        if (tracks := len(streams.audio)) > 1:
            number = [one.index for one in streams.audio].index(self._stream.index) + 1
            warnings.warn(f"{self._name}: has {tracks} sound tracks; number {number} is read", stacklevel=5)
        begins = [float(one.start_time * one.time_base) for one in streams.video if one.start_time is not None]
        if begins and self._starts is not None and (late := self._starts - begins[0]) > _LATE:
            warnings.warn(
                f"{self._name}: its sound begins {late:.3f} s after its picture; read from there", stacklevel=5
            )

    def _begin(self) -> None:
        """Go to the start of the file."""
        self.close()
        self._container, self._stream = open_stream(self._package, self._source, self._name)
        self.sample_rate = int(self._stream.codec_context.sample_rate or 0)
        self._position, self._told, self._kept = 0, "", None
        self._starts: float | None = None
        self._blocks: Iterator[Tensor] = self._decode()

    def _decode(self) -> Iterator[Tensor]:
        """All samples from the start, float32 or float64 ``[C, n]``.

        Raises:
            ValueError: another rate or number of channels in the middle.
            RuntimeError: damaged in the middle.
        """
        error, done, like = None, 0, None
        for packet in self._container.demux(self._stream):
            try:
                frames = packet.decode()
            except self._package.FFmpegError as found:
                error = error or found
                continue
            for frame in frames:
                if error is not None:
                    if done or self._container.format.name not in _STREAMS:
                        raise RuntimeError(f"{_reason(error)} at {done / self.sample_rate:.2f} s")
                    self._told = f"its first frame is damaged or cut off ({_reason(error)}); left out"
                block = _samples(frame)
                self._starts = frame.time if like is None else self._starts
                like = like or (frame.sample_rate, len(block))
                if (frame.sample_rate, len(block)) != like:
                    raise ValueError(
                        f"{self._name}: changes from {like[0]} Hz and {like[1]} channel(s) to {frame.sample_rate} Hz and "
                        f"{len(block)} after {done / like[0]:.2f} s; expected one rate, split the file there"
                    )
                error, self.sample_rate = None, frame.sample_rate
                done += block.shape[1]
                yield block
        if error is not None:
            self._told = f"its last frame is damaged or cut off ({_reason(error)}); left out"

    def _count(self) -> Found:
        """Decode all; what the container promises must be there."""
        self._begin()
        try:
            samples = sum(block.shape[1] for block in self._blocks)
        except self._package.FFmpegError as error:  # from reading packets
            raise ValueError(f"{self._name}: damaged or cut off ({_reason(error)})") from None
        except RuntimeError as error:
            raise ValueError(f"{self._name}: damaged or cut off; expected a complete file ({error})") from None
        told, promised = self._told, self._promised()
        self._begin()
        # The last frame of MPEG-4 is filled up with silence, and only the container says from where on.
        if promised is not None and 0 < samples - promised < _FRAME and "mp4" in self._container.format.name:
            samples = promised
        if promised is not None and promised - samples > (0 if self.kind.exact else _SLACK):
            raise ValueError(
                f"{self._name}: damaged or cut off: got {samples} samples of the {promised} that its header promises; "
                "expected a complete file"
            )
        return Found(samples, told)

    def _promised(self) -> int | None:
        """Samples that a header of a kind to be trusted says there are."""
        container = self._container.format.name
        if container == "caf" and self._stream.codec_context.name.startswith("pcm"):
            return int(self._stream.frames)
        if self._stream.duration and ("mp4" in container or (container in _PROMISING and self.kind.exact)):
            return round(self._stream.duration * self._stream.time_base * self.sample_rate)
        return None

    def _kind(self) -> SoundKind:
        """How the samples are stored, by libsndfile's names where it knows the coding."""
        codec, form = self._stream.codec_context.codec.canonical_name, self._stream.codec_context.format.name
        container = _WRITABLE.get(self._container.format.name, self._container.format.name.split(",")[0].upper())
        if codec in _LOSSLESS:
            return SoundKind(container, "PCM_16" if form.startswith(("s16", "u8")) else _wide(container))
        return SoundKind(container, _CODINGS.get(codec, codec.upper()))


def packet_samples(package: Any, source: str | Path | BinaryIO, name: str) -> int | None:
    """Samples of each channel by the packets of a file, which are counted and not decoded; None where FFmpeg cannot.

    What encoders put before the start is left out as far as time stamps say so, what stands behind the end is not.
    """
    key = file_key(source)
    return _packets(*key, name) if key else _walk(package, source, name)


def other_tags(package: Any, source: str | Path | BinaryIO, name: str) -> tuple[dict[str, str], bool]:
    """All tags of a file by FFmpeg's names, and whether it has a picture on its cover."""
    try:
        container, stream = open_stream(package, source, name)
    except (ValueError, RuntimeError):
        return {}, False
    with container:
        return read_tags(container, stream), len(container.streams.video) > 0


def read_tags(container: Any, stream: Any) -> dict[str, str]:
    """Tags of the file and of its sound, by FFmpeg's names in lower case."""
    found = {**stream.metadata, **container.metadata}
    return {key.lower(): str(value) for key, value in found.items() if value}


def open_stream(package: Any, source: str | Path | BinaryIO, name: str) -> tuple[Any, Any]:
    """A container and the sound in it.

    Raises:
        ValueError: a container that does not say what it holds, or one without sound.
        RuntimeError: FFmpeg's own error.
    """
    if not isinstance(source, str | Path):
        source.seek(0)
    try:
        container = package.open(str(source) if isinstance(source, Path) else source, metadata_errors="ignore")
    except (package.FFmpegError, OSError) as error:
        raise RuntimeError(_reason(error)) from None
    kind, stream = container.format.name, container.streams.best("audio")
    if kind in _CONTAINERS and stream is not None and stream.codec_context is not None:
        return container, stream
    has_pictures = len(container.streams.video) > 0 and kind != "image2"  # which goes by names such as .raw
    container.close()
    if has_pictures:
        raise ValueError(f"{name}: holds pictures but no sound ({kind}); expected a sound file, or a video with sound")
    raise ValueError(f"{name}: no sound ({kind}), or {RAW}")


def _walk(package: Any, source: str | Path | BinaryIO, name: str) -> int | None:
    try:
        container, stream = open_stream(package, source, name)
    except (ValueError, RuntimeError):
        return None
    with container:
        total, first = 0, None
        try:
            for packet in container.demux(stream):
                if packet.size:
                    total += packet.duration or 0
                    first = packet.pts if first is None else first
        except package.FFmpegError:
            return None
        return round((total + min(first or 0, 0)) * stream.time_base * (stream.codec_context.sample_rate or 0))


@lru_cache(KEPT_FILES)
def _packets(path: str, size: int, changed: int, name: str) -> int | None:
    return _walk(library(), path, name)


@lru_cache(KEPT_FILES)
def _decoded(path: str, size: int, changed: int, name: str) -> Found:
    decoder = FfmpegDecoder(library(), path, name)
    try:
        return decoder._count()
    finally:
        decoder.close()


def _samples(frame: Any) -> Tensor:
    """Float32 ``[C, n]``, float64 where that says more; whole numbers as x / 2^(bits - 1)."""
    array = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, frame.layout.nb_channels).T
    if array.dtype == np.uint8:
        array = (array.astype(np.float32) - 128) / 128
    elif array.dtype.kind == "i":
        wide = np.float32 if array.itemsize <= 2 else np.float64
        array = array.astype(wide) / np.float64(1 << (8 * array.itemsize - 1)).astype(wide)
    return torch.from_numpy(np.ascontiguousarray(array))


def _wide(container: str) -> str:
    """More than 16 bits without a loss: FLAC and its relatives have 24, but in 32 FFmpeg does not say so."""
    return "PCM_24" if container == "FLAC" else "PCM_32"


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".") or type(error).__name__
