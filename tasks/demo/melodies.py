"""``maskgen demo audio``: fill gaps in sound, from nothing, in minutes on a CPU.

A small codec and a transformer are trained on synthesised melodies through the command line that trains on recordings; then
the model fills a gap in melodies it never heard, goes on, varies and closes loops, and is measured against silence and
against playing once more what came before the gap. Interrupted, it goes on; finished stages are reused.

Shapes: M clips, C channels, S samples.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskgen.checkpoint import read_json
from maskgen.tasks.audio.infilling import infill
from maskgen.tasks.audio.source import MemorySound
from maskgen.tasks.audio.windows import recode
from maskgen.tasks.conditions.preparation import loudness_of
from maskgen.tasks.data.audio.melodies import Melodies
from maskgen.tasks.demo.figures.melodies import Filled, plot_sounds
from maskgen.tasks.demo.stages import Demo, say
from maskgen.tasks.evaluation.made.gaps import GapScores, GapSettings, middle_gap
from maskgen.tasks.evaluation.metrics.audio import SoundScores
from maskgen.tasks.evaluation.metrics.reconstruction import CodeUse
from maskgen.tasks.pipeline import Pipeline
from maskgen.tokenizers.audio.base import AudioTokenizer

_GAP = GapSettings()

_INTRODUCTION = (
    "A small codec turned synthesised melodies into tokens, and a masked-token transformer learned to predict masked "
    "tokens from visible ones. The melodies below were never heard in training. Every bar repeats, so a gap has a right "
    "answer; but no bar repeats inside itself, so what came just before the gap is a wrong one."
)

_NOTES = {
    "gap_filled": "dB, mean absolute log-mel difference of the filled gap to what had been there, over all test melodies",
    "gap_silence": "the same for leaving the gap silent",
    "gap_repeated": "the same for playing the sound before the gap once more",
    "gap_codec": "the same for the true sound through the codec and back: no filling by this codec can be expected below",
    "filled_over_silence": "gap_filled / gap_silence; the goal is 0.6 or less",
    "filled_over_repeated": "gap_filled / gap_repeated; the goal is 0.8 or less",
    "kept_identical": "share of melodies whose samples outside gap and cross-fade came back bit for bit; must be 1",
    "gap_seconds": "length of the gap",
    "codec_distance": "dB, log-mel difference of whole test melodies through the codec and back",
    "codebook_usage": "share of codes that occur in the test melodies",
    "codebook_perplexity": "exp of the entropy of the code frequencies, over the codebooks together",
    "bits_per_second": "what the codec spends",
}


def demo_audio(
    *, out: Path = Path("runs/audio-demo"), codec_config: Path | None = None, transformer_config: Path | None = None
) -> None:
    """Train on synthesised melodies, fill gaps, go on, vary, measure, and write a report with players.

    Args:
        out: folder for the model, ``report.html``, ``metrics.json`` and ``sounds/``; run again to go on after a stop.
        codec_config: settings of stage 1 instead of ``configs/demo/melodies_codec.yaml``.
        transformer_config: settings of stage 2 instead of ``configs/demo/melodies_transformer.yaml``.
    """
    _DEMO.run(out, codec_config, transformer_config)


@dataclass(frozen=True)
class _Made:
    """Test melodies ``[M, C, S]``, and each with its gap filled."""

    melodies: Tensor
    filled: list[Filled]


def _make(pipe: Pipeline, out: Path) -> _Made:
    melodies = _held_out(out)
    say(f"demo: filling a gap in {len(melodies)} melodies that were not trained on")
    return _Made(melodies, _fill_gaps(pipe, _codec(pipe), melodies))


def _codec(pipe: Pipeline) -> AudioTokenizer:
    assert isinstance(pipe.tokenizer, AudioTokenizer), "what the first stage trained"
    return pipe.tokenizer


def _held_out(out: Path) -> Tensor:
    """The test melodies of the run, ``[M, C, S]``: those of another length, tempo or seed would be others."""
    written = read_json(out / "transformer" / "run.json")["data"]
    names = inspect.signature(Melodies).parameters
    return Melodies(**{name: written[name] for name in names}).test().tensors["audio"]


def _fill_gaps(pipe: Pipeline, codec: AudioTokenizer, melodies: Tensor) -> list[Filled]:
    """Fill an eighth of each melody ``[M, C, S]`` in its middle, on whole frames."""
    gap, rate = middle_gap(melodies.shape[-1], _GAP.share, codec.stride[0]), codec.sample_rate
    how: dict[str, Any] = {"start": gap[0] / rate, "stop": gap[1] / rate, "loudness": _GAP.loudness}
    how["crossfade"] = _GAP.crossfade
    return [
        Filled(melody, infill(pipe, melody, rate, seeds=[seed], **how)[0], gap, rate)
        for seed, melody in enumerate(melodies)
    ]


def _measure(pipe: Pipeline, found: _Made) -> dict[str, Any]:
    """Every number of ``metrics.json`` but the times."""
    codec, melodies, filled = _codec(pipe), found.melodies, found.filled
    level = loudness_of(_GAP.loudness, pipe.config.prepared)
    rebuilt = torch.stack([recode(pipe, MemorySound(one.original, one.sample_rate), one.gap, level) for one in filled])
    gaps = GapScores(codec.sample_rate, ("log_mel",), _GAP.crossfade)
    for one, again in zip(filled, rebuilt, strict=True):
        gaps.update(one.original, one.result, again, one.gap)
    whole, use = SoundScores(codec.sample_rate, ("log_mel",)), CodeUse(codec.vocab_size)
    whole.update(melodies, rebuilt)
    use.update(pipe.encode(melodies))
    scores = {name: metric.value for name, metric in gaps.metrics().items()}
    made, silence, repeated, bound = (
        scores[f"gap_log_mel_{name}"] for name in ("filled", "silence", "repeated", "codec")
    )
    begin, end = filled[0].gap
    bits = (codec.vocab_size - 1).bit_length() * pipe.transformer.num_codebooks
    return {
        "gap_filled": made,
        "gap_silence": silence,
        "gap_repeated": repeated,
        "gap_codec": bound,
        "filled_over_silence": made / silence,
        "filled_over_repeated": made / repeated,
        "kept_identical": scores["gap_kept_identical"],
        "gap_seconds": (end - begin) / codec.sample_rate,
        "codec_distance": whole.metrics()["log_mel"].value,
        **{name: metric.value for name, metric in use.metrics().items()},
        "bits_per_second": float(codec.frame_rate) * bits,
        "melodies": len(filled),
        "sampling_steps": pipe.config.sampling.steps,
    }


_DEMO = Demo(
    title="maskgen: melodies",
    introduction=_INTRODUCTION,
    notes=_NOTES,
    configs=("melodies_codec", "melodies_transformer"),
    tokenizer="codec",
    making="fill",
    make=_make,
    measure=_measure,
    showing="sounds",
    show=lambda pipe, made, folder: plot_sounds(pipe, made.filled, folder),
)
