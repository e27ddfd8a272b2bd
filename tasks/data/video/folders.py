"""Folders of video to train on: which files, which part of each, how it is cropped.

Shapes: B batch, T frames, H W pixels.
"""

import random
import re
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from maskgen.tasks.data.base import SignalData
from maskgen.tasks.data.file_sets import FileData, FileRules
from maskgen.tasks.media.shelf import Shelf
from maskgen.tasks.media.video.backends import Reader
from maskgen.tasks.media.video.files import VIDEO_SUFFIXES, VideoFile, to_video_tensor


class VideoData(SignalData):
    """A data set of clips: batches hold ``video`` float ``[B, 3, T, H, W]`` in [0, 1].

    Attributes:
        size: (T, H, W) of a clip.
        frame_rate: frames a second; None where clips keep the rate of their files.
    """

    modality: ClassVar[str] = "video"
    key: ClassVar[str] = "video"
    size: tuple[int, int, int]
    frame_rate: float | None = None


class VideoFolder(FileData, VideoData):
    """Videos below a folder; each example is an excerpt of a file.

    A training example follows from its seed: where in the file it begins, which part of the frame is
    taken after it was resized to cover the size, whether it is mirrored. A held-out example begins and is cropped in the
    middle, always the same. Only its frames are decoded, when they are needed. For files held out and files that cannot be
    read, or have too few frames, see ``maskgen.tasks.data.file_sets.FileData``.

    Args:
        root: a folder with video files at any depth.
        frames: T of an example.
        height: H, in pixels.
        width: W; None for as many as H.
        stride: every how many frames of the file are taken.
        frame_rate: take frames by time at this rate, whatever that of the file is, instead of by ``stride``.
        flip: whether training examples are mirrored at random.
        reader: see ``maskgen.tasks.media.video.files.VideoFile``.
        **rules: see ``maskgen.tasks.data.file_sets.FileRules``.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: settings out of range, no video files, too many unreadable ones, all held out, or files outside of the
            class folders.
        ImportError: without PyAV.
    """

    def __init__(
        self,
        root: Path,
        frames: int = 16,
        height: int = 128,
        width: int | None = None,
        *,
        stride: int = 1,
        frame_rate: float | None = None,
        flip: bool = True,
        reader: Reader = "pyav",
        **rules: Any,
    ) -> None:
        width = height if width is None else width
        if min(frames, height, width, stride) < 1 or (frame_rate is not None and (stride != 1 or not frame_rate > 0)):
            raise ValueError(
                f"VideoFolder: got frames {frames}, height {height}, width {width}, stride {stride}, frame_rate "
                f"{frame_rate}; expected 1 or more of each, and a stride or a frame rate above 0"
            )
        self.size, self.stride, self.frame_rate, self.flip = (frames, height, width), stride, frame_rate, flip
        self._root, self._reader = Path(root), reader
        if not self._root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder, expected one of video files")
        shelf, self._remarks = Shelf(self._root, "video files"), dict[str, list[str]]()
        listed = shelf.names("video", VIDEO_SUFFIXES)
        self._arrange(shelf, listed, self._try_out, FileRules(**rules))
        for remark, names in self._remarks.items():
            warnings.warn(f"{root}: {len(names)} of {len(listed)} files, such as {names[0]}: {remark}", stacklevel=2)

    def example(self, name: str, seed: int, *, fixed: bool = False) -> Tensor:
        """One excerpt.

        Args:
            name: path below the root.
            seed: all the randomness there is.
            fixed: the middle of the file and of its frames, whatever the seed.

        Returns:
            float32 ``[3, T, H, W]``.

        Raises:
            ValueError: a file that cannot be read, or with too few frames.
        """
        draw = None if fixed else random.Random(seed)
        length, height, width = self.size
        with VideoFile(self._root / name, threads=1, reader=self._reader, quiet=True) as file:
            places = self._places(file, draw)
            scale = max(Fraction(height, file.height), Fraction(width, file.width))
            covering = max(height, round(file.height * scale)), max(width, round(file.width * scale))
            frames = file.read(places, size=covering)
        top, left = _draw(covering[0] - height, draw), _draw(covering[1] - width, draw)
        clip = to_video_tensor(frames[:, top : top + height, left : left + width])[0]
        assert clip.shape == (3, length, height, width)
        return clip.flip(-1) if self.flip and draw is not None and draw.random() < 0.5 else clip

    def _places(self, file: VideoFile, draw: random.Random | None) -> list[int]:
        """Frames of an excerpt."""
        spare = self._spare(file)
        if self.frame_rate is None:
            start = _draw(spare, draw)
            return list(range(start, start + (self.size[0] - 1) * self.stride + 1, self.stride))
        shown = file.at_rate(self.frame_rate)
        start = _draw(spare, draw)
        return shown[start : start + self.size[0]]

    def _spare(self, file: VideoFile) -> int:
        """How many frames a file has beyond those of an excerpt, at the rate that is wanted.

        Raises:
            ValueError: it has too few.
        """
        if self.frame_rate is None:
            there, wanted, how = file.frames, (self.size[0] - 1) * self.stride + 1, f"with stride {self.stride}"
        else:
            there = len(file.at_rate(self.frame_rate))
            wanted, how = self.size[0], f"at {self.frame_rate:g} a second"
        if there < wanted:
            raise ValueError(
                f"{file.name}: too short: it has {there} frames, expected at least {wanted} for clips of {self.size[0]} "
                f"frames {how}"
            )
        return there - wanted

    def _try_out(self, name: str) -> None:
        """Refuse a file that cannot be used, as far as opening it shows."""
        with VideoFile(self._root / name, threads=1, reader=self._reader, quiet=True) as file:
            self._spare(file)
        uneven = ["frames are not evenly spaced in time and are taken as stored; give frame_rate to take them by time"]
        for remark in (*file.remarks, *(uneven if file.variable_rate and self.frame_rate is None else [])):
            self._remarks.setdefault(re.sub(r"\d+", "some", remark), []).append(name)


def _draw(spare: int, draw: random.Random | None) -> int:
    """A place from 0 to ``spare``; the middle without randomness."""
    return spare // 2 if draw is None else draw.randint(0, spare)
