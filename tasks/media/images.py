"""Pictures in and out: files, PIL images and arrays to tensors and back, and one clear line for whatever is no picture.

Shapes: B batch, H W pixels. Sizes of PIL images are (width, height), sizes of tensors [H, W].
"""

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageColor, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from maskgen.checkpoint import atomic_file
from maskgen.tasks.media.checks import check_file, to_bytes
from maskgen.tasks.media.colours import profile_of, to_srgb

ImageSource = str | Path | Image.Image | np.ndarray[Any, Any]

MaskSource = ImageSource | Tensor

T = TypeVar("T")

# Editors write histories and whole previews as text; PIL refuses more than a megabyte unless told otherwise.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 1 << 28

_SMALLEST = 2  # pixels a side: below that there is nothing to interpolate


def load_image(source: ImageSource) -> Image.Image:
    """An 8-bit sRGB picture, upright (EXIF orientation applied) and opaque (transparency stands on white).

    An embedded colour profile is applied, so that the numbers are those a colour-managed viewer shows.

    Args:
        source: a path, a PIL image of any mode, or an array ``[H, W, 3]`` or ``[H, W]``, uint8 or float in [0, 1].
            Modes ``I`` and ``I;16`` hold 16-bit grey (0 to 65535), mode ``F`` 0 to 1: they are scaled, never clipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, an empty, damaged or foreign file, too many pixels, values out of range, a side below 2.
        TypeError: not one of these sources, or an array of another type.
    """
    return _load(source, "white")


def load_mask(source: MaskSource, size: tuple[int, int]) -> Tensor:
    """Which pixels to repaint.

    Args:
        source: as for ``load_image``, or a boolean array or tensor ``[H, W]``. White (half grey and lighter) and True
            are repainted; black, transparent and False are kept.
        size: the picture's (width, height), which the mask must have too.

    Returns:
        bool ``[H, W]``, with at least one pixel of each kind.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another size, all black, all white, or what ``load_image`` refuses.
        TypeError: not one of these sources.
    """
    if isinstance(source, Tensor):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray) and source.dtype == np.bool_:
        source = _from_array(source.astype(np.uint8) * 255)
    picture = _load(source, "black")
    if picture.size != tuple(size):
        raise ValueError(
            f"mask: got {picture.width} x {picture.height} pixels, expected {size[0]} x {size[1]} as the image; "
            "resize it"
        )
    mask = torch.from_numpy(np.array(picture.convert("L")) >= 128)
    if not mask.any():
        raise ValueError(
            "mask: nothing to repaint: every pixel is black, transparent or False; mark the region white or True "
            "(a mask of 0 and 1 must be boolean)"
        )
    if mask.all():
        raise ValueError("mask: nothing is kept: every pixel is white or True; use generate")
    return mask


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size as float32 ``[B, 3, H, W]`` in [0, 1].

    Raises:
        ValueError: no picture, or different sizes.
    """
    sizes = sorted({image.size for image in images})
    if len(sizes) != 1:
        raise ValueError(f"images: got sizes {sizes}, expected at least one picture and all of one size")
    arrays = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images])
    return rearrange(torch.from_numpy(arrays), "B H W C -> B C H W").contiguous() / 255


def to_images(tensor: Tensor) -> list[Image.Image]:
    """Float ``[B, 3, H, W]``, nominally in [0, 1], as 8-bit pictures: clamped, rounded to nearest.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    pixels = to_bytes(tensor, "images", "B, 3, H, W")
    return [Image.fromarray(picture) for picture in rearrange(pixels, "B C H W -> B H W C").cpu().numpy()]


def image_grid(images: Sequence[Image.Image], columns: int, *, pad: int = 2, background: str = "white") -> Image.Image:
    """Pictures in rows, left to right; the last row may be short.

    Args:
        images: at least one; cells have the size of the largest.
        columns: pictures a row, at least 1.
        pad: pixels between cells and around all of them.
        background: any colour PIL knows.

    Raises:
        ValueError: no picture, or numbers out of range.
    """
    if not images or columns < 1 or pad < 0:
        raise ValueError(
            f"image_grid: got {len(images)} images, columns {columns}, pad {pad}; "
            "expected 1 or more, 1 or more, 0 or more"
        )
    columns = min(columns, len(images))
    width, height = (max(sizes) for sizes in zip(*(image.size for image in images), strict=True))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + pad) + pad, rows * (height + pad) + pad), background)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        sheet.paste(image, (pad + column * (width + pad), pad + row * (height + pad)))
    return sheet


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write one picture, whole or not at all; the suffix chooses the format.

    Its profile, EXIF, XMP and resolution (``Image.info``) are written too, as far as the format holds them; where it
    holds no transparency, that is put on white and said.

    Raises:
        ValueError: a suffix that is no picture format.
        OSError: the place cannot be written to.
    """
    target = Path(path)
    more: dict[str, Any] = {name: image.info[name] for name in ("icc_profile", "exif", "dpi") if image.info.get(name)}
    if target.suffix.lower() in (".jpg", ".jpeg", ".jfif"):
        more["quality"] = 95
        if image.has_transparency_data:
            warnings.warn(f"{target}: JPEG holds no transparency; it stands on white (.png keeps it)", stacklevel=2)
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if xmp := image.info.get("xmp"):
        more["xmp"] = xmp
        if target.suffix.lower() == ".png":
            more["pnginfo"] = PngImagePlugin.PngInfo()
            more["pnginfo"].add_itxt(
                "XML:com.adobe.xmp", xmp.decode(errors="replace") if isinstance(xmp, bytes) else xmp
            )
    with _writing(target) as temporary:
        image.save(temporary, **more)


def save_gif(frames: Sequence[Image.Image], path: str | Path, seconds_per_frame: float) -> None:
    """Write an endless animation, whole or not at all.

    Args:
        frames: at least one.
        path: ends in ``.gif``.
        seconds_per_frame: above 0; each frame ends at the nearest hundredth of a second, and is shown for two of them at
            least: shorter ones browsers show for ten.

    Raises:
        ValueError: no frames, a duration that is not positive, another suffix.
        OSError: the place cannot be written to.
    """
    if not frames or not 0 < seconds_per_frame < float("inf"):
        raise ValueError(
            f"save_gif: got {len(frames)} frames of {seconds_per_frame} seconds, "
            "expected at least one and a positive time"
        )
    if Path(path).suffix.lower() != ".gif":
        raise ValueError(f"{path}: expected a name that ends in .gif")
    first, *rest = [frame.convert("RGB") for frame in frames]
    ends = [round(100 * seconds_per_frame * count) for count in range(len(frames) + 1)]
    milliseconds = [10 * max(2, end - begin) for begin, end in itertools.pairwise(ends)]
    with _writing(Path(path)) as temporary:
        first.save(temporary, save_all=True, append_images=rest, duration=milliseconds, loop=0)


def as_list(value: T | Sequence[T]) -> list[T]:
    """One value or several as a list; strings count as one value."""
    return list(cast("Sequence[T]", value)) if isinstance(value, list | tuple) else [cast("T", value)]


def broadcast(**lists: Sequence[Any]) -> list[list[Any]]:
    """Lists of one common length; those with a single value repeat it.

    Raises:
        ValueError: an empty list, or two lengths above 1 that differ.
    """
    lengths = {name: len(values) for name, values in lists.items()}
    count = max(lengths.values())
    if not set(lengths.values()) <= {1, count} or 0 in lengths.values():
        told = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"got {told}; expected the same number of each, or one")
    return [list(values) * (count if len(values) == 1 else 1) for values in lists.values()]


def _load(source: ImageSource, background: str) -> Image.Image:
    if isinstance(source, str | Path):
        name = str(source)
        with reading(Path(source)):
            opened, lost = open_image(Path(source))
            picture = _flatten(opened, background)
        if several := [one for one in lost if one.startswith("the first of")]:
            warnings.warn(f"{name}: {several[0].replace('edited', 'used')}", stacklevel=3)
    elif isinstance(source, Image.Image):
        picture, name = _flatten(ImageOps.exif_transpose(source), background), "image"
    elif isinstance(source, np.ndarray):
        picture, name = _from_array(source), "image"
    else:
        raise TypeError(f"image: got {type(source).__name__}, expected a path, a PIL image or a numpy array")
    if min(picture.size) < _SMALLEST:
        raise ValueError(
            f"{name}: got {picture.width} x {picture.height} pixels, expected {_SMALLEST} or more on each side"
        )
    return picture


def open_image(path: Path) -> tuple[Image.Image, list[str]]:
    """A picture of a file, upright and in its own mode, and what is lost of the file when it is edited and saved.

    Raises:
        FileNotFoundError, ValueError: see ``load_image``.
    """
    # Of the file's name Pillow maps some TIFF files into memory, and then takes the rows of turned ones for columns.
    with reading(path), path.open("rb") as file, Image.open(file) as opened:
        lost, upright = losses(opened), ImageOps.exif_transpose(opened)
    return upright, lost or losses(upright)  # of icons the mode is known once they are read


def losses(picture: Image.Image) -> list[str]:
    """What 8-bit colours and a single picture cannot hold of a file, in words.

    Args:
        picture: as opened, before its pixels are read: PIL reads 16-bit colours as 8-bit RGB.
    """
    raw = [str(part) for tile in getattr(picture, "tile", ()) for part in tile]
    told = []
    if picture.mode == "I" and not any(";16" in part for part in raw):
        told.append("32 bits a channel come back as 8")
    elif picture.mode.startswith("I") or any(";16" in part for part in raw):
        told.append("16 bits a channel come back as 8")
    elif picture.mode == "F":
        told.append("32-bit grey comes back as 8 bits")
    if picture.mode.startswith("I") and "transparency" in picture.info:
        told.append("the transparency of 16-bit grey comes back as white")
    if picture.mode in ("CMYK", "LAB", "YCbCr"):
        told.append(f"{picture.mode} comes back as RGB")
    if (frames := getattr(picture, "n_frames", 1)) > 1:
        told.append(f"the first of {frames} pictures is edited, the others are left out")
    return told


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Whatever is wrong with a picture file, in one line; ``path`` is the name of one in memory if it is a text."""
    if isinstance(path, Path):
        check_file(path, "an image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(
            f"{path}: got more than {Image.MAX_IMAGE_PIXELS} pixels, expected fewer; resize it first"
        ) from None
    except UnidentifiedImageError:
        raise ValueError(
            f"{path}: got a file that is no image, expected one that PIL can read (PNG, JPEG...)"
        ) from None
    except Exception as error:  # Pillow's readers raise almost anything on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ValueError) and reason.startswith(("image: ", f"{path}: ")):  # our own
            raise ValueError(f"{path}: {reason.removeprefix('image: ').removeprefix(f'{path}: ')}") from None
        raise ValueError(f"{path}: got a damaged image ({reason}), expected a complete file") from None


def _flatten(picture: Image.Image, background: str) -> Image.Image:
    """Any mode to opaque 8-bit RGB."""
    if picture.mode.startswith(("F", "I")):
        values = np.asarray(picture).astype(np.float64)
        most, told = (1, "0 to 1") if picture.mode == "F" else (65535, "16 bits: 0 to 65535")
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= most):
            raise ValueError(f"image: mode {picture.mode} holds {values.min():g} to {values.max():g}, expected {told}")
        grey = np.rint(values * (255 / most)).astype(np.uint8)
        if (clear := picture.info.get("transparency")) is not None:
            grey = np.where(values == clear, ImageColor.getrgb(background)[0], grey).astype(np.uint8)
        return _from_array(grey)
    profile = profile_of(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB") if profile is None else to_srgb(picture, profile)
    if picture.mode in ("La", "RGBa"):
        picture = picture.convert(picture.mode.upper())
    layer = picture.convert("RGBA")
    if profile is not None:
        seen = to_srgb(picture.convert("L" if picture.mode == "LA" else "RGB"), profile)
        seen.putalpha(layer.getchannel("A"))
        layer = seen
    return Image.alpha_composite(Image.new("RGBA", layer.size, background), layer).convert("RGB")


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"image: got an array of shape {array.shape}, expected [H, W, 3] or [H, W]")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ValueError(
                f"image: got values from {array.min()} to {array.max()}, expected 0 to 1 for {array.dtype}; "
                "divide by 255 or convert to uint8"
            )
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise TypeError(f"image: got an array of {array.dtype}, expected uint8, or float in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(array))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """``atomic_file`` for pictures, with errors that name the place asked for and not the temporary one."""
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{path}: expected a name that ends in a picture format such as .png or .jpg")
    try:
        with atomic_file(path) as temporary:
            yield temporary
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from None


def fill_holes(image: Tensor, hole: Tensor) -> Tensor:
    """Smooth colours for the pixels of a hole, made from those around it alone ("pull-push", Gortler et al. 1996).

    An encoder sees far beyond a token's own cell: whatever stands in a hole would colour the tokens beside it. Kept
    pixels stay; each hole pixel is interpolated from averages of kept pixels, the coarser the farther away.

    Args:
        image: float ``[3, H, W]``.
        hole: bool ``[H, W]`` with at least one False.

    Returns:
        float ``[3, H, W]``, which does not depend on what ``image`` holds in the hole.
    """
    if not hole.any():
        return image
    known = (~hole).float()[None, None]
    colour = torch.where(hole, 0.0, image)[None]
    # Colour and weight are divided by the same counts, which cancel.
    weight = F.avg_pool2d(known, 2, ceil_mode=True)[0]
    coarse = F.avg_pool2d(colour, 2, ceil_mode=True)[0] / weight.clamp(min=1e-6)
    coarse = fill_holes(coarse, weight[0] == 0)
    smooth = F.interpolate(coarse[None], size=tuple(hole.shape), mode="bilinear")[0]
    return torch.where(hole, smooth, image)
