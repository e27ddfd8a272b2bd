"""What an edit keeps of a picture's file, and that it says what it cannot keep."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from maskgen.tasks.image import inpaint, outpaint, swap_class
from maskgen.tasks.media.images import load_image, save_image
from maskgen.tasks.media.originals import Original, load_original
from tests.support import tiny_pipeline

SIZE = (32, 40)  # (H, W)


def numbers(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def wide_gamut(gamma: float = 2.2) -> bytes:
    """A minimal matrix profile: Display P3's primaries adapted to D50."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    named = b"desc\0\0\0\0" + struct.pack(">I", 3) + b"P3\0" + b"\0" * 82
    tags = {b"desc": named, b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    tags |= {b"rXYZ": xyz(0.51512, 0.2412, -0.00105), b"gXYZ": xyz(0.29198, 0.69225, 0.04189)}
    tags |= {b"bXYZ": xyz(0.1571, 0.06657, 0.78407), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for name, body in tags.items():
        padded = body + b"\0" * (-len(body) % 4)
        table += name + struct.pack(">II", start + len(data), len(padded))
        data += padded
    head = struct.pack(">I4sI4s4s4s", start + len(data), b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + fixed(0.9642) + fixed(1.0) + fixed(0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def shown(image: Image.Image) -> np.ndarray[Any, Any]:
    """What a colour-managed viewer shows, as sRGB numbers."""
    profile, rgb = image.info.get("icc_profile"), image.convert("RGB")
    if profile:
        found = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        rgb = ImageCms.profileToProfile(rgb, found, ImageCms.createProfile("sRGB")) or rgb
    return np.asarray(rgb).astype(int)


def png_of_16_bits(pixels: np.ndarray[Any, Any]) -> bytes:
    """A 16-bit RGB PNG, which PIL reads but does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def edits(path: Path) -> Iterator[tuple[str, Image.Image]]:
    """A picture edited by each task, far from its top left corner."""
    pipe, label = tiny_pipeline(), 3
    mask = np.zeros(SIZE, bool)
    mask[20:28, 24:34] = True
    yield "inpaint", inpaint(pipe, path, mask, label=label, feather=1)[0]
    yield "outpaint", outpaint(pipe, path, right=8, label=label)[0]
    yield "swap", swap_class(pipe, path, box=(20, 24, 8, 10), label=label)[0]


def corner(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image)[:8, :8]


def test_a_colour_profile_is_kept_and_used(tmp_path: Path) -> None:
    profile, path = wide_gamut(), tmp_path / "photo.png"
    Image.fromarray(numbers(*SIZE, 3)).save(path, icc_profile=profile)
    before = Image.open(path)
    for name, made in edits(path):
        save_image(made, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as after:
            assert after.info["icc_profile"] == profile
            assert np.array_equal(corner(after), corner(before)), name
    # The model sees what a viewer shows, and what it paints is shown as it painted it.
    original = load_original(path)
    assert np.abs(np.asarray(original.rgb).astype(int) - shown(before)).max() <= 2
    grey = Image.new("RGB", (SIZE[1], SIZE[0]), (120, 130, 140))
    assert np.abs(shown(original.paste(grey, torch.ones(SIZE))) - np.asarray(grey)).max() <= 3


def test_transparency_is_kept(tmp_path: Path) -> None:
    pixels = numbers(*SIZE, 4)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    for name, made in edits(tmp_path / "photo.png"):
        assert made.mode == "RGBA"
        assert np.array_equal(corner(made), pixels[:8, :8]), name  # colours under full transparency, too
    weight = torch.zeros(SIZE)
    weight[0, :2] = torch.tensor([1.0, 0.5])
    original = Original(load_image(tmp_path / "photo.png"), np.full((*SIZE, 4), (10, 20, 30, 0), np.uint8))
    mixed = np.asarray(original.paste(Image.new("RGB", (SIZE[1], SIZE[0]), (200, 100, 50)), weight))
    assert mixed[0, 0].tolist() == [200, 100, 50, 255]
    assert mixed[0, 1].tolist() == [200, 100, 50, 128]  # over nothing only the painted colour shows
    with pytest.warns(UserWarning, match="JPEG holds no transparency; it stands on white"):
        save_image(made, tmp_path / "made.jpg")


def test_metadata_is_kept_upright_and_without_the_old_thumbnail(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    exif.get_ifd(1)[0x0201] = 1
    path = tmp_path / "photo.jpg"
    Image.fromarray(numbers(SIZE[1], SIZE[0], 3)).save(path, exif=exif, dpi=(300, 300), xmp=b"<x:xmpmeta/>")
    for name, made in edits(path):
        save_image(made, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as after:
            found = after.getexif()
            assert (found.get(0x0112), found[0x010F]) == (None, "Maker")
            assert found.get_ifd(0x8769)[0x9003] == "2024:05:06 07:08:09"
            assert not found.get_ifd(1)
            assert [round(value) for value in after.info["dpi"]] == [300, 300]
            assert b"xmpmeta" in str(after.info.get("xmp")).encode()


@pytest.mark.parametrize("where", ["exif", "xmp"])
def test_the_place_is_left_out_and_that_is_said(where: str, tmp_path: Path) -> None:
    exif, path = Image.Exif(), tmp_path / "photo.jpg"
    exif[0x010F] = "Maker"
    if where == "exif":
        exif.get_ifd(0x8825)[2] = (48.0, 8.0, 14.0)
    xmp = b'<x:xmpmeta exif:GPSLatitude="48,8.2N"/>' if where == "xmp" else b"<x:xmpmeta/>"
    Image.fromarray(numbers(*SIZE, 3)).save(path, exif=exif, xmp=xmp)
    with pytest.warns(UserWarning, match=r"photo\.jpg: the place where it was taken \(GPS\) is left out of the result"):
        original = load_original(path)
    save_image(original.paste(original.rgb, torch.zeros(original.size)), tmp_path / "made.jpg")
    with Image.open(tmp_path / "made.jpg") as after:
        assert after.getexif()[0x010F] == "Maker"
        assert not after.getexif().get_ifd(0x8825)
    assert b"GPS" not in (tmp_path / "made.jpg").read_bytes()


ODD: dict[str, Any] = {
    "16-bit grey": (
        "16 bits a channel come back as 8",
        lambda: Image.fromarray(numbers(*SIZE).astype(np.uint16) * 257),
    ),
    "32-bit grey": ("32 bits a channel come back as 8", lambda: Image.fromarray(numbers(*SIZE).astype(np.int32))),
    "CMYK": ("CMYK comes back as RGB", lambda: Image.fromarray(numbers(*SIZE, 4), "CMYK")),
    "LAB": ("LAB comes back as RGB", lambda: Image.fromarray(numbers(*SIZE, 3), "LAB")),
    "YCbCr": ("YCbCr comes back as RGB", lambda: Image.fromarray(numbers(*SIZE, 3), "YCbCr")),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_lost_is_said(kind: str, tmp_path: Path) -> None:
    message, make = ODD[kind]
    path = tmp_path / "photo.tiff"
    make().save(path)
    with pytest.warns(UserWarning, match=rf"photo.tiff: {message}"):
        original = load_original(path)
    assert np.array_equal(original.pixels, np.asarray(load_image(path)))


def test_16_bit_colours_are_said(tmp_path: Path) -> None:
    pixels = numbers(*SIZE, 3)
    (tmp_path / "photo.png").write_bytes(png_of_16_bits(pixels))
    with pytest.warns(UserWarning, match="photo.png: 16 bits a channel come back as 8"):
        assert np.array_equal(load_original(tmp_path / "photo.png").pixels, pixels)


def test_texts_that_are_lost_are_said(tmp_path: Path) -> None:
    picture, text = Image.fromarray(numbers(*SIZE, 3)), PngImagePlugin.PngInfo()
    text.add_text("Title", "Autumn")
    text.add_itxt("parameters", "a wood in autumn, 20 steps")
    picture.save(tmp_path / "photo.png", pnginfo=text)
    picture.save(tmp_path / "photo.jpg", comment="by hand")
    for name, texts in (("photo.png", "Title, parameters"), ("photo.jpg", "comment")):
        with pytest.warns(UserWarning, match=rf"{name}: the file's texts \({texts}\) are left out of the result"):
            load_original(tmp_path / name)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_further_pictures_are_said(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"moving.{suffix}"
    first, *rest = [Image.fromarray(numbers(*SIZE, 3, seed=seed)) for seed in range(3)]
    first.save(path, save_all=True, append_images=rest, duration=100)
    with pytest.warns(UserWarning, match="the first of 3 pictures is edited, the others are left out"):
        load_original(path)


def test_a_damaged_profile_is_ignored_aloud(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(numbers(*SIZE, 3)).save(path, icc_profile=b"nothing like a profile" * 9)
    with pytest.warns(UserWarning, match="colour profile is damaged"):
        assert load_image(path).size == (SIZE[1], SIZE[0])


def test_a_grey_profile_is_said(tmp_path: Path) -> None:
    picture = Image.fromarray(numbers(*SIZE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(load_original(picture).pixels[..., 0], np.asarray(picture))


def test_a_long_text_is_no_damage(tmp_path: Path) -> None:
    """Editors keep their history in the file; PIL refuses a megabyte of it unless told otherwise."""
    text = PngImagePlugin.PngInfo()
    text.add_text("history", "paint " * 400_000, zip=True)
    Image.fromarray(numbers(*SIZE, 3)).save(tmp_path / "photo.png", pnginfo=text)
    assert load_image(tmp_path / "photo.png").size == (SIZE[1], SIZE[0])


sides, seeds = st.integers(2, 9), st.integers(0, 99)


@given(height=sides, width=sides, seed=seeds, channels=st.sampled_from([3, 4]))
def test_paste_keeps_pixels_without_weight(height: int, width: int, seed: int, channels: int) -> None:
    old = numbers(height, width, channels, seed=seed)
    new = Image.fromarray(numbers(height, width, 3, seed=seed + 1))
    weight = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    weight[0, 0], weight[-1, -1] = 0, 1
    made = np.asarray(Original(new, old).paste(new, weight)).astype(float)
    none, all_of_it = (weight == 0).numpy(), (weight == 1).numpy()
    assert np.array_equal(made[none], old[none])
    assert np.array_equal(made[all_of_it][:, :3], np.asarray(new)[all_of_it])
    if channels == 3:
        part = weight.numpy()[..., None]
        assert np.abs(made - (part * np.asarray(new) + (1 - part) * old)).max() <= 0.501


def test_paste_refuses_other_sizes() -> None:
    picture = Image.new("RGB", (4, 3))
    original = Original(picture, np.asarray(picture))
    with pytest.raises(ValueError, match=r"paste: got painted \(5, 4\) and weight \(3, 4\), expected \(3, 4\)"):
        original.paste(Image.new("RGB", (4, 5)), torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"weight \(2, 4\)"):
        original.paste(picture, torch.ones(2, 4))
