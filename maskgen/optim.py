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
        lr: highest learning rate; ``noam`` sets its own.
        betas: Adam's decay rates.
        weight_decay: on matrices and kernels only, never on embeddings, norms or biases.
        warmup_steps: steps of linear warm-up.
        decay: ``cosine`` to ``final_lr_ratio`` x lr at the last step, ``constant``, or ``noam``: as 1 / sqrt(step).
        final_lr_ratio: see ``decay``.
        grad_clip: largest gradient norm; 0 turns clipping off.
        noam_factor: ``noam`` only: the highest learning rate is noam_factor / sqrt(noam_width x warmup_steps).
        noam_width: ``noam`` only: width of the model.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.96)
    weight_decay: float = 0.045
    warmup_steps: int = 5000
    decay: Literal["cosine", "constant", "noam"] = "cosine"
    final_lr_ratio: float = 0.0
    grad_clip: float = 1.0
    noam_factor: float = 2.0
    noam_width: int = 1280

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.warmup_steps < 0 or self.weight_decay < 0 or self.grad_clip < 0:
            raise ValueError(
                f"optimizer: got lr {self.lr}, warmup_steps {self.warmup_steps}, weight_decay {self.weight_decay}, "
                f"grad_clip {self.grad_clip}; expected lr above 0 and the others at least 0"
            )
        if self.decay == "noam" and (self.noam_factor <= 0 or self.noam_width < 1 or self.warmup_steps < 1):
            raise ValueError(
                f"optimizer: got noam_factor {self.noam_factor}, noam_width {self.noam_width}, warmup_steps "
                f"{self.warmup_steps}; expected positive numbers for decay 'noam'"
            )


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Linear warm-up from lr / warmup_steps, then cosine decay (or constant): a pure function, so nothing to resume.

    ``noam``: factor x width^-1/2 x min(s^-1/2, s x warmup^-3/2) at the s-th step, s from 1 (Vaswani et al. 2017, arXiv
    1706.03762, section 5.3).

    Args:
        settings: see ``OptimizerSettings``.
        step: from 0.
        steps: of the whole run.
    """
    if settings.decay == "noam":
        done = step + 1
        growth = min(done**-0.5, done * settings.warmup_steps**-1.5)
        return settings.noam_factor * settings.noam_width**-0.5 * growth
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
