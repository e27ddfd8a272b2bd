"""Clips as tokens to train on, for several tasks at once: those of the clip itself, and those of each task's condition.

Everything is encoded once, before training. Of a condition only the tokens that the model is shown are kept.

Shapes: B batch, M examples (views x clips), N tokens, K codebooks, V vocabulary, n tokens that a condition shows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from maskgen.commit import Prompt
from maskgen.conditioning import NO_LABEL
from maskgen.data import Batch, Source
from maskgen.multitask import draw_tasks
from maskgen.precision import fast_matmul
from maskgen.tasks.token_sources import probe, read_tokens, write_tokens
from maskgen.tasks.trained_tasks import named_task
from maskgen.tasks.training_runs import fingerprint
from maskgen.tasks.video_conditions import TokenCells, VideoTask
from maskgen.tokenizers.video import VideoTokenizer

__all__ = ["CommitSource", "TaskTokens", "commit_tokens"]

_PIXELS, _MOST = 1 << 20, 64  # of clips that are encoded together, and how many at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskTokens:
    """What the model is shown in one task.

    Attributes:
        prompt: see ``maskgen.commit.Prompt``.
        places: long ``[n]``, the places in the grid that show the condition.
        tokens: integers ``[M, n, K]``, what stands there.
        class_conditional: whether the class is given, too.
        weight: how often the task is drawn, in proportion to the others.
    """

    prompt: int
    places: torch.Tensor
    tokens: torch.Tensor
    class_conditional: bool
    weight: float = 1.0


class CommitSource:
    """Examples for ``maskgen.commit_objective.CommitModeling``; which task an example is for is drawn from its seed.

    Args:
        tokens: integers ``[M, N, K]``, of the clips.
        tasks: one or more.
        labels: long ``[M]``, for class-conditional tasks.

    Raises:
        ValueError: no tasks, numbers of examples that differ, or class-conditional tasks without labels.
    """

    def __init__(self, tokens: torch.Tensor, tasks: Sequence[TaskTokens], labels: torch.Tensor | None = None) -> None:
        lengths = {len(tokens), *(len(task.tokens) for task in tasks), *([] if labels is None else [len(labels)])}
        if not tasks or not len(tokens) or len(lengths) > 1:
            raise ValueError(f"CommitSource: got {len(tasks)} tasks and lengths {sorted(lengths)}, expected one length")
        self.by_class = any(task.class_conditional for task in tasks)
        if self.by_class and labels is None:
            raise ValueError("CommitSource: got class-conditional tasks, but no labels; the data must have classes")
        self.tokens, self.tasks, self.labels = tokens, list(tasks), labels

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """``tokens``, ``condition`` and ``known`` ``[B, N, K]``; ``task`` and, for classes, ``labels`` ``[B]``."""
        rows = torch.as_tensor(indices)
        chosen = draw_tasks([task.weight for task in self.tasks], seeds)
        tokens = self.tokens[rows].long()
        condition, known = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
        prompts = torch.tensor([task.prompt for task in self.tasks])
        for number, task in enumerate(self.tasks):
            mine = (chosen == number).nonzero()
            condition[mine, task.places] = task.tokens[rows[mine[:, 0]]].long()
            known[mine, task.places] = True
        batch = {"tokens": tokens, "condition": condition, "known": known, "task": prompts[chosen]}
        if self.by_class:
            assert self.labels is not None, "see __init__"
            given = torch.tensor([task.class_conditional for task in self.tasks])[chosen]
            batch["labels"] = torch.where(given, self.labels[rows], NO_LABEL)
        return batch


def commit_tokens(
    source: Source,
    tokenizer: VideoTokenizer,
    tasks: Mapping[str, float],
    *,
    inpainting_prompt: bool = False,
    views: int = 1,
    seed: int = 0,
    path: Path | None = None,
) -> CommitSource:
    """All clips of a source as tokens, and the conditions of each task.

    Args:
        source: batches with ``video`` and, where there are classes, ``labels``.
        tokenizer: turns clips into tokens, on the device it is on.
        tasks: weights by name, see ``maskgen.tasks.trained_tasks.named_task``; generation is without a class if there are
            none.
        inpainting_prompt: see ``maskgen.tasks.trained_tasks.TrainedTasks``.
        views: passes over the source, each with seeds of its own.
        seed: of the augmentation.
        path: a file that keeps the tokens, so that a run that goes on does not encode everything again; one of another
            tokenizer, other data, tasks, views or seed is made anew. None keeps them in memory only.

    Raises:
        ValueError: an unknown task, a weight that is not positive, fewer than one view, clips too short for a task, classes
            asked of data without, or a damaged file.
        OSError: the file cannot be written.
    """
    if views < 1:
        raise ValueError(f"views: got {views}, expected at least 1")
    named = {name: named_task(name) for name in tasks}
    distinct = list(dict.fromkeys(map(_padding_of, named.values())))
    wanted = {
        "weights": fingerprint(tokenizer),
        "data": probe(source, "video"),
        "conditions": ", ".join(map(repr, distinct)),
        "views": str(views),
        "seed": str(seed),
    }
    found = read_tokens(path) if path is not None and path.is_file() else ({}, {})
    tensors = found[0] if found[1] == wanted else _encode(source, tokenizer, distinct, views, seed)
    if path is not None and found[1] != wanted:
        write_tokens(tensors, path, vocab_size=tokenizer.vocab_size, metadata=wanted)
    example = source.batch([0], [seed])["video"]
    cells = TokenCells.of(tokenizer, example.shape)
    parts, classes = [], "labels" in tensors
    for name, task in named.items():
        alike = _padding_of(task)
        part = TaskTokens(
            prompt=task.prompt(inpainting_prompt=inpainting_prompt),
            places=_places(alike, example, cells),
            tokens=tensors[f"condition_{distinct.index(alike)}"],
            class_conditional=task.class_conditional and (classes or task.region != "none"),
            weight=tasks[name],
        )
        parts.append(part)
    return CommitSource(tensors["tokens"], parts, tensors.get("labels"))


def _padding_of(task: VideoTask) -> VideoTask:
    """A task without what does not change its condition: frame prediction with and without a class has the same."""
    return dataclasses.replace(task, kind=Prompt.FULL_GENERATION, class_conditional=False)


def _places(task: VideoTask, clip: torch.Tensor, cells: TokenCells) -> torch.Tensor:
    return task.condition(clip, cells).tokens.flatten().nonzero()[:, 0]


@torch.no_grad()
def _encode(
    source: Source, tokenizer: VideoTokenizer, conditions: Sequence[VideoTask], views: int, seed: int
) -> dict[str, torch.Tensor]:
    """``tokens`` ``[M, N, K]``, ``condition_0`` ``[M, n, K]`` ... in small integers, and ``labels`` if there are any."""
    device = next((weight.device for weight in tokenizer.parameters()), torch.device("cpu"))  # a toy has no weights
    small = torch.int16 if tokenizer.vocab_size <= 1 << 15 else torch.int32
    count = max(1, min(_MOST, _PIXELS // math.prod(source.batch([0], [seed])["video"].shape[2:])))
    parts: list[Batch] = []
    with fast_matmul(device):
        for view in range(views):
            for first in range(0, len(source), count):
                indices = range(first, min(first + count, len(source)))
                batch = source.batch(indices, [seed + view * len(source) + index for index in indices])
                clips = batch["video"].to(device)
                cells = TokenCells.of(tokenizer, clips.shape)
                part = {"tokens": tokenizer.encode(clips).to("cpu", small)}
                for number, task in enumerate(conditions):
                    condition = task.condition(clips, cells)
                    shown = condition.tokens.flatten().cpu()
                    made = tokenizer.encode(condition.clip).cpu() if shown.any() else part["tokens"]
                    part[f"condition_{number}"] = made[:, shown].to(small)
                parts.append(part | ({"labels": batch["labels"]} if "labels" in batch else {}))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
