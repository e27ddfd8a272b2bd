"""What the sub-commands for video do: read a file, call a task, write a video for each seed and a manifest.

The signatures are the command line: names, types, defaults and help come from here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from maskgen.tasks.commands.parts import EditRun, ProgressBar
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import clip_size, trained
from maskgen.tasks.video.edit import VideoEdit
from maskgen.tasks.video.inpainting import inpaint_video
from maskgen.tasks.video.interpolation import interpolate
from maskgen.tasks.video.outpainting import outpaint_video
from maskgen.tasks.video.prediction import predict_frames
from maskgen.tasks.video.regions import INPAINTED
from maskgen.tasks.video.source import Excerpt
from maskgen.tokenizers.video.base import VideoTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """Which part of a video file is taken, and what is written.

    Attributes:
        start: where the part begins, in seconds.
        frames: how many frames it has; up to the end of the file if left out.
        frame_rate: take so many frames a second, by time; those of the file if left out.
        format: of the results, ``mp4`` or ``gif``. Both are lossy; a GIF has no sound.
    """

    start: float = 0.0
    frames: int | None = None
    frame_rate: float | None = None
    format: Literal["mp4", "gif"] = "mp4"

    def part(self, path: Path) -> Excerpt:
        """This part of a file."""
        return Excerpt(path, self.start, self.frames, self.frame_rate)


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
    _edit(run, "predict-frames", predict_frames, {"video": video}, clip, total=total, context=context)


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
    _edit(run, "interpolate", interpolate, {"first": first, "last": last}, ClipOptions(format=format), total=total)


def inpaint_video_command(run: EditRun, *, video: Path, mask: str, clip: ClipOptions = _WHOLE) -> None:
    """Paint a part of every frame of a video anew.

    Args:
        run: see ``EditRun``.
        video: video file of any length, rate and size; the results have the model's size.
        mask: picture or video of the same size, white = paint anew, frame for frame if it has as many, else by time; or a
            region: ``central`` or ``dynamic``.
        clip: which part of the file is taken, and what is written.
    """
    files = {"video": video, "mask": mask if mask in INPAINTED else Path(mask)}
    _edit(run, "inpaint-video", inpaint_video, files, clip)


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
    added = dataclasses.asdict(sides)
    _edit(run, "outpaint-video", outpaint_video, {"video": video}, clip, region=region, **added)


def _edit(
    run: EditRun,
    task: str,
    function: Callable[..., VideoEdit],
    files: Mapping[str, str | Path],
    clip: ClipOptions,
    **settings: Any,
) -> None:
    """A task on one file or two: a video a seed, made and written one after the other, and the manifest."""
    pipe = run.load()
    pipe.require("video", task)
    _check_even(pipe, clip.format)
    sampling = run.settings(pipe)
    sources = [clip.part(Path(path)) if name == "video" else path for name, path in files.items()]

    def write(path: Path, seed: int) -> int:
        options = {**run.options(sampling, callback), "seeds": [seed]}
        return function(pipe, *sources, **options, **settings).write(path)

    with ProgressBar() as callback:
        items, frames = run.write(task, f".{clip.format}", (partial(write, seed=seed) for seed in run.seeds))
    details = {**{name: str(path) for name, path in files.items()}, **settings}
    details |= {"clip": dataclasses.asdict(clip), "frames": frames[-1]}
    run.finish(pipe, task, items, sampling, details, f"{len(items)} video(s) of {frames[-1]} frames")


def describe_video(pipe: Pipeline) -> dict[str, Any]:
    """What ``maskgen info`` adds for a model of video."""
    learnt = trained(pipe)
    assert isinstance(pipe.tokenizer, VideoTokenizer)
    return {
        "codebooks": pipe.tokenizer.num_codebooks,
        "stride": list(pipe.tokenizer.stride),
        "tasks": list(learnt.names),
        "inpainting_prompt": learnt.inpainting_prompt,
        "frame_rate": learnt.frame_rate,
    }


def _check_even(pipe: Pipeline, kind: str) -> None:
    """Before the work, not after it: H.264 has no odd sizes."""
    height, width = clip_size(pipe)[1:]
    if kind == "mp4" and (height % 2 or width % 2):
        raise ValueError(
            f"format: got mp4, but the model's frames are {width} x {height}, and it has even sizes only; use gif"
        )
