"""Pictures and tables of the text demo: what prompts become, what is right in it, and what settings change.

Shapes: M scenes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from maskgen.tasks.data.images.scenes import Scene
from maskgen.tasks.image.editing import revise
from maskgen.tasks.image.generation import generate
from maskgen.tasks.media.images import image_grid, save_image, to_images
from maskgen.tasks.media.report import Figure
from maskgen.tasks.pipeline import Pipeline

_SCALE = 3  # pictures are small: shown at three times their size

_SHOWN = 8  # pictures in a row

_ROUNDS = 40  # of editing without a mask

_PROMPTS = (
    "a big red 3 at the top left on a black ground",
    "a small blue seven in the lower right corner and a huge yellow 2 at the upper left on a grey ground",
    "on brown: a tiny white five in the top right corner and a large green 8 in the bottom right corner",
)

_UNSEEN = (
    "a large crimson 4 at the bottom left and a small navy 9 at the top right, grey background",
    "on black: a huge golden six in the upper right corner",
)


@dataclass(frozen=True)
class Drawn:
    """Pictures that were asked for.

    Attributes:
        scenes: M, what was asked for.
        prompts: in which words.
        images: ``[M, 3, S, S]``.
    """

    scenes: Sequence[Scene]
    prompts: Sequence[str]
    images: Tensor

    def first(self, count: int) -> Drawn:
        """Some of them."""
        return Drawn(self.scenes[:count], self.prompts[:count], self.images[:count])


def plot_scenes(pipe: Pipeline, kinds: Mapping[str, Drawn], folder: Path) -> list[Figure]:
    """Plot and save all pictures of the report.

    Args:
        pipe: the trained model.
        kinds: real, drawn and edited pictures by kind, see ``maskgen.tasks.demo.text``.
        folder: where the pictures go.

    Returns:
        The pictures, in the order of the report.
    """
    left_out = kinds["left_out"]
    return [
        *_prompts(pipe, "Prompts and pictures", _PROMPTS, folder, "prompt"),
        *_prompts(pipe, "Words for colours that training never used", _UNSEEN, folder, "unseen"),
        *_prompts(pipe, "Combinations that training never showed", left_out.prompts[:2], folder, "left-out"),
        _held_out(kinds, folder),
        _sweep(kinds, folder),
        _negative(kinds, folder),
        _edited(kinds, folder),
        _revised(pipe, kinds, folder),
    ]


def _prompts(pipe: Pipeline, title: str, prompts: Sequence[str], folder: Path, name: str) -> list[Figure]:
    figures = []
    for number, prompt in enumerate(prompts):
        images = generate(pipe, prompt=prompt, seeds=range(_SHOWN))
        path = _save([images], folder / f"{name}-{number}.png")
        figures.append(Figure("" if number else title, path, f"“{prompt}”; seeds 0 to {_SHOWN - 1}."))
    return figures


def _held_out(kinds: Mapping[str, Drawn], folder: Path) -> Figure:
    path = _save(_rows(kinds, "real", "rebuilt", "drawn"), folder / "held-out.png")
    caption = "Real held-out scenes; the same through the tokenizer and back; and what was drawn for their captions: "
    return Figure("Held-out scenes", path, caption + _quoted(kinds["drawn"]))


def _sweep(kinds: Mapping[str, Drawn], folder: Path) -> Figure:
    names = [name for name in kinds if name.startswith("guidance_")]
    path = _save(_rows(kinds, *names), folder / "guidance.png")
    scales = ", ".join(name.removeprefix("guidance_") for name in names)
    return Figure("Guidance", path, f"The same captions with guidance {scales}, from above: {_quoted(kinds['drawn'])}")


def _negative(kinds: Mapping[str, Drawn], folder: Path) -> Figure:
    path = _save(_rows(kinds, "avoided_unguided", "avoided_guided", "avoided_negative"), folder / "negative.png")
    caption = (
        "Prompts that leave the colour open, without guidance, with it, and guided away from red, blue, green, yellow and "
        "white in turn, each named by a negative prompt: "
    )
    return Figure("Negative prompts", path, caption + _quoted(kinds["avoided_negative"]))


def _edited(kinds: Mapping[str, Drawn], folder: Path) -> Figure:
    path = _save(_rows(kinds, "real", "edited"), folder / "edited.png")
    caption = "Real held-out scenes, and one quarter of each painted over by text, the rest kept bit for bit: "
    return Figure("Editing by text", path, caption + _quoted(kinds["edited"]))


def _revised(pipe: Pipeline, kinds: Mapping[str, Drawn], folder: Path) -> Figure:
    rows = []
    for image, prompt in zip(to_images(kinds["real"].images[:2]), kinds["edited"].prompts, strict=False):
        rows.append([image, *revise(pipe, image, prompt=prompt, rounds=_ROUNDS, seeds=range(_SHOWN - 1))])
    path = _save(rows, folder / "revised.png")
    caption = (
        f"Left: real scenes. Right: after {_ROUNDS} rounds of a few tokens each, by the texts of the first two above."
    )
    return Figure("Editing by text without a mask", path, caption)


def _rows(kinds: Mapping[str, Drawn], *names: str) -> list[list[Image.Image]]:
    return [to_images(kinds[name].images[:_SHOWN]) for name in names]


def _quoted(some: Drawn) -> str:
    return "; ".join(f"“{prompt}”" for prompt in some.prompts[:_SHOWN]) + "."


def _save(rows: Sequence[Sequence[Image.Image]], path: Path) -> Path:
    grid = image_grid([image for row in rows for image in row], len(rows[0]))
    save_image(grid.resize((grid.width * _SCALE, grid.height * _SCALE), Image.Resampling.NEAREST), path)
    return path
