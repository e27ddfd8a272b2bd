"""The prompts of calls: checked, encoded once, and remembered.

Shapes: B results.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch

from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.tasks.conditions.text.base import TextEncoder

Prompt = str | Sequence[str]
"""A text, or one for each result."""

LongPrompts = Literal["cut", "refuse"]
"""What becomes of a prompt that is longer than the encoder's window."""

_REMEMBERED = 4096  # prompts: 77 tokens of width 768 take 0.24 MB each
_BATCH = 64
_SHOWN = 40  # characters of a prompt in a message


def prompt_list(prompt: Prompt, name: str = "prompt") -> list[str]:
    """One text or several as a list.

    Args:
        prompt: see ``Prompt``.
        name: of the option, for errors.

    Raises:
        TypeError: neither a text nor a sequence of texts.
    """
    listed: Any = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(listed, Sequence) or isinstance(listed, bytes):
        raise TypeError(f"{name}: got {type(prompt).__name__}, expected a text or a list of texts")
    for number, one in enumerate(listed):
        if not isinstance(one, str):
            raise TypeError(f"{name}: got {type(one).__name__} at place {number}, expected a text")
    return list(listed)


@dataclass(frozen=True)
class Wording:
    """What a call says in words.

    Attributes:
        prompts: one text, or one for each result; the empty one where nothing is asked.
        negatives: the same for what guidance pushes away from.
        long: see ``LongPrompts``.
    """

    prompts: Sequence[str] = ("",)
    negatives: Sequence[str] = ("",)
    long: LongPrompts = "cut"

    @classmethod
    def of(
        cls, prompt: Prompt | None, negative: Prompt | None = None, long: LongPrompts = "cut", *, guided: bool = True
    ) -> Wording:
        """The texts of a call, checked.

        Args:
            prompt: None for nothing asked.
            negative: None for the empty text.
            long: see ``LongPrompts``.
            guided: whether the call uses guidance, which a negative prompt needs.

        Raises:
            TypeError: something else than texts.
            ValueError: a negative prompt without guidance, or an unknown ``long``.
        """
        if long not in get_args(LongPrompts):
            raise ValueError(f"long_prompts: got {long!r}, expected 'cut' or 'refuse'")
        if negative is not None and not guided:
            raise ValueError(
                "negative_prompt: got one, but guidance is 0, so nothing is pushed away from; give guidance (as 3), too"
            )
        prompts = [""] if prompt is None else prompt_list(prompt)
        if prompt is not None and (empty := sum(not text.strip() for text in prompts)):
            warnings.warn(f"prompt: {empty} of {len(prompts)} empty; they ask for nothing", stacklevel=4)
        negatives = [""] if negative is None else prompt_list(negative, "negative_prompt")
        return cls(_without_spaces(prompts), _without_spaces(negatives), long)


class Prompts:
    """The encoder of a pipeline and the features of the prompts it has seen.

    Args:
        encoder: see ``TextEncoder``.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self._known: OrderedDict[str, Cond] = OrderedDict()

    def cond(self, words: Wording, model: MaskedTransformer, count: int) -> Cond:
        """What a model takes of the features of B prompts, with those of the negative prompts as ``null``.

        Args:
            words: see ``Wording``; one text, or one for each of B results.
            model: what the features are for.
            count: B.
        """
        told, null = (
            Cond(
                **{name: getattr(found, name) for name in ("context", "context_mask", "pooled") if _takes(model, name)}
            )
            for found in (
                self._told(texts, words.long, name, model)
                for texts, name in ((words.prompts, "prompt"), (words.negatives, "negative_prompt"))
            )
        )
        return replace(_spread(told, count), null=_spread(null, count))

    def _told(self, texts: Sequence[str], long: LongPrompts, name: str, model: MaskedTransformer) -> Cond:
        """``encode``; the empty text is no vector at all to models that were trained so."""
        found = self.encode(texts, long, name)
        if not model.drops_text or found.context is None:
            return found
        mask = torch.tensor([bool(text) for text in texts])[:, None].expand(found.context.shape[:2])
        return replace(found, context_mask=mask if found.context_mask is None else mask & found.context_mask)

    def encode(self, texts: Sequence[str], long: LongPrompts = "cut", name: str = "prompt") -> Cond:
        """Features of B texts, on the CPU; each different text is encoded once in the life of a pipeline.

        Args:
            texts: B of them; the empty one is the unconditional prompt.
            long: see ``LongPrompts``; what is cut is said.
            name: of the option, for messages.

        Raises:
            ValueError: a text that is too long where ``long`` is ``refuse``.
        """
        wanted = dict.fromkeys(texts)
        for text in wanted:
            self._check_length(text, long, name)
        missing = [text for text in wanted if text not in self._known]
        fresh: dict[str, Cond] = {}
        for first in range(0, len(missing), _BATCH):
            part = missing[first : first + _BATCH]
            with torch.no_grad():
                made = self.encoder.encode(part).to("cpu")
            fresh |= {text: made.rows([row]) for row, text in enumerate(part)}
        found = {text: fresh[text] if text in fresh else self._known[text] for text in wanted}
        for text, cond in found.items():
            self._known[text] = cond
            self._known.move_to_end(text)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        place = {text: row for row, text in enumerate(wanted)}
        return Cond.cat(list(found.values())).rows([place[text] for text in texts])

    def _check_length(self, text: str, long: LongPrompts, name: str) -> None:
        lost = self.encoder.cut(text)
        if not lost:
            return
        told = f"{name}: {_short(text)!r} is longer than the text encoder's window"
        if long == "refuse":
            raise ValueError(f"{told}; shorten it by {_short(lost)!r}, or let it be cut (long_prompts: cut)")
        warnings.warn(f"{told}; cut off: {_short(lost)!r}", stacklevel=5)


def _without_spaces(texts: Sequence[str]) -> list[str]:
    """Nothing but spaces is the empty text."""
    return [text if text.strip() else "" for text in texts]


def _takes(model: MaskedTransformer, name: str) -> bool:
    return bool(model.pooled_width if name == "pooled" else model.context_width)


def _spread(cond: Cond, count: int) -> Cond:
    """The same row for each of some results, where there is one only."""
    rows = next(len(value) for value in (cond.context, cond.pooled) if value is not None)
    return cond if rows == count else cond.rows([0] * count)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
