"""AdamW, its learning rate, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

__all__ = ["OptimizerSettings", "adamw", "learning_rate", "warm_average"]


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW with linear warm-up.

    Attributes:
        lr: highest learning rate.
        betas: Adam's decay rates.
        weight_decay: on matrices and kernels only, never on embeddings, norms or biases.
        warmup_steps: steps of linear warm-up.
        decay: ``cosine`` to ``final_lr_ratio`` x lr at the last step, or ``constant``.
        final_lr_ratio: see ``decay``.
        grad_clip: largest gradient norm; 0 turns clipping off.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.96)
    weight_decay: float = 0.045
    warmup_steps: int = 5000
    decay: Literal["cosine", "constant"] = "cosine"
    final_lr_ratio: float = 0.0
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.warmup_steps < 0 or self.weight_decay < 0 or self.grad_clip < 0:
            raise ValueError(
                f"optimizer: got lr {self.lr}, warmup_steps {self.warmup_steps}, weight_decay {self.weight_decay}, "
                f"grad_clip {self.grad_clip}; expected lr above 0 and the others at least 0"
            )


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Linear warm-up from lr / warmup_steps, then cosine decay (or constant): a pure function, so nothing to resume."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    if settings.decay == "constant":
        return settings.lr
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    floor = settings.final_lr_ratio
    return settings.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def adamw(module: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Decay matrices and kernels only; embeddings, norms and biases keep their size (MAGVIT's rule)."""
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in module.parameters():
        (decayed if parameter.ndim >= 2 and id(parameter) not in embeddings else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)


def warm_average(decay: float) -> Any:
    """Averaging rule with warm-up, so that short runs do not average in their random start."""

    @torch.no_grad()
    def update(averaged: Sequence[torch.Tensor], current: Sequence[torch.Tensor], count: torch.Tensor) -> None:
        done = int(count)
        weight = 1 - min(decay, (1 + done) / (10 + done))
        floats = [(a, c) for a, c in zip(averaged, current, strict=True) if a.is_floating_point()]
        if floats:  # one call per type and device: a quantizer's flags come without any
            torch._foreach_lerp_([a for a, _ in floats], [c.to(a.dtype) for a, c in floats], weight)
        for a, c in zip(averaged, current, strict=True):
            if not a.is_floating_point():
                a.copy_(c)

    return update
