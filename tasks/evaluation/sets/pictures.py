"""The pictures of a data set as they are measured: cropped in the middle, never mirrored, and broken ones told apart.

Training puts the next whole picture in the place of a broken one; a measurement must count it and leave it out.

Shapes: H W pixels. Pictures are uint8 ``[3, H, W]``.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from maskgen.tasks.data.broken import Broken
from maskgen.tasks.data.captions import draw_caption
from maskgen.tasks.data.images.folders import ImageFiles
from maskgen.tasks.data.images.sources import Encoded, PictureSource, decode_picture

_AT_A_TIME = 64


class PlainPictures:
    """Encoded pictures without augmentation.

    Args:
        source: where they come from.
    """

    def __init__(self, source: PictureSource) -> None:
        self._source = source
        self._crop = dataclasses.replace(source.crop, kind="centre", flip=False)

    def __len__(self) -> int:
        return len(self._source.pictures)

    def read(self, indices: range) -> list[Tensor | Broken]:
        """Pictures; a ``Broken`` in place of one that cannot be read."""
        return [self._read(found) for found in self._source.pictures.read(indices)]

    def labels(self) -> list[int]:
        """Class of each; 0 for one whose bytes are out of reach, which is left out anyway."""
        if isinstance(self._source.pictures, ImageFiles):
            return self._source.pictures.labels
        return [found.label or 0 if isinstance(found, Encoded) else 0 for found in self._all()]

    def captions(self, indices: Sequence[int]) -> list[str | Broken]:
        """One of each picture's, drawn by its number; nothing is decoded."""
        found: list[str | Broken] = []
        for first in range(0, len(indices), _AT_A_TIME):
            part = indices[first : first + _AT_A_TIME]
            for index, one in zip(part, self._source.pictures.read(part), strict=True):
                if isinstance(one, Broken) or not one.captions:
                    found.append(Broken(one.name, one.reason if isinstance(one, Broken) else f"{one.name}: no caption"))
                else:
                    found.append(draw_caption(one.captions, index))
        return found

    def digest(self) -> str:
        """Hash of the files' bytes and of how they are cropped; nothing is decoded."""
        found = hashlib.sha256(repr(self._crop).encode())
        for one in self._all():
            found.update(hashlib.sha256(one.content if isinstance(one, Encoded) else one.reason.encode()).digest())
        return found.hexdigest()[:16]

    def _all(self) -> Iterator[Encoded | Broken]:
        for first in range(0, len(self), _AT_A_TIME):
            yield from self._source.pictures.read(range(first, min(first + _AT_A_TIME, len(self))))

    def _read(self, found: Encoded | Broken) -> Tensor | Broken:
        if isinstance(found, Broken):
            return found
        try:
            picture = decode_picture(found.content, found.name)
        except ValueError as error:
            return Broken(found.name, str(error))
        return (self._crop(picture, 0) * 255).round().to(torch.uint8)
