"""A modality that maskgen has never heard of: short texts, a letter a token. Here: the names of characters in Unicode.

The commands stand in README.md beside this file. Shapes: B batch, S letters, K = 1 codebook.
"""

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from maskgen.checkpoint import save_module
from maskgen.data import TensorSource
from maskgen.tasks.data import SignalData
from maskgen.tokenizers.base import OwnModality

SCRIPTS = ("ARABIC", "CYRILLIC", "ETHIOPIC", "GREEK", "HEBREW", "LATIN", "TAMIL", "TIBETAN")
FIRST, CODES = 32, 64  # ASCII from space to underscore


@dataclass(frozen=True)
class TextConfig:
    """Length of a text in characters; shorter ones end in spaces."""

    length: int = 32


class TextTokenizer(OwnModality):
    """Texts as float ``[B, 1, S]`` in [0, 1]: a character's place in ASCII from space (0) to underscore (1)."""

    modality: ClassVar[str] = "text"
    suffix: ClassVar[str] = ".txt"
    is_spatial: ClassVar[bool] = True
    vocab_size, num_codebooks, stride = CODES, 1, (1,)

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config

    def axes(self, signal_shape: Sequence[int]) -> tuple[int, ...]:
        return (signal_shape[-1],)

    def encode(self, signal: Tensor) -> Tensor:
        return rearrange((signal * (CODES - 1)).round().long(), "B K S -> B S K")

    def decode(self, tokens: Tensor, axes: Sequence[int]) -> Tensor:
        return rearrange(tokens, "B S K -> B K S") / (CODES - 1)

    def read(self, path: Path) -> Tensor:
        text = path.read_text(encoding="ascii").strip()
        if len(text) > self.config.length:
            raise ValueError(f"{path}: got {len(text)} characters, expected at most {self.config.length}; shorten it")
        return as_signal([text], self.config.length)

    def write(self, signal: Tensor, path: Path) -> None:
        codes = (signal.flatten() * (CODES - 1)).round().long() + FIRST
        path.write_text("".join(map(chr, codes.tolist())).rstrip() + "\n", encoding="ascii")


def as_signal(texts: Sequence[str], length: int) -> Tensor:
    codes = [[ord(letter) - FIRST for letter in text.upper().ljust(length)] for text in texts]
    return torch.tensor(codes)[:, None].clamp(0, CODES - 1) / (CODES - 1)


class CharacterNames(SignalData):
    """``unicodedata.name`` of every character of some scripts, 32 letters at most; the script is the class."""

    modality: ClassVar[str] = "text"
    key: ClassVar[str] = "text"
    size = (TextConfig.length,)
    class_names = SCRIPTS

    def __init__(self) -> None:
        every = (unicodedata.name(chr(code), "") for code in range(0x11000))
        names = [name for name in every if name.split(" ")[0] in SCRIPTS and len(name) <= self.size[0]]
        self.texts = as_signal(names, self.size[0])
        self.labels = torch.tensor([SCRIPTS.index(name.split(" ")[0]) for name in names])

    def train(self) -> TensorSource:
        return TensorSource(text=self.texts, labels=self.labels)

    def test(self) -> None:
        return None


if __name__ == "__main__":
    save_module(TextTokenizer(TextConfig()), Path(sys.argv[1]))
