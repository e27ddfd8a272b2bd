"""How a training runs: how long, how wide, how often, and what happens when a step goes wrong."""

from dataclasses import dataclass, field
from typing import Literal

from maskgen.training.optim.guard import GuardSettings
from maskgen.training.optim.optimizers import OptimizerSettings


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long, how wide, how often.

    Attributes:
        steps: optimiser steps.
        batch_size: examples a step over all processes and accumulation, a multiple of both.
        optimizer: see ``OptimizerSettings``.
        ema_decay: of the averaged weights, warmed up as (1 + n) / (10 + n).
        seed: of data order, masks, dropout and initialisation.
        accumulation: micro-batches a step.
        mixed_precision: Accelerate's ``no``, ``bf16`` or ``fp16``.
        gradient_checkpointing: keep only the inputs of each block for the backward pass and compute the rest again: about a
            third more time for a fraction of the memory.
        compile: compile the model's blocks (``torch.compile``); the first step takes a minute longer.
        guard: see ``GuardSettings``.
        workers: data loader processes.
        log_every: steps between log lines.
        validate_every: steps between validations; 0 = only at the end.
        show_every: steps between samples; 0 = only at the end.
        checkpoint_every: steps between checkpoints; 0 = only at the end.
        keep_last: how many checkpoints stay.
        tracker: an Accelerate tracker by name, as ``tensorboard`` or ``wandb``; None = only ``log.jsonl``.
    """

    steps: int = 100_000
    batch_size: int = 256
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    ema_decay: float = 0.999
    seed: int = 42
    accumulation: int = 1
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    guard: GuardSettings = field(default_factory=GuardSettings)
    workers: int = 0
    log_every: int = 50
    validate_every: int = 1000
    show_every: int = 5000
    checkpoint_every: int = 1000
    keep_last: int = 2
    tracker: str | None = "tensorboard"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "log_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulation {self.accumulation}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: got {self.ema_decay}, expected 0 <= decay < 1")
