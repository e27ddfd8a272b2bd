"""Results beside the truth they belong to: clips that a task completed, sounds whose gap was filled, rebuilt signals.

Every process compares its share; the first joins the numbers in the order of the samples, so they do not depend on how many
processes there were. Shapes: B batch, T frames, H W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskgen.tasks.audio.source import MemorySound
from maskgen.tasks.audio.windows import recode
from maskgen.tasks.conditions.preparation import loudness_of
from maskgen.tasks.conditions.trained import named_task
from maskgen.tasks.conditions.video import TokenCells
from maskgen.tasks.data.broken import Broken
from maskgen.tasks.evaluation.features.extraction import mixed_sizes, tolerance
from maskgen.tasks.evaluation.made.gaps import GapScores, middle_gap
from maskgen.tasks.evaluation.made.making import codec_sound, read_good
from maskgen.tasks.evaluation.metrics.base import Metric
from maskgen.tasks.evaluation.metrics.pairs import PairScores
from maskgen.tasks.evaluation.metrics.reconstruction import PixelScores, clip_psnr, perceptual_net
from maskgen.tasks.evaluation.sets.base import SampleSet, Subset
from maskgen.tasks.evaluation.sets.processes import Processes
from maskgen.tasks.evaluation.settings import EvaluationRun, EvaluationSettings
from maskgen.tasks.pipeline import Pipeline
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.video.base import VideoTokenizer

SOUNDS = ("log_mel", "stft", "si_sdr")
"""Measures of pairs of sounds."""

PICTURES = ("psnr", "ssim", "lpips")
"""Measures of pairs of pictures and clips."""

_NEW = {
    "psnr_new": "dB, of the mean squared error of a clip's pixels that were not given, mean over clips",
    "psnr_new_padding": "dB, the same for what needs no model: the padding (the last given frame, the nearest pixel, black)",
    "psnr_new_tokenizer": "dB, the same for the truth through the tokenizer and back: what its tokens can say",
}


def join_scores(
    scores: PairScores, order: Sequence[int], *, team: Processes, name: str, draws: int = 1000
) -> dict[str, Metric]:
    """Everyone's numbers as one.

    Args:
        scores: of this process.
        order: numbers of its pairs, in the order they came.
        team: the processes.
        name: of the comparison, used once.
        draws: of the bootstrap.

    Returns:
        The metrics on the first process, none on the others.
    """
    mine = {**scores.values(), "order": torch.tensor(list(order), dtype=torch.long)}
    parts = [part for part, _ in team.gather(name, mine, None)]
    if not parts:
        return {}
    places = torch.cat([part.pop("order") for part in parts]).argsort()
    scores.load({key: torch.cat([part[key] for part in parts])[places] for key in parts[0]})
    return scores.metrics(draws=draws)


def readable(samples: SampleSet, run: EvaluationRun, name: str) -> tuple[SampleSet, dict[int, str]]:
    """The samples that can be read, and why the others cannot be, by their numbers.

    Args:
        samples: real data that results will be made of and compared with.
        run: processes and settings.
        name: of the look-up, used once.

    Raises:
        ValueError: too many that cannot be read, or pictures or clips of different sizes.
    """
    team, bad = run.team, dict[int, str]()
    sizes: dict[int, list[int]] = {}
    for block in team.blocks(len(samples), run.settings.batch_size):
        for index, sample in zip(block, samples.read(block.start, block.stop), strict=True):
            if isinstance(sample, Broken):
                bad[index] = sample.reason
            elif samples.modality != "audio" and list(sample.shape) not in sizes.values():
                sizes[index] = list(sample.shape)
    mine = {"bad": sorted(bad.items()), "sizes": sorted(sizes.items())}
    parts = [told for _, told in team.gather(f"{name}-found", {}, mine)]

    def joined() -> list[tuple[int, str]]:
        seen = sorted((int(index), tuple(shape)) for told in parts for index, shape in told["sizes"])
        other = [(index, shape) for index, shape in seen if shape != seen[0][1]]
        if other:
            raise mixed_sizes(samples, *seen[0], *other[0])
        skipped = sorted((int(index), str(reason)) for told in parts for index, reason in told["bad"])
        tolerance(samples, run.settings.broken).check([reason for _, reason in skipped])
        return skipped

    skipped = {int(index): str(reason) for index, reason in team.share(f"{name}-broken", joined)}
    kept = [index for index in range(len(samples)) if index not in skipped]
    if not kept:
        raise ValueError(f"{samples.name}: got no samples that can be read")
    return (Subset(samples, kept) if skipped else samples), skipped


def pixel_measures(
    settings: EvaluationSettings, smallest: int, warnings: list[str], device: torch.device | str = "cpu"
) -> PixelScores | None:
    """PSNR, SSIM and LPIPS as far as they are enabled and can be had; what is left out is said in ``warnings``.

    Args:
        settings: what is enabled.
        smallest: shorter side of the pictures, in pixels.
        warnings: of the report; added to.
        device: where the network of LPIPS runs.

    Raises:
        ConnectionError, ImportError, ValueError: a measure that was named and cannot be taken.
    """
    measures = [name for name in PICTURES if settings.enabled(name)]
    if "ssim" in measures and smallest < 11 and not settings.required("ssim"):
        measures.remove("ssim")
        warnings.append(f"ssim: left out, its window of 11 pixels is larger than pictures of {smallest}")
    network = None
    if "lpips" in measures:
        try:
            network = perceptual_net(settings.lpips).to(device)
        except (ConnectionError, ImportError) as error:
            if settings.required("lpips"):
                raise
            measures.remove("lpips")
            warnings.append(f"lpips: left out ({error})")
    return PixelScores(measures, network) if measures else None


class ClipScores(PairScores):
    """Whole clips frame by frame, as published numbers are; and the PSNR of what was not given, beside two bounds of it.

    Args:
        whole: measures of the whole clips.
    """

    def __init__(self, whole: PixelScores) -> None:
        super().__init__("clips", whole.notes | (_NEW if "psnr" in whole.notes else {}), ["psnr", *_NEW])
        self._whole = whole

    def update(self, truth: Tensor, made: Tensor, padded: Tensor, rebuilt: Tensor, given: Tensor) -> None:
        """Compare clips.

        Args:
            truth: float ``[B, 3, T, H, W]`` in [0, 1].
            made: the model's.
            padded: what was given, padded.
            rebuilt: the truth through the tokenizer and back.
            given: bool, a shape that expands to the clips', True for pixels that were given.

        Raises:
            ValueError: shapes that differ.
        """
        found = self._whole.compare(truth, made)
        if "psnr" in found:
            found |= {
                name: clip_psnr(truth, answer, ~given)
                for name, answer in zip(_NEW, (made, padded, rebuilt), strict=True)
            }
        self.add(found)


def compare_clips(
    pipe: Pipeline,
    clips: SampleSet,
    samples: SampleSet,
    task: str,
    scores: PixelScores,
    *,
    count: int,
    run: EvaluationRun,
) -> dict[str, Metric]:
    """Completed clips against the true ones; frames that were given count in all but the ``psnr_new`` numbers.

    Args:
        pipe: the model.
        clips: the truth.
        samples: what the model made of the given parts.
        task: the name of what it did.
        scores: measures of whole clips.
        count: how many.
        run: processes and settings.
    """
    tokenizer, found, order = pipe.tokenizer, ClipScores(scores), list[int]()
    assert isinstance(tokenizer, VideoTokenizer), "the modality is video"
    for block in run.team.blocks(count, run.settings.batch_size):
        truth, made = (torch.stack([read_good(side, n) for n in block]).float() / 255 for side in (clips, samples))
        condition = named_task(task).condition(truth, TokenCells.of(tokenizer, truth.shape))
        rebuilt = pipe.decode(pipe.encode(truth))[:, :, : truth.shape[2]]
        found.update(truth, made, condition.clip, rebuilt, condition.pixels)
        order += block
    return join_scores(found, order, team=run.team, name="pairs", draws=run.settings.draws)


def compare_gaps(
    pipe: Pipeline, sounds: SampleSet, samples: SampleSet, *, count: int, run: EvaluationRun
) -> dict[str, Metric]:
    """Filled gaps against what had been there.

    Args:
        pipe: the model.
        sounds: the truth.
        samples: the same sounds, the gap of each filled by the model, at the codec's rate.
        count: how many.
        run: processes and settings.
    """
    settings = run.settings
    measures = [name for name in SOUNDS if settings.enabled(name)]
    if not measures:
        return {}
    codec, order = pipe.tokenizer, list[int]()
    assert isinstance(codec, AudioTokenizer), "the modality is audio"
    loudness = loudness_of(settings.gap.loudness, pipe.config.prepared)
    found = GapScores(codec.sample_rate, measures, settings.gap.crossfade)
    for block in run.team.blocks(count, settings.batch_size):
        for number in block:
            truth = codec_sound(sounds, number, codec)
            gap = middle_gap(truth.shape[-1], settings.gap.share, codec.stride[0])
            rebuilt = recode(pipe, MemorySound(truth, codec.sample_rate), gap, loudness)
            found.update(truth, read_good(samples, number), rebuilt, gap)
            order.append(number)
    return join_scores(found, order, team=run.team, name="pairs", draws=settings.draws)
