"""Training for video: what ``maskgen train video-tokenizer`` and ``maskgen train video-transformer`` run.

Shapes: B batch, T frames, H W pixels, t h w token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from maskgen.checkpoint import fingerprint, load_module, write_json
from maskgen.data import Batch
from maskgen.models.base import MaskedTransformer
from maskgen.objectives.commit import CommitModeling, CommitSettings
from maskgen.objectives.multitask import task_counts
from maskgen.sampling.commit import Prompt
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.trained import TrainedTasks, named_task
from maskgen.tasks.data.video.folders import VideoData
from maskgen.tasks.media.images import image_grid, save_gif, to_images
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.runs import Say, copy_files, describe, finished_before
from maskgen.tasks.training.video_tokens import commit_tokens
from maskgen.tasks.video.completion import complete_clips
from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.image.vqgan import VQGAN
from maskgen.tokenizers.training.reconstruction import ReconstructionTraining, VideoReconstructionSettings
from maskgen.tokenizers.video.base import VideoTokenizer
from maskgen.tokenizers.video.frames import FrameVQ
from maskgen.tokenizers.video.inflation import inflate_model
from maskgen.tokenizers.video.vq3d import VQ3D
from maskgen.training.trainer import Trainer, TrainSettings

__all__ = ["train_video_tokenizer", "train_video_transformer"]

_SHOWN = 4  # clips a run writes now and then

_FRAME_RATE = 8.0  # of what it writes, where the data do not say


def train_video_tokenizer(
    *,
    tokenizer: VideoTokenizer,
    data: VideoData,
    loss: VideoReconstructionSettings,
    settings: TrainSettings,
    out: Path,
    inflate: Path | None = None,
    say: Say = print,
) -> Path:
    """Stage 1 for video: train a tokenizer of clips.

    Args:
        tokenizer: the tokenizer to train, such as ``maskgen.tokenizers.video.vq3d.VQ3D``; its weights start anew from
            ``settings.seed``.
        data: clips to train on.
        loss: terms of the loss.
        settings: how long and how wide.
        out: folder of the run, which becomes the tokenizer's folder; an interrupted run goes on, a finished one is reused.
        inflate: folder of an image tokenizer with the same levels and blocks; the weights start from its own (MAGVIT's
            central inflation).
        say: told what happens.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: no image tokenizer there.
        ValueError: ``out`` holds a run with other settings; the tokenizer cannot be trained so, or not on clips of this
            length; an image tokenizer that does not fit; or the discriminator is for clips of another size.
    """
    images = None if inflate is None else _image_tokenizer(inflate)
    _check_stage_1(tokenizer, data, loss)
    start = {} if images is None else {"inflate": fingerprint(images)}
    description = describe(tokenizer=tokenizer, data=data, loss=loss, settings=settings, **start)
    if finished_before(out, description, "video tokenizer", say):
        return out
    torch.manual_seed(settings.seed)
    model = type(tokenizer)(tokenizer.config)
    if images is not None:
        assert isinstance(model, VQ3D), "see _check_stage_1"
        kept = inflate_model(model, images)
        say(f"video tokenizer: inflated from {inflate}; {len(kept)} weights start anew")
    objective = ReconstructionTraining(model, loss, held_out=data.test(), show=_show_reconstructions(data))
    trainer = Trainer(objective, data.train(), settings, out, title="video tokenizer")
    # Only now: what was refused above leaves no run behind that would forbid other settings.
    write_json(out / "run.json", {**description, "finished": False})
    trainer.fit()
    write_json(out / "run.json", {**description, "finished": True})
    return out


def train_video_transformer(
    *,
    tokenizer: Path,
    transformer: MaskedTransformer,
    data: VideoData,
    tasks: dict[str, float],
    masking: CommitSettings,
    settings: TrainSettings,
    out: Path,
    sampling: Sampling | None = None,
    views: int = 1,
    inpainting_prompt: bool = True,
    say: Say = print,
) -> Path:
    """Stage 2 for video: train one transformer for several tasks on a tokenizer's codes (COMMIT).

    The tokens are kept in ``tokens/`` of the model folder, for a run that goes on.

    Args:
        tokenizer: folder of the tokenizer, of an earlier ``train_video_tokenizer`` for instance.
        transformer: the model to train; its weights start anew from ``settings.seed``. Several tasks need ``num_tasks`` 5.
        data: clips to train on.
        tasks: how often each task is drawn, in proportion: FP, FI, OPC, OPV, OPH, OPD, IPC, IPD, CG, CFP (see
            ``maskgen.tasks.conditions.video``); FP5 gives five frames where FP gives one. CG on data without classes is
            generation without a class.
        masking: what is hidden and what it costs.
        settings: how long and how wide.
        out: the model folder to make: ``tokenizer/``, ``transformer/`` and ``pipeline.json``.
        sampling: settings the model will sample with unless told otherwise; by default 12 steps, of the sampler ``commit``
            where conditions are drafts in training.
        views: how many differently augmented views of each clip are tokenized before training.
        inpainting_prompt: whether inpainting has a prompt of its own; False has it use outpainting's, as the official code
            does by mistake.
        say: told what happens.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: no tokenizer there.
        ValueError: the transformer does not fit the tokenizer, the data or the tasks; no such tasks; or ``out`` holds a run
            with other settings.
    """
    if not (tokenizer / "config.json").is_file():
        raise FileNotFoundError(
            f"tokenizer: got {tokenizer}, which holds none (no config.json); name a folder made by `maskgen train "
            "video-tokenizer`"
        )
    codes = load_module(tokenizer, Tokenizer)  # type: ignore[type-abstract]
    if not isinstance(codes, VideoTokenizer):
        raise ValueError(f"tokenizer: got one of modality {codes.modality}, expected one of video")
    by_class = _check_tasks(tasks, data)
    _check_fit(codes, transformer, data, tasks, by_class)
    config = _model_config(data, tasks, masking, sampling, by_class, inpainting_prompt)
    parts = {"tokenizer": fingerprint(codes), "transformer": transformer, "data": data, "masking": masking}
    choices = {"tasks": tasks, "views": views, "inpainting_prompt": inpainting_prompt}
    description = describe(**parts, **choices, settings=settings, sampling=config.sampling)
    run = out / "transformer"
    if finished_before(run, description, "video transformer", say):
        return out
    torch.manual_seed(settings.seed)
    model = type(transformer)(transformer.config)
    codes.to("cuda" if torch.cuda.is_available() else "cpu")  # where all clips are encoded
    say(f"video transformer: tokenizing {len(data.train())} clips for {len(tasks)} task(s), {views} view(s) each")
    objective = CommitModeling(model, masking, show=_show_tasks(codes, config, data, by_class))
    encode = partial(commit_tokens, tokenizer=codes, tasks=tasks, inpainting_prompt=inpainting_prompt)
    if (test := data.test()) is not None:
        objective.held_out = encode(test, path=out / "tokens" / "test.safetensors")
    source = encode(data.train(), path=out / "tokens" / "train.safetensors", views=views, seed=settings.seed)
    trainer = Trainer(objective, source, settings, run, title="video transformer")
    write_json(run / "run.json", {**description, "finished": False})
    copy_files(tokenizer, out / "tokenizer")
    trainer.fit()
    Pipeline(codes, load_module(run, MaskedTransformer), config).save_pretrained(out)  # type: ignore[type-abstract]
    write_json(run / "run.json", {**description, "finished": True})
    return out


def _image_tokenizer(folder: Path) -> VQGAN | FrameVQ:
    """What a video tokenizer can start from."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"inflate: got {folder}, which holds no tokenizer (no config.json)")
    found = load_module(folder, Tokenizer)  # type: ignore[type-abstract]
    if not isinstance(found, VQGAN | FrameVQ):
        raise ValueError(f"inflate: got a {type(found).__name__}, expected an image tokenizer: VQGAN or FrameVQ")
    return found


def _check_stage_1(tokenizer: VideoTokenizer, data: VideoData, loss: VideoReconstructionSettings) -> None:
    if not isinstance(tokenizer, VQ3D):
        raise ValueError(
            f"tokenizer: got {type(tokenizer).__name__}, expected a VQ3D (or FrameVQ); Magvit2Video is trained in Python, "
            "by maskgen.tokenizers.training.magvit2"
        )
    tokenizer.axes((1, 3, *data.size))  # refuses lengths that it cannot take
    judged = tuple(loss.discriminator.size)
    seen = judged if loss.discriminator.kind == "clip" else (data.size[0], *judged[1:])
    if loss.gan_weight and tuple(data.size) != seen:
        raise ValueError(
            f"loss.discriminator.size: got {list(judged)}, but the clips are {list(data.size)} (frames, height, width); set "
            "it to theirs, or gan_weight to 0"
        )


def _check_tasks(tasks: Mapping[str, float], data: VideoData) -> list[str]:
    """Names of the tasks that are given the class."""
    try:
        task_counts(list(tasks.values()))
    except ValueError as error:
        raise ValueError(f"tasks: {error}") from None
    length = data.size[0]
    for name in tasks:
        task = named_task(name)
        given = task.frames * {"first": 1, "ends": 2}.get(task.region, 0)
        if given >= length:
            raise ValueError(
                f"tasks: got {name}, which gives {given} frames; expected fewer than the {length} of a clip"
            )
    by_class = [name for name in tasks if named_task(name).class_conditional]
    if data.class_names:
        return by_class
    wrong = [name for name in by_class if named_task(name).region != "none"]
    if wrong:
        raise ValueError(f"tasks: got {', '.join(wrong)}, which is given the class, but the data have no classes")
    return []


def _check_fit(
    tokenizer: VideoTokenizer,
    transformer: MaskedTransformer,
    data: VideoData,
    tasks: Mapping[str, float],
    by_class: Sequence[str],
) -> None:
    got = {
        "vocab_size": transformer.vocab_size,
        "num_codebooks": transformer.num_codebooks,
        "axes": tuple(transformer.config.axes),
        "num_classes": transformer.num_classes,
    }
    expected = {
        "vocab_size": tokenizer.vocab_size,
        "num_codebooks": tokenizer.num_codebooks,
        "axes": tokenizer.axes((1, 3, *data.size)),
        "num_classes": len(data.class_names) if by_class else 0,
    }
    wrong = [f"{name} is {got[name]}, expected {expected[name]}" for name in got if got[name] != expected[name]]
    prompts = {named_task(name).kind for name in tasks}
    known = transformer.num_tasks
    if (len(prompts) > 1 and not known) or 0 < known < len(Prompt):
        wrong.append(f"num_tasks is {known}, expected {len(Prompt)}, the prompts that tell the tasks apart")
    if wrong:
        told = "" if by_class else " (none of the tasks is given the class)"
        raise ValueError(
            f"the transformer does not fit the tokenizer, the data and the tasks: {'; '.join(wrong)}{told}"
        )
    without = [name for name in tasks if name not in by_class]
    if by_class and without and not transformer.null_class:
        raise ValueError(
            f"transformer: got one without a null class, but {', '.join(without)} has no class; set null_class"
        )


def _model_config(
    data: VideoData,
    tasks: Mapping[str, float],
    masking: CommitSettings,
    sampling: Sampling | None,
    by_class: Sequence[str],
    inpainting_prompt: bool,
) -> PipelineConfig:
    """What the model folder will say."""
    generates = any(named_task(name).region == "none" for name in tasks)
    known = TrainedTasks(
        names=tuple(tasks),
        inpainting_prompt=inpainting_prompt,
        # The official code, too, trusts that the prompt of one task and the missing class of another will do together.
        unconditional=masking.condition_dropout > 0 or (generates and len(by_class) < len(tasks)),
        frame_rate=data.frame_rate,
    )
    default = Sampling(sampler="commit" if masking.condition_mode == "commit" else "maskgit", steps=12)
    names = data.class_names if by_class else ()
    return PipelineConfig(signal_size=data.size, class_names=names, sampling=sampling or default, video=known)


def _show_reconstructions(data: VideoData) -> Callable[[nn.Module, Path, int], None]:
    """Clips above, what the tokenizer makes of them below."""

    def show(model: nn.Module, folder: Path, step: int) -> None:
        assert isinstance(model, VideoTokenizer)
        clips = _some_clips(data)[data.key]
        device = next(model.parameters()).device
        rebuilt = model.decode(model.encode(clips.to(device)), model.axes(clips.shape)).float().cpu().clamp(0, 1)
        rebuilt = rebuilt[:, :, : data.size[0], : data.size[1], : data.size[2]]
        _save_rows([clips, rebuilt], folder / f"reconstructions-{step:08d}.gif", data)

    return show


def _show_tasks(
    tokenizer: VideoTokenizer, config: PipelineConfig, data: VideoData, by_class: Sequence[str]
) -> Callable[[nn.Module, Path, int], None]:
    """Clips above, and below them one row for each task: what the model makes of what the task gives of them."""
    assert config.video is not None, "see _model_config"
    names = config.video.names

    def show(model: nn.Module, folder: Path, step: int) -> None:
        assert isinstance(model, MaskedTransformer)
        pipe = Pipeline(tokenizer, model, config, next(model.parameters()).device)
        batch = _some_clips(data)
        clips = batch[data.key]
        rows = [clips]
        for name in names:
            labels = batch["labels"].tolist() if name in by_class else None
            rows.append(complete_clips(pipe, clips, name, label=labels, seeds=range(len(clips))))
        _save_rows(rows, folder / f"samples-{step:08d}.gif", data)

    return show


def _some_clips(data: VideoData) -> Batch:
    source = data.test() or data.train()
    count = min(_SHOWN, len(source))
    return source.batch(range(count), range(count))


def _save_rows(rows: Sequence[Tensor], path: Path, data: VideoData) -> None:
    """Rows of clips ``[B, 3, T, H, W]`` as one animation."""
    clips, columns = torch.cat(list(rows)), len(rows[0])
    frames = [image_grid(to_images(clips[:, :, place]), columns) for place in range(clips.shape[2])]
    save_gif(frames, path, 1 / (data.frame_rate or _FRAME_RATE))
