"""Pictures from nothing but a class: all tokens are hidden at the start (MaskGIT, arXiv 2202.04200, section 3.2).

Shapes: B pictures, N tokens, K codebooks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from PIL import Image

from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from maskgen.tasks.media.images import to_images
from maskgen.tasks.pipeline import Label, Pipeline

__all__ = ["generate"]


def generate(
    pipe: Pipeline,
    labels: Label | Sequence[Label] | None,
    *,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampling: Sampling | None = None,
    callback: Callable[[SampleStep], None] | None = None,
    batch_size: int = 64,
) -> list[Image.Image]:
    """Generate class-conditional pictures.

    Args:
        pipe: an image model.
        labels: class id or name, or one for each picture; None for a model that works without.
        seeds: one integer a picture, 0, 1, 2... by default. The same label and seed give the same picture in any batch.
            A single label goes with any number of seeds.
        steps: decoding steps, instead of the setting's.
        guidance: classifier-free guidance scale, instead of the setting's.
        sampling: settings, instead of the model's own.
        callback: sees each step of each part of ``batch_size`` rows.
        batch_size: pictures at a time; changes the memory needed, not the pictures.

    Returns:
        B pictures of the model's size.

    Raises:
        ValueError: no labels, numbers of labels and seeds that differ, an unknown class, settings out of range, or a
            model of another modality.
    """
    pipe.require("image", "generate")
    chosen = pipe.sampling(sampling, steps, guidance)
    ids = pipe.class_ids(labels)
    listed = list(range(len(ids))) if seeds is None else list(seeds)
    if len(ids) == 1:
        ids = ids * len(listed)
    if not ids or len(ids) != len(listed):
        raise ValueError(
            f"generate: got {len(ids)} labels and {len(listed)} seeds, expected the same number of each, or one label"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
    shape = (len(ids), math.prod(pipe.axes), pipe.tokenizer.num_codebooks)
    hidden = torch.ones(shape, dtype=torch.bool)
    tokens = pipe.fill(
        torch.zeros(shape, dtype=torch.long),
        hidden,
        labels=ids,
        seeds=listed,
        sampling=chosen,
        batch_size=batch_size,
        callback=callback,
    )
    return to_images(pipe.decode(tokens))
