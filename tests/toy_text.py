"""A text encoder without weights of its own: words are seeded random vectors, and the pooled vector is their mean."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.tasks.conditions.text.base import TextEncoder


@dataclass(frozen=True, kw_only=True)
class ToyTextConfig:
    """Sizes of a ``ToyText``.

    Attributes:
        width: D and, if there is one, P.
        length: L, words of the window; the first place is the start, as encoders have one.
        pooled: whether there is a pooled vector.
        seed: of the vectors.
    """

    width: int = 8
    length: int = 6
    pooled: bool = False
    seed: int = 0


class ToyText(TextEncoder):
    """``calls`` counts the texts that were encoded."""

    def __init__(self, config: ToyTextConfig) -> None:
        super().__init__()
        self.config, self.context_width, self.calls = config, config.width, 0
        self.pooled_width = config.width if config.pooled else 0

    def encode(self, texts: Sequence[str]) -> Cond:
        self.calls += len(texts)
        context = torch.zeros(len(texts), self.config.length, self.config.width)
        mask = torch.zeros(len(texts), self.config.length, dtype=torch.bool)
        for row, text in enumerate(texts):
            for place, word in enumerate(["<start>", *text.split()][: self.config.length]):
                context[row, place], mask[row, place] = self._vector(word), True
        pooled = context.sum(1) / mask.sum(1, keepdim=True)
        return Cond(context=context, context_mask=mask, pooled=pooled if self.config.pooled else None)

    def identity(self) -> str:
        return f"ToyText-{self.config}"

    def cut(self, text: str) -> str:
        return " ".join(text.split()[self.config.length - 1 :])

    def _vector(self, word: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(f"{self.config.seed} {word}".encode()).digest()[:6], "big")
        return torch.randn(self.config.width, generator=torch.Generator().manual_seed(seed))
