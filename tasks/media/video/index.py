"""What a video file holds, found without decoding it: which frames, when they are shown, and whether the file is whole.

The frames of a compressed file are known by their time stamps: whoever seeks by anything else gets wrong pictures from some
containers. Stamps are read by PyAV, packet by packet, so memory does not grow with the file beyond 16 bytes a frame.

Shapes: T frames.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_MOV, _MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"

_WELL_INDEXED = (_MOV, _MATROSKA)  # decord 0.6.0 returns wrong frames from AVI and MPEG-TS, without a word

_SEEKABLE = (*_WELL_INDEXED, "mpegts")  # elsewhere key frames are not marked, or not reliably

_CONTAINERS = frozenset(
    {*_SEEKABLE, "avi", "mpeg", "flv", "asf", "ogg", "gif", "h264", "hevc", "ivf", "m4v", "mpegvideo", "mxf", "nut"}
)

_PICTURES = ("_pipe", "image2")  # how FFmpeg calls single pictures

_PLAIN_COLOURS = ("yuv420p", "yuvj420p")  # of others, decord and PyAV make pixels that differ a little

_MISSING_SECONDS = 0.5  # of what a header promised; less may be a header's rounding


@dataclass(frozen=True, kw_only=True)
class VideoIndex:
    """The frames of a file in the order they are shown.

    Attributes:
        stamps: int64 ``[T]``, presentation time stamps; empty where the file has none that are all different, so that
            frames can only be counted.
        keys: int64, frames at which decoding can begin, ascending; frame 0 alone where seeking is not to be trusted.
        times: float64 ``[T]``, seconds since the first frame.
        seconds: how long the frames last in all.
        rate: frames a second, on average.
        variable: whether frames are not evenly spaced in time.
        height, width: of a frame as it is shown, in pixels.
        turns: quarter turns counter-clockwise that stored frames need to stand upright.
        regular: whether nothing speaks against a reader that seeks by key frame and counts (decord).
    """

    stamps: NDArray[np.int64]
    keys: NDArray[np.int64]
    times: NDArray[np.float64]
    seconds: float
    rate: Fraction
    variable: bool
    height: int
    width: int
    turns: int
    regular: bool

    def __len__(self) -> int:
        return len(self.times)


@dataclass
class _Packets:
    """What the packets of a file say; stamps in its time base, in the order of decoding."""

    stamps: list[int | None]
    keys: list[bool]
    durations: list[int]
    ends: float  # seconds at which the last packet of any stream ends
    dropped: int  # packets whose frames are not to be shown
    broken: int | None  # first packet that cannot be decoded


def import_av() -> ModuleType:
    """PyAV.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise ImportError('video files need PyAV: pip install "maskgen[video]"') from None
    return av


@contextlib.contextmanager
def opened(path: Path, name: str) -> Iterator[InputContainer]:
    """A video file open for reading with PyAV.

    Args:
        path: an existing file.
        name: how errors call it.

    Raises:
        ValueError: no container of video, or it breaks off or is damaged.
        OSError: the system does not let us read it.
        ImportError: without PyAV.
    """
    av = import_av()
    try:
        # Absolute: FFmpeg would take "a:b.mp4" for a protocol.
        with av.open(str(path.absolute())) as container:
            yield container
    except av.error.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        if isinstance(error, OSError):
            raise OSError(f"{name}: cannot be read ({reason})") from None
        raise ValueError(f"{name}: no video file, cut off or damaged ({reason}); expected mp4, mkv or webm") from None


def choose_stream(container: InputContainer, name: str) -> VideoStream:
    """The first stream of moving pictures; the cover of a song is none.

    Raises:
        ValueError: there is none, or the file is a picture or a text.
    """
    kind = container.format.name
    if kind.endswith(_PICTURES) or kind.startswith(_PICTURES):
        raise ValueError(f"{name}: got a picture, expected a video")
    cover = import_av().stream.Disposition.attached_pic
    moving = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not moving:
        others = ", ".join(sorted({stream.type for stream in container.streams if stream.type != "video"})) or "nothing"
        raise ValueError(f"{name}: no video in it (only {others}), expected a file with moving pictures")
    if kind not in _CONTAINERS:
        raise ValueError(f"{name}: got a file of type {kind!r}, expected a video such as mp4, mov, mkv, webm or avi")
    return moving[0]


def scan(path: Path, name: str) -> VideoIndex:
    """Look through a file: every packet is read, one frame is decoded.

    Args:
        path: an existing file.
        name: how errors call it.

    Raises:
        ValueError: no video, no frames, cut off, or damaged as far as that shows without decoding everything.
        ImportError: without PyAV.
    """
    first = _first_frame(path, name)
    with opened(path, name) as container:
        stream = choose_stream(container, name)
        packets = _read_packets(container, stream)
        _check_whole(container, stream, packets, name)
        kind, base = container.format.name, Fraction(stream.time_base or 1)
        rate = stream.average_rate or stream.guessed_rate
        plain = len(container.streams.video) == 1 and stream.codec_context.pix_fmt in _PLAIN_COLOURS
    stamps, keys = _in_order(packets)
    if not len(stamps):
        frames = _count_frames(path, name)
        times = np.arange(frames) / float(rate or 1)
    else:
        times = (stamps - stamps[0]) * float(base)
    average, variable = _rate_of(times, Fraction(rate) if rate else None, float(base))
    turns = round(first.rotation / 90) % 4
    sizes = (first.height, first.width)
    height, width = sizes if turns % 2 == 0 else sizes[::-1]
    trusted = len(stamps) > 0 and kind in _WELL_INDEXED and plain
    shown = packets.durations[packets.stamps.index(int(stamps[-1]))] if len(stamps) else 0
    return VideoIndex(
        stamps=stamps,
        keys=np.union1d([0], keys) if kind in _SEEKABLE else np.zeros(1, dtype=np.int64),
        times=times,
        seconds=float(times[-1]) + (shown * float(base) or float(1 / average)),
        rate=average,
        variable=variable,
        height=height,
        width=width,
        turns=turns,
        regular=trusted and 0 in keys and not (first.rotation or variable or packets.dropped),
    )


def _first_frame(path: Path, name: str) -> VideoFrame:
    """The first frame that decodes; it alone says how the video is turned."""
    av = import_av()
    with opened(path, name) as container:
        stream = choose_stream(container, name)
        for packet in container.demux(stream):
            with contextlib.suppress(av.error.InvalidDataError):
                for frame in packet.decode():
                    found: VideoFrame = frame
                    return found
    raise ValueError(f"{name}: holds no frames that can be decoded, expected at least one; is it cut off?")


def _read_packets(container: InputContainer, stream: VideoStream) -> _Packets:
    unit = _unit_length(container, stream)
    found = _Packets(stamps=[], keys=[], durations=[], ends=0.0, dropped=0, broken=None)
    for packet in container.demux():
        if not packet.size:
            continue  # only tells the decoder that the stream is over
        if packet.pts is not None and packet.time_base:
            found.ends = max(found.ends, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index:
            continue
        if packet.is_discard:
            found.dropped += 1
            continue
        if found.broken is None and (packet.is_corrupt or not _whole_units(packet, unit)):
            found.broken = len(found.stamps)
        found.stamps.append(packet.pts)
        found.keys.append(packet.is_keyframe)
        found.durations.append(packet.duration or 0)
    return found


def _unit_length(container: InputContainer, stream: VideoStream) -> int:
    """Bytes of the length in front of every unit of H.264 and HEVC in MP4 and Matroska; 0 for other streams."""
    header = bytes(stream.codec_context.extradata or b"")
    offset = {"h264": 4, "hevc": 21}.get(stream.codec_context.name, len(header))
    if container.format.name not in _WELL_INDEXED or len(header) <= offset or header[0] != 1:
        return 0
    return (header[offset] & 3) + 1


def _whole_units(packet: Packet[Stream], unit: int) -> bool:
    """Whether the lengths of a packet's units fit into it; a decoder refuses the packet otherwise."""
    if not unit:
        return True
    data, offset = memoryview(packet), 0
    while len(data) - offset >= 4:
        length = int.from_bytes(data[offset : offset + unit], "big")
        offset += unit + length
        if length == 0 or offset > len(data):
            return False
    return True


def _check_whole(container: InputContainer, stream: VideoStream, packets: _Packets, name: str) -> None:
    count, promised = len(packets.stamps), stream.frames
    if container.format.name == _MOV:
        # The header counts frames that were trimmed away, too; FFmpeg's index does not. Old PyAVs do not show it.
        promised = len(getattr(stream, "index_entries", ()))
    if count == 0:
        raise ValueError(f"{name}: holds no frames, expected at least one")
    # MPEG-TS marks losses of reception: frames beside them may be fine, and reading says so of those that are not.
    if packets.broken is not None and container.format.name != "mpegts":
        stamps = [stamp for stamp in packets.stamps if stamp is not None]
        stamp = packets.stamps[packets.broken]
        number = packets.broken if stamp is None else sum(other < stamp for other in stamps)
        raise ValueError(
            f"{name}: damaged or cut off: frame {number} of {max(promised, count)} cannot be decoded, expected a whole "
            "file; make it anew, or cut it before that frame"
        )
    if promised > count + packets.dropped:
        raise ValueError(f"{name}: cut off: {count} of {promised} frames are there, expected a whole file")
    missing = (container.duration or 0) / 1e6 - packets.ends
    if container.format.name == _MATROSKA and missing > _MISSING_SECONDS + 2 * _longest(packets, stream):
        raise ValueError(
            f"{name}: cut off: ends {missing:.1f} s before its header says, after {count} frames; expected a whole file"
        )


def _longest(packets: _Packets, stream: VideoStream) -> float:
    """Seconds of the longest frame."""
    return max(packets.durations) * float(stream.time_base or 0)


def _in_order(packets: _Packets) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stamps in the order of showing, and which of those frames are key frames; nothing where stamps are not unique."""
    if None in packets.stamps or len(set(packets.stamps)) < len(packets.stamps):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    stamps = np.array(packets.stamps, dtype=np.int64)
    order = np.argsort(stamps)
    return stamps[order], np.flatnonzero(np.array(packets.keys)[order]).astype(np.int64)


def _count_frames(path: Path, name: str) -> int:
    """How many frames come out of the decoder."""
    with opened(path, name) as container:
        return sum(1 for _ in container.decode(choose_stream(container, name)))


def _rate_of(times: NDArray[np.float64], stated: Fraction | None, tick: float) -> tuple[Fraction, bool]:
    """Average frames a second, and whether the spacing varies by more than a quarter of a frame."""
    if len(times) < 2:
        return stated or Fraction(1), False
    step = float(times[-1]) / (len(times) - 1)
    even = np.arange(len(times)) * step
    variable = bool(np.abs(times - even).max() > step / 4 + tick)
    if stated and not variable and math.isclose(float(stated), 1 / step, rel_tol=0.01 + tick / step):
        return stated, False
    return Fraction(1 / step).limit_denominator(1001), variable
