"""Frames into a file, as H.264 that says how its colours are meant, and beside them what the result keeps of its source.

Shapes: T frames, H W pixels; pixels are uint8.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskgen.tasks.media.video.backends import MOST_THREADS, Frames
from maskgen.tasks.media.video.index import import_av
from maskgen.tasks.media.video.originals import Companions, VideoOriginal
from maskgen.tasks.media.video.shown import Colours

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream


class Encoder:
    """H.264 into an open file, frame by frame.

    Args:
        container: where it goes.
        stream: of it.
        colours: how RGB is turned into luma and chroma, as the file then says.
        companions: what is written beside the frames.
    """

    def __init__(
        self, container: OutputContainer, stream: VideoStream, colours: Colours, companions: Companions | None
    ) -> None:
        av = import_av()
        self._container, self._stream, self._companions = container, stream, companions
        self._frame, self._scaler = av.VideoFrame, av.video.reformatter.VideoReformatter()
        self._colours, self._rate, self._written = colours, stream.codec_context.framerate, 0
        context = stream.codec_context
        context.colorspace, context.color_range = colours.matrix, 2 if colours.full else 1
        context.color_primaries, context.color_trc = colours.primaries, colours.transfer

    def write(self, frames: Frames) -> None:
        """Add frames ``[T, H, W, 3]``."""
        for picture in frames:
            frame = self._scaler.reformat(
                self._frame.from_ndarray(np.ascontiguousarray(picture), "rgb24"),
                format="yuv420p",
                dst_colorspace=self._colours.matrix,
                dst_color_range=2 if self._colours.full else 1,
            )
            frame.pts, frame.time_base = self._written, 1 / self._rate
            if self._companions is not None:
                self._companions.write_until(float(self._written / self._rate))
            self._container.mux(self._stream.encode(frame))
            self._written += 1

    def finish(self) -> None:
        """Write what the encoder still holds back."""
        self._container.mux(self._stream.encode())
        if self._companions is not None:
            self._companions.finish(float(self._written / self._rate))


@contextlib.contextmanager
def open_encoder(
    path: Path, name: Path, frame_rate: Fraction, size: tuple[int, int], quality: int, original: VideoOriginal | None
) -> Iterator[Encoder]:
    """Open a video file for writing as H.264; it is complete when the block ends well.

    Args:
        path: where to write; its suffix chooses the container.
        name: how errors call it.
        frame_rate: frames a second.
        size: (H, W), both even.
        quality: x264's constant rate factor, 0 (lossless) to 51.
        original: what the result keeps of a file; None for nothing.

    Raises:
        OSError: the place cannot be written to.
        ValueError: numbers that the encoder refuses.
        ImportError: without PyAV, or one without x264.
    """
    av = import_av()
    try:
        with contextlib.ExitStack() as stack:
            container = stack.enter_context(av.open(str(path.absolute()), "w"))
            stream = container.add_stream("libx264", rate=frame_rate, options={"crf": str(quality)})
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = min(MOST_THREADS, os.cpu_count() or 1)
            companions = None if original is None else Companions(original, container, name)
            if companions is not None:
                stack.callback(companions.close)
            colours = Colours() if original is None or original.colours is None else original.colours
            encoder = Encoder(container, stream, colours, companions)
            yield encoder
            encoder.finish()
    except av.codec.codec.UnknownCodecError:
        raise ImportError(
            f'{name}: this PyAV was built without x264; reinstall its wheel (pip install "maskgen[video]"), or write .gif'
        ) from None
    except av.error.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        if isinstance(error, OSError):
            raise OSError(f"{name}: cannot be written ({reason})") from None
        raise ValueError(f"{name}: {size[1]} x {size[0]} at {frame_rate}/s cannot be encoded ({reason})") from None
