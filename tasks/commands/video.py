"""What the sub-commands for video do: read a file, call a task, write a video for each seed and a manifest.

The signatures are the command line: names, types, defaults and help come from here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from maskgen.tasks.commands.parts import EditRun, ProgressBar
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import clip_size, drawing, trained
from maskgen.tasks.video.files import ClipOptions
from maskgen.tasks.video.inpainting import inpaint_file
from maskgen.tasks.video.interpolation import interpolate_files
from maskgen.tasks.video.outpainting import outpaint_file
from maskgen.tasks.video.prediction import predict_file
from maskgen.tokenizers.video.base import VideoTokenizer

__all__ = [
    "Sides",
    "describe_video",
    "inpaint_video_command",
    "interpolate_command",
    "outpaint_video_command",
    "predict_frames_command",
]

_WHOLE = ClipOptions()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sides:
    """Pixels to add around a video, in its own scale.

    Attributes:
        left: at the left.
        right: at the right.
        top: above.
        bottom: below.
    """

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


def predict_frames_command(
    run: EditRun, *, video: Path, total: int | None = None, context: int | None = None, clip: ClipOptions = _WHOLE
) -> None:
    """Go on with a video for as long as asked.

    Args:
        run: see ``EditRun``.
        video: video file of any length, rate and size; the results have the model's size.
        total: frames of a result, the given ones included; as many as one window of the model adds if left out.
        context: how many of the last frames the model is shown; the most it was trained with if left out.
        clip: which part of the file is taken, and what is written.
    """
    _edit(run, "predict-frames", predict_file, {"video": video}, clip, total=total, context=context)


def interpolate_command(
    run: EditRun, *, first: Path, last: Path, total: int | None = None, format: Literal["mp4", "gif"] = "mp4"
) -> None:
    """Fill the time between two pictures or videos.

    Args:
        run: see ``EditRun``.
        first: picture or video at the start.
        last: picture or video at the end.
        total: frames of a result, all given ones included; a gap as long as in training if left out.
        format: of the results.
    """
    _edit(run, "interpolate", _interpolate, {"first": first, "last": last}, ClipOptions(format=format), total=total)


def inpaint_video_command(run: EditRun, *, video: Path, mask: str, clip: ClipOptions = _WHOLE) -> None:
    """Paint a part of every frame of a video anew.

    Args:
        run: see ``EditRun``.
        video: video file of any length, rate and size; the results have the model's size.
        mask: picture or video of the same size, white = paint anew; or a region: ``central`` or ``dynamic``.
        clip: which part of the file is taken, and what is written.
    """
    _edit(run, "inpaint-video", inpaint_file, {"video": video, "mask": mask}, clip)


def outpaint_video_command(
    run: EditRun, *, video: Path, sides: Sides = Sides(), region: str | None = None, clip: ClipOptions = _WHOLE
) -> None:
    """Add new picture around every frame of a video.

    Args:
        run: see ``EditRun``.
        video: video file of any length, rate and size; the results have the model's size, what is added included.
        sides: pixels to add, in the video's own scale.
        region: instead of these, what of every frame is kept: ``central``, ``vertical``, ``horizontal`` or ``dynamic``.
        clip: which part of the file is taken, and what is written.
    """
    pads = dataclasses.astuple(sides)
    _edit(run, "outpaint-video", outpaint_file, {"video": video}, clip, pads=pads, region=region)


def _edit(
    run: EditRun,
    task: str,
    function: Callable[..., int],
    files: Mapping[str, str | Path],
    clip: ClipOptions,
    **settings: Any,
) -> None:
    """A task on one file or two: a video a seed, made and written one after the other, and the manifest."""
    pipe = run.load()
    pipe.require("video", task)
    _check_even(pipe, clip.format)
    sampling = run.settings(pipe)

    def write(path: Path, seed: int) -> int:
        draw = drawing(pipe, run.label, [seed], sampling, callback=callback)
        return function(pipe, *files.values(), path, draw, clip=clip, **settings)

    with ProgressBar() as callback:
        items, frames = run.write(task, f".{clip.format}", (partial(write, seed=seed) for seed in run.seeds))
    details = {**{name: str(path) for name, path in files.items()}, **settings}
    details |= {"clip": dataclasses.asdict(clip), "frames": frames[-1]}
    run.finish(task, items, sampling, details, f"{len(items)} video(s) of {frames[-1]} frames")


def describe_video(pipe: Pipeline) -> dict[str, Any]:
    """What ``maskgen info`` adds for a model of video."""
    known = trained(pipe)
    assert isinstance(pipe.tokenizer, VideoTokenizer)
    return {
        "codebooks": pipe.tokenizer.num_codebooks,
        "stride": list(pipe.tokenizer.stride),
        "tasks": list(known.names),
        "inpainting_prompt": known.inpainting_prompt,
        "frame_rate": known.frame_rate,
    }


def _interpolate(*arguments: Any, clip: ClipOptions, **options: Any) -> int:
    """``interpolate_files`` takes all of both files."""
    return interpolate_files(*arguments, **options)


def _check_even(pipe: Pipeline, kind: str) -> None:
    """Before the work, not after it: H.264 has no odd sizes."""
    height, width = clip_size(pipe)[1:]
    if kind == "mp4" and (height % 2 or width % 2):
        raise ValueError(
            f"format: got mp4, but the model's frames are {width} x {height}, and it has even sizes only; use gif"
        )
