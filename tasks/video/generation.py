"""Clips from nothing but a class.

Shapes: B clips, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from maskgen.tasks.media.video.backends import Frames
from maskgen.tasks.pipeline import Label, Pipeline
from maskgen.tasks.video.completion import drawing
from maskgen.tasks.video.windows import (
    _collect,
    generated_pieces,
    generated_total,
)

__all__ = ["generate_video"]


def generate_video(
    pipe: Pipeline,
    labels: Label | Sequence[Label] | None = None,
    *,
    total: int | None = None,
    seeds: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> list[Frames]:
    """Clips from nothing but a class.

    Args:
        pipe: a video model.
        labels: class id or name, or one for each clip; None for a model that works without.
        total: frames of a clip; None for the model's length. A longer one goes on as in ``predict_frames``.
        seeds: one integer a clip, 0, 1, 2... by default. A single label goes with any number of seeds.
        sampling: settings, instead of the model's own.
        callback: sees each step of each window.

    Returns:
        One uint8 ``[total, H, W, 3]`` a seed.

    Raises:
        ValueError: numbers of labels and seeds that differ, an unknown class, settings out of range, or a model of another
            modality, or trained on other tasks.
    """
    pipe.require("video", "generate")
    whole = generated_total(pipe, total)
    several = 1 if labels is None or isinstance(labels, int | str) else len(labels)
    draw = drawing(pipe, labels, range(several) if seeds is None else seeds, sampling, callback=callback)
    return _collect(generated_pieces(pipe, whole, None, draw), len(draw.request.seeds))
