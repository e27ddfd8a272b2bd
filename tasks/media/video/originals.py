"""What an edited clip keeps of its file beside the pictures: sound, subtitles, chapters, tags and what colours mean.

Sound and subtitles are copied packet by packet, those of the part that was edited; sound that the new container does not
take is encoded as AAC. Said when lost: whatever does not fit into the new file, and tags that tell where it was filmed.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskgen.tasks.media.video.index import import_av, opened
from maskgen.tasks.media.video.shown import Colours

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream

Packet = Any  # of PyAV; its stamps are optional until they are filled in here

_LONGEST = 0.15  # seconds of a packet of sound that is not cut; in longer ones the cut would be heard

_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)  # of AAC

_MP4_TAGS = re.compile(
    "title|artist|album_artist|composer|album|date|comment|genre|copyright|grouping|lyrics|description|synopsis|show|"
    "episode_id|network|keywords|creation_time"
)

_TECHNICAL = re.compile(  # tags of a container and not of what is in it
    "major_brand|minor_version|compatible_brands|encoder|encoded_by|duration|handler_name|vendor_id|software"
)

_PLACES = ("location", "gps", "xyz", "geo")  # in the names of tags that say where


@dataclass(frozen=True, kw_only=True)
class VideoOriginal:
    """The part of a file that a result was made of.

    Attributes:
        path: the file.
        begin: where the part begins on the clock that all streams of the file share, in seconds.
        seconds: how long it is.
        at: where in the result it lies, in seconds.
        ends: whether the part goes on to the end of the file, and with it all sound that is left.
        colours: of the file; None where it does not say.
        in_time: whether the result has the pace of the file; else sound, subtitles and chapters do not fit.
    """

    path: Path
    begin: float
    seconds: float
    at: float = 0.0
    ends: bool = True
    colours: Colours | None = None
    in_time: bool = True

    @property
    def stop(self) -> float:
        """Where in the result its sound ends at the latest."""
        return math.inf if self.ends else self.at + self.seconds

    def losses(self) -> list[str]:
        """All that a file of nothing but pictures does not keep, in words."""
        with opened(self.path, str(self.path)) as source:
            lost = [_told(stream) for stream in _beside(source)]
            lost += ["chapters"] if source.chapters() else []
            kept, places = _tags(source)
            return lost + (["tags"] if kept or places else [])


class Companions:
    """Sound, subtitles, chapters and tags on their way from a file to a result, beside its pictures.

    Args:
        original: where they come from.
        output: open for writing, nothing written yet.
        path: of the result, for what is said.
    """

    def __init__(self, original: VideoOriginal, output: OutputContainer, path: Path) -> None:
        self._original, self._output, self._path = original, output, path
        self._stack = contextlib.ExitStack()
        self._source = self._stack.enter_context(opened(original.path, str(original.path)))
        self._tracks: dict[int, _Copied | _Encoded] = {}
        self._lost: list[str] = []
        for stream in _beside(self._source):
            self._add(stream)
        self._describe()
        self._packets = self._in_order()
        self._next = next(self._packets, None)
        self.has_sound = any(track.stream.type == "audio" for track in self._tracks.values())

    def write_until(self, seconds: float) -> None:
        """Write what is heard before a moment of the result."""
        while self._next is not None and self._next[0] < seconds:
            _, packet, track = self._next
            self._mux(track, track.follow(packet, self._original))
            self._next = next(self._packets, None)

    def finish(self, seconds: float) -> None:
        """Write the rest, and say what was lost.

        Args:
            seconds: how long the result is.
        """
        self.write_until(math.inf)
        for track in self._tracks.values():
            self._mux(track, track.finish())
        if self.has_sound and seconds > self._original.at + self._original.seconds + 0.1:
            self._lost.append("what was added in time has no sound")
        if self._lost:
            warnings.warn(f"{self._original.path}: {'; '.join(self._lost)}", stacklevel=6)

    def close(self) -> None:
        """Let go of the source."""
        self._stack.close()

    def _mux(self, track: _Copied | _Encoded, packets: Iterator[Packet]) -> None:
        """Write packets; those that the container finds damaged are left out: the pictures are what was asked for."""
        error = import_av().error
        try:
            for packet in packets:
                self._output.mux(packet)
        except (error.InvalidDataError, error.ArgumentError):
            damaged = f"{_told(track.stream)} is damaged, and not complete"
            self._lost += [damaged] if damaged not in self._lost else []

    def _add(self, stream: Stream) -> None:
        if not self._original.in_time:
            self._lost.append(f"{_told(stream)} left out: the result has another pace")
        elif stream.type == "audio" and stream.codec_context is not None:
            packet = self._first(stream)
            if packet is None:
                self._lost.append(f"{_told(stream)} is empty")
                return
            short = 0 < float((packet.duration or 0) * packet.time_base) <= _LONGEST
            if (short or self._whole()) and _takes(self._output, stream, packet):
                self._tracks[stream.index] = _Copied(self._output, stream)
            else:
                track = self._tracks[stream.index] = _Encoded(self._output, stream)
                self._lost.append(f"{_told(stream)} encoded anew as {track.what}")
        elif stream.type == "subtitle" and _takes(self._output, stream, self._first(stream)):
            self._tracks[stream.index] = _Copied(self._output, stream)
        else:
            self._lost.append(f"{_told(stream)} left out, which {self._path.suffix} does not take from another file")

    def _first(self, stream: Stream) -> Packet | None:
        """One of a stream's first packets, if possible one that says how long it is."""
        with opened(self._original.path, str(self._original.path)) as source:
            packets = source.demux(source.streams[stream.index])
            few = [packet for packet in itertools.islice(packets, 4) if packet.size]
            return max(few, key=lambda packet: packet.duration or 0, default=None)

    def _whole(self) -> bool:
        """Whether the part begins where the file's sound begins, so that nothing is cut."""
        return self._original.ends and self._original.at == 0 and self._original.begin <= _LONGEST

    def _describe(self) -> None:
        """Chapters and tags."""
        kept, places = _tags(self._source)
        if self._output.format.name in ("mp4", "mov", "ipod"):
            foreign = sorted(name for name in kept if not _MP4_TAGS.fullmatch(name))
            if foreign:
                self._lost.append(f"tags left out, which {self._path.suffix} does not take: {', '.join(foreign)}")
            kept = {name: text for name, text in kept.items() if name not in foreign}
        if places:
            self._lost.append(f"tags left out, which say where it was filmed: {', '.join(places)}")
        self._output.metadata.update(kept)
        chapters = self._source.chapters()
        if chapters and self._original.in_time:
            moved = [_moved(chapter, self._original) for chapter in chapters]
            self._output.set_chapters([chapter for chapter in moved if chapter is not None])
        elif chapters:
            self._lost.append("chapters left out: the result has another pace")

    def _in_order(self) -> Iterator[tuple[float, Packet, _Copied | _Encoded]]:
        """Packets of the tracks that are heard in the part, with their time in the result."""
        original, over = self._original, set[int]()
        try:
            for packet in (
                self._source.demux(*(track.stream for track in self._tracks.values())) if self._tracks else ()
            ):
                track = self._tracks.get(packet.stream_index)
                if track is None or not packet.size or packet.time_base is None:
                    continue
                if packet.pts is None:
                    packet.pts = track.end if packet.dts is None else packet.dts
                track.end = packet.pts + (packet.duration or 0)
                begin, end = (float(ticks * packet.time_base) - original.begin for ticks in (packet.pts, track.end))
                if begin + original.at >= original.stop:
                    over.add(packet.stream_index)
                    if over == self._tracks.keys():
                        return
                elif end > -track.before or begin >= 0 or (track.before and not packet.duration):
                    yield begin + original.at, packet, track
        except import_av().error.FFmpegError as error:
            self._lost.append(f"the file is damaged, its sound may be incomplete ({error.strerror})")


class _Copied:
    """A stream whose packets go into the result as they are."""

    before = 0.0  # seconds before the part at which packets are of use

    def __init__(self, output: OutputContainer, stream: Stream) -> None:
        self.stream, self.end, self._last = stream, 0, -math.inf
        self._target = output.add_stream_from_template(stream)
        _label(stream, self._target)

    def follow(self, packet: Packet, original: VideoOriginal) -> Iterator[Packet]:
        shift = round((original.at - original.begin) / float(packet.time_base))
        packet.pts, packet.dts = packet.pts + shift, (packet.pts if packet.dts is None else packet.dts) + shift
        early = math.ceil(original.at / packet.time_base) - packet.pts
        if self.stream.type == "subtitle" and early > 0:  # a line that stands already when the part begins
            packet.pts, packet.dts, packet.duration = packet.pts + early, packet.pts + early, packet.duration - early
        if packet.dts > self._last:  # whatever steps back in time, no container takes
            self._last, packet.stream = packet.dts, self._target
            yield packet

    def finish(self) -> Iterator[Packet]:
        yield from ()


class _Encoded:
    """A stream of sound as AAC, cut to the sample."""

    before = 2.0

    def __init__(self, output: OutputContainer, stream: Any) -> None:
        self.stream, self.end, self._av = stream, 0, import_av()
        self._rate = min(_RATES, key=lambda rate: abs(rate - stream.rate))
        channels = stream.codec_context.channels
        self._layout = {1: "mono", 6: "5.1"}.get(channels, "stereo")
        self.what = f"AAC at {self._rate} Hz" + ("" if channels in (1, 2, 6) else f", {channels} channels as stereo")
        self._target = output.add_stream("aac", rate=self._rate, layout=self._layout)
        self._target.bit_rate = 96_000 * {"mono": 1, "stereo": 2}.get(self._layout, 5)
        _label(stream, self._target)
        self._resampler = self._av.AudioResampler(format="fltp", layout=self._layout, rate=self._rate)

    def follow(self, packet: Packet, original: VideoOriginal) -> Iterator[Packet]:
        with contextlib.suppress(self._av.error.InvalidDataError):
            for frame in packet.decode():
                first = float(frame.pts * frame.time_base) - original.begin + original.at
                for part in self._resampler.resample(frame):
                    yield from self._encode(part.to_ndarray(), first, original)
                    first += part.samples / self._rate

    def _encode(self, samples: np.ndarray[Any, Any], first: float, original: VideoOriginal) -> Iterator[Packet]:
        start, stop = (original.at, min(original.stop, first + samples.shape[1] / self._rate))
        low = max(0, round((start - first) * self._rate))
        samples = samples[:, low : max(low, round((stop - first) * self._rate))]
        if samples.shape[1]:
            frame = self._av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", self._layout)
            frame.sample_rate, frame.pts = self._rate, round(first * self._rate) + low
            yield from self._target.encode(frame)

    def finish(self) -> Iterator[Packet]:
        yield from self._target.encode()


def _beside(source: InputContainer) -> list[Stream]:
    """All streams but moving pictures and the titles of chapters, which MP4 keeps as a track."""
    cover = import_av().stream.Disposition.attached_pic
    found = [stream for stream in source.streams if stream.type != "video" or stream.disposition & cover]
    titles = next((stream for stream in found if stream.type == "data" and source.chapters()), None)
    return [stream for stream in found if stream is not titles]


def _told(stream: Stream) -> str:
    """How a stream is called."""
    if stream.type == "video":
        return "cover picture"
    kind = {"audio": "sound", "subtitle": "subtitles"}.get(stream.type, f"{stream.type} track")
    return f"{kind} ({stream.codec_context.name})" if stream.codec_context is not None else kind


def _takes(output: OutputContainer, stream: Stream, packet: Packet | None) -> bool:
    """Whether a container takes a stream as it is: some refuse only when they write their table of contents."""
    av = import_av()
    try:
        with av.open(io.BytesIO(), "w", format=output.format.name) as trial:
            target = trial.add_stream_from_template(stream)
            trial.start_encoding()
            if packet is not None:
                packet.stream = target
                trial.mux(packet)
    except (av.error.FFmpegError, ValueError):
        return False
    return True


def _label(source: Stream, target: Stream) -> None:
    """Language, title and what a track is for."""
    target.metadata.update({name: text for name, text in source.metadata.items() if name in ("language", "title")})
    target.disposition = source.disposition


def _tags(source: InputContainer) -> tuple[dict[str, str], list[str]]:
    """What is said of the content, and the names of tags that say where it was filmed."""
    said = {name: text for name, text in source.metadata.items() if not _TECHNICAL.fullmatch(name.lower())}
    places = sorted(name for name in said if any(word in name.lower() for word in _PLACES))
    return {name.lower(): text for name, text in said.items() if name not in places}, places


def _moved(chapter: Any, original: VideoOriginal) -> Any:
    """A chapter on the clock of the result; None where it lies outside of the part."""
    base = chapter["time_base"]
    begin, end = (float(chapter[side] * base) - original.begin + original.at for side in ("start", "end"))
    begin, end = max(begin, original.at), min(end, original.stop)
    return {**chapter, "start": round(begin / base), "end": round(end / base)} if begin < end else None
