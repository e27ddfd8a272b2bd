"""AdamW, Muon for the matrices of a transformer if wished, their learning rate, and averaged weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


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
        muon_lr: if above 0, highest learning rate of Muon, which then trains the matrices of the repeated blocks; AdamW
            trains the rest at ``lr``. See ``GuardedMuon``; 0.02 to 0.05 are usual.
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
    muon_lr: float = 0.0

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.warmup_steps < 0 or self.weight_decay < 0 or self.grad_clip < 0:
            raise ValueError(
                f"optimizer: got lr {self.lr}, warmup_steps {self.warmup_steps}, weight_decay {self.weight_decay}, "
                f"grad_clip {self.grad_clip}; expected lr above 0 and the others at least 0"
            )
        if self.muon_lr < 0 or (self.muon_lr and self.decay == "noam"):
            raise ValueError(
                f"optimizer: got muon_lr {self.muon_lr}, expected at least 0; above 0 goes with decay 'cosine' or 'constant'"
            )
        if self.decay == "noam" and (self.noam_factor <= 0 or self.noam_width < 1 or self.warmup_steps < 1):
            raise ValueError(
                f"optimizer: got noam_factor {self.noam_factor}, noam_width {self.noam_width}, warmup_steps "
                f"{self.warmup_steps}; expected positive numbers for decay 'noam'"
            )


class GuardedAdamW(torch.optim.AdamW):
    """AdamW whose step does nothing where ``skip`` (float32, one number on the weights' device) is 1.

    Args:
        groups: see ``torch.optim.AdamW``.
        lr: highest learning rate.
        betas: Adam's decay rates.
    """

    def __init__(self, groups: Any, *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)
        self.skip: Tensor | None = None

    def step(self, closure: Any = None) -> Any:
        """One step, unless skipped; under fp16 the gradient scaler has its own say."""
        scaler = getattr(self, "found_inf", None)
        verdicts = [verdict for verdict in (scaler, self.skip) if verdict is not None]
        if verdicts:
            self.found_inf = verdicts[0] if len(verdicts) == 1 else torch.maximum(*verdicts)
        try:
            return super().step(closure)
        finally:
            if scaler is None and verdicts:
                del self.found_inf


class GuardedMuon(GuardedAdamW):
    """Muon (Jordan et al. 2024) for groups with an entry ``muon_factor``, AdamW for the others; guarded as that is.

    Muon makes the momentum of a matrix orthogonal before it steps: all directions move alike. Small transformers learn in
    half of the steps. Its learning rate is the group's times ``muon_factor``, times sqrt(rows / columns) for tall matrices.

    Args:
        groups: see ``torch.optim.AdamW``; parameters of those with ``muon_factor`` are matrices.
        lr: highest learning rate of AdamW.
        betas: Adam's decay rates; the first is Muon's momentum as well.
    """

    def __init__(self, groups: Any, *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, lr=lr, betas=betas)
        matrices = [part for group in self.param_groups if "muon_factor" in group for part in group["params"]]
        self._muon = torch.optim.Muon(matrices, momentum=betas[0])  # keeps no state: it works on ours

    def step(self, closure: Any = None) -> Any:
        """One step of both, unless skipped."""
        everything = self.param_groups
        scaler, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        verdicts = [verdict for verdict in (scaler, self.skip) if verdict is not None]
        self.param_groups = [group for group in everything if "muon_factor" not in group]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = everything
        for group in everything:
            if "muon_factor" in group:
                for part in group["params"]:
                    self._step_matrix(part, group, verdicts, scale)
        return loss

    @torch.no_grad()
    def _step_matrix(
        self, matrix: nn.Parameter, group: dict[str, Any], verdicts: Sequence[Tensor], scale: Tensor | None
    ) -> None:
        if matrix.grad is None:
            return
        if scale is not None:
            matrix.grad.div_(scale)
        state = self.state[matrix]
        if not state:  # "step" is what AdamW looks for when a state is loaded
            state |= {"step": torch.zeros(()), "momentum_buffer": torch.zeros_like(matrix)}
        held = (matrix, state["momentum_buffer"])
        before = [tensor.clone() for tensor in held] if verdicts else []
        own = {"lr": group["lr"] * group["muon_factor"], "weight_decay": group["weight_decay"]}
        self._muon.param_groups = [{**self._muon.defaults, **own, "params": [matrix]}]
        self._muon.state = self.state
        self._muon.step()
        for verdict in verdicts:  # Muon has no guard of its own: take back what it did
            for tensor, old in zip(held, before, strict=True):
                tensor.copy_(torch.where(verdict.to(tensor.device) > 0, old, tensor))


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


def adamw(module: nn.Module, settings: OptimizerSettings) -> GuardedAdamW:
    """Decay matrices and kernels only; embeddings, norms and biases keep their size (MAGVIT's rule).

    Args:
        module: what is trained.
        settings: see ``OptimizerSettings``.

    Raises:
        ValueError: Muon is wished, and the module has no matrices in repeated blocks.
    """
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    matrices = _block_matrices(module) if settings.muon_lr else {}
    if settings.muon_lr and not matrices:
        raise ValueError(
            f"optimizer.muon_lr: got {settings.muon_lr}, but a {type(module).__name__} has no blocks with matrices, as "
            "transformers do; set it to 0"
        )
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in module.parameters():
        if id(parameter) not in matrices:
            (decayed if parameter.ndim >= 2 and id(parameter) not in embeddings else plain).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if not matrices:
        return GuardedAdamW(groups, lr=settings.lr, betas=settings.betas)
    factor = settings.muon_lr / settings.lr
    groups.append({"params": [*matrices.values()], "weight_decay": settings.weight_decay, "muon_factor": factor})
    return GuardedMuon(groups, lr=settings.lr, betas=settings.betas)


def _block_matrices(module: nn.Module) -> dict[int, nn.Parameter]:
    """Weights of linear layers inside of lists of modules, by identity: neither embeddings nor heads."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    weights = [part.weight for blocks in lists for part in blocks.modules() if isinstance(part, nn.Linear)]
    return {id(weight): weight for weight in weights if isinstance(weight, nn.Parameter) and weight.requires_grad}
