"""Every odd picture is read as Pillow decodes it, upright, opaque and in sRGB, or refused in one line that names it."""

import io
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from maskgen.tasks.data.images.sources import decode_picture
from maskgen.tasks.media.images import load_image
from maskgen.tasks.media.originals import load_original
from tests.tasks.media.odd_pictures import odd_pictures, spoilt_pictures
from tests.tasks.media.test_originals import wide_gamut

Values = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def decoded(content: bytes) -> Values:
    """What Pillow makes of a file, in the plainest arithmetic: values 0 to 255 on white."""
    with Image.open(io.BytesIO(content)) as opened:
        picture = ImageOps.exif_transpose(opened)
    clear = picture.info.get("transparency")
    if picture.mode.startswith(("I", "F")):
        plain = np.asarray(picture).astype(np.float64)
        grey = plain * (255 if picture.mode == "F" else 1 / 257)
        return np.repeat((grey if clear is None else np.where(plain == clear, 255, grey))[..., None], 3, axis=2)
    if picture.mode in ("La", "RGBa"):
        picture = picture.convert(picture.mode.upper())
    alpha = np.asarray(picture.convert("RGBA"))[..., 3:] / 255 if picture.has_transparency_data else np.float64(1)
    rgb = picture.convert("RGB")
    found = ImageCms.ImageCmsProfile(io.BytesIO(picture.info.get("icc_profile") or wide_gamut()))
    if picture.info.get("icc_profile") and found.profile.xcolor_space.strip() in ("RGB", "GRAY", "CMYK"):
        source = picture if picture.mode in ("L", "CMYK") else rgb
        rgb = ImageCms.profileToProfile(source, found, ImageCms.createProfile("sRGB"), outputMode="RGB") or rgb
    return np.asarray(rgb) * alpha + 255 * (1 - alpha)


def load(path: Path) -> tuple[Values | None, str, list[str]]:
    """What maskgen makes of it; or the refusal; and what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            return np.asarray(load_image(path)).astype(np.float64), "", [str(one.message) for one in said]
        except ValueError as error:
            return None, str(error), []


def wrong(name: str, content: bytes, path: Path) -> str:
    """What is wrong with how a picture is read; "" if nothing."""
    path.write_bytes(content)
    got, refused, _ = load(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = decoded(content)
    except Exception as error:  # whatever Pillow says
        return "" if got is None else f"{name}: read, where Pillow says {error!r}"
    if got is None:
        one_line = refused.startswith(f"{path}: ") and refused.count(str(path)) == 1 and "\n" not in refused
        return "" if one_line else f"{name}: refused with {refused!r}"
    if got.shape != expected.shape:
        return f"{name}: {got.shape}, expected {expected.shape}"
    return "" if (off := np.abs(got - expected).max()) <= 1.01 else f"{name}: off by {off:.1f}"


def test_odd_pictures(tmp_path: Path) -> None:
    pictures = odd_pictures()
    assert len(pictures) >= 500
    assert [told for name, content in pictures if (told := wrong(name, content, tmp_path / "a"))] == []


def test_spoilt_pictures(tmp_path: Path) -> None:
    pictures = list(spoilt_pictures())
    assert len(pictures) > 500
    assert [told for name, content in pictures if (told := wrong(name, content, tmp_path / "a"))] == []


def doors(name: str, content: bytes, path: Path) -> str:
    """Where training and edits see something else than everyone else, or do not say what they must; "" if nowhere."""
    path.write_bytes(content)
    got, _, said = load(path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            seen = [decode_picture(content, str(path)), load_original(path).rgb]
        except ValueError as error:
            return "" if got is None and str(error).startswith(f"{path}: ") else f"{name}: {error}"
    if got is None or not all(np.array_equal(np.asarray(one), got) for one in seen):
        return f"{name}: seen otherwise"
    first = [line for line in map(str, (one.message for one in told)) if line.startswith(f"{path}: ")]
    depth = any("16 bits a channel come back as 8" in line for line in first)
    moving, deep = (
        name.endswith("moving"),
        "I;16" in name or "16 bits" in name or re.match(r"PNG \d 2", name) is not None,
    )
    if moving != any("the first of" in line for line in said) or moving != any(
        "the first of" in line for line in first
    ):
        return f"{name}: several pictures: {said} {first}"
    return "" if depth or not deep or name.split()[0] in SHALLOW else f"{name}: depth unsaid: {first}"


SHALLOW = ("AVIF", "GIF", "WEBP", "SPIDER")  # Pillow writes what is deeper as 8 bits


def test_every_door(tmp_path: Path) -> None:
    assert [told for name, content in odd_pictures() if (told := doors(name, content, tmp_path / "a"))] == []
