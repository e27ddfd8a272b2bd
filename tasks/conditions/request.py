"""What a call asks of a model: for each result a condition and a seed, and how it is sampled.

Shapes: B results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict, cast

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.data import item_seed
from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.classes import Label
from maskgen.tasks.conditions.text.prompts import LongPrompts, Prompt


class SamplingOptions(TypedDict, total=False):
    """Keyword arguments of every task, all optional.

    Attributes:
        seeds: one integer a result; a result depends on its own seed, label and input alone, in any batch.
        steps: decoding steps, instead of the settings' number.
        guidance: scale of classifier-free guidance, instead of the settings'.
        sampling: settings that lie over the model's own.
        coarse_sampling: the same for the first stage of a cascade; ``guidance`` is of both stages, ``steps`` of the second.
        callback: sees each step of each window or batch.
        prompt: a text, or one for each result; for models that were trained with texts.
        negative_prompt: what guidance pushes away from instead of the empty text; one, or one for each result.
        long_prompts: what becomes of a prompt beyond the encoder's window; ``cut`` (and said) by default.
    """

    seeds: Sequence[int] | None
    steps: int | None
    guidance: float | None
    sampling: Sampling | None
    coarse_sampling: Sampling | None
    callback: Callable[[SampleStep], None] | None
    prompt: Prompt | None
    negative_prompt: Prompt | None
    long_prompts: LongPrompts


class Options(SamplingOptions, total=False):
    """Keyword arguments of the tasks that edit something, all optional.

    Inputs, labels, prompts and seeds must be equally many or single ones, which repeat.

    Attributes:
        label: class id or name of the result, or one for each seed; None for a model that works without.
    """

    label: Label | Sequence[Label] | None


def check_options(options: Options | SamplingOptions) -> Options:
    """The keyword arguments of a call, none of which is unknown.

    Raises:
        TypeError: one is.
    """
    if unknown := options.keys() - Options.__optional_keys__:
        expected = ", ".join(sorted(Options.__optional_keys__))
        raise TypeError(f"got an unexpected option {min(unknown)!r}; expected those of the task, or {expected}")
    return cast(Options, options)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of a model besides tokens and mask; a row is a result.

    Attributes:
        seeds: B integers of 0 or more; an item's result depends on its own seed alone.
        sampling: how tokens are sampled.
        cond: conditions of B rows.
        fine_sampling: the same for the fine transformer of sound; the model's own settings if left out.
        coarse: of the first stage of a cascade; where ``cond.coarse`` is given it is not asked.
        callback: sees each step.
        sources: number of the input that each row belongs to, where a call has several.
    """

    seeds: Sequence[int]
    sampling: Sampling
    cond: Cond = field(default_factory=Cond)
    fine_sampling: Sampling | None = None
    coarse: Request | None = None
    callback: Callable[[SampleStep], None] | None = None
    sources: Sequence[int] = ()

    def window(self, number: int) -> Request:
        """The request for one window of a long signal: a result with seed s is sampled with ``item_seed(s, number)``."""
        coarse = None if self.coarse is None else self.coarse.window(number)
        return dataclasses.replace(self, seeds=[item_seed(seed, number) for seed in self.seeds], coarse=coarse)

    def rows(self, index: Sequence[int]) -> Request:
        """The request for some rows, in the order of ``index``; a row may come more than once."""
        sources = [self.sources[row] for row in index] if self.sources else ()
        seeds = [self.seeds[row] for row in index]
        coarse = None if self.coarse is None else self.coarse.rows(index)
        return dataclasses.replace(self, seeds=seeds, cond=self.cond.rows(list(index)), coarse=coarse, sources=sources)

    def for_task(self, task: int) -> Request:
        """The request with the same task id in every row, for a model of several tasks."""
        return self.told(task=torch.full((len(self.seeds),), task))

    def told(self, **fields: Tensor) -> Request:
        """The request with some fields of its conditions, on the CPU as the others."""
        given = {name: value.cpu() for name, value in fields.items()}
        return dataclasses.replace(self, cond=dataclasses.replace(self.cond, **given))
