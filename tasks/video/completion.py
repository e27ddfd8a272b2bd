"""One window of the video tasks: what is given is tokenised as a padded clip, tokens are decided, given pixels come back.

Tokens are decided by the loop that the sampling names: with ``commit`` the condition's tokens are a draft (MAGVIT, arXiv
2212.05199, section 3.2), in all others they stay.

Shapes: R results (one a seed), T frames and H W pixels of the model, t h w its token grid, N its product, K codebooks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.sampling.commit import Prompt
from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.classes import Label
from maskgen.tasks.conditions.request import Options, Request
from maskgen.tasks.conditions.trained import TrainedTasks, named_task
from maskgen.tasks.conditions.video import TokenCells, VideoCondition, VideoTask
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.fades import paste_given
from maskgen.tokenizers.video.base import VideoTokenizer, check_video

__all__ = ["Drawing", "clip_cells", "clip_size", "complete", "complete_clips", "decide_clips", "drawing", "trained"]


def complete_clips(
    pipe: Pipeline,
    clips: Tensor,
    task: str,
    *,
    seeds: Sequence[int],
    labels: Label | Sequence[Label] | None = None,
    sampling: Sampling | None = None,
    paste: bool = True,
    callback: Callable[[SampleStep], None] | None = None,
) -> Tensor:
    """One of MAGVIT's tasks on a batch of real clips, as in training: for evaluation.

    Args:
        pipe: a video model.
        clips: float ``[B, 3, T, H, W]`` in [0, 1], of the model's size; only what the task gives of them is looked at.
        task: its name, as FP, FP5 or IPC; see ``maskgen.tasks.conditions.trained.named_task``.
        seeds: B integers.
        labels: class id or name, or one for each clip; None for none.
        sampling: settings, instead of the model's own.
        paste: whether given pixels replace the model's version of them.
        callback: sees each step.

    Returns:
        float ``[B, 3, T, H, W]`` in [0, 1].

    Raises:
        TypeError, ValueError: no such clips, task or class; another number of seeds; settings out of range; a model of
            another modality, or trained on other tasks.
    """
    pipe.require("video", "complete_clips")
    wanted = named_task(task)
    trained(pipe).check([wanted.kind], task)
    check_video(clips)
    if tuple(clips.shape[2:]) != clip_size(pipe) or len(clips) != len(seeds):
        raise ValueError(
            f"clips: got {tuple(clips.shape)} and {len(seeds)} seeds, expected [B, 3, T, H, W] of the model's size "
            f"{clip_size(pipe)} and one seed for each"
        )
    draw = drawing(pipe, labels, seeds, sampling, paste=paste, callback=callback)
    return complete(pipe, clips.float().cpu(), wanted, draw)


_TOKENS, _PIXELS = 1 << 14, 1 << 18  # of clips that go through the transformer and the tokenizer together


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How clips are made, the same for every window.

    Attributes:
        request: R rows.
        paste: whether given pixels replace the model's version of them.
    """

    request: Request
    paste: bool = True


def clip_size(pipe: Pipeline) -> tuple[int, int, int]:
    """(T, H, W) of the clips a model makes."""
    length, height, width = pipe.config.signal_size
    return length, height, width


def trained(pipe: Pipeline) -> TrainedTasks:
    """What a model was trained to do; names no tasks if its folder does not say."""
    return pipe.config.video or TrainedTasks()


def drawing(
    pipe: Pipeline,
    label: Label | Sequence[Label] | None,
    seeds: Sequence[int] | None,
    sampling: Sampling | None,
    *,
    paste: bool = True,
    callback: Callable[[SampleStep], None] | None = None,
) -> Drawing:
    """The settings of a call as the engine takes them; a single label goes with any number of seeds.

    Raises:
        TypeError: seeds that are no integers.
        ValueError: no seeds or negative ones, another number of labels, a class that the model does not have, guidance of a
            model that never saw an example without a condition.
    """
    request = pipe.request(Options(label=label, seeds=seeds, sampling=sampling, callback=callback))
    chosen, known = request.sampling, trained(pipe)
    needs_class = bool(pipe.transformer.num_classes) and not pipe.transformer.null_class
    blind = needs_class or (bool(known.names) and not known.unconditional)
    if chosen.guidance and chosen.sampler == "commit" and blind:
        raise ValueError(
            f"guidance: got {chosen.guidance:g}, but this model never saw an example without a condition (CG among its "
            "tasks, or masking.condition_dropout); use 0"
        )
    return Drawing(request=request, paste=paste)


def complete(pipe: Pipeline, clips: Tensor, task: VideoTask, draw: Drawing, number: int = 0) -> Tensor:
    """Carry out a task on one window.

    Args:
        pipe: a video model.
        clips: float ``[R, 3, T, H, W]``, or ``[1, ...]`` for all results; only what the task gives is looked at.
        task: what is given and how it is padded.
        draw: how tokens are drawn.
        number: of the window.

    Returns:
        float ``[R, 3, T, H, W]`` in [0, 1] on the CPU.
    """
    condition = task.condition(clips, clip_cells(pipe))
    made = decide_clips(pipe, condition, task, draw, number)
    return paste_given(made, clips, condition.pixels) if draw.paste else made


def clip_cells(pipe: Pipeline) -> TokenCells:
    """Which part of a clip each of the model's tokens stands for."""
    assert isinstance(pipe.tokenizer, VideoTokenizer), "see Pipeline.require"
    return TokenCells.of(pipe.tokenizer, (1, 3, *clip_size(pipe)))


def decide_clips(pipe: Pipeline, condition: VideoCondition, task: VideoTask, draw: Drawing, number: int = 0) -> Tensor:
    """The model's clips under a condition; nothing is pasted.

    Args:
        pipe: a video model.
        condition: its clip is ``[R, 3, T, H, W]``, or ``[1, ...]`` for all results.
        task: names the prompt.
        draw: how tokens are drawn.
        number: of the window; a result with seed s is drawn with ``item_seed(s, number)``.

    Returns:
        float ``[R, 3, T, H, W]`` in [0, 1] on the CPU.

    Raises:
        ValueError: a model of several tasks that has no such prompt.
    """
    prompt = task.prompt(inpainting_prompt=trained(pipe).inpainting_prompt)
    tasks = pipe.transformer.num_tasks
    if tasks and prompt >= tasks:
        raise ValueError(
            f"transformer: got num_tasks {tasks}, expected {len(Prompt)} or more: task {prompt} is asked of it "
            f"({Prompt(prompt).name.lower()})"
        )
    request = draw.request.window(number)
    results, places = len(request.seeds), math.prod(pipe.axes)
    length, height, width = clip_size(pipe)
    rows = max(1, _PIXELS // (length * height * width))
    known = condition.tokens.flatten()[None, :, None].expand(results, -1, pipe.transformer.num_codebooks)
    tokens = torch.zeros(known.shape, dtype=torch.long)
    if known.any():
        tokens = torch.cat([pipe.encode(part).cpu() for part in condition.clip.split(rows)]).expand(known.shape)
    request = request.for_task(prompt) if tasks else request
    filled = pipe.fill(tokens, ~known, request, batch_size=max(1, _TOKENS // places))
    made = torch.cat([pipe.decode(part) for part in filled.split(rows)])
    return made[:, :, :length, :height, :width]
