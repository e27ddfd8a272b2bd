"""Clips from nothing but a class.

Shapes: B clips, T frames, H W pixels.
"""

from collections.abc import Sequence
from typing import Unpack

from maskgen.sampling.commit import Prompt
from maskgen.tasks.conditions.classes import Label
from maskgen.tasks.conditions.request import Options, SamplingOptions
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import video_request
from maskgen.tasks.video.edit import VideoEdit, edited
from maskgen.tasks.video.windows import generated_pieces, generated_total


def generate_video(
    pipe: Pipeline,
    labels: Label | Sequence[Label] | None = None,
    *,
    total: int | None = None,
    **options: Unpack[SamplingOptions],
) -> VideoEdit:
    """Clips from nothing but a class.

    Args:
        pipe: a video model.
        labels: class id or name, or one for each clip; None for a model that works without. A single label goes with any
            number of seeds.
        total: frames of a clip; None for the model's length. A longer one goes on as in ``predict_frames``.
        options: seeds (0, 1, 2... by default) and settings, see ``maskgen.tasks.conditions.request.SamplingOptions``.

    Returns:
        One uint8 ``[total, H, W, 3]`` a seed.

    Raises:
        ValueError: numbers of labels and seeds that differ, an unknown class, settings out of range, or a model of another
            modality, or trained on other tasks.
    """
    several = 1 if labels is None or isinstance(labels, int | str) else len(labels)
    if options.get("seeds") is None:
        options["seeds"] = range(several)
    request = video_request(pipe, Options(label=labels, **options), Prompt.FULL_GENERATION, "generate")
    whole = generated_total(pipe, total)
    return edited(pipe, len(request.seeds), lambda: generated_pieces(pipe, whole, request))
