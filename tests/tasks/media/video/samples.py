"""Little video files, made with PyAV; whole, turned, unevenly spaced, or broken on purpose."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
PORTRAIT = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
"""The display matrix of a phone held upright: players turn the stored picture a quarter clockwise."""


def moving(count: int, height: int = 48, width: int = 64) -> Frames:
    """A bright bar that moves two pixels a frame over a ramp, so that frames and their corners can be told apart."""
    rows, columns = np.mgrid[:height, :width]
    frames = np.zeros((count, height, width, 3), dtype=np.uint8)
    for place, frame in enumerate(frames):
        frame[..., 0] = columns * 255 // width
        frame[..., 1] = rows * 255 // height
        left = place * 2 % width
        frame[height // 4 : -height // 4, left : left + 6] = 255
        frame[:8, :, 2] = place * 4 % 256
    return frames


def write(path: Path, frames: Frames, *, rate: int = 10, codec: str = "libx264", **settings: Any) -> Path:
    """Encode frames with a key frame every twelve and B-frames between.

    Args:
        path: the suffix chooses the container.
        frames: ``[T, H, W, 3]``.
        rate: frames a second.
        codec: FFmpeg's name of it.
        **settings: ``times`` in milliseconds, one a frame; ``matrix`` of display; ``pixels``, FFmpeg's name of a pixel
            format; ``container``, options of it.
    """
    times: Sequence[int] | None = settings.get("times")
    with av.open(str(path), "w", options=settings.get("container", {})) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = settings.get("pixels", "yuv420p")
        stream.gop_size, stream.codec_context.max_b_frames = 12, 2
        stream.codec_context.thread_count = 1
        if "matrix" in settings:
            stream.set_display_matrix(settings["matrix"])
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for place, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[place], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def write_sound(path: Path, cover: bool = False) -> Path:
    """A tenth of a second of noise without any video; with a cover picture if asked."""
    with av.open(str(path), "w") as file:
        sound = file.add_stream("pcm_s16le" if path.suffix == ".wav" else "aac", rate=8000, layout="mono")
        picture = file.add_stream("mjpeg", rate=1) if cover else None
        if picture is not None:
            picture.height, picture.width, picture.pix_fmt = 16, 16, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        for _ in range(4):
            block = np.random.default_rng(0).integers(-999, 999, (1, 1024), dtype=np.int16)
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate = 8000
            file.mux(sound.encode(frame))
        file.mux(sound.encode())
        if picture is not None:
            cover_frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), dtype=np.uint8), format="rgb24")
            file.mux(picture.encode(cover_frame))
            file.mux(picture.encode())
    return path


def write_heard(path: Path, frames: Frames, sound: str = "aac", *, burst: float | None = None, **settings: Any) -> Path:
    """Frames at 10 a second, with sound as long as they are: a tone, or silence with a burst of a tenth of a second.

    Args:
        path: the suffix chooses the container.
        frames: ``[T, H, W, 3]``.
        sound: FFmpeg's name of its codec.
        burst: seconds at which the burst begins; None for a tone all the time.
        **settings: ``codec`` of the pictures; ``rate`` of the sound in Hz and its ``layout``; ``tags`` of the file;
            ``chapters`` as PyAV has them; ``subtitles``, FFmpeg's name of their codec: one line, from 0.5 s to 1.5 s.
    """
    rate, layout = settings.get("rate", 48000), settings.get("layout", "stereo")
    with av.open(str(path), "w") as file:
        file.metadata.update(settings.get("tags", {}))
        video = file.add_stream(settings.get("codec", "libx264"), rate=10)
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        video.codec_context.thread_count = 1
        heard = file.add_stream(sound, rate=rate, layout=layout)
        read = file.add_mux_stream(settings["subtitles"]) if "subtitles" in settings else None
        if "chapters" in settings:
            file.set_chapters(settings["chapters"])
        for frame in frames:
            file.mux(video.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(video.encode())
        time = np.arange(rate * len(frames) // 10) / rate
        wave = 0.5 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
        if burst is not None:
            wave[(time < burst) | (time >= burst + 0.1)] = 0
        block = av.AudioFrame.from_ndarray(np.tile(wave, (len(av.AudioLayout(layout).channels), 1)), "fltp", layout)
        block.sample_rate = rate
        file.mux(heard.encode(block))
        file.mux(heard.encode())
        if read is not None:
            line = av.Packet(b"\0\5hello" if settings["subtitles"] == "mov_text" else b"hello")
            line.stream, line.time_base, line.pts, line.dts, line.duration = read, Fraction(1, 1000), 500, 500, 1000
            file.mux(line)
    return path


def heard(path: Path) -> tuple[NDArray[np.float32], int, float]:
    """Sound of a file as mono ``[S]``, its rate, and when it begins, in seconds after the first picture."""
    with av.open(str(path)) as file:
        shown = next(file.decode(video=0)).time or 0.0
    with av.open(str(path)) as file:
        resampler = av.AudioResampler(format="fltp", layout="mono")
        blocks = [part for frame in file.decode(audio=0) for part in resampler.resample(frame)]
    sound = np.concatenate([block.to_ndarray()[0] for block in blocks])
    return sound, blocks[0].sample_rate, (blocks[0].time or 0.0) - shown


def write_empty(path: Path) -> Path:
    """A file with a video stream and not a single frame in it."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv420p"
        file.start_encoding()
    return path


def decoded(path: Path) -> Frames:
    """All frames, by the plainest loop over PyAV there is."""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def cut(path: Path, share: float) -> Path:
    """The first part of a file under the same name."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def blank(path: Path, start: float = 0.5, share: float = 0.1) -> Path:
    """Zeros in place of a part of a file."""
    content = bytearray(path.read_bytes())
    first, count = int(len(content) * start), int(len(content) * share)
    content[first : first + count] = bytes(count)
    path.write_bytes(content)
    return path


def trim(path: Path, start: int, share: float) -> Path:
    """An MP4 of which only a part is shown, as phones trim them: all frames stay in the file.

    Args:
        path: an MP4 at 10 frames a second.
        start: frames that are no longer shown at the start.
        share: of its length that is shown.
    """
    content = bytearray(path.read_bytes())
    header, edits = content.index(b"mdhd"), content.index(b"elst")  # sizes and times in them are big-endian, 32 bits
    (ticks,) = struct.unpack_from(">I", content, header + 16)
    length, first = struct.unpack_from(">Ii", content, edits + 12)
    struct.pack_into(">Ii", content, edits + 12, int(length * share), first + start * ticks // 10)
    path.write_bytes(content)
    return path


def spoil(path: Path, number: int, keep: int = 16) -> Path:
    """Noise in place of the contents of one packet, counted in the order of decoding, behind its first bytes."""
    with av.open(str(path)) as file:
        place, size = [(packet.pos or 0, packet.size) for packet in file.demux(video=0) if packet.size][number]
    assert size > keep
    content = bytearray(path.read_bytes())
    content[place + keep : place + size] = np.random.default_rng(0).bytes(size - keep)
    path.write_bytes(content)
    return path
