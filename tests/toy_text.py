"""A text encoder without weights of its own (words are seeded random vectors), and pictures with captions for it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.data import Batch
from maskgen.tasks.conditions.text.base import TextEncoder
from maskgen.tasks.data.base import ImageData
from maskgen.tasks.data.captions import draw_caption


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


class SayingSource:
    """Grey squares in a corner each; ``captions`` say shade and corner, each in two ways."""

    def __init__(self, count: int, word: str, classes: bool, has_captions: bool) -> None:
        self.count, self.word, self.classes, self.has_captions = count, word, classes, has_captions

    def __len__(self) -> int:
        return self.count

    def identity(self) -> dict[str, Any]:
        return {"count": self.count, **({"word": self.word} if self.has_captions else {})}

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        images = torch.zeros(len(indices), 3, 8, 8)
        for row, index in enumerate(indices):
            top, left = 4 * (index % 2), 4 * (index // 2 % 2)
            images[row, :, top : top + 4, left : left + 4] = (index // 4 % 3 + 1) / 3
        labels = {"labels": torch.tensor([index // 4 % 3 for index in indices])} if self.classes else {}
        return {"images": images, **labels}

    def captions(self, indices: Sequence[int], seeds: Sequence[int]) -> list[str]:
        found = []
        for index, seed in zip(indices, seeds, strict=True):
            shade, place = ("dark", "grey", "white")[index // 4 % 3], f"{['top', 'low'][index % 2]}{index // 2 % 2}"
            found.append(draw_caption((f"{self.word} {shade} {place}", f"{place} is {shade}"), seed))
        return found


class Sayings(ImageData):
    """Twelve pictures of three classes, and four held out."""

    def __init__(self, word: str = "a", *, classes: bool = True, captions: bool = True) -> None:
        self.size, self.classes = (8, 8), classes
        self._train, self._test = (SayingSource(count, word, classes, captions) for count in (12, 4))

    @property
    def class_names(self) -> tuple[str, ...]:
        return ("dark", "grey", "white") if self.classes else ()

    def train(self) -> SayingSource:
        return self._train

    def test(self) -> SayingSource:
        return self._test
