"""Texts as data: of files in whatever encoding, of paths in whatever spelling, and many of them in two tensors.

Shapes: M texts, U bytes of all of them.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Tensor

TEXT_TENSORS = ("texts", "text_ends")
"""Names of the two tensors of ``Texts`` in files."""


def decode_text(content: bytes, name: str) -> str:
    """The text of a file; spreadsheets write UTF-16, too, with a mark at its beginning.

    Args:
        content: its bytes.
        name: how errors call it.

    Raises:
        ValueError: another encoding, or no text.
    """
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: got a file that is no text ({error}), expected UTF-8") from None
    if "\0" in text:  # UTF-16 without its mark decodes as UTF-8
        raise ValueError(f"{name}: got a file that is no text (it holds zeros), expected UTF-8")
    return text


def spelling(name: str) -> str:
    """A path as all its spellings are compared: with slashes, without ``./``, accents composed."""
    return PurePosixPath(unicodedata.normalize("NFC", name.strip().replace("\\", "/"))).as_posix()


class Texts:
    """Many texts in little memory.

    Args:
        content: UTF-8, uint8 ``[U]``, one text after the other.
        ends: long ``[M]``, where each ends.
    """

    def __init__(self, content: np.ndarray, ends: np.ndarray) -> None:
        self.content, self.ends = content, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """These."""
        encoded = [text.encode("utf-8", "replace") for text in texts]
        ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        return cls(np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8), ends)

    @classmethod
    def among(cls, tensors: Mapping[str, Tensor]) -> Texts | None:
        """Those that ``tensors()`` made, among others of a file; None if there are none."""
        if not set(TEXT_TENSORS) <= tensors.keys():
            return None
        content, ends = (tensors[name].numpy() for name in TEXT_TENSORS)
        return cls(content[: int(ends[-1]) if len(ends) else 0], ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> str:
        start = int(self.ends[number - 1]) if number else 0
        return self.content[start : int(self.ends[number])].tobytes().decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))

    def tensors(self) -> dict[str, Tensor]:
        """Content (at least one byte, for files keep no empty tensor) and ends, by the names that ``among`` looks for."""
        content = self.content if len(self.content) else np.zeros(1, np.uint8)
        return dict(zip(TEXT_TENSORS, (torch.from_numpy(content), torch.from_numpy(self.ends)), strict=True))

    def digest(self) -> str:
        """Hash of all of them, in their order."""
        return hashlib.sha256(self.ends.tobytes() + self.content.tobytes()).hexdigest()[:16]


def distinct(texts: Iterable[str]) -> tuple[Texts, Tensor]:
    """Each text once, in the order of its first appearance, and the number of each given one among them, long ``[M]``."""
    places: dict[str, int] = {}
    numbers = [places.setdefault(text, len(places)) for text in texts]
    return Texts.of(places), torch.tensor(numbers, dtype=torch.long)
