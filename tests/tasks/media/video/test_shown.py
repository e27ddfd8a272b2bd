"""Pictures as players show them: upright, with square pixels, in their own colours, or with a word about it."""

import re
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from maskgen.tasks.media.video.files import VideoFile, load_video
from tests.tasks.media.video.samples import decoded, moving, write

ROOT = Path(__file__).resolve().parents[4]
COLOURS = np.array([(220, 30, 30), (30, 200, 40), (30, 40, 220), (230, 220, 20)], np.uint8)


def write_colours(path: Path, coefficients: tuple[float, float] | None, matrix: int, **tags: int) -> Path:
    """Four stripes as H.264.

    Args:
        path: where.
        coefficients: weights of red and blue in luma, of H.273; luma and chroma are made by them here, not by FFmpeg.
        matrix: what the file says of them, in the numbers of H.273.
        **tags: likewise ``primaries`` and ``transfer``; ``range`` is 2 where luma fills 0 to 255.
    """
    full = tags.get("range") == 2
    picture = np.repeat(np.repeat(COLOURS[None], 32, 1), 64, 0).reshape(64, 128, 3)
    red, blue = coefficients or (0.299, 0.114)
    rgb = picture / 255
    luma = red * rgb[..., 0] + (1 - red - blue) * rgb[..., 1] + blue * rgb[..., 2]
    chroma = (rgb[..., 2] - luma) / (2 * (1 - blue)), (rgb[..., 0] - luma) / (2 * (1 - red))
    planes = [luma * 255 if full else 16 + 219 * luma]
    planes += [128 + (255 if full else 224) * plane[::2, ::2] for plane in chroma]
    yuv = np.concatenate([np.rint(plane).clip(0, 255).astype(np.uint8).reshape(-1, 128) for plane in planes])
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx264", rate=10, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, tags.get("range", 1)
        context.color_primaries, context.color_trc = tags.get("primaries", 2), tags.get("transfer", 2)
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(yuv, "yuv420p")
            frame.colorspace, frame.color_range = context.colorspace, context.color_range
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize(
    ("coefficients", "matrix", "full"),
    [
        ((0.2126, 0.0722), 1, False),
        ((0.2126, 0.0722), 1, True),
        ((0.299, 0.114), 6, False),
        ((0.299, 0.114), 5, True),
        ((0.2627, 0.0593), 9, False),
        (None, 2, False),
    ],
)
def test_colours(tmp_path: Path, coefficients: Any, matrix: int, full: bool, reader: Any) -> None:
    """PyAV below 17 takes the matrix of BT.601 for every file: off by 20 and more."""
    path = write_colours(tmp_path / "a.mp4", coefficients, matrix, range=1 + full)
    with VideoFile(path, reader=reader) as file:
        for size in (None, (32, 64)):
            found = file.read([1], size=size)[0]
            stripes = found.reshape(found.shape[0], 4, -1, 3)
            side = stripes.shape[2]
            assert np.abs(stripes[8:-8, :, side // 4 : -side // 4].astype(int) - COLOURS[:, None]).max() <= 6


def test_the_lowest_version_of_pyav() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (wanted,) = [one for one in project["project"]["optional-dependencies"]["video"] if one.startswith("av")]
    (pinned,) = re.findall(r"^av==(\d+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert int(re.findall(r">=(\d+)", wanted)[0]) >= 17
    assert int(pinned) >= 17


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(16, 15), Fraction(4, 3), Fraction(1, 2), Fraction(8, 9)])
def test_pixels_that_are_not_square(tmp_path: Path, aspect: Fraction) -> None:
    """A circle stays one; the side that is too short is drawn out."""
    rows, columns = np.mgrid[:120, :120] - 59.5
    stored = (rows**2 + (columns * aspect) ** 2 if aspect > 1 else (rows / aspect) ** 2 + columns**2) < 40**2
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx264", rate=10, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = 120, 120, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for _ in range(3):
            picture = np.repeat(stored[..., None], 3, axis=2).astype(np.uint8) * 255
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode())
    with VideoFile(path) as file:
        assert file.width / file.height == pytest.approx(float(aspect), abs=0.02)
        assert min(file.height, file.width) == 120
        circle = file.read([1])[0, :, :, 0] > 128
        assert np.ptp(np.flatnonzero(circle.any(0))) == pytest.approx(np.ptp(np.flatnonzero(circle.any(1))), abs=3)
        assert file.read([1], size=(60, 50)).shape == (1, 60, 50, 3)
    assert load_video(path)[0].shape[1:3] == (file.height, file.width)


def test_what_is_said(tmp_path: Path) -> None:
    turned = tuple(round(part * 0.7071) for part in (1 << 16, 1 << 16)), 1 << 30
    oblique = write(
        tmp_path / "a.mp4", moving(3), matrix=(*turned[0], 0, -turned[0][0], turned[0][1], 0, 0, 0, 1 << 30)
    )
    with pytest.warns(UserWarning, match=r"a\.mp4: turned by no whole quarter: taken at the nearest one"):
        VideoFile(oblique)
    clear = tmp_path / "b.mov"
    with av.open(str(clear), "w") as file:
        stream: Any = file.add_stream("qtrle", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "argb"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((16, 16, 4), 100, np.uint8), "argb")))
        file.mux(stream.encode())
    with pytest.warns(UserWarning, match=r"b\.mov: transparency is left out"):
        VideoFile(clear)
    hybrid = write_colours(tmp_path / "c.mp4", None, 9, primaries=9, transfer=18)
    with pytest.warns(UserWarning, match=r"high dynamic range \(HLG\) and come as stored, not mapped"):
        VideoFile(hybrid)
    with VideoFile(hybrid, quiet=True) as quiet:
        assert len(quiet.remarks) == 1
        assert np.array_equal(quiet.read(), decoded(hybrid))
