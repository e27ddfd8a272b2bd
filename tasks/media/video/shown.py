"""How the pictures of a video stream are shown: which way up, how wide their pixels are, in which colours.

Shapes: H W pixels.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_MATRICES = (0, 1, 2, 4, 5, 6, 7, 9)  # of H.273, those that FFmpeg's scaler converts; it takes all others for BT.601

_WIDE = {16: "high dynamic range (PQ)", 18: "high dynamic range (HLG)"}  # transfer characteristics of H.273

_MOST_OBLONG = 20  # times as wide as high; beyond it a header is damaged


@dataclass(frozen=True)
class Colours:
    """What a stream says of its colours, in the numbers of ITU-T H.273; as it stands here, BT.709 as HD cameras write it.

    Attributes:
        matrix: between RGB and luma with chroma.
        primaries: which red, green and blue.
        transfer: from light to numbers.
        full: whether luma fills 0 to 255, and not 16 to 235.
    """

    matrix: int = 1
    primaries: int = 1
    transfer: int = 1
    full: bool = False


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A stream's pictures as players show them.

    Attributes:
        height, width: as shown, upright and with square pixels.
        transposed: whether stored rows are shown as columns.
        mirrored: whether rows, and columns, are then shown in reverse order.
        square: whether stored pixels are square.
        bits: of a channel.
        colours: None where the stream says nothing of them.
        remarks: what a person should know, in words.
    """

    height: int
    width: int
    transposed: bool
    mirrored: tuple[bool, bool]
    square: bool
    bits: int
    colours: Colours | None
    remarks: tuple[str, ...]

    @property
    def as_stored(self) -> bool:
        """Whether pictures are shown pixel by pixel as they are stored."""
        return self.square and not (self.transposed or any(self.mirrored))

    def stored_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) that a stored picture is resized to, so that it is shown at ``size``."""
        return (size[1], size[0]) if self.transposed else size

    def upright(self, picture: NDArray[Any]) -> NDArray[Any]:
        """A stored picture ``[H, W, C]`` as it is shown."""
        picture = picture.swapaxes(0, 1) if self.transposed else picture
        return picture[:: -1 if self.mirrored[0] else 1, :: -1 if self.mirrored[1] else 1]


def inspect_stream(stream: VideoStream, frame: VideoFrame, name: str) -> Shown:
    """How a stream is shown.

    Args:
        stream: as it was opened.
        frame: the first that decodes; it alone says how the video is turned.
        name: how errors call the file.

    Raises:
        ValueError: pixels or colours that cannot be converted.
    """
    aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
    if not 1 / _MOST_OBLONG <= aspect <= _MOST_OBLONG:
        raise ValueError(
            f"{name}: got pixels {float(aspect):.3g} times as wide as high, expected 1/{_MOST_OBLONG} to {_MOST_OBLONG}; is "
            "the header damaged?"
        )
    if int(frame.colorspace) not in _MATRICES:
        raise ValueError(
            f"{name}: got colour matrix {int(frame.colorspace)} of H.273, expected one of "
            f"{', '.join(map(str, _MATRICES))}; convert it to BT.709"
        )
    transposed, mirrored, oblique = _orientation(frame)
    # As players do it: whichever side is too short is drawn out, so that nothing is lost.
    one = Fraction(1)
    height, width = round(frame.height / min(aspect, one)), round(frame.width * max(aspect, one))
    remarks = _remarks(stream, frame) + (["turned by no whole quarter: taken at the nearest one"] if oblique else [])
    return Shown(
        height=width if transposed else height,
        width=height if transposed else width,
        transposed=transposed,
        mirrored=mirrored,
        square=aspect == 1,
        bits=max(component.bits for component in frame.format.components),
        colours=_colours(frame),
        remarks=tuple(remarks),
    )


def _orientation(frame: VideoFrame) -> tuple[bool, tuple[bool, bool], bool]:
    """Transposed, mirrored, and whether the display matrix says anything beside that.

    A stored point (x, y) is shown at (a x + c y, b x + d y).
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, (False, False), False
    a, b, _, c, d = struct.unpack_from("=5i", bytes(data))
    straight, across = min(abs(a), abs(d)), min(abs(b), abs(c))
    oblique = min(straight, across) > 0.02 * max(straight, across)
    return (True, (b < 0, c < 0), oblique) if across > straight else (False, (d < 0, a < 0), oblique)


def _remarks(stream: VideoStream, frame: VideoFrame) -> list[str]:
    found = []
    if (wide := _WIDE.get(int(frame.color_trc))) or int(frame.color_primaries) == 9:
        found.append(f"colours are {wide or 'those of BT.2020'} and come as stored, not mapped to a usual screen's")
    if frame.interlaced_frame:
        found.append("interlaced: the two fields of a frame are taken as one picture")
    clear = stream.metadata.get("alpha_mode") == "1"  # of VP8 and VP9, whose decoders do not read it
    if any(component.is_alpha for component in frame.format.components):
        clear = bool(np.any(frame.reformat(format="rgba").to_ndarray()[..., 3] < 255))
    return [*found, "transparency is left out"] if clear else found


def _colours(frame: VideoFrame) -> Colours | None:
    matrix, full = int(frame.colorspace), int(frame.color_range) == 2
    if matrix in (0, 2):  # RGB, or nothing said
        return None
    return Colours(matrix, int(frame.color_primaries), int(frame.color_trc), full)
