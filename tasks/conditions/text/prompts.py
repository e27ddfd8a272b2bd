"""The prompts of calls: checked, encoded once, and remembered.

Shapes: B prompts.
"""

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch

from maskgen.conditioning import Cond
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
    listed = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(listed, Sequence) or isinstance(listed, bytes):
        raise TypeError(f"{name}: got {type(prompt).__name__}, expected a text or a list of texts")
    for number, one in enumerate(listed):
        if not isinstance(one, str):
            raise TypeError(f"{name}: got {type(one).__name__} at place {number}, expected a text")
    return list(listed)


class Prompts:
    """The encoder of a pipeline and the features of the prompts it has seen.

    Args:
        encoder: see ``TextEncoder``.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self._known: OrderedDict[str, Cond] = OrderedDict()

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


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
