"""The video demo's clips: what a masked-token model does over time, to look at.

Shapes: M clips, T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from maskgen.sampling.loop import SampleStep
from maskgen.tasks.media.images import image_grid, save_gif, save_image, to_images
from maskgen.tasks.media.report import Figure
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import complete_clips

__all__ = ["Predicted", "plot_clips"]

_SCALE = 3  # frames are small: shown at three times their size

_SECONDS = 0.15  # a frame

_SHOWN = 8  # clips side by side

_GAP = (0.85, 0.45, 0.25)  # colour of what is masked

_TASKS = {
    "FI": ("In between", "From the first and the last frame alone."),
    "IPC": ("Filling in", "The middle of every frame is masked."),
    "IPD": ("Filling in behind a moving strip", "A strip moves over the clip and masks its middle."),
    "OPC": ("Painting on", "Only the middle of every frame is given."),
}


@dataclass(frozen=True)
class Predicted:
    """Clips and what the model made of their first frames.

    Attributes:
        video: float ``[M, 3, T, H, W]``.
        predicted: float ``[M, 3, T, H, W]``, the given frames included.
        given: how many were given.
    """

    video: Tensor
    predicted: Tensor
    given: int


def plot_clips(pipe: Pipeline, found: Predicted, folder: Path) -> list[Figure]:
    """Plot and save all clips of the report.

    Args:
        pipe: the trained model.
        found: predictions of clips it did not see.
        folder: where the files go.

    Returns:
        The figures, in the order of the report.
    """
    return [
        *_prediction(found, folder),
        *_longer(pipe, found, folder),
        _trajectory(pipe, found, folder),
        _reconstruction(pipe, found, folder),
        *(figure for name in _TASKS for figure in _task(pipe, name, found, folder)),
    ]


def _prediction(found: Predicted, folder: Path) -> list[Figure]:
    video, predicted = found.video[:_SHOWN], found.predicted[:_SHOWN]
    given = video.clone()
    given[:, :, found.given :] = torch.tensor(_GAP)[:, None, None, None]
    repeated = video.clone()
    repeated[:, :, found.given :] = video[:, :, found.given - 1 : found.given]
    moving = _movie([given, predicted, video, repeated], folder / "prediction.gif")
    caption = (
        f"From top to bottom: the {found.given} frames that are given (then orange); the prediction; what really came; the "
        "last given frame kept. Each column is another digit that the model never saw."
    )
    rows = [image for pair in zip(predicted[:4], video[:4], strict=True) for clip in pair for image in _frames(clip)]
    still = folder / "prediction.png"
    save_image(_enlarge(image_grid(rows, video.shape[2])), still)
    told = "The same frame by frame: of each pair of rows the upper one is predicted, the lower one is the truth."
    return [Figure("Predicting frames", moving, caption), Figure("", still, told)]


def _longer(pipe: Pipeline, found: Predicted, folder: Path) -> list[Figure]:
    """Twice the model's length."""
    from maskgen.tasks.media.video.files import to_frames
    from maskgen.tasks.video.prediction import predict_frames

    total = 2 * found.video.shape[2]
    starts = [to_frames(clip[None, :, : found.given])[0] for clip in found.video[:_SHOWN]]
    clips = [predict_frames(pipe, start, total=total, seeds=[0])[0] for start in starts]
    tensors = torch.stack([rearrange(torch.from_numpy(clip), "t h w c -> c t h w").float() / 255 for clip in clips])
    caption = (
        f"{total} frames from {found.given}: windows of the model's length that each begin with the end of the last."
    )
    return [Figure("Going on for longer than the model", _movie([tensors], folder / "longer.gif"), caption)]


def _trajectory(pipe: Pipeline, found: Predicted, folder: Path) -> Figure:
    seen: list[SampleStep] = []
    complete_clips(pipe, found.video[:1], f"FP{found.given}", seeds=[0], callback=seen.append)
    frames = []
    for step in seen:
        clip = pipe.decode(step.tokens)
        cells = step.mask.cpu().any(-1).view(1, 1, *pipe.axes).float()
        masked = torch.nn.functional.interpolate(cells, size=clip.shape[2:]).bool()
        frames += _frames(torch.where(masked, torch.tensor(_GAP)[:, None, None, None], clip)[0])
    path = folder / "trajectory.png"
    save_image(_enlarge(image_grid(frames, found.video.shape[2])), path)
    caption = (
        f"The {len(seen)} steps of one prediction, a row each, frames from left to right. Orange tokens are masked again "
        "after the step, those of the given frames too: all are refined."
    )
    return Figure("Decoding, step by step", path, caption)


def _reconstruction(pipe: Pipeline, found: Predicted, folder: Path) -> Figure:
    video = found.video[:_SHOWN]
    rebuilt = pipe.decode(pipe.encode(video))[:, :, : video.shape[2]]
    caption = "Above: real clips. Below: their tokens, decoded."
    return Figure("Through the tokenizer and back", _movie([video, rebuilt], folder / "reconstruction.gif"), caption)


def _task(pipe: Pipeline, name: str, found: Predicted, folder: Path) -> list[Figure]:
    """One more task, if the model was trained for it."""
    from maskgen.tasks.conditions.trained import named_task
    from maskgen.tasks.conditions.video import TokenCells
    from maskgen.tokenizers.video.base import VideoTokenizer

    trained = pipe.config.video
    if trained is None or name not in trained.names:
        return []
    video = found.video[:_SHOWN]
    assert isinstance(pipe.tokenizer, VideoTokenizer)
    condition = named_task(name).condition(video, TokenCells.of(pipe.tokenizer, video.shape))
    shown = torch.where(condition.pixels, video, torch.tensor(_GAP)[:, None, None, None])
    filled = complete_clips(pipe, video, name, seeds=range(len(video)))
    title, told = _TASKS[name]
    caption = f"{told} From top to bottom: what is given; what the model makes of it; the truth."
    return [Figure(title, _movie([shown, filled, video], folder / f"{name.lower()}.gif"), caption)]


def _movie(rows: list[Tensor], path: Path) -> Path:
    """Clips ``[M, 3, T, H, W]`` in rows, playing side by side."""
    columns, length = rows[0].shape[0], rows[0].shape[2]
    pages = []
    for frame in range(length):
        images = [image for row in rows for image in to_images(row[:, :, frame])]
        pages.append(_enlarge(image_grid(images, columns)))
    save_gif(pages, path, _SECONDS)
    return path


def _frames(clip: Tensor) -> list[Image.Image]:
    """Of one clip ``[3, T, H, W]``."""
    return to_images(rearrange(clip, "c t h w -> t c h w"))


def _enlarge(image: Image.Image) -> Image.Image:
    return image.resize((image.width * _SCALE, image.height * _SCALE), Image.Resampling.NEAREST)
