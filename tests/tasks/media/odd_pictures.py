"""Odd pictures: every format, mode, depth, compression and option that Pillow writes, and files that are cut or spoilt.

Shapes: H W pixels.
"""

import io
import itertools
import struct
import warnings
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from tests.tasks.media.test_originals import wide_gamut

H, W = 11, 14

Named = tuple[str, bytes]

_DRAWN = np.random.default_rng(7)
_SMOOTH = np.linspace(0, 1, H)[:, None] * np.linspace(0.2, 1, W)
_RGBA = np.stack([255 * _SMOOTH, 255 - 200 * _SMOOTH, 120 + 90 * _SMOOTH, 255 * _SMOOTH[::-1]], -1).astype(np.uint8)
_DEEP = _DRAWN.integers(0, 65536, (H, W))


def base(mode: str) -> Image.Image:
    """A picture of any mode that Pillow has."""
    whole = Image.fromarray(_RGBA)
    if mode.startswith("I;16"):
        kind = ">u2" if mode.endswith("B") else "<u2"
        return Image.frombytes(mode, (W, H), _DEEP.astype(kind).tobytes())
    if mode in ("I", "F"):
        return Image.fromarray(_DEEP.astype(np.int32) if mode == "I" else (_DEEP / 65535).astype(np.float32))
    if mode in ("La", "PA", "RGBa"):
        return whole.convert({"La": "LA", "PA": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        found = ImageCms.profileToProfile(whole.convert("RGB"), *profiles, outputMode="LAB")
        assert found is not None
        return found
    return whole.convert(mode) if mode in ("LA", "RGBA") else whole.convert("RGB").convert(mode)


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr", "LAB", "HSV", "I", "F")
DEEP_MODES = ("I;16", "I;16L", "I;16B")


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file; none where Pillow does not write such a one."""
    stream = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that Pillow will drop
            picture.save(stream, kind, **options)
    except (OSError, ValueError, KeyError, TypeError, SystemError, RuntimeError):
        return b""
    return stream.getvalue()


@cache
def every_mode() -> list[Named]:
    """All formats in all modes."""
    Image.init()
    found = []
    for kind in sorted(Image.SAVE):
        for mode in MODES + DEEP_MODES if kind != "ICNS" else ("RGBA", "I;16"):  # which holds a megapixel
            found.append((f"{kind} {mode}", encoded(base(mode), kind)))
    return found


def every_option() -> Iterator[Named]:
    """What formats know beside modes: compression, depth, palettes, transparency, byte order, sizes."""
    for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma"):
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"):
            yield f"TIFF {name} {mode}", encoded(base(mode), "TIFF", compression=name)
    few = {"jpeg": ("L", "RGB", "CMYK"), "group3": ("1",), "group4": ("1",), "tiff_ccitt": ("1",)}
    for name, mode in ((name, mode) for name, modes in few.items() for mode in modes):
        yield f"TIFF {name} {mode}", encoded(base(mode), "TIFF", compression=name)
    for mode in ("L", "RGB", "I;16"):
        yield f"TIFF predictor {mode}", encoded(base(mode), "TIFF", compression="tiff_lzw", tiffinfo={317: 2})
        yield f"TIFF big {mode}", encoded(base(mode), "TIFF", big_tiff=True)
    for bits in (1, 2, 4, 8):
        reduced = base("RGB").quantize(2**bits)
        yield f"PNG P {bits}", encoded(reduced, "PNG", bits=bits)
        for clear in (0, bytes(range(0, 256, 256 // 2**bits))):
            yield f"PNG P {bits} {clear!r:.8}", encoded(reduced, "PNG", bits=bits, transparency=clear)
            yield f"GIF P {bits} {clear!r:.8}", encoded(reduced, "GIF", transparency=clear if clear == 0 else 1)
    for level in (0, 1, 9):
        yield f"PNG level {level}", encoded(base("RGB"), "PNG", compress_level=level, optimize=level > 5)
    grey, colour, deep = int(np.asarray(base("L"))[3, 3]), tuple(map(int, _RGBA[2, 5, :3])), int(_DEEP[4, 4])
    for mode, clear in (("1", 0), ("L", grey), ("RGB", colour), ("I;16", deep)):
        yield f"PNG {mode} one clear colour", encoded(base(mode), "PNG", transparency=clear)
    for quality, sampling, progressive in itertools.product((1, 50, 100), (0, 1, 2), (False, True)):
        how = {"quality": quality, "subsampling": sampling, "progressive": progressive}
        for mode in ("L", "RGB", "CMYK"):
            yield f"JPEG {mode} {quality} {sampling} {progressive}", encoded(base(mode), "JPEG", **how)
    yield "JPEG restart", encoded(base("RGB"), "JPEG", restart_marker_blocks=1)
    yield "JPEG keep_rgb", encoded(base("RGB"), "JPEG", keep_rgb=True)
    yield "JPEG CMYK progressive", encoded(base("CMYK"), "JPEG", progressive=True)
    for mode in ("RGB", "RGBA"):
        for how in ({"lossless": True}, {"lossless": True, "exact": True}, {"quality": 20}, {"alpha_quality": 30}):
            yield f"WEBP {mode} {how}", encoded(base(mode), "WEBP", **how)
        for how in ({"quality": 100, "subsampling": "4:4:4"}, {"subsampling": "4:2:0"}, {"subsampling": "4:0:0"}):
            yield f"AVIF {mode} {how}", encoded(base(mode), "AVIF", speed=10, **how)
        for how in ({"irreversible": True}, {"num_resolutions": 1}, {"no_jp2": True}, {"progression": "RLCP"}):
            yield f"JPEG2000 {mode} {how}", encoded(base(mode), "JPEG2000", **how)
        for compression in (None, "tga_rle"):
            yield f"TGA {mode} {compression}", encoded(base(mode), "TGA", compression=compression, orientation=1)
    for mode in ("L", "P", "RGB", "RGBA"):
        yield f"GIF interlaced {mode}", encoded(base(mode), "GIF", interlace=1)
        yield f"ICO bmp {mode}", encoded(base(mode), "ICO", bitmap_format="bmp", sizes=[(W, H), (7, 5)])
        yield f"TGA rle {mode}", encoded(base(mode), "TGA", compression="tga_rle")
    for pixel in ("DXT1", "DXT3", "DXT5", "BC2", "BC3", "BC5"):
        yield f"DDS {pixel}", encoded(base("RGBA").resize((16, 12)), "DDS", pixel_format=pixel)


def every_side() -> Iterator[Named]:
    """Orientations and colour profiles."""
    profiles = {"P3": wide_gamut(), "sRGB": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"):
        for turn in range(1, 9):
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = turn
            for mode in ("L", "RGB") if turn % 2 else ("RGBA",):
                yield f"{kind} {mode} turned {turn}", encoded(base(mode), kind, exif=exif)
        for mode in ("RGB", "RGBA", "P"):
            for name, profile in profiles.items():
                yield f"{kind} {mode} {name}", encoded(base(mode), kind, icc_profile=profile)


def every_animation() -> Iterator[Named]:
    """Files of several pictures."""
    for mode in ("L", "RGB", "RGBA", "P"):
        frames = [base(mode), base(mode).transpose(Image.Transpose.ROTATE_180), base(mode)]
        for kind in ("GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"):
            more = {} if kind in ("TIFF", "MPO") else {"duration": 50}
            yield f"{kind} {mode} moving", encoded(frames[0], kind, save_all=True, append_images=frames[1:], **more)
    first = base("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    told = {"save_all": True, "append_images": [base("RGB")] * 2, "default_image": True}
    yield "PNG default image moving", encoded(first, "PNG", **told)


def handmade_pngs() -> Iterator[Named]:
    """PNG files that Pillow reads and does not write: 16 bits a channel, interlaced, and with a long text."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    def png(pixels: np.ndarray[Any, Any], colour: int, interlaced: bool = False, more: bytes = b"") -> bytes:
        depth = 8 * pixels.itemsize
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
        parts = [pixels[y::h, x::w] for y, x, h, w in passes] if interlaced else [pixels]
        rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part if part.size)
        head = struct.pack(">IIBBBBB", W, H, depth, colour, 0, 0, interlaced)
        body = chunk(b"IHDR", head) + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + body

    for channels, colour in ((1, 0), (3, 2), (2, 4), (4, 6)):
        for kind in (np.uint8, ">u2"):
            deep = _DRAWN.integers(0, np.iinfo(kind).max + 1, (H, W, channels)).astype(kind)
            for interlaced in (False, True):
                yield f"PNG {channels} {np.dtype(kind).itemsize} {interlaced}", png(deep, colour, interlaced)
    text = PngInfo()
    text.add_text("history", "x" * 2_000_000, zip=True)
    yield "PNG long text", encoded(base("RGB"), "PNG", pnginfo=text)
    clear = chunk(b"tRNS", struct.pack(">H", 77)) + chunk(b"gAMA", struct.pack(">I", 45455))
    yield "PNG clear grey of 16 bits", png(np.where(_DEEP > 32768, 77, _DEEP)[..., None].astype(">u2"), 0, more=clear)


@cache
def odd_pictures() -> list[Named]:
    """All of them, by names that say what is odd."""
    parts = (every_mode(), every_option(), every_side(), every_animation(), handmade_pngs())
    return [(name, content) for part in parts for name, content in part if content]


def spoilt_pictures() -> Iterator[Named]:
    """Files of each format that are cut, or have a few bytes turned over, always the same."""
    draw = np.random.default_rng(3)
    for name, content in [*every_mode(), *every_animation()]:
        kind, mode, *_ = name.split()
        if not content or kind == "ICNS" or mode not in ("L", "RGB", "RGBA", "P", "I;16"):
            continue
        for share in (0.05, 0.5, 0.9, 0.99):
            yield f"{name} cut at {share}", content[: int(len(content) * share)]
        for number in range(4):
            changed = bytearray(content)
            for place in draw.integers(4, len(content), 1 + 2 * number):
                changed[place] ^= int(draw.integers(1, 256))
            yield f"{name} spoilt {number}", bytes(changed)
