"""The contract of a text encoder: texts in, conditions out.

Shapes: B texts, L tokens of the window, D width of the context, P width of the pooled vector.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from maskgen.conditioning import Cond


class TextEncoder(nn.Module, ABC):
    """Texts to features that a transformer is conditioned on: the part ``text`` of a model folder. Frozen.

    Attributes:
        config: the dataclass it is built from.
        context_width: D, width of ``Cond.context``.
        pooled_width: P, width of ``Cond.pooled``; 0 for an encoder without.
    """

    config: Any
    context_width: int
    pooled_width: int = 0

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Cond:
        """Features of some texts; those of a text do not depend on the others. The empty text is one, too.

        Args:
            texts: B of them.

        Returns:
            ``context`` float ``[B, L, D]`` with the same L at every call, ``context_mask`` bool ``[B, L]`` (None if padding
            is attended to), and ``pooled`` float ``[B, P]`` or None; on the encoder's device.
        """

    @abstractmethod
    def identity(self) -> str:
        """Name and fingerprint: a transformer trained with one encoder does not understand another's features."""

    @abstractmethod
    def cut(self, text: str) -> str:
        """The end of a text that does not fit into the window; "" for one that fits."""

    def save_files(self, folder: Path) -> None:
        """Write what the folder needs besides weights and config, for instance the tokenizer's files."""
