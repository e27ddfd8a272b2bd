"""Sound files of every kind: by soundfile, by PyAV, and with headers that say something else than there is."""

import io
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

from maskgen.tasks.media.audio.files import load_sound

RATE = 8000

Samples = np.ndarray[Any, np.dtype[np.float32]]
Told = tuple[Samples, int, list[str]]


def noise(frames: int = 6000, channels: int = 2, seed: int = 0) -> Samples:
    """Float32 ``[S, C]``."""
    drawn = 0.3 * np.random.default_rng(seed).standard_normal((frames, channels))
    return drawn.clip(-1, 1).astype(np.float32)


def encoded(container: str, coding: str, rate: int = RATE, sound: Samples | None = None, **more: Any) -> bytearray:
    """The bytes of a file that soundfile writes."""
    stream = io.BytesIO()
    soundfile.write(stream, noise() if sound is None else sound, rate, subtype=coding, format=container, **more)
    return bytearray(stream.getvalue())


def without_info(mp3: bytearray) -> bytearray:
    """An MP3 file without its first frame, which says how long it is."""
    begin = mp3.index(b"\xff\xf3") if mp3.startswith(b"\xff\xf3") else mp3.index(b"\xff")
    return mp3[mp3.index(mp3[begin : begin + 2], begin + 20) :]


def write_av(
    path: Path, codec: str, container: str | None = None, rate: int = RATE, *, tags: dict[str, str] | None = None,
    pictures: bool = False, tracks: int = 1, late: float = 0.0, sound: Samples | None = None,
) -> Path:  # fmt: skip
    """A file that PyAV writes, with pictures beside the sound perhaps, which begins ``late`` seconds after them."""
    waveform = np.ascontiguousarray((noise() if sound is None else sound).T)
    layout = "mono" if len(waveform) == 1 else "stereo"
    with av.open(str(path), "w", format=container) as file:
        file.metadata.update(tags or {})
        video = file.add_stream("mpeg4", rate=25) if pictures else None
        streams = [file.add_stream(codec, rate=rate) for _ in range(tracks)]
        for stream in streams:
            stream.layout = layout
        if video is not None:
            video.width = video.height = 32
            video.pix_fmt = "yuv420p"
            for number in range(20):
                picture = np.full((32, 32, 3), 5 * number, np.uint8)
                file.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            file.mux(video.encode())
        for stream in streams:
            resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
            for first in range(0, waveform.shape[1], 1024):
                block = np.ascontiguousarray(waveform[:, first : first + 1024])
                frame = av.AudioFrame.from_ndarray(block, "fltp", layout)
                frame.sample_rate, frame.pts, frame.time_base = rate, first + round(late * rate), Fraction(1, rate)
                for ready in resampler.resample(frame):
                    file.mux(stream.encode(ready))
            for ready in resampler.resample(None):
                file.mux(stream.encode(ready))
            file.mux(stream.encode())
    return path


def by_soundfile(path: Path) -> tuple[Samples, int] | None:
    """What libsndfile alone makes of a file, ``[C, S]`` and rate; None if nothing."""
    try:
        found, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, ValueError, TypeError):
        return None
    return found.T, rate


def by_pyav(path: Path, *, lenient: bool = False) -> tuple[Samples, int] | None:
    """What FFmpeg alone makes of a file, frame by frame; None if it stumbles, unless such frames are left out."""
    parts, rate = [], 0
    try:
        with av.open(str(path), metadata_errors="ignore") as file:
            for frame in _frames(file, lenient):
                array = frame.to_ndarray()
                if not frame.format.is_planar:
                    array = array.reshape(-1, frame.layout.nb_channels).T
                if array.dtype == np.uint8:
                    array = (array.astype(np.float32) - 128) / 128
                elif array.dtype.kind == "i":
                    array = array / float(1 << (8 * array.itemsize - 1))
                with np.errstate(over="ignore"):
                    parts.append(array.astype(np.float32))
                rate = frame.sample_rate
        return (np.concatenate(parts, axis=1), rate) if parts else None
    except (av.FFmpegError, ValueError, TypeError, AttributeError):
        return None


def _frames(file: Any, lenient: bool) -> Iterator[Any]:
    for packet in file.demux(file.streams.best("audio")):
        try:
            yield from packet.decode()
        except av.FFmpegError:
            if not lenient:
                raise


def ours(path: Path) -> Told | str:
    """Samples, rate and warnings; or the refusal."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            sound, rate = load_sound(path)
        except ValueError as error:
            told = str(error)
            assert str(path) in told
            assert "\n" not in told
            return told
    return sound.numpy(), rate, [str(one.message) for one in said]


def same(one: Any, other: Any) -> bool:
    if one is None or other is None or one[1] != other[1] or one[0].shape != other[0].shape:
        return False
    with np.errstate(invalid="ignore"):
        return bool(np.abs(one[0] - other[0]).max() < 1e-6)


def check(path: Path) -> Told | str:
    """What we make of a file; never anything that neither library makes of it."""
    found = ours(path)
    if isinstance(found, str):
        return found
    whole = by_pyav(path, lenient=any("left out" in told for told in found[2]))
    if whole is not None and path.suffix in (".m4a", ".mp4"):  # these say where the last frame's filling begins
        whole = (whole[0][:, : found[0].shape[1]], whole[1])
    assert same(found, by_soundfile(path)) or same(found, whole), path.name
    assert np.isfinite(found[0]).all()
    return found
