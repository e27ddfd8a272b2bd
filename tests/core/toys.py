"""Small things to train: a line through points, and the two transformer families at toy size.

Shapes: B batch, N tokens, K codebooks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.data import Batch, Source, TensorSource
from maskgen.models.base import MaskedTransformer
from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.training.objective import Objective
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.settings import TrainSettings
from maskgen.training.trainer import Trainer

FAMILIES = ("bert", "modern")


@dataclass(frozen=True, kw_only=True)
class LineConfig:
    """Settings of a ``Line``."""

    inputs: int = 3


class Line(nn.Module):
    """A linear layer."""

    def __init__(self, config: LineConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(config.inputs, 1)
        nn.init.ones_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class LineObjective(Objective):
    """Squared error without any randomness; ``hook(step)`` may raise, send signals or return a factor of the loss."""

    def __init__(self, hook: Callable[[int], float | None] | None = None, scores: list[float] | None = None) -> None:
        super().__init__(Line(LineConfig()))
        self.hook, self.scores = hook, list(scores or [])
        self.shown: list[int] = []

    def loss(
        self, network: str, modules: Mapping[str, nn.Module], batch: Batch, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        factor = self.hook(step) if self.hook else None
        error = (modules["model"](batch["x"]) - batch["y"]).square().mean()
        return error * (1.0 if factor is None else factor), {"error": error.detach()}

    def units(self, batch: Batch) -> int:
        return len(batch["x"])

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        return {"score": self.scores.pop(0)} if self.scores else {}

    def show(self, model: nn.Module, folder: Path, step: int) -> None:
        self.shown.append(step)


def points(count: int = 16) -> TensorSource:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 3, generator=generator)
    return TensorSource(x=x, y=x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3)


def settings(**changes: Any) -> TrainSettings:
    """Settings of a short run: constant learning rate, no tracker, everything only at the end."""
    optimizer = OptimizerSettings(
        **{"lr": 1e-2, "warmup_steps": 0, "decay": "constant", "weight_decay": 0.0, **changes.pop("optimizer", {})}
    )
    plain = {"steps": 6, "batch_size": 4, "validate_every": 0, "show_every": 0, "checkpoint_every": 0, "tracker": None}
    return TrainSettings(optimizer=optimizer, **{**plain, **changes})


def fit(objective: Objective, source: Source, out: Path, **changes: Any) -> Trainer:
    trainer = Trainer(objective, source, settings(**changes), out)
    trainer.fit()
    return trainer


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Trained and averaged weights."""
    raw = trainer.accelerator.unwrap_model(trainer.modules["model"]).state_dict()
    averaged = trainer.ema.state_dict()
    return {f"raw/{name}": value for name, value in raw.items()} | {f"ema/{name}": v for name, v in averaged.items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def transformer(family: str, **changes: Any) -> MaskedTransformer:
    """A small transformer with the same weights at every call; K and grid can be changed, seeds cannot."""
    torch.manual_seed(0)
    if family == "bert":
        plain = {"vocab_size": 11, "num_classes": 4, "axes": (3, 4), "width": 32, "layers": 2, "heads": 4}
        return BertTransformer(BertConfig(**{**plain, "mlp_width": 64, "dropout": 0.0, "null_class": True, **changes}))
    plain = {"vocab_size": 11, "num_classes": 4, "axes": (3, 4), "width": 32, "layers": 2, "heads": 2}
    return ModernTransformer(ModernConfig(**{**plain, **changes}))


def shaken(model: MaskedTransformer) -> MaskedTransformer:
    """The model with every parameter moved, so that no gate, head or bias is zero and hides what is behind it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()
