"""What a call means to a model: its classes, prompts, settings and seeds as conditions of rows.

Shapes: B results, M plain numbers.
"""

import dataclasses
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


class Calls:
    """The part of ``Pipeline`` that reads the arguments of tasks.

    Attributes:
        transformer: what is asked.
        config: of the model folder.
        prompts: of the text encoder; None without one.
    """

    transformer: MaskedTransformer
    config: PipelineConfig
    prompts: Prompts | None

    @property
    def grid_size(self) -> tuple[int, ...]:
        """Signal units that the model's token grid covers."""
        raise NotImplementedError

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
        words = self._words(given, chosen)
        seeds = given.get("seeds")
        lists = {name: range(len(values)) for name, values in inputs.items()}
        *sources, labels, prompts, negatives, listed = broadcast(
            **lists,
            labels=self.class_ids(given.get("label")),
            prompts=words.prompts,
            negative_prompts=words.negatives,
            seeds=[0] if seeds is None else list(seeds),
        )
        return Request(
            seeds=check_seeds(listed, len(listed)),
            sampling=chosen,
            cond=self.cond(labels, dataclasses.replace(words, prompts=prompts, negatives=negatives)),
            callback=given.get("callback"),
            sources=sources[0] if sources else (),
        )

    def generation(self, labels: Any, options: SamplingOptions) -> Request:
        """``request`` for results from nothing: without seeds, 0, 1, 2... for the labels or prompts, see ``class_ids``."""
        seeds, prompt = options.get("seeds"), options.get("prompt")
        if seeds is None:
            seeds = range(max(len(self.class_ids(labels)), 1 if prompt is None else len(prompt_list(prompt))))
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

    def _words(self, given: Options, sampling: Sampling) -> Wording:
        """What a call says in words, which only some models understand."""
        prompt, negative = given.get("prompt"), given.get("negative_prompt")
        if self.prompts is None and (prompt is not None or negative is not None):
            asked = "a label" if self.transformer.num_classes else "no prompt"
            lacks = "its folder has no text encoder" if self.transformer.takes_text else "it was trained without texts"
            name = "negative_prompt" if prompt is None else "prompt"
            raise ValueError(f"{name}: got one, but this model takes none ({lacks}); give {asked}")
        return Wording.of(prompt, negative, given.get("long_prompts", "cut"), guided=bool(sampling.guidance.scale))
