"""Pictures from nothing but a class or a text: at the start all tokens are masked (MaskGIT, arXiv 2202.04200, 3.2).

Shapes: B pictures, N tokens, K codebooks.
"""

from collections.abc import Sequence
from typing import Unpack

from PIL import Image

from maskgen.tasks.conditions.classes import Label
from maskgen.tasks.conditions.request import SamplingOptions
from maskgen.tasks.media.images import to_images
from maskgen.tasks.pipeline import Pipeline


def generate(
    pipe: Pipeline,
    labels: Label | Sequence[Label] | None = None,
    *,
    batch_size: int = 64,
    **options: Unpack[SamplingOptions],
) -> list[Image.Image]:
    """Generate pictures of classes, or of what a prompt says.

    Args:
        pipe: an image model.
        labels: class id or name, or one for each picture; None for a model that works without. A single label goes with
            any number of seeds.
        batch_size: pictures at a time; changes the memory needed, not the pictures.
        options: prompts, seeds (0, 1, 2... by default) and settings, see
            ``maskgen.tasks.conditions.request.SamplingOptions``.

    Returns:
        B pictures of the model's size.

    Raises:
        ValueError: no labels, numbers of labels, prompts and seeds that differ, an unknown class, settings out of range, or
            a model of another modality.
    """
    pipe.require("image", "generate")
    return to_images(pipe.generate(pipe.generation(labels, options), batch_size=batch_size))
