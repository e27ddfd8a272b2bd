"""Models that need no weights, for tests here and in users' code.

Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from maskgen.conditioning import Cond


class UniformModel:
    """Finds every id equally likely.

    Args:
        vocab_size: V.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __call__(self, tokens: Tensor, cond: Cond | None = None, axes: Sequence[int] | None = None) -> Tensor:
        """Zero logits ``[B, N, K, V]``."""
        return torch.zeros(*tokens.shape, self.vocab_size, device=tokens.device)


class OracleModel:
    """Knows the answer.

    Args:
        answer: long ``[N, K]`` or ``[B, N, K]``.
        vocab_size: V.
        certainty: logit of the right id; all others have 0.
    """

    def __init__(self, answer: Tensor, vocab_size: int, certainty: float = 50.0) -> None:
        self.vocab_size = vocab_size
        self.logits = certainty * F.one_hot(answer, vocab_size).float()

    def __call__(self, tokens: Tensor, cond: Cond | None = None, axes: Sequence[int] | None = None) -> Tensor:
        """The answer's logits ``[B, N, K, V]``, whatever the tokens are."""
        return self.logits.to(tokens.device).expand(*tokens.shape, self.vocab_size)
