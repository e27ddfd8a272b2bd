"""Odd clips: containers, codecs, pixel formats, rates and headers that PyAV can write, and what damage makes of them.

Shapes: T frames, H W pixels.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.tasks.media.video.samples import PORTRAIT, Frames, moving, trim

ONE = 1 << 16  # in a display matrix
SLOW_RATE = Fraction(1, 3)


@dataclass(frozen=True)
class Odd:
    """How a clip is made.

    Attributes:
        name: of the file; its suffix chooses the container unless ``format`` does.
        codec: FFmpeg's name.
        pixels: FFmpeg's name of the pixel format.
        rate: frames a second.
        size: (H, W).
        frames: T.
        options: of the encoder.
        stream: attributes of the codec context, such as colours and pixel aspect.
        format: of the container.
        container: its options.
        matrix: of display.
        upright: what a player makes of a stored picture under this matrix.
        refused: part of the line that says why nobody can show it right.
        remark: part of what is warned of.
        times: of the frames in milliseconds.
        then: what is done to the file afterwards.
    """

    name: str
    codec: str = "libx264"
    pixels: str = "yuv420p"
    rate: Fraction | int = 25
    size: tuple[int, int] = (48, 64)
    frames: int = 12
    options: dict[str, str] = field(default_factory=dict)
    stream: dict[str, Any] = field(default_factory=dict)
    format: str | None = None
    container: dict[str, str] = field(default_factory=dict)
    matrix: tuple[int, ...] | None = None
    upright: Callable[[Frames], Frames] = lambda frame: frame
    refused: str | None = None
    remark: str | None = None
    times: tuple[int, ...] | None = None
    then: Callable[[Path], Path] | None = None

    def make(self, folder: Path) -> Path:
        """The file."""
        path = folder / self.name
        with av.open(str(path), "w", format=self.format, options=self.container) as file:
            stream: Any = file.add_stream(self.codec, rate=self.rate, options=dict(self.options))
            stream.height, stream.width, stream.pix_fmt = *self.size, self.pixels
            context = stream.codec_context
            context.thread_count, context.gop_size = 1, 6
            for name, value in self.stream.items():
                setattr(context, name, value)
            if self.matrix is not None:
                stream.set_display_matrix(self.matrix)
            if self.times is not None:
                context.time_base = Fraction(1, 1000)
            for place, picture in enumerate(moving(self.frames, *self.size)):
                frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(
                    format=self.pixels,
                    dst_colorspace=context.colorspace if context.colorspace != 2 else None,
                    dst_color_range=context.color_range or None,
                )
                if self.times is not None:
                    frame.pts, frame.time_base = self.times[place], context.time_base
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
        return path if self.then is None else self.then(path)


def cut_front(path: Path) -> Path:
    """A transport stream whose first packets are missing, as when a receiver is turned on."""
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 188 * 3 // 10 * 188 :])
    return path


def twice(path: Path) -> Path:
    """The file behind itself, as ``cat`` joins recordings: time begins anew."""
    path.write_bytes(path.read_bytes() * 2)
    return path


def tagged(**colours: int) -> dict[str, int]:
    """Numbers of H.273."""
    names = {"matrix": "colorspace", "primaries": "color_primaries", "transfer": "color_trc", "range": "color_range"}
    return {names[name]: value for name, value in colours.items()}


TURNS: dict[str, tuple[tuple[int, ...], Callable[[Frames], Frames]]] = {
    "left": ((0, -ONE, 0, ONE, 0, 0, 0, 0, 1 << 30), np.rot90),
    "portrait": (PORTRAIT, lambda frame: np.rot90(frame, -1)),
    "over": ((-ONE, 0, 0, 0, -ONE, 0, 0, 0, 1 << 30), lambda frame: frame[::-1, ::-1]),
    "mirror": ((-ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30), lambda frame: frame[:, ::-1]),
    "water": ((ONE, 0, 0, 0, -ONE, 0, 0, 0, 1 << 30), lambda frame: frame[::-1]),
    "across": ((0, ONE, 0, ONE, 0, 0, 0, 0, 1 << 30), lambda frame: frame.swapaxes(0, 1)),
    "back": ((0, -ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30), lambda frame: frame.swapaxes(0, 1)[::-1, ::-1]),
}
"""Display matrices, and how a player shows a stored picture under them."""

OPEN = {"x264-params": "keyint=6:open-gop=1:bframes=3:b-adapt=0:scenecut=0"}
TUNED = r"begins between key frames: its first \d+ frames cannot be decoded and are left out"
JUMPS = (0, 40, 80, 120, 600, 640, 680, 1100, 1140, 1180, 1220, 2000)

CLIPS: tuple[Odd, ...] = (
    # containers
    *(Odd(f"h264{suffix}") for suffix in (".mp4", ".mov", ".mkv", ".ts", ".flv", ".m4v", ".3gp", ".h264")),
    Odd("fragments.mp4", container={"movflags": "frag_keyframe+empty_moov"}),
    Odd("live.mkv", container={"live": "1"}),
    Odd("m2ts.ts", container={"mpegts_m2ts_mode": "1"}),
    Odd("clip.nut", "ffv1"),
    Odd("clip.mxf", "mpeg2video", rate=25, size=(64, 64), options={"b:v": "1000000"}),
    Odd("clip.vob", "mpeg2video", format="vob"),
    Odd("clip.asf", "msmpeg4", format="asf"),
    Odd("clip.ogv", "mpeg4", format="matroska"),
    Odd("clip.ivf", "libvpx"),
    # codecs
    Odd("mpeg4.avi", "mpeg4", options={"bf": "2"}),
    Odd("mjpeg.avi", "mjpeg", "yuvj420p"),
    Odd("huffyuv.avi", "huffyuv", "yuv422p"),
    Odd("raw.avi", "rawvideo", "bgr24"),
    Odd("utvideo.avi", "utvideo", "gbrp"),
    Odd("zmbv.avi", "zmbv", "bgr0"),
    Odd("magicyuv.avi", "magicyuv", "gbrp"),
    Odd("mpeg2.ts", "mpeg2video", options={"bf": "2"}),
    Odd("mpeg1.mpg", "mpeg1video"),
    Odd("flv1.flv", "flv"),
    Odd("prores.mov", "prores_ks", "yuv422p10le"),
    Odd("qtrle.mov", "qtrle", "rgb24"),
    Odd("png.mov", "png", "rgb24"),
    Odd("h263.3gp", "h263", size=(96, 128)),
    Odd("vp8.webm", "libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "8"}),
    Odd("vp9.webm", "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    Odd("av1.mp4", "libsvtav1", size=(64, 64), options={"preset": "12", "svtav1-params": "lp=1"}),
    Odd("hevc.mp4", "libx265", options={"preset": "ultrafast", "x265-params": "log-level=none:keyint=6:bframes=2"}),
    Odd("clip.gif", "gif", "rgb8", rate=15),
    Odd("alpha.webm", "libvpx-vp9", "yuva420p", options={"cpu-used": "8"}, remark="transparency is left out"),
    # pixel formats and colours
    Odd("grey.mkv", "ffv1", "gray"),
    Odd("grey16.mkv", "ffv1", "gray16le"),
    Odd("deep.mkv", "ffv1", "yuv444p16le"),
    Odd("alpha.mov", "qtrle", "argb"),
    Odd("alpha.mkv", "ffv1", "yuva420p"),
    Odd("h264_444.mkv", pixels="yuv444p", size=(47, 63)),
    Odd("ten.mp4", pixels="yuv420p10le"),
    Odd("full.mp4", stream=tagged(matrix=1, primaries=1, transfer=1, range=2)),
    Odd("bt709.mp4", stream=tagged(matrix=1, primaries=1, transfer=1, range=1)),
    Odd("pal.mp4", stream=tagged(matrix=5, primaries=5, transfer=6, range=1)),
    Odd(
        "hdr.mp4",
        pixels="yuv420p10le",
        stream=tagged(matrix=9, primaries=9, transfer=16, range=1),
        remark=r"high dynamic range \(PQ\) and come as stored",
    ),
    Odd("ycgco.mp4", pixels="yuv444p", stream={"colorspace": 8}, refused="got colour matrix 8"),
    # shape
    Odd("wide.mp4", stream={"sample_aspect_ratio": Fraction(16, 15)}),
    Odd("high.mkv", stream={"sample_aspect_ratio": Fraction(3, 4)}),
    Odd("dvd.mpg", "mpeg2video", stream={"sample_aspect_ratio": Fraction(64, 45)}, size=(48, 60)),
    Odd("absurd.mp4", stream={"sample_aspect_ratio": Fraction(30)}, refused="got pixels 30 times as wide as high"),
    *(Odd(f"{name}.mp4", matrix=matrix, upright=upright) for name, (matrix, upright) in TURNS.items()),
    Odd("turned_wide.mp4", stream={"sample_aspect_ratio": Fraction(2)}, matrix=PORTRAIT, upright=TURNS["portrait"][1]),
    Odd("interlaced.mp4", options={"x264-params": "tff=1"}, stream={"flags": 1 << 18}, remark="interlaced"),
    Odd("tiny.mkv", "ffv1", size=(1, 1)),
    # time
    Odd("one.mp4", frames=1),
    Odd("ntsc.mkv", rate=Fraction(30000, 1001), frames=40),
    Odd("fast.mkv", rate=240, frames=60),
    Odd("slow.mp4", rate=SLOW_RATE, frames=3),
    Odd("uneven.mp4", times=JUMPS),
    Odd("uneven.mkv", times=JUMPS),
    Odd("late.mkv", times=tuple(time + 5000 for time in JUMPS)),
    Odd("trimmed.mp4", rate=10, frames=20, then=lambda path: trim(path, 3, 0.5)),
    Odd("open.mp4", options=OPEN, frames=30),
    Odd("joined.ts", "mpeg2video", then=twice, remark="begin anew"),
    Odd("tuned_in.ts", options={"bf": "0"}, frames=30, then=cut_front, remark=TUNED),
    Odd("tuned_in_open.ts", options=OPEN, frames=30, then=cut_front, remark=TUNED),
    Odd("tuned_in_mpeg2.ts", "mpeg2video", options={"bf": "2"}, frames=30, then=cut_front, remark=TUNED),
    Odd("tuned_in.h264", frames=30, then=cut_front, remark=TUNED),
)

DAMAGED = (
    "h264.mp4",
    "h264.mkv",
    "mpeg2.ts",
    "mpeg4.avi",
    "vp8.webm",
    "clip.gif",
    "h264.h264",
    "prores.mov",
    "flv1.flv",
)


def damage(content: bytes, seed: int) -> bytes:
    """A file cut off, or with some bytes overwritten."""
    draw = np.random.default_rng(seed)
    found = bytearray(content)
    if seed % 4 == 0:
        return bytes(found[: draw.integers(len(found) // 4, len(found))])
    for place in draw.integers(0, len(found), 1 + 6 * (seed % 4 - 1)):
        found[place] = draw.integers(256)
    return bytes(found)


def decoded_frames(path: Path) -> Iterator[av.VideoFrame]:
    """Whatever comes out of the plainest loop over PyAV, damaged or not."""
    with av.open(str(path), metadata_errors="replace") as file:
        stream = file.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        for packet in file.demux(stream):
            with contextlib.suppress(av.error.InvalidDataError):
                yield from packet.decode()


def as_shown(frame: av.VideoFrame, odd: Odd) -> Frames:
    """A decoded frame as a player shows it: pixels made square by drawing out the shorter side, then turned."""
    aspect = odd.stream.get("sample_aspect_ratio", Fraction(1))
    if odd.codec == "h263":  # whose pixels always are those of CIF
        aspect = Fraction(12, 11)
    width, height = round(frame.width * max(aspect, 1)), round(frame.height / min(aspect, 1))
    return odd.upright(frame.reformat(width=width, height=height, format="rgb24").to_ndarray())
