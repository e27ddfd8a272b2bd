"""Stage 2 of COMMIT: one model for several tasks (MAGVIT, arXiv 2212.05199, sections 3.2 and 3.3).

Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.conditioning import Cond
from maskgen.data import Batch
from maskgen.models.base import MaskedTransformer
from maskgen.objectives.commit_masking import (
    CommitExample,
    ConditionMode,
    LossOn,
    check_block,
    commit_example,
    commit_mask,
)
from maskgen.objectives.conditions import batch_cond, check_dropout
from maskgen.objectives.loss import masked_accuracy, masked_cross_entropy
from maskgen.objectives.validation import fixed_validation
from maskgen.sampling.commit import Prompt
from maskgen.schedules import get_schedule
from maskgen.training.distributed.rows import RandomRows
from maskgen.training.objective import Objective, ObjectiveOptions


@dataclass(frozen=True, kw_only=True)
class CommitSettings:
    """What is masked and what it costs; the defaults are official MAGVIT.

    Attributes:
        schedule: distribution of the mask ratio, see ``maskgen.schedules.get_schedule``.
        ratios: one mask ratio for the whole batch, or one a ``row``.
        condition_mode: where the condition goes, see ``maskgen.objectives.commit_masking.ConditionMode``.
        loss_on: which positions weigh, see ``maskgen.objectives.commit_masking.LossOn``.
        label_smoothing: eps of the target (1 - eps) one-hot + eps / V.
        condition_dropout: share of rows trained without any condition: no condition tokens, no class, no text, the prompt of
            full generation. Guidance needs such rows, unless full generation is among the tasks anyway; officially 0.
        block: shape of the blocks that are masked together, one size an axis; none by default.
        frame_by_frame: mask later frames first.
    """

    schedule: str = "cosine"
    ratios: Literal["batch", "row"] = "batch"
    condition_mode: ConditionMode = "commit"
    loss_on: LossOn = "all"
    label_smoothing: float = 1e-4
    condition_dropout: float = 0.0
    block: tuple[int, ...] = ()
    frame_by_frame: bool = False

    def __post_init__(self) -> None:
        get_schedule(self.schedule)
        choices = {"ratios": ("batch", "row"), "condition_mode": get_args(ConditionMode), "loss_on": get_args(LossOn)}
        for name, expected in choices.items():
            if getattr(self, name) not in expected:
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(map(repr, expected))}"
                )
        for name in ("label_smoothing", "condition_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a number in [0, 1]")


class CommitModeling(Objective):
    """Mask a random share of the tokens, draft the condition into the masked positions, and predict the whole signal.

    Batches hold ``tokens`` long ``[B, N, K]``; the condition as ``condition`` long ``[B, N, K]`` (tokens of the padded
    condition) and ``given`` bool ``[B, N, K]`` (where it counts), both or neither; ``task`` long ``[B]`` (see
    ``maskgen.sampling.commit.Prompt``), which a model of a single task does not look at; for class-conditional tasks
    ``labels`` long ``[B]``, ``NO_LABEL`` at the rows of other tasks; a text as for
    ``maskgen.objectives.masked.MaskedModeling``.

    Args:
        model: what is trained.
        settings: see ``CommitSettings``.
        null: see ``maskgen.objectives.masked.MaskedModeling``.
        options: see ``maskgen.training.objective.ObjectiveOptions``.

    Raises:
        ValueError: condition dropout on a model with classes but without a null class, or blocks that do not fit its grid.
    """

    def __init__(
        self,
        model: MaskedTransformer,
        settings: CommitSettings,
        *,
        null: Cond | None = None,
        **options: Unpack[ObjectiveOptions],
    ) -> None:
        check_dropout("condition_dropout", settings.condition_dropout, model)
        if settings.block:
            check_block(settings.block, model.config.axes)
        super().__init__(model, **options)
        self.settings, self.null = settings, null

    def loss(
        self, network: str, modules: Mapping[str, nn.Module], batch: Batch, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted cross-entropy of one batch; terms: see ``commit_loss``."""
        batch, dropped = self._checked(batch), None
        if self.settings.condition_dropout:
            dropped = self.rows.rand((len(batch["given"]),), batch["given"].device) < self.settings.condition_dropout
            batch = _without_conditions(batch, dropped)
        example = self._example(batch, self._mask(batch["given"], self.settings.ratios, self.rows))
        logits = modules["model"](example.inputs.tokens, self._cond(batch, dropped))
        return commit_loss(logits, example, label_smoothing=self.settings.label_smoothing)

    def units(self, batch: Batch) -> int:
        """Tokens in the batch."""
        return batch["tokens"].numel()

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Unsmoothed loss (nats a token) and accuracy on masked held-out tokens, under masks that never change."""
        if self.held_out is None:
            return {}

        def mask(batch: Batch, generator: torch.Generator) -> Tensor:
            return self._mask(self._checked(batch)["given"], "row", generator)

        def forward(batch: Batch, masked: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            batch = self._checked(batch)
            example = self._example(batch, masked)
            logits = model(example.inputs.tokens, self._cond(batch))
            shown = (logits, example.targets, example.inputs.mask)
            return masked_cross_entropy(*shown), masked_accuracy(*shown)

        score, accuracy = fixed_validation(self.held_out, device, mask, forward)
        return {"score": score, "accuracy": accuracy}

    def _checked(self, batch: Batch) -> Batch:
        """The batch with a condition, an empty one if it has none."""
        if ("condition" in batch) != ("given" in batch):
            raise ValueError(f"batch: got {sorted(batch)}; expected both 'condition' and 'given', or neither")
        if self.model.num_tasks and "task" not in batch:
            raise ValueError(f"batch: got {sorted(batch)}; this model has tasks and needs 'task', one id a row")
        if "given" in batch:
            return batch
        tokens = batch["tokens"]
        return {**batch, "condition": tokens, "given": torch.zeros_like(tokens, dtype=torch.bool)}

    def _mask(self, given: Tensor, ratios: Literal["batch", "row"], generator: torch.Generator | RandomRows) -> Tensor:
        settings = self.settings
        return commit_mask(
            given,
            axes=self.model.config.axes,
            schedule=settings.schedule,
            ratios=ratios,
            mode=settings.condition_mode,
            block=settings.block,
            frame_by_frame=settings.frame_by_frame,
            generator=generator,
        )

    def _example(self, batch: Batch, masked: Tensor) -> CommitExample:
        return commit_example(
            batch["tokens"],
            batch["condition"],
            batch["given"],
            masked,
            mask_id=self.model.vocab_size,
            mode=self.settings.condition_mode,
            loss_on=self.settings.loss_on,
        )

    def _cond(self, batch: Batch, dropped: Tensor | None = None) -> Cond:
        cond = batch_cond(batch, dropped, self.null)
        return cond if self.model.num_tasks else replace(cond, task=None)


def commit_loss(
    logits: Tensor, example: CommitExample, *, label_smoothing: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of every position, weighted; a row's mean over its weights, then the mean over rows.

    Args:
        logits: ``[B, N, K, V]``.
        example: targets, weights and inputs.
        label_smoothing: see ``CommitSettings``.

    Returns:
        the loss in nats a token, and terms to log: the mean cost of the batch's positions by their kind, whatever they weigh
        (``refine``: masked with the condition shown, ``mask``: masked without, ``reconstruct``: visible; 0 where the batch
        has none), and ``accuracy`` over masked positions.
    """
    targets, inputs = example.targets, example.inputs
    flat = F.cross_entropy(
        logits.flatten(0, -2).float(), targets.flatten(), label_smoothing=label_smoothing, reduction="none"
    )
    cost, weights = flat.view(len(targets), -1), example.weights.flatten(1).float()
    loss = ((cost * weights).sum(1) / (weights.sum(1) + 1e-8)).mean()
    masked, given, cost = inputs.mask, inputs.given, cost.detach().view_as(targets)
    kinds = {"refine": masked & given, "mask": masked & ~given, "reconstruct": ~masked}
    terms = {name: (cost * positions).sum() / positions.sum().clamp(min=1) for name, positions in kinds.items()}
    return loss, terms | {"accuracy": masked_accuracy(logits.detach(), targets, masked)}


def _without_conditions(batch: Batch, dropped: Tensor) -> Batch:
    """The batch with the rows ``dropped`` bool ``[B]`` turned into full generation."""
    changed = {"given": batch["given"] & ~dropped[:, None, None]}
    if "task" in batch:
        changed["task"] = batch["task"].masked_fill(dropped, Prompt.FULL_GENERATION)
    return {**batch, **changed}
