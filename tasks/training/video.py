"""Stage 2 for video: what ``maskgen train video-transformer`` runs."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from maskgen.checkpoint import code_fingerprint, load_module
from maskgen.data import Source
from maskgen.models.base import MaskedTransformer
from maskgen.objectives.commit import CommitModeling, CommitSettings
from maskgen.objectives.multitask import task_counts
from maskgen.sampling.commit import Prompt
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.trained import TrainedTasks, named_task
from maskgen.tasks.data.video.folders import VideoData
from maskgen.tasks.model_folder import PipelineConfig, trained_on
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.checks import check_preparation, load_tokenizer, misfits, tokenizer_folder, with_classes
from maskgen.tasks.training.runs import Say, copy_files, run_stage
from maskgen.tasks.training.shown import save_rows, some_signals
from maskgen.tasks.training.video_tokens import commit_tokens
from maskgen.tasks.video.completion import complete_clips
from maskgen.tokenizers.video.base import VideoTokenizer
from maskgen.training.objective import Objective, Show
from maskgen.training.settings import TrainSettings

_SHOWN = 4  # clips a run writes now and then


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
    again: bool = False,
    say: Say = print,
) -> Path:
    """Stage 2 for video: train one transformer for several tasks on a tokenizer's codes (COMMIT).

    The tokens are kept in ``tokens/`` of the model folder, for a run that goes on.

    Args:
        tokenizer: folder of the tokenizer, of an earlier ``train_tokenizer`` for instance.
        transformer: the model to train; its weights start anew from ``settings.seed``. Several tasks need ``num_tasks`` 5.
        data: clips to train on.
        tasks: how often each task is sampled, in proportion: FP, FI, OPC, OPV, OPH, OPD, IPC, IPD, CG, CFP (see
            ``maskgen.tasks.conditions.video``); FP5 gives five frames where FP gives one. CG on data without classes is
            generation without a class.
        masking: what is masked and what it costs.
        settings: how long and how wide.
        out: the model folder to make: ``tokenizer/``, ``transformer/`` and ``pipeline.json``.
        sampling: settings the model will sample with unless told otherwise; by default 12 steps, of the sampler ``commit``
            where conditions are drafts in training.
        views: how many differently augmented views of each clip are tokenized before training.
        inpainting_prompt: whether inpainting has a prompt of its own; False has it use outpainting's, as the official code
            does by mistake.
        again: train anew even if ``out`` holds a run; that one is moved into ``earlier-1`` beside the new one's files.
        say: told what happens.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: no tokenizer there.
        ValueError: the transformer does not fit the tokenizer, the data or the tasks; no such tasks; or ``out``
            holds another run.
    """
    folder = tokenizer_folder(tokenizer)
    codes = load_tokenizer(folder)
    if not isinstance(codes, VideoTokenizer):
        raise ValueError(f"tokenizer: got one of modality {codes.modality}, expected one of video")
    if data.has_captions:
        raise ValueError("data: got captions, which models of video do not take yet; leave captions out")
    by_class = _check_tasks(tasks, data)
    transformer = with_classes(transformer, len(data.class_names) if by_class else 0, say)
    _check_fit(codes, transformer, data, tasks, by_class)
    check_preparation("tokenizer", trained_on(folder), data)
    config = _model_config(data, tasks, masking, sampling, by_class, inpainting_prompt)
    run, title = out / "transformer", "video transformer"

    def make() -> tuple[Objective, Source]:
        codes.to("cuda" if torch.cuda.is_available() else "cpu")  # where all clips are encoded
        say(f"{title}: tokenizing {len(data.train())} clips for {len(tasks)} task(s), {views} view(s) each")
        model = type(transformer)(transformer.config)
        objective = CommitModeling(model, masking, show=_show_tasks(codes, config, data, by_class))
        encode = partial(
            commit_tokens, tokenizer=codes, tasks=tasks, inpainting_prompt=inpainting_prompt, again=again, say=say
        )
        if (test := data.test()) is not None:
            objective.held_out = encode(test, path=out / "tokens" / "test.safetensors")
        source = encode(data.train(), path=out / "tokens" / "train.safetensors", views=views, seed=settings.seed)
        copy_files(folder, out / "tokenizer")
        return objective, source

    def finish() -> None:
        Pipeline(codes, load_module(run, MaskedTransformer), config).save_pretrained(out)  # type: ignore[type-abstract]

    parts = {"tokenizer": code_fingerprint(codes), "transformer": transformer, "data": data, "masking": masking}
    choices = {"tasks": tasks, "views": views, "inpainting_prompt": inpainting_prompt, "sampling": config.sampling}
    run_stage(run, title, {**parts, **choices, "settings": settings}, make, finish=finish, again=again, say=say)
    return out


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
    classes = len(data.class_names) if by_class else 0
    wrong = misfits(tokenizer, transformer, data, codebooks=tokenizer.num_codebooks, classes=classes)
    prompts = {named_task(name).kind for name in tasks}
    tasks_known = transformer.num_tasks
    if (len(prompts) > 1 and not tasks_known) or 0 < tasks_known < len(Prompt):
        wrong.append(f"num_tasks is {tasks_known}, expected {len(Prompt)}, the prompts that tell the tasks apart")
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
    trained = TrainedTasks(
        names=tuple(tasks),
        inpainting_prompt=inpainting_prompt,
        # The official code, too, trusts that the prompt of one task and the missing class of another will do together.
        unconditional=masking.condition_dropout > 0 or (generates and len(by_class) < len(tasks)),
        frame_rate=data.frame_rate,
    )
    default = Sampling(sampler="commit" if masking.condition_mode == "commit" else "maskgit", steps=12)
    names = data.class_names if by_class else ()
    return PipelineConfig(
        signal_size=data.size, class_names=names, sampling=sampling or default, video=trained, prepared=data.prepared
    )


def _show_tasks(tokenizer: VideoTokenizer, config: PipelineConfig, data: VideoData, by_class: Sequence[str]) -> Show:
    """Clips above, and below them one row for each task: what the model makes of what the task gives of them."""
    assert config.video is not None, "see _model_config"
    names = config.video.names

    def show(model: nn.Module, folder: Path, step: int) -> None:
        assert isinstance(model, MaskedTransformer)
        pipe = Pipeline(tokenizer, model, config, next(model.parameters()).device)
        batch = some_signals(data, _SHOWN)
        clips = batch[data.key]
        rows = [clips]
        for name in names:
            labels = batch["labels"].tolist() if name in by_class else None
            rows.append(complete_clips(pipe, clips, name, label=labels, seeds=range(len(clips))))
        save_rows(rows, folder / f"samples-{step:08d}", data)

    return show
