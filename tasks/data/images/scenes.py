"""Scenes with captions: one or two real handwritten digits of a colour, a size and a place, on a coloured ground.

A picture has four places, its quarters. A big digit fills its quarter; a small one has two thirds of its side.
What a caption says can be counted in the picture, so text to image can be measured here without a large reader.

Shapes: B batch, S side of a picture, P side of a place (S / 2), in pixels.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskgen.data import Batch, TensorSource
from maskgen.tasks.data.base import ImageData
from maskgen.tasks.data.identity import source_identity
from maskgen.tasks.data.images.digits import Digits

COLOURS = ("red", "blue", "green", "yellow", "white")
"""Of digits; each has many words, see ``SEEN_WORDS`` and ``UNSEEN_WORDS``."""

GROUNDS = ("black", "grey", "brown")

PLACES = ("top left", "top right", "bottom left", "bottom right")

SIZES = ("small", "big")

# Words of each colour that captions use. A fifth or more of all colours are called by their plain names.
SEEN_WORDS = {
    "red": "cherry burgundy maroon vermilion ruby rosy strawberry brick-red blood-red tomato-red cherry-red bright-red "
    "dark-red wine-red fire-red",
    "blue": "azure cobalt sapphire cerulean indigo ultramarine cyan turquoise denim sky-blue royal-blue bright-blue "
    "dark-blue ocean-blue",
    "green": "emerald olive lime jade mossy leafy moss-green forest-green mint-green bright-green dark-green pea-green "
    "grass-green apple-green",
    "yellow": "gold mustard canary amber saffron sunny blond banana bright-yellow banana-yellow straw-yellow honey-yellow "
    "lemon-yellow dark-yellow",
    "white": "ivory chalky milky pale alabaster frosty chalk silvery bright-white bone-white paper-white snow-white",
}

# Words that no caption uses, and which do not contain the colour's name.
UNSEEN_WORDS = {
    "red": "crimson scarlet",
    "blue": "navy aqua",
    "green": "shamrock grassy",
    "yellow": "golden lemon",
    "white": "snowy pearly",
}

# Grounds are dark: a digit as light as its ground costs a tokenizer little where it is wrong, and is read badly.
_RGB = {
    "red": (1.00, 0.20, 0.20),
    "blue": (0.25, 0.45, 1.00),
    "green": (0.15, 0.90, 0.20),
    "yellow": (1.00, 0.90, 0.10),
    "white": (1.00, 1.00, 1.00),
    "black": (0.00, 0.00, 0.00),
    "grey": (0.25, 0.25, 0.25),
    "brown": (0.32, 0.16, 0.06),
}

_SIZE_WORDS = (("small", "little", "tiny"), ("big", "large", "huge"))

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_PLAIN = 0.3  # share of colours that are called by their plain names

_PAIRS = 0.6  # share of scenes of two digits


@dataclass(frozen=True)
class Figure:
    """One digit of a scene.

    Attributes:
        digit: 0 to 9.
        colour: index in ``COLOURS``.
        size: index in ``SIZES``.
        place: index in ``PLACES``.
    """

    digit: int
    colour: int
    size: int
    place: int

    @property
    def left_out(self) -> bool:
        """Whether training never shows this digit in this colour at this place: a tenth of the 200 combinations.

        Every pair of two of the three occurs in training, and no pair is left out with more than one third.
        """
        return (self.digit + 4 * self.colour + 3 * self.place) % 10 == 0


@dataclass(frozen=True)
class Scene:
    """What a picture shows: digits at different places, and the index of the ground's colour in ``GROUNDS``."""

    figures: tuple[Figure, ...]
    ground: int


def draw_scene(draw: random.Random, wanted: Callable[[Figure], bool]) -> Scene:
    """A scene of one or two digits.

    Args:
        draw: where chance comes from.
        wanted: whether a digit may be the first; any second one is of a combination that training has.
    """

    def figure(allowed: Callable[[Figure], bool]) -> Figure:
        while True:
            found = Figure(draw.randrange(10), draw.randrange(len(COLOURS)), draw.randrange(2), draw.randrange(4))
            if allowed(found):
                return found

    first = figure(wanted)
    figures = [first]
    if draw.random() < _PAIRS:
        figures.append(figure(lambda other: not other.left_out and other.place != first.place))
    draw.shuffle(figures)
    return Scene(tuple(figures), draw.randrange(len(GROUNDS)))


def describe_scene(scene: Scene, draw: random.Random, *, unseen: bool = False, silent: float = 0.0) -> str:
    """A caption in one of many wordings.

    Args:
        scene: what to describe.
        draw: where chance comes from; scenes that differ in colours alone get the same wording of it.
        unseen: name colours by words that training never uses.
        silent: chance that a digit's colour is not told.
    """

    def figure(one: Figure) -> str:
        name, plain = COLOURS[one.colour], draw.random() < _PLAIN
        words = UNSEEN_WORDS[name].split() if unseen else [name] if plain else SEEN_WORDS[name].split()
        word = words[int(draw.random() * len(words))]  # one draw, whatever the colour: the rest of the wording stays
        told = [draw.choice(_SIZE_WORDS[one.size])] + ([] if draw.random() < silent else [word])
        number = draw.choice((str(one.digit), _NUMBERS[one.digit]))
        what = f"{_article(told[0])} {' '.join(told)} {number}"
        vertical, side = PLACES[one.place].split()
        where = f"{draw.choice((vertical, 'upper' if vertical == 'top' else 'lower'))} {side}"
        return draw.choice((f"{what} at the {where}", f"{what} in the {where} corner", f"at the {where} {what}"))

    figures, ground = " and ".join(figure(one) for one in scene.figures), GROUNDS[scene.ground]
    return draw.choice(
        (f"{figures} on a {ground} ground", f"{figures}, {ground} background", f"on {ground}: {figures}")
    )


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def paint_scenes(scenes: Sequence[Scene], digits: Sequence[Sequence[Tensor]], side: int) -> Tensor:
    """Pictures ``[B, 3, S, S]`` in [0, 1].

    Args:
        scenes: B scenes.
        digits: the strokes of each scene's figures, ``[8, 8]`` each in [0, 1].
        side: S.
    """
    place = side // 2
    pictures = []
    for scene, strokes in zip(scenes, digits, strict=True):
        picture = _rgb(GROUNDS[scene.ground]).expand(3, side, side).clone()
        for figure, stroke in zip(scene.figures, strokes, strict=True):
            size = place if figure.size else place * 2 // 3
            top, left = (place * index + (place - size) // 2 for index in divmod(figure.place, 2))
            alpha = F.interpolate(stroke[None, None], size=(size, size), mode="bicubic", align_corners=False)[0, 0]
            spot = picture[:, top : top + size, left : left + size]
            spot.lerp_(_rgb(COLOURS[figure.colour]).expand_as(spot), alpha.clamp(0, 1).expand_as(spot))
        pictures.append(picture)
    return torch.stack(pictures)


def _rgb(name: str) -> Tensor:
    return torch.tensor(_RGB[name])[:, None, None]


class Scenes(ImageData):
    """Pictures of one or two digits with captions.

    The digits are scikit-learn's, 1,437 for training and 360 others for testing, as in
    ``maskgen.tasks.data.images.digits.Digits``. The index of an example chooses the scene and the caption, the seed of a
    training example whose handwriting it is; a test example is always the same.

    Args:
        size: S, a multiple of 24: at 24 small digits have the 8 pixels that were scanned, and big ones 12.
        count: scenes for training.
        test_count: scenes for testing.
        silent: share of digits whose colour the training captions do not tell, so that a prompt may leave it open.
        left_out: what the first digit of a test scene is: False, of a combination of digit, colour and place that training
            has; True, of one that training never has (a second digit always is of one that it has).
        unseen_words: test captions name colours by words that training captions never use.
        seed: of everything that is drawn.

    Raises:
        ValueError: numbers out of range.
        ImportError: without scikit-learn.
    """

    has_captions = True

    def __init__(
        self,
        size: int = 24,
        count: int = 6000,
        test_count: int = 500,
        *,
        silent: float = 0.1,
        left_out: bool = False,
        unseen_words: bool = False,
        seed: int = 0,
    ) -> None:
        if size < 24 or size % 24:
            raise ValueError(f"size: got {size}, expected a multiple of 24 pixels")
        if min(count, test_count) < 1:
            raise ValueError(f"Scenes: got count {count}, test_count {test_count}, expected 1 or more of each")
        if not 0 <= silent < 1:
            raise ValueError(f"silent: got {silent}, expected 0 <= silent < 1")
        self.size, self.count, self.test_count, self.silent = (size, size), count, test_count, silent
        self.left_out, self.unseen_words, self.seed = left_out, unseen_words, seed
        digits = Digits(8)
        kept = digits.train()
        assert isinstance(kept, TensorSource)
        self._train, self._test = SceneSource(self, kept, test=False), SceneSource(self, digits.test(), test=True)

    @property
    def class_names(self) -> tuple[str, ...]:
        """None: what a scene shows is said in words."""
        return ()

    def train(self) -> "SceneSource":
        """Scenes of training digits, in another handwriting for every seed."""
        return self._train

    def test(self) -> "SceneSource":
        """Scenes of test digits, always the same."""
        return self._test


class SceneSource:
    """The scenes of one half: ``images`` float ``[B, 3, S, S]`` in [0, 1].

    Args:
        data: what a scene is.
        digits: holds ``images``, grey ``[n, 3, 8, 8]``, and ``labels``.
        test: fixed pictures, scenes and words as ``data`` wants them for testing.
    """

    def __init__(self, data: Scenes, digits: TensorSource, *, test: bool) -> None:
        self.data, self.digits, self.is_test = data, digits, test
        self._strokes, labels = digits.tensors["images"][:, 0].contiguous(), digits.tensors["labels"]
        self._rows = [(labels == digit).nonzero()[:, 0].tolist() for digit in range(10)]

    def __len__(self) -> int:
        return self.data.test_count if self.is_test else self.data.count

    def identity(self) -> dict[str, Any]:
        """See ``maskgen.tasks.data.identity.Identified``."""
        return {"scenes": self.captions(range(min(len(self), 100)), [0] * 100), **source_identity(self.digits)}

    def scenes(self, indices: Sequence[int]) -> list[Scene]:
        """What examples show."""
        wanted = self.data.left_out if self.is_test else False
        return [draw_scene(self._draw("scene", index), lambda one: one.left_out is wanted) for index in indices]

    def captions(self, indices: Sequence[int], seeds: Sequence[int]) -> list[str]:
        """One caption an example; an example has one, whatever the seed: each text is encoded once and seen often."""
        test, scenes = self.is_test, self.scenes(indices)
        how: dict[str, Any] = {"unseen": test and self.data.unseen_words, "silent": 0.0 if test else self.data.silent}
        return [describe_scene(one, self._draw("text", at), **how) for one, at in zip(scenes, indices, strict=True)]

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """See ``maskgen.data.Source``."""
        scenes, strokes = self.scenes(indices), []
        for scene, index, seed in zip(scenes, indices, seeds, strict=True):
            draw = self._draw(f"hand {0 if self.is_test else seed}", index)
            strokes.append([self._strokes[draw.choice(self._rows[figure.digit])] for figure in scene.figures])
        return {"images": paint_scenes(scenes, strokes, self.data.size[0])}

    def _draw(self, what: str, index: int) -> random.Random:
        return random.Random(f"{self.data.seed} {what} {index} {'test' if self.is_test else 'train'}")
