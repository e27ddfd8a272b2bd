"""What a call means to a model: its classes, prompts, settings and seeds as conditions of rows.

Shapes: B results, M plain numbers.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from einops import repeat

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.models.base import MaskedTransformer
from maskgen.noise import check_seeds
from maskgen.published.loops import check_guidance
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.classes import Label, class_id, label_list
from maskgen.tasks.conditions.request import Options, Request, SamplingOptions, check_options
from maskgen.tasks.conditions.text.prompts import Prompts, Wording, prompt_list
from maskgen.tasks.media.images import broadcast
from maskgen.tasks.model_folder import PipelineConfig


class Calls(ABC):
    """The part of ``Pipeline`` that reads the arguments of tasks.

    Attributes:
        transformer: what is asked.
        fine: the second transformer of sound, if there is one.
        config: of the model folder.
        prompts: of the text encoder; None without one.
    """

    transformer: MaskedTransformer
    fine: MaskedTransformer | None
    config: PipelineConfig
    prompts: Prompts | None

    @property
    @abstractmethod
    def coarse(self) -> Calls | None:
        """First stage of a cascade, if there is one."""

    @property
    def takes_prompts(self) -> bool:
        """Whether it, or the first stage of a cascade, is told texts."""
        return self.prompts is not None or (self.coarse is not None and self.coarse.takes_prompts)

    @property
    def other_sampling(self) -> dict[str, Sampling]:
        """Settings of the stages that ``sampling`` does not name: of the fine transformer, of the first stage."""
        fine, first = None if self.fine is None else self.config.fine_sampling, self.coarse
        found = {"fine_sampling": fine, "coarse_sampling": None if first is None else first.config.sampling}
        return {name: settings for name, settings in found.items() if settings is not None}

    def set_sampling(self, sampling: Sampling) -> None:
        """Take settings as the model's own, for calls that name none."""
        self.config = dataclasses.replace(self.config, sampling=sampling)

    @property
    @abstractmethod
    def grid_size(self) -> tuple[int, ...]:
        """Signal units that the model's token grid covers."""

    def class_ids(self, labels: Label | Sequence[Label] | None) -> list[int]:
        """Class ids of ids or names, see ``class_id``; None is "no class", for models that know it.

        Raises:
            TypeError: neither integers nor texts.
            ValueError: out of range, unknown name, a class asked of a model without, or none of a model that needs one.
        """
        if labels is None:
            if not self.transformer.num_classes or self.transformer.null_class:
                return [NO_LABEL]
            raise ValueError(
                "label: got none, but this model has no unconditional mode (it was trained without label dropout); "
                "give a class"
            )
        count, names = self.transformer.num_classes, self.config.class_names
        return [class_id(label, count, names) for label in label_list(labels)]

    def sampling(self, settings: Sampling | None, steps: int | None = None, guidance: float | None = None) -> Sampling:
        """The settings of a call: what it names over the model's own, with the two usual overrides.

        Raises:
            ValueError: see ``maskgen.published.loops.check_guidance``.
        """
        own = self.config.sampling
        chosen = (own if settings is None else settings.over(own)).override(steps=steps, guidance=guidance)
        check_guidance(self.transformer, chosen)
        return chosen

    def request(self, options: Options | SamplingOptions, **inputs: Sequence[Any]) -> Request:
        """The keyword arguments of a call as what is asked of this model.

        Args:
            options: see ``Options``; seed 0 if there are none.
            inputs: what the call works on, by what errors call it; goes with labels and seeds of the same number.

        Raises:
            TypeError: an option that there is not, or seeds that are no integers.
            ValueError: no seeds or negative ones, numbers that differ, an unknown class, settings out of range.
        """
        given = check_options(options)
        chosen = self.sampling(given.get("sampling"), given.get("steps"), given.get("guidance"))
        first = self._first_sampling(given)
        words = self._words(given, bool(chosen.guidance.scale or (first is not None and first.guidance.scale)))
        seeds = given.get("seeds")
        lists: dict[str, Sequence[Any]] = {name: range(len(values)) for name, values in inputs.items()}
        lists["labels"] = self.class_ids(given.get("label"))
        said = {"prompts": words.prompts, "negative_prompts": words.negatives}
        lists |= {name: texts for name, texts in said.items() if len(texts) != 1}  # a single one goes with any number
        lists["seeds"] = [0] if seeds is None else list(seeds)
        spread = dict(zip(lists, broadcast(**lists), strict=True))
        listed, labels, sources = spread["seeds"], spread["labels"], [spread[name] for name in inputs]
        words = dataclasses.replace(
            words,
            prompts=spread.get("prompts", words.prompts),
            negatives=spread.get("negative_prompts", words.negatives),
        )
        check_seeds(listed, len(listed))
        asked = Request(seeds=listed, sampling=chosen, callback=given.get("callback"))
        return dataclasses.replace(self._asked(asked, labels, words, first), sources=sources[0] if sources else ())

    def generation(self, labels: Any, options: SamplingOptions) -> Request:
        """``request`` for results from nothing: without seeds, 0, 1, 2... for the labels or prompts, see ``class_ids``."""
        seeds, prompt = options.get("seeds"), options.get("prompt")
        if seeds is None:
            counts = [len(self.class_ids(labels)), *([] if prompt is None else [len(prompt_list(prompt))])]
            seeds = range(max(counts))
        return self.request({**options, "label": labels, "seeds": seeds})

    def cond(self, ids: Sequence[int], words: Wording | None = None) -> Cond:
        """The condition of one class id a row, where the model has classes, and of one prompt a row, where it takes text."""
        model = self.transformer
        micro = model.usual_micro(self.grid_size)
        told = Cond() if self.prompts is None else self.prompts.cond(words or Wording(), model, len(ids))
        return dataclasses.replace(
            told,
            labels=torch.tensor(ids) if model.num_classes else None,
            micro=None if micro is None else repeat(micro, "M -> B M", B=len(ids)),
        )

    def _first_sampling(self, given: Options) -> Sampling | None:
        """The settings of the first stage of a cascade, if there is one."""
        settings = given.get("coarse_sampling")
        if self.coarse is None and settings is not None:
            raise ValueError("coarse_sampling: got settings, but this model is no cascade; leave them out")
        return None if self.coarse is None else self.coarse.sampling(settings, guidance=given.get("guidance"))

    def _asked(self, asked: Request, labels: Sequence[int], words: Wording, first: Sampling | None) -> Request:
        """A request with the conditions of this model and, with the settings ``first``, of its first stage."""
        coarse = None
        if self.coarse is not None:
            settings = self.coarse.config.sampling if first is None else first
            coarse = self.coarse._asked(dataclasses.replace(asked, sampling=settings), labels, words, None)
        return dataclasses.replace(asked, cond=self.cond(labels, words), coarse=coarse)

    def _words(self, given: Options, guided: bool) -> Wording:
        """What a call says in words, which only some models understand."""
        prompt, negative = given.get("prompt"), given.get("negative_prompt")
        if not self.takes_prompts and (prompt is not None or negative is not None):
            asked = "a label" if self.transformer.num_classes else "no prompt"
            lacks = "its folder has no text encoder" if self.transformer.takes_text else "it was trained without texts"
            name = "negative_prompt" if prompt is None else "prompt"
            raise ValueError(f"{name}: got one, but this model takes none ({lacks}); give {asked}")
        return Wording.of(prompt, negative, given.get("long_prompts", "cut"), guided=guided)
