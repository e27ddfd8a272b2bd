"""What a video file holds, found without decoding it: which frames, when they are shown, and whether the file is whole.

The frames of a compressed file are known by their time stamps: whoever seeks by anything else gets wrong pictures from some
containers. Stamps are read by PyAV, packet by packet, so memory does not grow with the file beyond 16 bytes a frame.

Shapes: T frames.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maskgen.tasks.media.video.rates import find_rate, total_seconds
from maskgen.tasks.media.video.shown import Shown, inspect_stream

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
    {*_SEEKABLE, "avi", "mpeg", "flv", "asf", "ogg", "gif", "mxf", "nut", "dv"}
    | {"h264", "hevc", "ivf", "m4v", "mpegvideo"}
)

_PICTURES = ("_pipe", "image2")  # how FFmpeg calls single pictures

_PLAIN_COLOURS = ("yuv420p", "yuvj420p")  # of others, decord and PyAV make pixels that differ a little

_MISSING_SECONDS = 0.5  # of what a header promised; less may be a header's rounding

_MOST_REORDERED = 32  # frames that decoders hold back to show them later; more means that time stamps begin anew


@dataclass(frozen=True, kw_only=True)
class VideoIndex:
    """The frames of a file in the order they are shown.

    Attributes:
        stamps: int64 ``[T]``, presentation time stamps; empty where the file has none that are all different, so that
            frames can only be counted.
        keys: int64, frames at which decoding can begin, ascending; frame 0 alone where seeking is not to be trusted.
        times: float64 ``[T]``, seconds since the first frame.
        begin: when the first frame is shown on the clock that all streams of the file share, in seconds.
        seconds: how long the frames last in all.
        rate: frames a second; where most are evenly spaced, between those; else on average.
        variable: whether frames are not evenly spaced in time.
        shown: how frames are shown.
        regular: whether nothing speaks against a reader that seeks by key frame and counts (decord).
        remarks: what a person should know of the file, in words.
    """

    stamps: NDArray[np.int64]
    keys: NDArray[np.int64]
    times: NDArray[np.float64]
    begin: float
    seconds: float
    rate: Fraction
    variable: bool
    shown: Shown
    regular: bool
    remarks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.times)

    @property
    def clock(self) -> NDArray[np.float64]:
        """``times`` without the rounding of the container, where frames are evenly spaced."""
        return self.times if self.variable else np.arange(len(self)) / float(self.rate)


@dataclass
class _Packets:
    """What the packets of a file say; stamps in its time base, in the order of decoding."""

    stamps: list[int | None]
    keys: list[bool]
    durations: list[int]
    ends: float  # seconds at which the last packet of any stream ends
    dropped: int  # packets whose frames are not to be shown
    broken: int | None  # first packet that cannot be decoded
    first_key: int | None  # stamp of the first packet at which decoding can begin, shown or not
    open: bool  # whether frames that are shown before a key frame come after it


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
        path.open("rb").close()
    except OSError as error:  # below, decoders and demuxers use the system's numbers for errors of their own
        raise OSError(f"{name}: cannot be read ({error.strerror})") from None
    try:
        # Absolute: FFmpeg would take "a:b.mp4" for a protocol.
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            yield container
    except av.error.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"{name}: no video file, cut off or damaged ({reason}); expected mp4, mkv or webm") from None
    except IndexError:  # PyAV's, of a packet whose stream was not there at the start
        raise ValueError(
            f"{name}: a stream begins in its middle, which PyAV cannot follow; copy it to a new file"
        ) from None


def choose_stream(container: InputContainer, name: str) -> VideoStream:
    """The stream of moving pictures that FFmpeg finds best, as its player does; the cover of a song is none.

    Raises:
        ValueError: there is none, or the file is a picture or a text.
    """
    kind = container.format.name
    if kind.endswith(_PICTURES) or kind.startswith(_PICTURES):
        animated = "; an animated WebP is not read, save it as GIF or mp4" if kind.startswith("webp") else ""
        raise ValueError(f"{name}: got a picture, expected a video{animated}")
    moving = _moving(container)
    if not moving:
        others = ", ".join(sorted({stream.type for stream in container.streams if stream.type != "video"})) or "nothing"
        raise ValueError(f"{name}: no video in it (only {others}), expected a file with moving pictures")
    if kind not in _CONTAINERS:
        raise ValueError(
            f"{name}: got a file of type {kind!r}, expected a video such as mp4, mov, mkv, webm, avi or gif"
        )
    best = container.streams.best("video")
    chosen = next((stream for stream in moving if best is not None and stream.index == best.index), moving[0])
    if chosen.codec_context is None:
        raise ValueError(f"{name}: its video is of a kind that FFmpeg does not know; convert it to H.264")
    return chosen


def _moving(container: InputContainer) -> list[VideoStream]:
    cover = import_av().stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


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
        shown = inspect_stream(stream, first, name)
        packets = _read_packets(container, stream)
        _check_whole(container, stream, packets, name)
        kind, base, remarks = container.format.name, Fraction(stream.time_base or 1), list(shown.remarks)
        stated = [Fraction(rate) for rate in (stream.average_rate, stream.base_rate, stream.guessed_rate) if rate]
        if (count := len(_moving(container))) > 1:
            remarks.append(f"holds {count} videos: stream {stream.index} is taken, as players do")
        plain = len(container.streams.video) == 1 and stream.codec_context.pix_fmt in _PLAIN_COLOURS
    stamps, keys = _in_order(packets, remarks)
    if not len(stamps):
        times = np.arange(max(1, _count_frames(path, name))) / float(stated[0] if stated else 1)
        late = packets.keys.index(True) if True in packets.keys else 0
    else:
        # Whatever comes before a key frame that the file begins without, nobody can decode.
        start = min(stamp for stamp in (first.pts, packets.first_key, int(stamps[-1])) if stamp is not None)
        late = int(np.searchsorted(stamps, start))
        stamps, keys = stamps[late:], keys[keys >= late] - late
        times = (stamps - stamps[0]) * float(base)
    if late:
        remarks.append(f"begins between key frames: its first {late} frames cannot be decoded and are left out")
    average, variable = find_rate(times, stated, float(base))
    ticks = packets.durations[packets.stamps.index(int(stamps[-1]))] if len(stamps) else 0
    return VideoIndex(
        stamps=stamps,
        keys=np.union1d([0], keys) if kind in _SEEKABLE else np.zeros(1, dtype=np.int64),
        times=times,
        begin=float(int(stamps[0]) * base) if len(stamps) else 0.0,
        seconds=total_seconds(
            times, ticks * float(base) or float(1 / average), float(base), 0 if variable else float(average)
        ),
        rate=average,
        variable=variable,
        shown=shown,
        regular=(len(stamps) > 0 and kind in _WELL_INDEXED and plain and shown.as_stored and 0 in keys)
        and not (variable or packets.dropped or packets.open or late),
        remarks=tuple(remarks),
    )


def decode_packet(packet: Any) -> list[VideoFrame]:
    """The frames that a packet of a stream completes; none if the decoder refuses it."""
    error, frames = import_av().error, list[Any]()
    for _ in range(2):
        try:
            frames = packet.decode()
            break
        except error.BlockingIOError:  # VP9's decoder, for instance, gets stuck behind what it could not decode
            packet.stream.codec_context.flush_buffers()
        except error.FFmpegError:
            break
    return frames


def _first_frame(path: Path, name: str) -> VideoFrame:
    """The first frame that decodes, if possible without damage; it alone says how the video is turned."""
    damaged: list[VideoFrame] = []
    with opened(path, name) as container:
        stream = choose_stream(container, name)
        for packet in container.demux(stream):
            for frame in decode_packet(packet):
                if not frame.is_corrupt:
                    return frame
                damaged.append(frame)
            if len(damaged) > _MOST_REORDERED:
                break
    if damaged:
        return damaged[0]
    raise ValueError(f"{name}: holds no frames that can be decoded, expected at least one; is it cut off?")


def _read_packets(container: InputContainer, stream: VideoStream) -> _Packets:
    unit = _unit_length(container, stream)
    found = _Packets(stamps=[], keys=[], durations=[], ends=0.0, dropped=0, broken=None, first_key=None, open=False)
    last_key = None
    for packet in container.demux():
        if not packet.size:
            continue  # only tells the decoder that the stream is over
        if packet.pts is not None and packet.time_base:
            found.ends = max(found.ends, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index:
            continue
        if packet.is_keyframe and packet.pts is not None:
            found.first_key, last_key = packet.pts if found.first_key is None else found.first_key, packet.pts
        elif packet.pts is not None and last_key is not None and packet.pts < last_key:
            found.open = True
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


def _in_order(packets: _Packets, remarks: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stamps in the order of showing, and which of those frames are key frames; nothing where they do not say the order."""
    stamps = np.array([stamp for stamp in packets.stamps if stamp is not None], dtype=np.int64)
    order = np.argsort(stamps, kind="stable")
    if len(stamps) < len(packets.stamps):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if (np.diff(stamps[order]) == 0).any() or np.abs(order - np.arange(len(order))).max() > _MOST_REORDERED:
        remarks.append("time stamps are equal or begin anew: frames are taken one after the other, evenly spaced")
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    return stamps[order], np.flatnonzero(np.array(packets.keys)[order]).astype(np.int64)


def _count_frames(path: Path, name: str) -> int:
    """How many frames come out of the decoder."""
    with opened(path, name) as container:
        return sum(1 for _ in container.decode(choose_stream(container, name)))
