"""Encoded pictures as training examples: decoded when they are needed, cropped at random, and replaced if they are broken.

Shapes: B batch, H W pixels.
"""

import dataclasses
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from maskgen.data import Batch
from maskgen.tasks.data.base import ImageData
from maskgen.tasks.data.broken import Broken, BrokenExamples, Tolerance
from maskgen.tasks.data.captions import Captions, draw_caption
from maskgen.tasks.data.identity import Compare, Identified
from maskgen.tasks.media.images import load_image, reading, to_tensor

CropKind = Literal["random", "resized", "centre"]


@dataclass(frozen=True, kw_only=True)
class Crop:
    """From a picture of any size to one of the wanted size, by torchvision's transforms (v2).

    Attributes:
        size: (H, W) in pixels.
        kind: ``random``: the picture is resized (bicubic, antialiased) so that it just covers the size, then cut at a random
            place; ``resized``: a random part of it, 3:4 to 4:3 wide, is resized to the size (Inception's
            random-resized-crop); ``centre``: covered and cut in the middle, nothing random.
        min_scale: ``resized`` only: least share of the picture's area.
        flip: mirror with probability one half.
    """

    size: tuple[int, int]
    kind: CropKind = "random"
    min_scale: float = 0.8
    flip: bool = True

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError(f"size: got {self.size}, expected at least 1 pixel")
        if self.kind not in ("random", "resized", "centre"):
            raise ValueError(f"crop: got {self.kind!r}, expected 'random', 'resized' or 'centre'")
        if not 0 < self.min_scale <= 1:
            raise ValueError(f"min_scale: got {self.min_scale}, expected above 0 and at most 1")

    def __call__(self, picture: Image.Image, seed: int) -> Tensor:
        """Float32 ``[3, H, W]`` in [0, 1].

        Args:
            picture: RGB.
            seed: all the randomness there is; torch's own generator is left as it was.
        """
        from torchvision.transforms import InterpolationMode, v2

        bicubic = InterpolationMode.BICUBIC
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.kind == "resized":
                cut = v2.RandomResizedCrop(self.size, (self.min_scale, 1.0), interpolation=bicubic)
                picture = cut(picture)
            else:
                scale = max(self.size[0] / picture.height, self.size[1] / picture.width)
                cover = [
                    max(self.size[0], round(picture.height * scale)),
                    max(self.size[1], round(picture.width * scale)),
                ]
                picture = v2.functional.resize(picture, cover, bicubic)
                picture = (v2.RandomCrop if self.kind == "random" else v2.CenterCrop)(self.size)(picture)
            if self.flip:
                picture = v2.RandomHorizontalFlip()(picture)
        return to_tensor([picture])[0]


@dataclass(frozen=True)
class Encoded:
    """A picture as it is in its file.

    Attributes:
        name: how errors call it.
        content: the file's bytes.
        label: class id; None for data without classes.
        captions: all there are; none for data without.
    """

    name: str
    content: bytes
    label: int | None
    captions: Captions = ()


class Encodings(Protocol):
    """Encoded pictures by their numbers."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def read(self, indices: Sequence[int]) -> list[Encoded | Broken]:
        """Some of them.

        Raises:
            maskgen.data.DataUnavailable: they are out of reach for now.
        """
        ...


@runtime_checkable
class OrderedEncodings(Encodings, Protocol):
    """Encoded pictures that are read faster in an order of their own."""

    def order(self, seed: int) -> Tensor:
        """See ``maskgen.data.OrderedSource``."""
        ...


class PictureSource:
    """Examples ``images`` float ``[B, 3, H, W]`` in [0, 1] and, where there are classes, ``labels`` long ``[B]``.

    In the place of a broken picture stands the next whole one by number, with its own label, so that a batch is a function
    of its indices and seeds whatever was read before.

    Args:
        pictures: where they come from.
        crop: how they get the wanted size.
        broken: told of broken ones.
        has_captions: whether the pictures have captions.
    """

    def __init__(self, pictures: Encodings, crop: Crop, broken: BrokenExamples, *, has_captions: bool = False) -> None:
        import torchvision.transforms.v2  # noqa: F401 (here, before loader processes are forked: it takes a second)

        self.pictures, self.crop, self.broken, self.has_captions = pictures, crop, broken, has_captions
        self._captions: dict[int, Captions] = {}  # of the last batch

    def __len__(self) -> int:
        return len(self.pictures)

    def identity(self) -> dict[str, Any]:
        """See ``maskgen.tasks.data.identity.Identified``."""
        known = self.pictures.identity() if isinstance(self.pictures, Identified) else {}
        return {"crop": dataclasses.asdict(self.crop), **known}

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """See ``maskgen.data.Source``.

        Raises:
            ValueError: too many broken pictures.
            maskgen.data.DataUnavailable: the data are out of reach.
        """
        found = self.pictures.read(indices)
        pairs = [self._whole(one, index) for one, index in zip(found, indices, strict=True)]
        images = [self.crop(picture, seed) for (picture, _), seed in zip(pairs, seeds, strict=True)]
        batch = {"images": torch.stack(images)}
        labels = [one.label for _, one in pairs if one.label is not None]
        self._captions = {int(index): one.captions for index, (_, one) in zip(indices, pairs, strict=True)}
        return batch | ({"labels": torch.tensor(labels)} if labels else {})

    def captions(self, indices: Sequence[int], seeds: Sequence[int]) -> list[str]:
        """See ``maskgen.tasks.data.captions.Captioned``; costs nothing right after ``batch`` of the same indices.

        Raises:
            ValueError: data without captions; see ``batch``.
        """
        if not self.has_captions:
            raise ValueError(f"{self.broken.tolerance.place}: has no captions; say where they are: captions: txt")
        known = self._captions
        if missing := [index for index in dict.fromkeys(map(int, indices)) if index not in known]:
            found = zip(missing, self.pictures.read(missing), strict=True)
            known = known | {index: self._whole(one, index)[1].captions for index, one in found}
        return [draw_caption(known[int(index)], seed) for index, seed in zip(indices, seeds, strict=True)]

    def _whole(self, found: Encoded | Broken, index: int) -> tuple[Image.Image, Encoded]:
        """The picture, or the next one that can be decoded."""
        for step in range(len(self.pictures)):
            if step:
                (found,) = self.pictures.read([(index + step) % len(self.pictures)])
            if isinstance(found, Encoded):
                try:
                    return decode_picture(found.content, found.name), found
                except ValueError as error:
                    found = Broken(found.name, str(error))
            self.broken.add(found)
        raise ValueError(f"{self.broken.tolerance.place}: all {len(self.pictures)} pictures are broken; replace them")


class OrderedPictures(PictureSource):
    """Pictures of a place that is read faster in an order of its own."""

    pictures: OrderedEncodings

    def order(self, seed: int) -> Tensor:
        """See ``maskgen.data.OrderedSource``."""
        return self.pictures.order(seed)


@dataclass(frozen=True, kw_only=True)
class PictureRules:
    """How the pictures of a data set become training examples.

    Attributes:
        flip: whether training images are mirrored at random.
        crop: how training images are cropped, see ``Crop.kind``.
        min_scale: see ``Crop``.
        broken: share of the images that may be unusable.
        compare: what tells whether the files are those of an earlier run, see ``maskgen.tasks.data.identity.Compare``.
        captions: where the captions of the pictures are, for a model of text: the ending of files beside them (``txt``),
            ``json:FIELD``, or what the data set says; none by default.
        uncaptioned: share of the images that may have no caption; those are left out.
    """

    flip: bool = True
    crop: CropKind = "random"
    min_scale: float = 0.8
    broken: float = 0.05
    compare: Compare = "auto"
    captions: str | None = None
    uncaptioned: float = 0.1


class PictureData(ImageData):
    """A data set of encoded pictures: cropped at random in training, in the middle where held out.

    Pictures that cannot be decoded are skipped: the next one stands in, and ``skipped.jsonl`` of the run names them. Too
    many are an error.
    """

    rules = PictureRules
    captions: str | None
    _names: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class, in the order of the labels; empty for data without classes."""
        return self._names

    def train(self) -> PictureSource:
        """All training pictures."""
        return self._train

    def test(self) -> PictureSource | None:
        """All held-out pictures; None if there are none."""
        return self._test

    def log_skipped(self, path: Path) -> None:
        """See ``SignalData``."""
        self._train.broken.keep(path)

    def _hold(
        self, side: int, rules: PictureRules, train: tuple[Encodings, str], test: tuple[Encodings, str] | None = None
    ) -> None:
        """Take the pictures in.

        Args:
            side: of the examples, in pixels.
            rules: how they become examples.
            train: training pictures, and how errors call their place.
            test: held-out ones, likewise.
        """
        self.size, self.flip, self.crop, self.captions = (side, side), rules.flip, rules.crop, rules.captions
        cut = Crop(size=self.size, kind=rules.crop, min_scale=rules.min_scale, flip=rules.flip)
        middle = Crop(size=self.size, kind="centre", flip=False)
        self._train = _source(*train, cut, rules)
        self._test = None if test is None else _source(*test, middle, rules)


def _source(pictures: Encodings, place: str, crop: Crop, rules: PictureRules) -> PictureSource:
    broken = BrokenExamples(Tolerance(place=place, total=len(pictures), share=rules.broken))
    kind = OrderedPictures if isinstance(pictures, OrderedEncodings) else PictureSource
    return kind(pictures, crop, broken, has_captions=rules.captions is not None)


def decode_picture(content: bytes, name: str) -> Image.Image:
    """Upright 8-bit RGB on white, see ``maskgen.tasks.media.images.load_image``.

    PNG files carry checksums, which are compared. JPEG files have none: of those with a few wrong bytes inside many decode
    to a wrong picture, and nobody can tell.

    Args:
        content: of a picture file.
        name: how errors call it.

    Raises:
        ValueError: empty, no picture, damaged, or too large.
    """
    if not content:
        raise ValueError(f"{name}: got an empty file, expected an image file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as odd EXIF entries of good pictures
        with reading(name), Image.open(io.BytesIO(content)) as opened:
            several = getattr(opened, "is_animated", False)
            if opened.format == "PNG":
                opened.verify()
                with Image.open(io.BytesIO(content)) as again:
                    picture = load_image(again)
            else:
                picture = load_image(opened)
    if several:  # in the same words for all of them, which are shown once
        warnings.warn("some files of the data hold several pictures: the first of each is used", stacklevel=2)
    return picture
