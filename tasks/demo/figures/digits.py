"""Pictures of a model of ten classes: what a masked-token model does, to look at.

Shapes: B batch, N tokens, K codebooks, H W pixels.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from maskgen.data import TensorSource
from maskgen.sampling.loop import SampleStep
from maskgen.tasks.evaluation.features.base import pixel_features
from maskgen.tasks.evaluation.metrics.manifold import nearest
from maskgen.tasks.image.class_swap import swap_class
from maskgen.tasks.image.generation import generate
from maskgen.tasks.image.inpainting import inpaint
from maskgen.tasks.image.outpainting import outpaint
from maskgen.tasks.media.images import image_grid, save_gif, save_image, to_images
from maskgen.tasks.media.report import Figure
from maskgen.tasks.pipeline import Pipeline

_SCALE = 2  # images are small: shown at twice their size

_MASKED = (0.85, 0.45, 0.25)  # colour of what is masked


def plot_digits(
    pipe: Pipeline, train: TensorSource, test: TensorSource, generated: Tensor, labels: Tensor, folder: Path
) -> list[Figure]:
    """Plot and save all pictures of the report.

    Args:
        pipe: the trained model, of ten classes.
        train: real images it saw.
        test: real images it did not see; these are edited.
        generated: float ``[M, 3, H, W]``.
        labels: their classes, long ``[M]``.
        folder: where the pictures go.

    Returns:
        The pictures, in the order of the report.
    """
    return [
        _classes(generated, labels, folder),
        *_trajectory(pipe, folder),
        _reconstructions(pipe, test, folder),
        _inpaintings(pipe, test, folder),
        _outpaintings(pipe, test, folder),
        _swaps(pipe, test, folder),
        _neighbours(generated, train, folder),
    ]


def _classes(generated: Tensor, labels: Tensor, folder: Path) -> Figure:
    rows = [generated[labels == label][:10] for label in range(10)]
    path = _save(to_images(torch.cat(rows)), 10, folder / "classes.png")
    return Figure("Generated, one row a class", path, "Ten images of each class, none of them selected.")


def _trajectory(pipe: Pipeline, folder: Path) -> list[Figure]:
    seen: list[SampleStep] = []
    labels = [2, 3, 5, 7, 8]
    final = generate(pipe, labels, seeds=range(100, 105), callback=seen.append)
    frames = [to_images(_paint(torch.zeros(len(labels), 3, *pipe.config.signal_size), _all(pipe, len(labels)), pipe))]
    for step in seen:
        guess = pipe.decode(step.tokens)
        frames.append(to_images(_paint(guess, step.mask.cpu(), pipe)))
    frames[-1] = final  # after the last step nothing is masked any more
    by_image = [frame[index] for index in range(len(labels)) for frame in frames]
    still = _save(by_image, len(frames), folder / "trajectory.png")
    moving = folder / "trajectory.gif"
    pages = [_enlarge(image_grid(frame, len(labels))) for frame in frames]
    save_gif([*pages, pages[-1], pages[-1]], moving, 0.5)
    caption = (
        f"From all tokens masked (left) to none in {len(seen)} parallel steps. Orange tokens are masked again "
        "after the step because the model was least sure of them; it samples them anew with the others visible."
    )
    return [Figure("Decoding, step by step", still, caption), Figure("The same, moving", moving, "")]


def _reconstructions(pipe: Pipeline, test: TensorSource, folder: Path) -> Figure:
    images = test.tensors["images"][:10]
    rebuilt = pipe.decode(pipe.encode(images))
    path = _save(to_images(torch.cat((images, rebuilt))), 10, folder / "reconstructions.png")
    return Figure("Through the tokenizer and back", path, "Above: real test images. Below: their tokens, decoded.")


def _inpaintings(pipe: Pipeline, test: TensorSource, folder: Path) -> Figure:
    images, labels = _one_each(test)
    height, width = pipe.config.signal_size
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[height // 2 :, :] = True
    shown = torch.where(mask, torch.tensor(_MASKED)[:, None, None], images)
    rows = to_images(images) + to_images(shown)
    originals = to_images(images)
    for seed in (0, 1000, 2000):
        seeds = range(seed, seed + len(labels))
        rows += inpaint(pipe, originals, [mask] * len(labels), label=labels, seeds=list(seeds))
    path = _save(rows, len(labels), folder / "inpainting.png")
    caption = "Real test images, their lower half masked, and three ways to fill it. The kept half is untouched."
    return Figure("Inpainting", path, caption)


def _outpaintings(pipe: Pipeline, test: TensorSource, folder: Path) -> Figure:
    images, labels = _one_each(test)
    width = pipe.config.signal_size[1]
    half = images[..., : width // 2]
    originals = to_images(half)
    blank = torch.tensor(_MASKED)[None, :, None, None].expand_as(half)
    rows = to_images(torch.cat((half, blank), dim=-1))
    for seed in (0, 1000, 2000):
        rows += [
            outpaint(pipe, image, label=label, right=width - width // 2, seeds=[seed + index])[0]
            for index, (image, label) in enumerate(zip(originals, labels, strict=True))
        ]
    path = _save(rows, len(labels), folder / "outpainting.png")
    caption = "The left half of real test images, extended to the right, three ways."
    return Figure("Outpainting", path, caption)


def _swaps(pipe: Pipeline, test: TensorSource, folder: Path) -> Figure:
    images, labels = _one_each(test)
    height, width = pipe.config.signal_size
    box = (height // 4, width // 8, height - height // 4, width - width // 4)
    rows = to_images(images)
    for shift in (1, 3, 5):
        rows += [
            swap_class(pipe, image, box=box, label=(label + shift) % 10, seeds=[shift])[0]
            for image, label in zip(to_images(images), labels, strict=True)
        ]
    path = _save(rows, len(labels), folder / "swaps.png")
    caption = (
        "Real test images; below, a box of each repainted as the class 1, 3 and 5 further on. The top quarter stays."
    )
    return Figure("Class swaps", path, caption)


def _neighbours(generated: Tensor, train: TensorSource, folder: Path) -> Figure:
    chosen = generated[torch.linspace(0, len(generated) - 1, 10).long()]
    small, seen = (torch.from_numpy(pixel_features(images)) for images in (chosen, train.tensors["images"]))
    alike = train.tensors["images"][nearest(small, seen)[1]]
    path = _save(to_images(torch.cat((chosen, alike))), 10, folder / "neighbours.png")
    return Figure("Does it copy?", path, "Above: generated images. Below: the training image nearest to each.")


def _one_each(test: TensorSource) -> tuple[Tensor, list[int]]:
    """The first test image of each class."""
    labels = test.tensors["labels"]
    first = [int((labels == label).nonzero()[0]) for label in range(10)]
    return test.tensors["images"][first], list(range(10))


def _paint(images: Tensor, mask: Tensor, pipe: Pipeline) -> Tensor:
    """Paint the cells of masked tokens, ``mask`` ``[B, N, K]``."""
    cells = mask.any(-1).view(-1, 1, *pipe.axes).float()
    masked = F.interpolate(cells, size=images.shape[-2:]).bool()
    return torch.where(masked, torch.tensor(_MASKED)[:, None, None], images)


def _all(pipe: Pipeline, count: int) -> Tensor:
    return torch.ones(count, torch.Size(pipe.axes).numel(), 1, dtype=torch.bool)


def _save(images: list[Image.Image], columns: int, path: Path) -> Path:
    save_image(_enlarge(image_grid(images, columns)), path)
    return path


def _enlarge(image: Image.Image) -> Image.Image:
    return image.resize((image.width * _SCALE, image.height * _SCALE), Image.Resampling.NEAREST)
