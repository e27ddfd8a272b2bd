"""``maskgen demo video``: predict, interpolate and fill in clips, from nothing, in minutes on a CPU.

A 3D tokenizer and a multi-task transformer are trained on bouncing handwritten digits through the command line that trains
on videos; then the model predicts the future of digits it never saw, and is measured against keeping the last frame it was
given. Interrupted, it goes on; finished stages are reused.

Shapes: M clips, T frames, H W pixels.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from maskgen.checkpoint import read_json
from maskgen.tasks.data.video.moving_digits import MovingDigits
from maskgen.tasks.demo.figures.moving_digits import Predicted, plot_clips
from maskgen.tasks.demo.stages import Demo, say
from maskgen.tasks.evaluation.features.base import centred_features
from maskgen.tasks.evaluation.metrics.reconstruction import CodeUse, clip_psnr, frame_psnr
from maskgen.tasks.evaluation.metrics.scores import Labels, read_classes
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import complete_clips

_GIVEN = 5  # frames

_TASK = f"FP{_GIVEN}"

_PART = 60  # clips at a time

_INTRODUCTION = (
    "A 3D VQGAN turned clips of bouncing handwritten digits into tokens, and a masked-token transformer learned several "
    "tasks on them at once: what is given stands in the masked positions as a draft, which the model refines while it "
    "decides the rest. No digit below was seen in training."
)

_NOTES = {
    "psnr_predicted": f"dB, frames predicted from {_GIVEN} given ones against the true ones: of the squared error over all "
    "predicted frames of a clip, mean over clips",
    "psnr_repeated": "the same for keeping the last frame that was given",
    "psnr_gain": "psnr_predicted - psnr_repeated; the goal is 3 or more",
    "psnr_tokenizer": "the same frames through the tokenizer and back: no prediction by these tokens can be expected above",
    "digit_kept": "share of clips in whose last predicted frame a classifier reads the right digit; the goal is 0.9 or more",
    "digit_read_in_truth": "what the classifier reads right in the true last frames",
    "digit_read_through_tokenizer": "the same after the tokenizer",
    "psnr_reconstruction": "dB, whole test clips through the tokenizer and back: mean over frames",
    "codebook_usage": "share of codes that occur in the test clips",
    "codebook_perplexity": "exp of the entropy of the code frequencies, over the codebooks together",
}


def demo_video(
    *, out: Path = Path("runs/video-demo"), tokenizer_config: Path | None = None, transformer_config: Path | None = None
) -> None:
    """Train on bouncing digits, predict, interpolate, fill in, measure, and write a report with playing clips.

    Args:
        out: folder for the model, ``report.html``, ``metrics.json`` and ``clips/``; run again to go on after a stop.
        tokenizer_config: settings of stage 1 instead of ``configs/demo/moving_digits_tokenizer.yaml``.
        transformer_config: settings of stage 2 instead of ``configs/demo/moving_digits_transformer.yaml``.
    """
    _DEMO.run(out, tokenizer_config, transformer_config)


@dataclass(frozen=True)
class _Made:
    """Test clips ``[M, 3, T, H, W]`` with their labels ``[M]``, and each predicted from its first frames."""

    data: MovingDigits
    video: Tensor
    labels: Tensor
    predicted: Tensor


def _make(pipe: Pipeline, out: Path) -> _Made:
    data = _data(out)
    test = data.test().batch(range(len(data.test())), range(len(data.test())))
    say(f"demo: predicting {len(test['video'])} clips of digits that were not trained on")
    return _Made(data, test["video"], test["labels"], _predict(pipe, test["video"]))


def _data(out: Path) -> MovingDigits:
    """The data of the run."""
    written = read_json(out / "transformer" / "run.json")["data"]
    frames, size, _ = written["size"]
    names = set(inspect.signature(MovingDigits).parameters) & set(written) - {"size"}
    # Stage 2 may go without classes; the classifier below needs them.
    return MovingDigits(**{**{name: written[name] for name in names}, "frames": frames, "size": size, "labels": True})


def _predict(pipe: Pipeline, video: Tensor) -> Tensor:
    """All clips from their first frames, which are pasted back, ``[M, 3, T, H, W]``."""
    parts = torch.arange(len(video)).split(_PART)
    return torch.cat([complete_clips(pipe, video[part], _TASK, seeds=part.tolist()) for part in parts])


def _measure(pipe: Pipeline, found: _Made) -> dict[str, Any]:
    """Every number of ``metrics.json`` but the times."""
    data, video, labels, predicted = found.data, found.video, found.labels, found.predicted
    codes = torch.cat([pipe.encode(part).cpu() for part in video.split(_PART)])
    rebuilt = torch.cat([pipe.decode(part) for part in codes.split(_PART)])[:, :, : video.shape[2]]
    repeated = video.clone()
    repeated[:, :, _GIVEN:] = video[:, :, _GIVEN - 1 : _GIVEN]

    def after(clips: Tensor) -> float:
        return float(clip_psnr(video[:, :, _GIVEN:], clips[:, :, _GIVEN:]).mean())

    last = {"digit_kept": predicted, "digit_read_in_truth": video, "digit_read_through_tokenizer": rebuilt}
    read = read_digits(data, [clips[:, :, -1] for clips in last.values()])
    use = CodeUse(pipe.tokenizer.vocab_size)
    use.update(codes)
    return {
        "psnr_predicted": after(predicted),
        "psnr_repeated": after(repeated),
        "psnr_gain": after(predicted) - after(repeated),
        "psnr_tokenizer": after(rebuilt),
        **{name: float((digits == labels.numpy()).mean()) for name, digits in zip(last, read, strict=True)},
        "psnr_reconstruction": float(frame_psnr(video, rebuilt).mean()),
        **{name: metric.value for name, metric in use.metrics().items()},
        "clips": len(video),
        "given_frames": _GIVEN,
        "sampling_steps": pipe.config.sampling.steps,
    }


def read_digits(data: MovingDigits, frames: list[Tensor]) -> list[Labels]:
    """What a classifier reads in frames; it was trained on the true training digits, cut out as these are.

    Args:
        data: whose training digits it learns; it must have labels.
        frames: float ``[M, 3, H, W]`` each.

    Returns:
        Digits ``[M]`` of each.
    """
    train = data.train()
    batch = train.batch(range(len(train)), range(len(train)))
    shown = batch["video"][:, :, :: max(1, data.size[0] // 4)]
    features = centred_features(rearrange(shown, "b c t h w -> (b t) c h w"), data.digit_size)
    labels = batch["labels"].repeat_interleave(shown.shape[2]).numpy()
    return read_classes((features, labels), [centred_features(part, data.digit_size) for part in frames], strength=10)


_DEMO = Demo(
    title="maskgen: moving digits",
    introduction=_INTRODUCTION,
    notes=_NOTES,
    configs=("moving_digits_tokenizer", "moving_digits_transformer"),
    transformer="video-transformer",
    making="predict",
    make=_make,
    measure=_measure,
    showing="clips",
    show=lambda pipe, made, folder: plot_clips(pipe, Predicted(made.video, made.predicted, _GIVEN), folder),
)
