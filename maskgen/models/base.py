"""The contract of a model: tokens and conditions in, logits out; and of one that can compute a part of the grid.

Shapes: B batch, N grid tokens, K codebooks, V codes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.conditioning import Cond
from maskgen.models.partial import FeatureMemory, Prepared


class MaskedTransformer(nn.Module, ABC):
    """The contract of a model: tokens and conditions in, logits out. The mask id is ``vocab_size``.

    Attributes:
        context_width: width of the ``Cond.context`` it attends to, for instance of text; 0 if it takes none.
        pooled_width: width of ``Cond.pooled``; 0 if it takes none.
        coarse_size: number of tokens in ``Cond.coarse``; 0 if it takes none.
        drops_text: whether it was trained with no real vector in the context where a row had no text (lucidrains' Muse);
            other models were given the features of the empty text.
    """

    config: Any
    vocab_size: int
    num_codebooks: int
    num_classes: int
    null_class: bool
    num_tasks: int = 0
    context_width: int = 0
    pooled_width: int = 0
    coarse_size: int = 0
    drops_text: bool = False

    @property
    def takes_text(self) -> bool:
        """Whether it is conditioned on the features of a text."""
        return bool(self.context_width or self.pooled_width)

    def taken(self, cond: Cond) -> Cond:
        """What this model takes of the conditions of another: its second stage, for instance, may know no classes."""
        unknown = [] if self.num_classes else ["labels"]
        unknown += [] if self.context_width else ["context", "context_mask"]
        unknown += [] if self.pooled_width else ["pooled"]
        return replace(cond, **dict.fromkeys(unknown))

    def usual_micro(self, size: Sequence[int]) -> Tensor | None:
        """``Cond.micro`` ``[M]`` of a signal of that size where nobody says more; None for a model that takes none."""
        return None

    @abstractmethod
    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        """Logits ``[B, N, K, V]`` of tokens ``[B, N, K]`` (V where masked); ``axes``: grid, the trained one by default."""


class PartialTransformer(MaskedTransformer):
    """A model that can predict some positions only, and prepare its conditions once a call.

    ``forward(tokens, cond, axes)`` is ``logits_at(tokens, prepare(cond, tokens, axes))``.

    Attributes:
        is_partial: whether ``prepare`` and ``logits_at`` may stand in for ``forward``: False in a subclass that replaces
            ``forward`` and keeps ``logits_at``, unless it says otherwise.
        is_static: whether the trunk was compiled for fixed numbers of rows (``maskgen.sampling.speed.compiled``), so
            that the sampler does not vary them.
    """

    is_partial: bool = True
    is_static: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "forward" in vars(cls) and "is_partial" not in vars(cls):
            cls.is_partial = "logits_at" in vars(cls)

    @abstractmethod
    def prepare(self, cond: Cond, tokens: Tensor, axes: Sequence[int] | None = None) -> Prepared:
        """What depends on the conditions and the grid alone; of ``tokens`` ``[B, N, K]`` only shape and device count.

        Raises:
            ValueError: see ``forward``.
        """

    @abstractmethod
    def logits_at(
        self, tokens: Tensor, prepared: Prepared, positions: Tensor | None = None, memory: FeatureMemory | None = None
    ) -> Tensor:
        """Logits ``[B, P, K, V]`` of some positions: after the last keys and values nothing else is computed.

        Args:
            tokens: long ``[B, N, K]``, V where masked.
            prepared: see ``prepare``.
            positions: long ``[B, P]``, numbers below N; all N in their order if left out.
            memory: keys and values to use again, see ``FeatureMemory``; with ``memory.positions`` set, ``positions`` are
                indices into those.
        """


def check_grid(
    tokens: Tensor, axes: Sequence[int] | None, trained: Sequence[int], codebooks: int = 1, remedy: str = ""
) -> None:
    """Refuse tokens that do not lie on the grid whose positions were learned.

    Args:
        tokens: ``[B, N, K]``.
        axes: grid of the call, the trained one if None.
        trained: grid of the model.
        codebooks: K of the model.
        remedy: added to the error.

    Raises:
        ValueError: another number of tokens or codebooks, or another grid.
    """
    expected = torch.Size(trained).numel()
    if tokens.shape[1:] != (expected, codebooks) or (axes is not None and tuple(axes) != tuple(trained)):
        count = "one codebook" if codebooks == 1 else f"{codebooks} codebooks"
        raise ValueError(
            f"tokens: got {tuple(tokens.shape)} on a grid {axes}, expected [B, {expected}, {codebooks}] on "
            f"{tuple(trained)}; this family has learned positions and {count}{remedy}"
        )


def init_layer(module: nn.Module) -> None:
    """Normal of std 0.02 cut at two sigma, not corrected for the cut (real std 0.0176), biases 0: BERT's official init."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def task_ids(model: MaskedTransformer, cond: Cond, tokens: Tensor) -> Tensor | None:
    """The task of every row, long ``[B]``: 0 where ``cond`` names none, None for a model without tasks.

    Raises:
        ValueError: task ids for a model without tasks, which would be ignored in silence, or another number of them.
    """
    used = ["labels", "task"]
    used += ["context", "context_mask"] if model.context_width else []
    used += ["pooled"] if model.pooled_width else []
    cond.check_used(type(model).__name__, *used, *(["coarse"] if model.coarse_size else []))
    if cond.task is None:
        return torch.zeros(len(tokens), dtype=torch.long, device=tokens.device) if model.num_tasks else None
    if not model.num_tasks:
        raise ValueError("task: got task ids, but this model knows a single task; leave them out or set num_tasks")
    if cond.task.shape != tokens.shape[:1]:
        raise ValueError(f"task: got {tuple(cond.task.shape)}, expected one task id for each of the {len(tokens)} rows")
    return cond.task
