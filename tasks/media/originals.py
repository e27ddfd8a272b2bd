"""A picture that is edited: what the model sees of it, and what the result keeps of its file.

Kept: every pixel outside the edit in the file's own numbers, transparency, colour profile, EXIF (upright, without its
thumbnail, which would show the old picture), XMP and resolution. Said when lost: more than 8 bits a channel, CMYK and grey
profiles, further pictures of an animation, texts and comments, the place where it was taken: results are shared.

Shapes: H W pixels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from maskgen.tasks.media.colours import from_srgb, profile_of
from maskgen.tasks.media.images import ImageSource, load_image, losses, open_image

_THUMBNAIL, _DETAILS, _PLACE, _ORIENTATION = 1, 0x8769, 0x8825, 0x0112  # three directories of Exif, and a tag
_IPTC = 0x0404  # a resource of Photoshop
_OF_PILLOW = ("xmp", "XML:com.adobe.xmp", "compression")  # texts of ``info`` that are kept, or that nobody wrote


@dataclass(frozen=True)
class Original:
    """A picture to be edited.

    Attributes:
        rgb: what the model sees: upright 8-bit sRGB, transparency on white.
        pixels: uint8 ``[H, W, 3 or 4]``, the file's own numbers, with alpha if it has any.
        profile: RGB colour profile of ``pixels``; None for sRGB.
        info: of the result, as PIL's ``Image.info``.
    """

    rgb: Image.Image
    pixels: np.ndarray[Any, Any]
    profile: bytes | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.rgb.height, self.rgb.width

    def padded(self, top: int, bottom: int, left: int, right: int) -> Original:
        """The picture with its edge colours drawn outwards, by so many pixels on each side."""
        sides = ((top, bottom), (left, right), (0, 0))
        seen = Image.fromarray(np.pad(np.asarray(self.rgb), sides, mode="edge"))
        return replace(self, rgb=seen, pixels=np.pad(self.pixels, sides, mode="edge"))

    def paste(self, painted: Image.Image, weight: Tensor) -> Image.Image:
        """``weight`` x painted + (1 - ``weight``) x original, rounded, in the original's colours.

        Args:
            painted: opaque sRGB picture of the same size.
            weight: float ``[H, W]`` in [0, 1]; pixels with weight 0 are the original's, bit for bit.

        Returns:
            RGB, or RGBA if the original has transparency: what is painted is opaque.

        Raises:
            ValueError: sizes that differ.
        """
        share = weight.detach().cpu().numpy().astype(np.float32)[..., None]
        if (painted.height, painted.width) != self.size or share.shape[:2] != self.size:
            raise ValueError(
                f"paste: got painted {(painted.height, painted.width)} and weight {share.shape[:2]}, expected {self.size} "
                "as the original"
            )
        own = painted.convert("RGB") if self.profile is None else from_srgb(painted, self.profile)
        new, old = np.asarray(own, dtype=np.float32), self.pixels.astype(np.float32)
        if old.shape[2] == 3:
            mixed = new * share + old * (1 - share)
        else:
            alpha = old[..., 3:] / 255
            over = share + alpha * (1 - share)
            colour = (new * share + old[..., :3] * alpha * (1 - share)) / np.maximum(over, 1e-6)
            mixed = np.concatenate((colour, over * 255), axis=2)
            mixed = np.where(share == 0, old, mixed)  # colours under full transparency, too
        result = Image.fromarray(np.rint(mixed).astype(np.uint8))
        result.info.update(self.info)
        return result


def load_original(source: ImageSource) -> Original:
    """A picture for an edit, from what ``load_image`` takes; warns of what the result cannot keep.

    Raises:
        FileNotFoundError, ValueError, TypeError: see ``maskgen.tasks.media.images.load_image``.
    """
    if not isinstance(source, str | Path | Image.Image):
        rgb = load_image(source)
        return Original(rgb, np.asarray(rgb))
    if isinstance(source, Image.Image):
        name, upright, lost = "image", ImageOps.exif_transpose(source), losses(source)
    else:
        name, (upright, lost) = str(source), open_image(Path(source))
    try:
        rgb, profile = load_image(upright), profile_of(upright)
    except ValueError as error:
        raise ValueError(str(error).replace("image:", f"{name}:", 1)) from None
    if profile is not None and upright.mode in ("L", "LA"):
        lost.append("the grey profile comes back as sRGB")
    if _tells_place(upright):
        lost.append("the place where it was taken (GPS) is left out of the result")
    if texts := _texts(upright):
        lost.append(f"the file's texts ({', '.join(texts)}) are left out of the result")
    if lost:
        warnings.warn(f"{name}: {'; '.join(lost)}", stacklevel=3)
    if upright.mode.startswith(("I", "F")) or upright.mode == "CMYK" or "grey profile" in "".join(lost):
        return Original(rgb, np.asarray(rgb), None, _info(upright, None))
    kept = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    return Original(rgb, np.asarray(kept), profile, _info(upright, upright.info.get("icc_profile")))


def _tells_place(picture: Image.Image) -> bool:
    return bool(picture.getexif().get_ifd(_PLACE)) or b"GPS" in _xmp(picture)


def _texts(picture: Image.Image) -> list[str]:
    """Names of what people and programs wrote into a file beside EXIF and XMP: text of a PNG, comments, IPTC."""
    info = {name: value for name, value in picture.info.items() if name not in _OF_PILLOW}
    found = sorted(str(name) for name, value in info.items() if isinstance(value, str) or name == "comment")
    photoshop = info.get("photoshop")
    return found + (["IPTC"] if isinstance(photoshop, dict) and _IPTC in photoshop else [])


def _xmp(picture: Image.Image) -> bytes:
    found = picture.info.get("xmp") or b""
    return found.encode() if isinstance(found, str) else bytes(found)


def _info(picture: Image.Image, profile: bytes | None) -> dict[str, Any]:
    """What the result's file says beside its pixels."""
    kept = {name: picture.info[name] for name in ("dpi", "xmp") if picture.info.get(name)}
    if b"GPS" in _xmp(picture):
        del kept["xmp"]
    exif = picture.getexif()
    exif.pop(_ORIENTATION, None)
    exif.pop(_PLACE, None)
    exif._ifds.pop(_PLACE, None)
    if len(exif) or exif.get_ifd(_DETAILS):
        exif._ifds.pop(_THUMBNAIL, None)
        kept["exif"] = exif.tobytes()
    return kept | ({"icc_profile": profile} if profile else {})
