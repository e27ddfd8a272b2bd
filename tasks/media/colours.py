"""Colour profiles: what a colour-managed viewer shows of a picture, as sRGB, and back.

Shapes: H W pixels.
"""

import io
import warnings
from functools import cache
from typing import Any

from PIL import Image, ImageCms


def profile_of(picture: Image.Image) -> bytes | None:
    """The embedded profile of a picture, where it says something else than sRGB; None if it has none that can be used.

    A damaged profile, or one for other channels than the picture's, is ignored with a warning: viewers do the same.
    """
    data = picture.info.get("icc_profile")
    if not data:
        return None
    spaces = {"RGB": ("RGB", "RGBA", "P", "PA"), "GRAY": ("L", "LA", "1"), "CMYK": ("CMYK",)}
    try:
        profile = _opened(data)
        space = profile.profile.xcolor_space.strip()
        if ImageCms.getProfileDescription(profile).strip().startswith("sRGB"):
            return None
    except (ImageCms.PyCMSError, OSError, ValueError, AttributeError) as error:
        warnings.warn(f"the picture's colour profile is damaged ({error}) and is ignored", stacklevel=2)
        return None
    if picture.mode not in spaces.get(space, ()):
        if space.upper() != picture.mode and not picture.mode.startswith(("I", "F")):
            warnings.warn(
                f"the colour profile is for {space}, but the picture is {picture.mode}: ignored", stacklevel=2
            )
        return None
    return bytes(data)


def to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """An opaque picture in the colours of its profile as 8-bit sRGB."""
    return _convert(picture, _opened(profile), _srgb())


def from_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """An 8-bit sRGB picture in the colours of an RGB profile; what that cannot show is clipped."""
    return _convert(picture, _srgb(), _opened(profile))


def _convert(picture: Image.Image, source: Any, target: Any) -> Image.Image:
    mode = picture.mode if picture.mode in ("RGB", "L", "CMYK") else "RGB"
    found = ImageCms.profileToProfile(picture.convert(mode), source, target, outputMode="RGB")
    assert found is not None, "only in place it returns nothing"
    return found


def _opened(profile: bytes) -> Any:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))


@cache
def _srgb() -> Any:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
