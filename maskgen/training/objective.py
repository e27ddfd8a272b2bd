"""What a stage trains and what it costs: all that the trainer knows of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from maskgen.data import Batch, Source
from maskgen.training.distributed.rows import RandomRows

Metrics = dict[str, Tensor]
"""Scalars by name."""

Show = Callable[[nn.Module, Path, int], None]
"""Called as ``show(model, folder, step)`` to write pictures, clips or sounds of the averaged model into a folder."""


class ObjectiveOptions(TypedDict, total=False):
    """What every objective takes besides its model and settings, all optional.

    Attributes:
        held_out: examples for the validation, batches of the same form; None validates nothing.
        show: see ``Show``; by default nothing is shown.
    """

    held_out: Source | None
    show: Show | None


class Objective(ABC):
    """What a stage trains. ``model`` is what gets averaged, validated and exported; a stage may train more networks.

    ``rows`` is the randomness of a step that belongs to rows of the whole batch (see
    ``maskgen.training.distributed.rows``): the trainer sets it before every step. torch's global generator is each
    process's own.

    Args:
        model: a module built from a ``config`` dataclass.
        options: see ``ObjectiveOptions``.
    """

    def __init__(self, model: Any, **options: Unpack[ObjectiveOptions]) -> None:
        self.model, self.held_out, self._show = model, options.get("held_out"), options.get("show")
        self.rows = RandomRows()

    def networks(self) -> dict[str, nn.Module]:
        """Everything trained, by name, in the order of their updates; each has an optimiser of its own."""
        return {"model": self.model}

    def state(self) -> nn.Module | None:
        """Buffers to keep in checkpoints that no network owns (for instance moving averages), the same on every process."""
        return None

    @abstractmethod
    def loss(self, network: str, modules: Mapping[str, nn.Module], batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Loss of one network on one micro-batch and what to log; ``modules`` are the networks as Accelerate wrapped them.

        Gradients are averaged over processes, so the loss must be a mean over rows for a run not to depend on their number.
        """

    @abstractmethod
    def units(self, batch: Batch) -> int:
        """Tokens in a micro-batch, for the throughput."""

    def flops(self, batch: Batch) -> float:
        """Floating-point operations of forward and backward pass of a micro-batch, for the utilisation; 0 = not counted."""
        return 0.0

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Numbers of the averaged model; ``score`` (lower is better) decides which weights are the best."""
        return {}

    def show(self, model: nn.Module, folder: Path, step: int) -> None:
        """Write what the averaged model makes, if the caller said how."""
        if self._show is not None:
            self._show(model, folder, step)
