"""What the sub-commands for video do: read a file, call a task, write a video for each seed and a manifest.

The signatures are the command line: names, types, defaults and help come from here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from maskgen.sampling.settings import Sampling
from maskgen.tasks.commands.parts import ProgressBar, load_model, seed_list, write_manifest
from maskgen.tasks.media.images import image_grid
from maskgen.tasks.media.video.backends import Frames
from maskgen.tasks.media.video.files import save_video
from maskgen.tasks.pipeline import Label, Pipeline
from maskgen.tasks.video.completion import clip_size, output_rate, trained
from maskgen.tasks.video.edit import VideoEdit
from maskgen.tasks.video.generation import generate_video
from maskgen.tasks.video.inpainting import inpaint_video
from maskgen.tasks.video.interpolation import interpolate
from maskgen.tasks.video.outpainting import outpaint_video
from maskgen.tasks.video.prediction import predict_frames
from maskgen.tasks.video.regions import INPAINTED
from maskgen.tasks.video.source import Excerpt
from maskgen.tokenizers.video.base import VideoTokenizer

__all__ = [
    "ClipOptions",
    "Sides",
    "describe_video",
    "inpaint_video_command",
    "interpolate_command",
    "outpaint_video_command",
    "predict_frames_command",
    "write_clips",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """Which part of a video file is taken, and what is written.

    Attributes:
        start: where the part begins, in seconds.
        frames: how many frames it has; up to the end of the file if left out.
        frame_rate: take so many frames a second, by time; those of the file if left out.
        format: of the results, ``mp4`` or ``gif``.
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
    *,
    model: str,
    video: Path,
    total: int | None = None,
    context: int | None = None,
    count: int = 1,
    seed: int = 0,
    out: Path = Path("out"),
    clip: ClipOptions = _WHOLE,
    label: str | int | None = None,
    steps: int | None = None,
    sampling: Sampling | None = None,
    device: str | None = None,
) -> None:
    """Go on with a video for as long as asked.

    Args:
        model: model folder, published name or Hub repository.
        video: video file of any length, rate and size; the results have the model's size.
        total: frames of a result, the given ones included; as many as one window of the model adds if left out.
        context: how many of the last frames the model is shown; the most it was trained with if left out.
        count: variants, with seeds ``seed``, ``seed`` + 1, ...
        seed: of the first variant.
        out: folder to write to.
        clip: which part of the file is taken, and what is written.
        label: class number or name, for models with classes.
        steps: decoding steps, instead of the model's own number.
        sampling: all sampling settings, instead of the model's own.
        device: as ``cpu`` or ``cuda:1``; chosen by itself if left out.
    """
    options = {"total": total, "context": context}
    job = _Job("predict-frames", predict_frames, model, out, {"video": video}, options, label, clip)
    job.run(seed_list(seed, count), steps, sampling, device)


def interpolate_command(
    *,
    model: str,
    first: Path,
    last: Path,
    total: int | None = None,
    count: int = 1,
    seed: int = 0,
    out: Path = Path("out"),
    format: Literal["mp4", "gif"] = "mp4",
    label: str | int | None = None,
    steps: int | None = None,
    sampling: Sampling | None = None,
    device: str | None = None,
) -> None:
    """Fill the time between two pictures or videos.

    Args:
        model: model folder, published name or Hub repository.
        first: picture or video at the start.
        last: picture or video at the end.
        total: frames of a result, all given ones included; a gap as long as in training if left out.
        count: variants, with seeds ``seed``, ``seed`` + 1, ...
        seed: of the first variant.
        out: folder to write to.
        format: of the results.
        label: class number or name, for models with classes.
        steps: decoding steps, instead of the model's own number.
        sampling: all sampling settings, instead of the model's own.
        device: as ``cpu`` or ``cuda:1``; chosen by itself if left out.
    """
    files: dict[str, str | Path] = {"first": first, "last": last}
    job = _Job("interpolate", interpolate, model, out, files, {"total": total}, label, ClipOptions(format=format))
    job.run(seed_list(seed, count), steps, sampling, device)


def inpaint_video_command(
    *,
    model: str,
    video: Path,
    mask: str,
    count: int = 1,
    seed: int = 0,
    out: Path = Path("out"),
    clip: ClipOptions = _WHOLE,
    label: str | int | None = None,
    steps: int | None = None,
    sampling: Sampling | None = None,
    device: str | None = None,
) -> None:
    """Paint a part of every frame of a video anew.

    Args:
        model: model folder, published name or Hub repository.
        video: video file of any length, rate and size; the results have the model's size.
        mask: picture or video of the same size, white = paint anew; or a region: ``central`` or ``dynamic``.
        count: variants, with seeds ``seed``, ``seed`` + 1, ...
        seed: of the first variant.
        out: folder to write to.
        clip: which part of the file is taken, and what is written.
        label: class number or name, for models with classes.
        steps: decoding steps, instead of the model's own number.
        sampling: all sampling settings, instead of the model's own.
        device: as ``cpu`` or ``cuda:1``; chosen by itself if left out.
    """
    files: dict[str, str | Path] = {"video": video, "mask": mask if mask in INPAINTED else Path(mask)}
    job = _Job("inpaint-video", inpaint_video, model, out, files, {}, label, clip)
    job.run(seed_list(seed, count), steps, sampling, device)


def outpaint_video_command(
    *,
    model: str,
    video: Path,
    sides: Sides = Sides(),
    region: str | None = None,
    count: int = 1,
    seed: int = 0,
    out: Path = Path("out"),
    clip: ClipOptions = _WHOLE,
    label: str | int | None = None,
    steps: int | None = None,
    sampling: Sampling | None = None,
    device: str | None = None,
) -> None:
    """Add new picture around every frame of a video.

    Args:
        model: model folder, published name or Hub repository.
        video: video file of any length, rate and size; the results have the model's size, what is added included.
        sides: pixels to add, in the video's own scale.
        region: instead of these, what of every frame is kept: ``central``, ``vertical``, ``horizontal`` or ``dynamic``.
        count: variants, with seeds ``seed``, ``seed`` + 1, ...
        seed: of the first variant.
        out: folder to write to.
        clip: which part of the file is taken, and what is written.
        label: class number or name, for models with classes.
        steps: decoding steps, instead of the model's own number.
        sampling: all sampling settings, instead of the model's own.
        device: as ``cpu`` or ``cuda:1``; chosen by itself if left out.
    """
    options = dataclasses.asdict(sides) | {"region": region}
    job = _Job("outpaint-video", outpaint_video, model, out, {"video": video}, options, label, clip)
    job.run(seed_list(seed, count), steps, sampling, device)


def write_clips(
    pipe: Pipeline, model: str, ids: list[int], seeds: list[int], chosen: Sampling, out: Path, batch_size: int
) -> None:
    """``maskgen generate`` for a video model: one clip a seed, all of them side by side, and a manifest.

    Args:
        pipe: a video model.
        model: as it was named.
        ids: class ids, ``NO_LABEL`` for none.
        seeds: one a clip.
        chosen: settings.
        out: folder to write to.
        batch_size: clips at a time.
    """
    size, rate = clip_size(pipe), output_rate(pipe)
    suffix = ".gif" if size[1] % 2 or size[2] % 2 else ".mp4"
    items: list[dict[str, Any]] = []
    shown: list[Frames] = []
    with ProgressBar(None) as callback:
        for first in range(0, len(ids), max(1, batch_size)):
            part = slice(first, first + max(1, batch_size))
            labels = None if min(ids[part]) < 0 else ids[part]
            clips = generate_video(pipe, labels, seeds=seeds[part], sampling=chosen, callback=callback)
            for label, seed, clip in zip(ids[part], seeds[part], clips, strict=True):
                name = f"{'' if label < 0 else f'label-{label:04d}_'}seed-{seed:08d}{suffix}"
                save_video(clip, out / name, rate)
                items.append({"file": name, "label": label, "seed": seed})
                shown += [clip] if len(shown) < 100 else []
    grid = [
        image_grid([Image.fromarray(clip[place]) for clip in shown], min(len(shown), 10)) for place in range(size[0])
    ]
    save_video(grid, out / "grid.gif", rate)
    write_manifest("generate", model, items, out, {"sampling": dataclasses.asdict(chosen)})
    print(f"{len(items)} clip(s), grid.gif and manifest.json in {out}")  # noqa: T201


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


@dataclasses.dataclass(frozen=True)
class _Job:
    """One task on one file or two.

    Attributes:
        task: its name in the files and the manifest.
        function: one of ``maskgen.tasks.video``.
        model: see the commands.
        out: see the commands.
        files: what is read, by name.
        options: settings of the task itself.
        label: see the commands.
        clip: see the commands.
    """

    task: str
    function: Callable[..., VideoEdit]
    model: str
    out: Path
    files: Mapping[str, str | Path]
    options: dict[str, Any]
    label: Label | None
    clip: ClipOptions

    def run(self, seeds: Sequence[int], steps: int | None, sampling: Sampling | None, device: str | None) -> None:
        """Write a video for each seed, and the manifest."""
        pipe = load_model(self.model, device)
        pipe.require("video", self.task)
        _check_even(pipe, self.clip.format)
        chosen = pipe.sampling(sampling, steps)
        sources = [self.clip.part(Path(path)) if name == "video" else path for name, path in self.files.items()]
        items, frames = [], 0
        with ProgressBar(None) as callback:
            for seed in seeds:
                name = f"{self.task}_seed-{seed:08d}.{self.clip.format}"
                chosen_options = {"label": self.label, "sampling": chosen, "callback": callback, **self.options}
                edit = self.function(pipe, *sources, seeds=[seed], **chosen_options)
                frames = edit.write(self.out / name)
                items.append({"file": name, "seed": seed})
        details = {**{name: str(path) for name, path in self.files.items()}, **self.options}
        details |= {"clip": dataclasses.asdict(self.clip), "label": self.label, "frames": frames}
        write_manifest(self.task, self.model, items, self.out, details | {"sampling": dataclasses.asdict(chosen)})
        print(f"{len(items)} video(s) of {frames} frames and manifest.json in {self.out}")  # noqa: T201


def _check_even(pipe: Pipeline, kind: str) -> None:
    """Before the work, not after it: H.264 has no odd sizes."""
    height, width = clip_size(pipe)[1:]
    if kind == "mp4" and (height % 2 or width % 2):
        raise ValueError(
            f"format: got mp4, but the model's frames are {width} x {height}, and it has even sizes only; use gif"
        )
