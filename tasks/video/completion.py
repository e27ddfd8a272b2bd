"""One window of the video tasks: what is given is tokenised as a padded clip, tokens are decided, given pixels come back.

Tokens are decided by the loop that the sampling names: with ``commit`` the condition's tokens are a draft (MAGVIT, arXiv
2212.05199, section 3.2), in all others they stay.

Shapes: R results (one a seed), T frames and H W pixels of the model, t h w its token grid, N its product, K codebooks.
"""

import math
from fractions import Fraction
from typing import Unpack

import torch
from einops import repeat
from torch import Tensor

from maskgen.sampling.commit import Prompt
from maskgen.tasks.conditions.request import Options, Request
from maskgen.tasks.conditions.trained import TrainedTasks, named_task
from maskgen.tasks.conditions.video import TokenCells, VideoCondition, VideoTask
from maskgen.tasks.pipeline import Pipeline
from maskgen.tokenizers.video.base import VideoTokenizer, check_video

_TOKENS, _PIXELS = 1 << 14, 1 << 18  # of clips that go through the transformer and the tokenizer together

_FRAME_RATE = Fraction(8)  # of results, where nothing says another


def complete_clips(
    pipe: Pipeline, clips: Tensor, task: str, *, paste: bool = True, **options: Unpack[Options]
) -> Tensor:
    """One of MAGVIT's tasks on a batch of real clips, as in training: for evaluation.

    Args:
        pipe: a video model.
        clips: float ``[B, 3, T, H, W]`` in [0, 1], of the model's size; only what the task gives of them is looked at.
        task: its name, as FP, FP5 or IPC; see ``maskgen.tasks.conditions.trained.named_task``.
        paste: whether given pixels replace the model's version of them.
        options: B seeds, labels and settings, see ``maskgen.tasks.conditions.request.Options``.

    Returns:
        float ``[B, 3, T, H, W]`` in [0, 1].

    Raises:
        TypeError, ValueError: no such clips, task or class; another number of seeds; settings out of range; a model of
            another modality, or trained on other tasks.
    """
    wanted = named_task(task)
    request = video_request(pipe, options, wanted.kind, task)
    check_video(clips)
    if tuple(clips.shape[2:]) != clip_size(pipe) or len(clips) != len(request.seeds):
        raise ValueError(
            f"clips: got {tuple(clips.shape)} and {len(request.seeds)} seeds, expected [B, 3, T, H, W] of the model's size "
            f"{clip_size(pipe)} and one seed for each"
        )
    return complete(pipe, clips.float().cpu(), wanted, request, paste=paste)


def clip_size(pipe: Pipeline) -> tuple[int, int, int]:
    """(T, H, W) of the clips a model makes."""
    length, height, width = pipe.config.signal_size
    return length, height, width


def trained(pipe: Pipeline) -> TrainedTasks:
    """What a model was trained to do; names no tasks if its folder does not say."""
    return pipe.config.video or TrainedTasks()


def output_rate(pipe: Pipeline) -> Fraction:
    """Frames a second of what a model makes from nothing: those it was trained on, else 8."""
    found = trained(pipe).frame_rate
    return _FRAME_RATE if found is None else Fraction(found).limit_denominator(1001)


def video_request(pipe: Pipeline, options: Options, kind: Prompt, what: str) -> Request:
    """``Pipeline.request`` for a task of a kind, if the model can do it.

    Args:
        pipe: the model.
        options: see ``Options``.
        kind: of the task.
        what: how errors call the task.

    Raises:
        TypeError: see ``Pipeline.request``.
        ValueError: see ``Pipeline.request``; a model of another modality, or trained on other tasks; guidance of a model
            that never saw an example without a condition.
    """
    pipe.require("video", what)
    tasks = trained(pipe)
    tasks.check(kind, what)
    request = pipe.request(options)
    needs_class = bool(pipe.transformer.num_classes) and not pipe.transformer.null_class
    blind = needs_class or (bool(tasks.names) and not tasks.unconditional)
    if request.sampling.guidance.scale and request.sampling.sampler == "commit" and blind:
        raise ValueError(
            f"guidance: got {request.sampling.guidance.scale:g}, but this model never saw an example without a condition "
            "(CG among its tasks, or masking.condition_dropout); use 0"
        )
    return request


def complete(
    pipe: Pipeline, clips: Tensor, task: VideoTask, request: Request, number: int = 0, *, paste: bool = True
) -> Tensor:
    """Carry out a task on one window.

    Args:
        pipe: a video model.
        clips: float ``[R, 3, T, H, W]``, or ``[1, ...]`` for all results; only what the task gives is looked at.
        task: what is given and how it is padded.
        request: of R rows.
        number: of the window.
        paste: whether given pixels replace the model's version of them.

    Returns:
        float ``[R, 3, T, H, W]`` in [0, 1] on the CPU.
    """
    condition = task.condition(clips, clip_cells(pipe))
    made = decide_clips(pipe, condition, task, request, number)
    return paste_given(made, clips, condition.pixels) if paste else made


def paste_given(generated: Tensor, clip: Tensor, pixels: Tensor) -> Tensor:
    """The generated clip with the given pixels in place of the model's version of them.

    Args:
        generated: float ``[R, 3, T, H, W]``.
        clip: float, the same shape or ``[1, ...]``: the condition's clip or the original one.
        pixels: bool, broadcastable, True where given.
    """
    return torch.where(pixels, clip.to(generated), generated)


def clip_cells(pipe: Pipeline) -> TokenCells:
    """Which part of a clip each of the model's tokens stands for."""
    assert isinstance(pipe.tokenizer, VideoTokenizer), "see Pipeline.require"
    return TokenCells.of(pipe.tokenizer, (1, 3, *clip_size(pipe)))


def decide_clips(
    pipe: Pipeline, condition: VideoCondition, task: VideoTask, request: Request, number: int = 0
) -> Tensor:
    """The model's clips under a condition; nothing is pasted.

    Args:
        pipe: a video model.
        condition: its clip is ``[R, 3, T, H, W]``, or ``[1, ...]`` for all results.
        task: names the prompt.
        request: of R rows.
        number: of the window; a result with seed s is sampled with ``item_seed(s, number)``.

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
    request = request.window(number)
    request = request.for_task(prompt) if tasks else request
    length, height, width = clip_size(pipe)
    rows = max(1, _PIXELS // (length * height * width))
    given = repeat(condition.tokens, "t h w -> R (t h w) K", R=len(request.seeds), K=pipe.transformer.num_codebooks)
    tokens = torch.zeros(given.shape, dtype=torch.long)
    if given.any():
        tokens = torch.cat([pipe.encode(part).cpu() for part in condition.clip.split(rows)]).expand(given.shape)
    filled = pipe.fill(tokens, ~given, request, batch_size=max(1, _TOKENS // math.prod(pipe.axes)))
    made = torch.cat([pipe.decode(part) for part in filled.split(rows)])
    return made[:, :, :length, :height, :width]
