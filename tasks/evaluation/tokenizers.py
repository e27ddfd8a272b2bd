"""Measuring a tokenizer: what comes back of real signals, and how evenly its codes are used.

Every process rebuilds its share of the blocks; the first puts them together. Shapes: B batch, N tokens, K codebooks.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from maskgen.checkpoint import fingerprint, load_module
from maskgen.precision import fast_matmul
from maskgen.tasks.evaluation.made.making import Make, codec_sound, read_good
from maskgen.tasks.evaluation.made.writing import MadeSet, write_samples
from maskgen.tasks.evaluation.metrics.audio import SoundScores
from maskgen.tasks.evaluation.metrics.base import Metric
from maskgen.tasks.evaluation.metrics.reconstruction import CodeUse, PixelScores
from maskgen.tasks.evaluation.pairs import SOUNDS, join_scores, pixel_measures, readable
from maskgen.tasks.evaluation.samples import Target, evaluate_samples, evenly
from maskgen.tasks.evaluation.sets.base import FileSamples, SampleSet, drawn
from maskgen.tasks.evaluation.settings import Evaluation, EvaluationRun, EvaluationSettings
from maskgen.tasks.media.clock import Clock
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.base import Tokenizer

_DISTANCES = ("fid", "fvd", "fad")


def find_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, which may be that of a model.

    Raises:
        FileNotFoundError: there is none.
        ValueError: damaged files.
    """
    place = folder / "tokenizer" if (folder / "pipeline.json").is_file() else folder
    if not (place / "config.json").is_file():
        raise FileNotFoundError(
            f"tokenizer: got {folder}, which holds none (no config.json); name a folder made by `maskgen train tokenizer`, "
            "or a model folder"
        )
    found: Tokenizer = load_module(place, Tokenizer)  # type: ignore[type-abstract]
    return found.requires_grad_(False)


def evaluate_tokenizer(tokenizer: Tokenizer, name: str, originals: SampleSet, run: EvaluationRun) -> Evaluation | None:
    """Rebuild real signals, compare each with what it was, and all of them with all of the originals.

    Args:
        tokenizer: what is measured.
        name: as it was named.
        originals: real signals of one size (sound may differ in length).
        run: how and where; what is rebuilt goes into ``rebuilt/`` below its folder. Its extractor is for the Frechet
            distance of rebuilt and original (rFID, rFVD, rFAD); None leaves that out.

    Returns:
        The evaluation on the first process, None on the others.

    Raises:
        ValueError: samples of another modality, or that cannot be read; what ``evaluate_samples`` refuses.
    """
    if originals.modality != tokenizer.modality:
        raise ValueError(
            f"tokenizer: its modality is {tokenizer.modality}, but {originals.name} holds samples of {originals.modality}"
        )
    clock, team, settings = Clock(), run.team, run.settings
    with clock("rebuild"):
        originals, skipped = readable(originals, run, "originals")
        originals = drawn(originals, settings.most)
        count = len(originals)
        rebuilder = _Rebuilder(tokenizer.to(run.device).eval(), originals, torch.device(run.device))
        told = {"tokenizer": name, "weights": fingerprint(tokenizer)}
        told["originals"] = team.share("digest", originals.digest)
        warnings = [f"{len(skipped)} originals could not be read and were left out"] if skipped else []
        size = [] if originals.modality == "audio" else list(rebuilder.original(0).shape[1:])
        scores = _scores(rebuilder, size, settings, warnings)  # before the work: a network that is missing shows now
        what = MadeSet(
            count=count,
            modality=tokenizer.modality,
            sample_rate=rebuilder.sample_rate,
            description=told | {"signal_size": size},
        )
        write_samples(
            rebuilder.make, what, run.out / "rebuilt", batch_size=settings.batch_size, state=team.state, say=run.say
        )
    rebuilt = FileSamples(run.out / "rebuilt", originals.modality, settings.frames)
    subject = {"kind": "tokenizer", "name": name, "count": count, **told}
    result: Evaluation | None = None
    if run.extractor is not None and settings.enabled("fid"):
        target = Target(real=originals)
        result = evaluate_samples(rebuilt, target, run.measuring(metrics=("fid",)), subject=subject)
    elif team.main:
        result = Evaluation(subject=subject, protocol=run.protocol, counts={"samples": count})
    with clock("compare"):
        compared = _compare(rebuilder, rebuilt, count, run, scores)
    if result is not None:
        result.metrics = {f"r{key}": metric for key, metric in result.metrics.items()} | compared
        result.warnings = [f"r{line}" if line.startswith(_DISTANCES) else line for line in result.warnings] + warnings
        result.seconds = result.seconds | clock.seconds
        result.skipped |= {"originals": list(skipped.values())} if skipped else {}
        result.shown = [(number, originals.place(number)) for number in evenly(count, settings.shown)]
    return result


class _Rebuilder:
    """Signals through the tokenizer and back."""

    def __init__(self, tokenizer: Tokenizer, originals: SampleSet, device: torch.device) -> None:
        self.tokenizer, self.originals, self.device = tokenizer, originals, device
        self.sample_rate = tokenizer.sample_rate if isinstance(tokenizer, AudioTokenizer) else 0

    def original(self, number: int) -> Tensor:
        """A signal in the tokenizer's range, rate and channels, without a batch axis.

        Raises:
            ValueError: it cannot be read.
        """
        if isinstance(self.tokenizer, AudioTokenizer):
            return codec_sound(self.originals, number, self.tokenizer)
        return read_good(self.originals, number).float() / 255

    @torch.no_grad()
    def codes(self, signal: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens ``[B, N, K]``, and what a codec keeps aside."""
        if isinstance(self.tokenizer, AudioTokenizer):
            return self.tokenizer.encode_scaled(signal.to(self.device))
        return self.tokenizer.encode(signal.to(self.device)), None

    @torch.no_grad()
    def rebuild(self, signal: Tensor) -> Tensor:
        """A batch through the tokenizer and back, cropped to its own size."""
        with fast_matmul(self.device):
            axes = self.tokenizer.axes(signal.shape)
            tokens, scale = self.codes(signal)
            if isinstance(self.tokenizer, AudioTokenizer):
                found = self.tokenizer.decode(tokens, axes, scale).float().cpu()
                return found[..., : signal.shape[-1]]
            found = self.tokenizer.decode(tokens, axes).float().cpu().clamp(0, 1)
        return found[tuple(slice(0, size) for size in signal.shape)]

    @property
    def make(self) -> Make:
        """See ``maskgen.tasks.evaluation.made.making.Make``."""

        def made(numbers: Any) -> list[Any]:
            signals = [self.original(number) for number in numbers]
            if self.originals.modality == "audio":
                return [self.rebuild(signal[None])[0] for signal in signals]
            whole = (self.rebuild(torch.stack(signals)) * 255).round().to(torch.uint8)
            pixels = rearrange(whole, "b c ... -> b ... c").numpy()
            return (
                [Image.fromarray(picture) for picture in pixels] if self.originals.modality == "image" else list(pixels)
            )

        return made


def _scores(
    rebuilder: _Rebuilder, size: list[int], settings: EvaluationSettings, warnings: list[str]
) -> PixelScores | SoundScores | None:
    """What pairs are compared by; None for nothing."""
    if rebuilder.originals.modality != "audio":
        return pixel_measures(settings, min(size[-2:]), warnings, rebuilder.device)
    names = [name for name in SOUNDS if settings.enabled(name)]
    return SoundScores(rebuilder.sample_rate, names) if names else None


def _compare(
    rebuilder: _Rebuilder, rebuilt: SampleSet, count: int, run: EvaluationRun, scores: PixelScores | SoundScores | None
) -> dict[str, Metric]:
    """Pairs, as they are on the disk, and the codes; every process compares its share."""
    team, settings = run.team, run.settings
    sounds = rebuilt.modality == "audio"
    use = CodeUse(rebuilder.tokenizer.vocab_size) if settings.enabled("codes") else None
    order: list[int] = []
    codes: list[Tensor] = []
    for numbers in team.blocks(count, 1 if sounds else settings.batch_size):
        batch = torch.stack([rebuilder.original(number) for number in numbers])
        order += numbers
        if use is not None:
            codes.append(rearrange(rebuilder.codes(batch)[0].cpu(), "b n k -> (b n) k"))
        if scores is not None:
            again = torch.stack([read_good(rebuilt, number) for number in numbers])
            scores.update(batch, again if sounds else again.float() / 255)
    found = {} if scores is None else join_scores(scores, order, team=team, name="pairs", draws=settings.draws)
    empty = torch.zeros(0, rebuilder.tokenizer.num_codebooks, dtype=torch.long)
    parts = [part for part, _ in team.gather("codes", {"codes": torch.cat([empty, *codes])}, None)]
    if use is not None and parts:
        use.update(torch.cat([part["codes"] for part in parts])[None])
        found |= {name: dataclasses.replace(metric, count=count) for name, metric in use.metrics().items()}
    return found
