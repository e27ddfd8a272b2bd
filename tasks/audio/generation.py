"""Sounds from nothing but a class: all tokens are masked at the start.

Shapes: B sounds, T frames, K codebooks, C channels, S samples.
"""

from collections.abc import Iterator, Sequence
from typing import Unpack

from torch import Tensor

from maskgen.tasks.audio.edit import SoundEdit
from maskgen.tasks.audio.windows import codec
from maskgen.tasks.conditions.classes import Label
from maskgen.tasks.conditions.request import SamplingOptions
from maskgen.tasks.pipeline import Pipeline


def generate_sounds(
    pipe: Pipeline,
    labels: Label | Sequence[Label] | None = None,
    *,
    batch_size: int = 64,
    **options: Unpack[SamplingOptions],
) -> SoundEdit:
    """Generate sounds of the model's length.

    Args:
        pipe: an audio model.
        labels: class id or name, or one for each sound; None for a model that works without. A single label goes with any
            number of seeds.
        batch_size: sounds at a time; changes the memory needed, not the sounds.
        options: seeds (0, 1, 2... by default) and settings, see ``maskgen.tasks.conditions.request.SamplingOptions``.

    Returns:
        One float32 ``[C, S]`` a seed, at the codec's rate and channels.

    Raises:
        ValueError: no labels, numbers of labels and seeds that differ, an unknown class, settings out of range, or a
            model of another modality.
    """
    pipe.require("audio", "generate")
    request, tokenizer = pipe.generation(labels, options), codec(pipe)

    def pieces() -> Iterator[Tensor]:
        yield pipe.generate(request, batch_size=batch_size)[..., : pipe.config.signal_size[0]]

    return SoundEdit(len(request.seeds), pieces, tokenizer.sample_rate, tokenizer.channels, at_once=True)
