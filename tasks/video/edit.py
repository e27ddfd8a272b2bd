"""What the video tasks make: clips, kept in memory or written as they are made.

A 10-minute file costs as much memory as a short one, except for results that are GIFs.

Shapes: R results, T frames, H W pixels.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from maskgen.tasks.media.edit import Edit
from maskgen.tasks.media.video.backends import Frames
from maskgen.tasks.media.video.files import to_frames
from maskgen.tasks.media.video.originals import VideoOriginal
from maskgen.tasks.media.video.writer import VideoWriter
from maskgen.tasks.media.windows import Piece
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import output_rate
from maskgen.tasks.video.regions import Region
from maskgen.tasks.video.source import FileFrames, MemoryFrames


class VideoEdit(Edit[Frames]):
    """Clips uint8 ``[T, H, W, 3]``, one a seed; see ``maskgen.tasks.media.edit.Edit``.

    Args:
        results: R.
        pieces: yields float ``[R, 3, t, H, W]`` from left to right.
        frame_rate: frames a second: of the source, or what the model was trained on.
        original: what files keep of the source's; None for a source in memory.
        at_once: compute now.
    """

    def __init__(
        self,
        results: int,
        pieces: Callable[[], Iterator[Tensor]],
        frame_rate: Fraction,
        original: VideoOriginal | None,
        *,
        at_once: bool,
    ) -> None:
        self.frame_rate, self._original = frame_rate, original
        super().__init__(results, pieces, at_once=at_once)

    def write(
        self, path: str | Path | Sequence[str | Path], *, frame_rate: float | Fraction | None = None, quality: int = 18
    ) -> int:
        """Write each clip to a file, whole or not at all; see ``maskgen.tasks.media.video.writer.VideoWriter``.

        Sound, subtitles, chapters and tags of a source that is a file come with it; what is lost is warned of. H.264 and GIF
        are lossy: kept pixels are the source's before they are encoded, and close to them in the file.

        Args:
            path: of the result, or one for each; its suffix chooses the format.
            frame_rate: frames a second, instead of the edit's own.
            quality: of H.264, 0 (best) to 51.

        Returns:
            How many frames each file has.

        Raises:
            ValueError: another number of paths than results, or a format, rate or size that cannot be written.
            OSError: the place cannot be written to.
            ImportError: without PyAV.
        """
        rate, original = self.frame_rate if frame_rate is None else frame_rate, self._original
        if original is not None and rate != self.frame_rate:
            original = replace(original, in_time=False)
        return self._write(path, partial(VideoWriter, frame_rate=rate, quality=quality, original=original))[0].frames

    def _split(self, piece: Tensor) -> Sequence[Frames]:
        return to_frames(piece)

    def _join(self, parts: list[Frames]) -> Frames:
        return np.concatenate(parts)


def edited(
    pipe: Pipeline,
    results: int,
    pieces: Callable[[], Iterator[Piece]],
    *sources: MemoryFrames | FileFrames,
    region: Region | None = None,
    places: Sequence[int] = (0,),
) -> VideoEdit:
    """The clips that are made of some sources; what comes from memory is computed now.

    Args:
        pipe: the model.
        results: R.
        pieces: starts to compute, and yields ``[R, 3, t, H, W]`` from left to right without gaps.
        sources: what is read, from left to right; the first that says its frame rate gives that of the result.
        region: what else is read.
        places: frame of the result at which each source begins.
    """

    def tensors() -> Iterator[Tensor]:
        with contextlib.ExitStack() as stack:
            for opened in (*sources, *([] if region is None else [region])):
                stack.callback(opened.close)
            for _, piece in pieces():
                yield piece

    rate = next((source.frame_rate for source in sources if source.frame_rate is not None), output_rate(pipe))
    originals = [
        replace(source.original, at=place / float(rate), in_time=source.frame_rate == rate)
        for source, place in zip(sources, places, strict=False)
        if source.original is not None
    ]
    for other in originals[1:]:
        if lost := other.losses():
            warnings.warn(
                f"{other.path}: {', '.join(lost)} left out: of several files the first keeps them", stacklevel=3
            )
    original = originals[0] if originals else None
    return VideoEdit(results, tensors, rate, original, at_once=not any(source.lazy for source in sources))
