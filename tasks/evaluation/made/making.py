"""What makes samples of a model to be measured: from nothing, or by completing real clips and sounds.

See ``maskgen.tasks.evaluation.made.writing`` for how they are written.

Shapes: T frames, H W pixels, C channels, S samples of sound.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from maskgen.sampling.settings import Sampling
from maskgen.tasks.audio.generation import generate_sounds
from maskgen.tasks.audio.infilling import infill
from maskgen.tasks.conditions.request import SamplingOptions
from maskgen.tasks.data.broken import Broken
from maskgen.tasks.evaluation.made.gaps import GapSettings, middle_gap
from maskgen.tasks.evaluation.sets.base import SampleSet
from maskgen.tasks.image.generation import generate
from maskgen.tasks.media.audio.files import resample, to_channels
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import complete_clips
from maskgen.tasks.video.generation import generate_video
from maskgen.tokenizers.audio.base import AudioTokenizer

Make = Callable[[Sequence[int]], list[Any]]
"""Sample numbers in, as many samples out: a PIL image, frames uint8 ``[T, H, W, 3]`` or a sound float ``[C, S]`` each."""


def even_labels(pipe: Pipeline, count: int) -> list[int]:
    """Classes of ``count`` samples, as many of each as can be, in order; empty for a model without classes."""
    classes = pipe.transformer.num_classes
    return [number * classes // count for number in range(count)] if classes else []


def generating(
    pipe: Pipeline, labels: Sequence[int], seed: int, sampling: Sampling, prompts: Sequence[str] = ()
) -> Make:
    """Make samples from nothing but a class or a text.

    Args:
        pipe: a model of any modality.
        labels: class of each sample; empty for a model without classes.
        seed: of the first; each further one takes the next.
        sampling: settings.
        prompts: one a sample, or none.
    """

    def make(numbers: Sequence[int]) -> list[Any]:
        chosen = [labels[number] for number in numbers] if labels else None
        options = SamplingOptions(seeds=[seed + number for number in numbers], sampling=sampling)
        if prompts:
            options["prompt"] = [prompts[number] for number in numbers]
        if pipe.modality == "image":
            return list(generate(pipe, chosen, batch_size=len(numbers), **options))
        if pipe.modality == "video":
            return list(generate_video(pipe, chosen, **options))
        return list(generate_sounds(pipe, chosen, **options))

    return make


def completing(
    pipe: Pipeline, clips: SampleSet, task: str, seed: int, sampling: Sampling, *, paste: bool = False
) -> Make:
    """Complete real clips by one of MAGVIT's tasks.

    Args:
        pipe: a video model.
        clips: of the model's size.
        task: see ``maskgen.tasks.video.completion.complete_clips``.
        seed: of the first; each further one takes the next.
        sampling: settings.
        paste: whether what is given comes back as it was.
    """

    def make(numbers: Sequence[int]) -> list[Any]:
        batch = torch.stack([read_good(clips, number) for number in numbers]).float() / 255
        labels = (
            None if clips.labels is None or not pipe.transformer.num_classes else [clips.labels[n] for n in numbers]
        )
        seeds = [seed + number for number in numbers]
        done = complete_clips(pipe, batch, task, seeds=seeds, label=labels, sampling=sampling, paste=paste)
        frames = (done.clamp(0, 1) * 255).round().to(torch.uint8)
        return list(rearrange(frames, "b c t h w -> b t h w c").numpy())

    return make


def filling(pipe: Pipeline, sounds: SampleSet, seed: int, sampling: Sampling, gap: GapSettings) -> Make:
    """Fill a gap in the middle of real sounds.

    Args:
        pipe: an audio model.
        sounds: of any length, rate and number of channels; they are brought to the codec's.
        seed: of the first; each further one takes the next.
        sampling: settings.
        gap: where it is, and how it is filled.
    """
    codec = pipe.tokenizer
    assert isinstance(codec, AudioTokenizer), "the modality is audio"

    def make(numbers: Sequence[int]) -> list[Any]:
        found: list[Any] = []
        for number in numbers:
            sound, rate = codec_sound(sounds, number, codec), codec.sample_rate
            try:
                start, stop = middle_gap(sound.shape[-1], gap.share, codec.stride[0])
            except ValueError as error:
                raise ValueError(f"{sounds.name}, sound number {number}: {error}") from None
            label = None if sounds.labels is None or not pipe.transformer.num_classes else sounds.labels[number]
            found += infill(
                *(pipe, sound, rate),
                start=start / rate,
                stop=stop / rate,
                seeds=[seed + number],
                sampling=sampling,
                crossfade=gap.crossfade,
                loudness=gap.loudness,
                label=label,
            )
        return found

    return make


def read_good(samples: SampleSet, number: int) -> Tensor:
    """A sample that has to be there.

    Raises:
        ValueError: it cannot be read.
    """
    (sample,) = samples.read(number, number + 1)
    if isinstance(sample, Broken):
        raise ValueError(f"{sample.reason}; take it out of {samples.name}")
    return sample


def codec_sound(sounds: SampleSet, number: int, codec: AudioTokenizer) -> Tensor:
    """A sound at a codec's rate and channels, float ``[C, S]``.

    Raises:
        ValueError: it cannot be read.
    """
    found = read_good(sounds, number).float()
    if len(found) > 2:
        warnings.warn(f"{sounds.name}: sounds of {len(found)} channels are taken as the mean of these", stacklevel=2)
        found = to_channels(found, 1)
    sound = to_channels(found, codec.channels)
    return resample(sound, sounds.sample_rate(number), codec.sample_rate)


def described(pipe: Pipeline, sampling: Sampling, **more: Any) -> dict[str, Any]:
    """What decides a model's samples, for ``maskgen.tasks.evaluation.made.writing.write_samples``.

    Args:
        pipe: the model.
        sampling: settings.
        **more: plain values.
    """
    size = list(pipe.config.signal_size)
    settings = {
        name: dataclasses.asdict(value) for name, value in {"sampling": sampling, **pipe.other_sampling}.items()
    }
    return {**settings, "signal_size": size, **more}
