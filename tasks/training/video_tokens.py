"""Clips as tokens to train on, each with the condition of one task.

Everything is encoded once, before training. Encoding is what costs, so a clip is not encoded for every task: each view of it
has one, sampled by weight, and more views show more of both.

Shapes: B batch, M examples (views x clips), N tokens, K codebooks, V vocabulary, n tokens that a condition shows.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from maskgen.conditioning import NO_LABEL
from maskgen.data import Batch, Source
from maskgen.objectives.multitask import draw_tasks
from maskgen.precision import fast_matmul
from maskgen.sampling.commit import Prompt
from maskgen.tasks.conditions.trained import named_task
from maskgen.tasks.conditions.video import TokenCells, VideoTask
from maskgen.tasks.data.tokens.cache import kept_tokens, token_record
from maskgen.tokenizers.video.base import VideoTokenizer

_PIXELS, _MOST = 1 << 20, 64  # of clips that are encoded together, and how many at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskTokens:
    """What the model is shown in one task.

    Attributes:
        prompt: see ``maskgen.sampling.commit.Prompt``.
        positions: long ``[n]``, the positions in the grid that show the condition.
        class_conditional: whether the class is given, too.
    """

    prompt: int
    positions: Tensor
    class_conditional: bool


class CommitSource:
    """Examples for ``maskgen.objectives.commit.CommitModeling``.

    Args:
        tokens: integers ``[M, N, K]``, of the clips.
        conditions: integers ``[M, N, K]``, of their conditions; what stands outside of a task's positions does not matter.
        chosen: long ``[M]``, which of ``tasks`` each example is for.
        tasks: one or more.
        labels: long ``[M]``, for class-conditional tasks.

    Raises:
        ValueError: no tasks, numbers of examples that differ, or class-conditional tasks without labels.
    """

    def __init__(
        self,
        tokens: Tensor,
        conditions: Tensor,
        chosen: Tensor,
        tasks: Sequence[TaskTokens],
        labels: Tensor | None = None,
    ) -> None:
        lengths = {len(part) for part in (tokens, conditions, chosen, labels) if part is not None}
        if not tasks or not len(tokens) or len(lengths) > 1:
            raise ValueError(f"CommitSource: got {len(tasks)} tasks and lengths {sorted(lengths)}, expected one length")
        self.by_class = any(task.class_conditional for task in tasks)
        if self.by_class and labels is None:
            raise ValueError("CommitSource: got class-conditional tasks, but no labels; the data must have classes")
        self.tokens, self.conditions, self.chosen, self.labels = tokens, conditions, chosen, labels
        self._prompts = torch.tensor([task.prompt for task in tasks])
        self._given = torch.tensor([task.class_conditional for task in tasks])
        self._shown = torch.zeros(len(tasks), tokens.shape[1], 1, dtype=torch.bool)
        for shown, task in zip(self._shown, tasks, strict=True):
            shown[task.positions] = True

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """``tokens``, ``condition`` and ``given`` ``[B, N, K]``; ``task`` and, for classes, ``labels`` ``[B]``.

        Nothing is random: ``seeds`` do not matter.
        """
        rows = torch.as_tensor(indices)
        tokens, chosen = self.tokens[rows].long(), self.chosen[rows]
        given = self._shown[chosen].expand_as(tokens)
        condition = torch.where(given, self.conditions[rows].long(), 0)
        batch = {"tokens": tokens, "condition": condition, "given": given, "task": self._prompts[chosen]}
        if self.by_class:
            assert self.labels is not None, "see __init__"
            batch["labels"] = torch.where(self._given[chosen], self.labels[rows], NO_LABEL)
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
    again: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> CommitSource:
    """All clips of a source as tokens, and the condition of one task for each.

    Args:
        source: batches with ``video`` and, where there are classes, ``labels``.
        tokenizer: turns clips into tokens, on the device it is on.
        tasks: weights by name, see ``maskgen.tasks.conditions.trained.named_task``; generation is without a class if
            there are none.
        inpainting_prompt: see ``maskgen.tasks.conditions.trained.TrainedTasks``.
        views: passes over the source, each with seeds and tasks of its own.
        seed: of the augmentation and of the tasks.
        path: a file that keeps the tokens, so that a run that goes on does not encode everything again; one of another
            tokenizer, other data, tasks, views or seed is made anew. None keeps them in memory only.
        again: make them anew, whatever the file holds.
        say: told why a file is made anew.

    Raises:
        ValueError: an unknown task, a weight that is not positive, fewer than one view, clips too short for a task, classes
            of data without, or a damaged file.
        OSError: the file cannot be written.
    """
    if views < 1:
        raise ValueError(f"views: got {views}, expected at least 1")
    named = {name: named_task(name) for name in tasks}
    conditions, weights = [_padding_of(task) for task in named.values()], list(tasks.values())
    weighted = ", ".join(f"{task!r} x {weight}" for task, weight in zip(conditions, weights, strict=True))
    wanted = {**token_record(source, tokenizer, "video", views, seed), "conditions": weighted}
    seeds = range(seed, seed + views * len(source))
    chosen = draw_tasks(weights, seeds)
    make = partial(_encode, source, tokenizer, conditions, chosen, seeds)
    told: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "again": again, "say": say}
    tensors = make() if path is None else kept_tokens(path, wanted, make, **told)
    example = source.batch([0], [seed])["video"]
    cells = TokenCells.of(tokenizer, example.shape)
    classes = "labels" in tensors
    parts = [
        TaskTokens(
            prompt=task.prompt(inpainting_prompt=inpainting_prompt),
            positions=alike.condition(example, cells).tokens.flatten().nonzero()[:, 0],
            class_conditional=task.class_conditional and (classes or task.region != "none"),
        )
        for task, alike in zip(named.values(), conditions, strict=True)
    ]
    return CommitSource(tensors["tokens"], tensors["conditions"], chosen, parts, tensors.get("labels"))


def _padding_of(task: VideoTask) -> VideoTask:
    """A task without what does not change its condition: frame prediction with and without a class has the same."""
    return dataclasses.replace(task, kind=Prompt.FULL_GENERATION, class_conditional=False)


@torch.no_grad()
def _encode(
    source: Source, tokenizer: VideoTokenizer, conditions: Sequence[VideoTask], chosen: Tensor, seeds: Sequence[int]
) -> dict[str, Tensor]:
    """``tokens`` and ``conditions`` ``[M, N, K]`` in small integers, and ``labels`` if there are any."""
    device = next((weight.device for weight in tokenizer.parameters()), torch.device("cpu"))  # a toy has no weights
    small = torch.int16 if tokenizer.vocab_size <= 1 << 15 else torch.int32
    count = max(1, min(_MOST, _PIXELS // math.prod(source.batch([0], [seeds[0]])["video"].shape[2:])))
    parts: list[Batch] = []
    with fast_matmul(device):
        for first in tqdm(range(0, len(seeds), count), desc="tokenize", unit="batch", disable=None):
            examples = range(first, min(first + count, len(seeds)))
            batch = source.batch(
                [example % len(source) for example in examples], [seeds[number] for number in examples]
            )
            clips = batch["video"].to(device)
            cells = TokenCells.of(tokenizer, clips.shape)
            tokens = tokenizer.encode(clips)
            made = torch.zeros_like(tokens)
            for number in chosen[first : first + count].unique().tolist():
                mine = (chosen[first : first + count] == number).nonzero()[:, 0].to(device)
                condition = conditions[number].condition(clips[mine], cells)
                if condition.tokens.any():
                    made[mine] = tokenizer.encode(condition.clip)
            part = {"tokens": tokens.to("cpu", small), "conditions": made.to("cpu", small)}
            parts.append(part | ({"labels": batch["labels"]} if "labels" in batch else {}))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
