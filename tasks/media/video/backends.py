"""The libraries behind video files: PyAV, and decord where it is asked for, there, can be trusted and does not give up.

decord 0.6.0 counts on from a key frame without the frames that are shown before it and come after it (open groups of
pictures, as x265 makes them), opens damaged files without complaint, fails at frames that are fine because a thread of its
ran ahead into the damage, repeats other frames in place of those it cannot decode, and finds wrong ones in AVI and MPEG-TS.
So it reads what ``index`` found to be regular, is told to repeat nothing, and what it returns is compared with the index.
Wherever it fails, PyAV reads the same frames once more, by their time stamps, or says which of them is damaged. What is
left: a frame whose container is whole and whose contents are not is concealed by the decoder, which tells PyAV but not
decord.

Shapes: T frames, H W pixels; pixels are uint8.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from maskgen.tasks.media.video.index import VideoIndex, choose_stream, import_av, opened

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Frames = NDArray[np.uint8]

Reader = Literal["decord", "pyav"]

MOST_THREADS = 4
"""Of a decoder or encoder; more only hold more frames in memory."""

_NO_REPEATS = 1e-6  # share of frames that decord may replace by others before it raises: none


class Decoder(Protocol):
    """A video file open for reading."""

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Frames:
        """Frames ``[T, H, W, 3]`` at ascending indices, upright, resized to (H, W); ValueError where one is damaged."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


def open_decoder(path: Path, name: str, index: VideoIndex, threads: int, reader: Reader) -> Decoder:
    """Open a video file for reading.

    Args:
        path: an existing file.
        name: how errors call it.
        index: what it holds.
        threads: decoding threads; 0 for as many as the library finds right, in decord one a core and at most four.
        reader: ``decord`` where it is installed and can be trusted with the file, or ``pyav``.

    Raises:
        ImportError: without PyAV.
    """
    exact = _PyavDecoder(path, name, index, threads)
    library = _decord() if index.regular and reader == "decord" else None
    threads = threads or min(MOST_THREADS, os.cpu_count() or 1)
    return exact if library is None else _DecordDecoder(library, path, index, threads, exact)


class _DecordDecoder:
    """Reads through decord, as long as that gives what the index promises."""

    def __init__(self, library: ModuleType, path: Path, index: VideoIndex, threads: int, instead: _PyavDecoder) -> None:
        self._library: ModuleType | None = library
        self._path, self._index, self._threads, self._instead = path, index, threads, instead
        self._opened: tuple[tuple[int, int], Any] | None = None

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Frames:
        found = self._try(indices, size)
        return self._instead.read(indices, size) if found is None else found

    def close(self) -> None:
        self._opened = None
        self._instead.close()

    def _try(self, indices: Sequence[int], size: tuple[int, int]) -> Frames | None:
        """What decord gives; None, now and from now on, if that is nothing or not what the index says."""
        if self._library is None:
            return None
        # decord raises its own errors, RuntimeError and AssertionError, and its threads fail whenever they come to it.
        with contextlib.suppress(Exception):
            reader = self._reader(self._library, size)
            if len(reader) == len(self._index):
                times = np.asarray(reader.get_frame_timestamp([0, *indices]))[:, 0]
                late = np.abs(times[1:] - times[0] - self._index.times[indices]).max()
                batch = reader.get_batch(indices)  # of whatever library decord's bridge is set to
                frames = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)
                if frames.shape == (len(indices), *size, 3) and late < 0.5 / float(self._index.rate):
                    return np.asarray(frames, dtype=np.uint8)
        self._library = self._opened = None
        return None

    def _reader(self, library: ModuleType, size: tuple[int, int]) -> Any:
        if self._opened is None or self._opened[0] != size:
            self._opened = None  # let go of the old one's buffers before there are new ones
            shown = self._index.shown
            height, width = (-1, -1) if size == (shown.height, shown.width) else size
            settings = {"width": width, "height": height, "num_threads": self._threads, "fault_tol": _NO_REPEATS}
            self._opened = size, library.VideoReader(str(self._path.absolute()), ctx=library.cpu(0), **settings)
        return self._opened[1]


class _PyavDecoder:
    """Reads through PyAV: seeks to the key frame before a frame, decodes from there, and knows frames by their stamps."""

    def __init__(self, path: Path, name: str, index: VideoIndex, threads: int) -> None:
        self._av = import_av()
        self._path, self._name, self._index, self._threads = path, name, index, threads
        self._stack = contextlib.ExitStack()
        self._container: InputContainer | None = None
        self._stream: VideoStream | None = None
        self._decoded: Iterator[tuple[int, VideoFrame]] = iter(())
        self._number = -1  # of the frame decoded last
        # One for all frames: a scaler made anew for each costs more than decoding.
        self._scaler = self._av.video.reformatter.VideoReformatter()

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Frames:
        out = np.empty((len(indices), *size, 3), dtype=np.uint8)
        height, width = self._index.shown.stored_size(size)
        for row, number in zip(out, indices, strict=True):
            frame = self._scaler.reformat(
                self._find(number), width=width, height=height, format="rgb24", interpolation="BILINEAR"
            )
            row[:] = self._index.shown.upright(frame.to_ndarray())
        return out

    def close(self) -> None:
        self._decoded, self._container, self._stream = iter(()), None, None
        self._stack.close()

    def _find(self, number: int) -> VideoFrame:
        """One frame, by its number.

        Raises:
            ValueError: it does not come out of the decoder, or comes out damaged.
        """
        for approach in (self._near, self._from_start):
            approach(number)
            for found, frame in self._decoded:
                self._number = found
                if found == number and not frame.is_corrupt:
                    return frame
                if found >= number:
                    break
        self._number = len(self._index)  # wherever it stands: the next search starts anew
        raise ValueError(
            f"{self._name}: damaged: frame {number} of {len(self._index)} cannot be decoded; leave it out, or make the file "
            "anew"
        )

    def _near(self, number: int) -> None:
        """Stand somewhere before a frame, if possible not long before it."""
        key = int(self._index.keys[np.searchsorted(self._index.keys, number, side="right") - 1])
        if self._container is not None and self._number < number and key <= self._number + 1:
            return
        if key == 0 or not len(self._index.stamps):
            self._from_start(number)
            return
        container, stream = self._ready()
        container.seek(int(self._index.stamps[key]), stream=stream, backward=True)
        self._decoded, self._number = self._frames(container, stream), -1

    def _from_start(self, number: int) -> None:
        """Stand before the first frame. Opening the file again works in every container."""
        self.close()
        self._decoded, self._number = self._frames(*self._ready()), -1

    def _ready(self) -> tuple[InputContainer, VideoStream]:
        if self._container is None or self._stream is None:
            self._container = self._stack.enter_context(opened(self._path, self._name))
            self._stream = choose_stream(self._container, self._name)
            # Slices, not frames: with a frame a thread, decoders now and then forget to say that one is damaged.
            self._stream.thread_type = "NONE" if self._threads == 1 else "SLICE"
            self._stream.codec_context.thread_count = self._threads
        return self._container, self._stream

    def _frames(self, container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, VideoFrame]]:
        """Places and frames from where the file stands; whatever cannot be decoded is left out."""
        stamps, counted = self._index.stamps, 0
        packets = container.demux(stream)
        while True:
            with contextlib.suppress(self._av.error.FFmpegError):
                packet = next(packets, None)
                if packet is None:
                    return
                for frame in packet.decode():
                    number = counted if not len(stamps) else int(np.searchsorted(stamps, frame.pts or 0))
                    counted += 1
                    if not len(stamps) or (number < len(stamps) and stamps[number] == frame.pts):
                        yield number, frame


def _decord() -> ModuleType | None:
    """decord, told to keep FFmpeg's remarks to itself; None where it is missing or does not load."""
    try:
        import decord
    except (ImportError, OSError):  # OSError: the Python part is there, its library does not load here
        return None
    decord.logging.set_level(decord.logging.QUIET)
    library: ModuleType = decord
    return library
