"""Stage 2: masked token modelling (MaskGIT, section 3.1).

Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from maskgen.conditioning import Cond
from maskgen.data import Batch
from maskgen.models.base import MaskedTransformer
from maskgen.models.flops import training_flops
from maskgen.objectives.conditions import batch_cond, check_dropout, draw_dropped
from maskgen.objectives.loss import Normalize, masked_accuracy, masked_cross_entropy
from maskgen.objectives.masking import Draw, random_mask, sobol_ratios
from maskgen.objectives.validation import fixed_validation
from maskgen.schedules import get_schedule
from maskgen.training.distributed.whole_batch import mean_over_processes
from maskgen.training.objective import Objective, ObjectiveOptions


@dataclass(frozen=True, kw_only=True)
class MaskingSettings:
    """What is masked and what it costs.

    Attributes:
        schedule: distribution of the mask ratio, see ``maskgen.schedules.get_schedule``.
        min_ratio: lower bound of the mask ratio.
        label_smoothing: see ``maskgen.objectives.loss.masked_cross_entropy``.
        label_dropout: share of rows trained without their label and with the empty prompt instead of their text, which
            guidance needs; 0 for models with classes but without a null class.
        normalize: see ``maskgen.objectives.loss.masked_cross_entropy``.
        unmasked_weight: weight of visible tokens in the loss.
        draw: how many are masked at a ratio, see ``maskgen.objectives.masking.random_mask``.
        visible_codebooks: the first so many codebooks are always visible and cost nothing: what a fine stage is given.
        ratios: ``uniform``, or ``sobol``: one scrambled sequence over the run (VampNet), one number a row of the
            whole batch. Micro-batches of one step share their ratios, so it goes without accumulation.
        sobol_seed: see ``ratios``.
    """

    schedule: str = "cosine"
    min_ratio: float = 0.0
    label_smoothing: float = 0.1
    label_dropout: float = 0.1
    normalize: Normalize = "row"
    unmasked_weight: float = 0.0
    draw: Draw = "exact"
    visible_codebooks: int = 0
    ratios: Literal["uniform", "sobol"] = "uniform"
    sobol_seed: int = 0

    def __post_init__(self) -> None:
        get_schedule(self.schedule)
        for name, expected in (("draw", get_args(Draw)), ("ratios", ("uniform", "sobol"))):
            if getattr(self, name) not in expected:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected {' or '.join(map(repr, expected))}")
        if self.visible_codebooks < 0 or self.sobol_seed < 0:
            raise ValueError(
                f"got visible_codebooks {self.visible_codebooks}, sobol_seed {self.sobol_seed}; expected 0 or more"
            )
        for name in ("min_ratio", "label_smoothing", "label_dropout", "unmasked_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a number in [0, 1]")


class MaskedModeling(Objective):
    """Mask a random share of the tokens and predict them from the rest.

    Batches hold ``tokens`` long ``[B, N, K]`` and, under their names in ``Cond``, the conditions that the model takes:
    ``labels`` long ``[B]``; ``context``, ``context_mask`` and ``pooled`` of a text.

    Args:
        model: what is trained.
        settings: see ``MaskingSettings``.
        null: the text of rows that lose theirs, see ``maskgen.objectives.conditions.batch_cond``.
        options: see ``maskgen.training.objective.ObjectiveOptions``.

    Raises:
        ValueError: label dropout on a model without a null class, or ``visible_codebooks`` that the model does not allow.
    """

    def __init__(
        self,
        model: MaskedTransformer,
        settings: MaskingSettings,
        *,
        null: Cond | None = None,
        **options: Unpack[ObjectiveOptions],
    ) -> None:
        check_dropout("label_dropout", settings.label_dropout, model)
        # A coarse-to-fine model says how many codebooks it reads only; others predict all.
        read_only = getattr(model, "conditioning_codebooks", 0)
        if not read_only <= settings.visible_codebooks < model.num_codebooks:
            reads = f" that only reads the first {read_only}" if read_only else ""
            raise ValueError(
                f"visible_codebooks: got {settings.visible_codebooks}, expected {read_only} to {model.num_codebooks - 1} "
                f"for a model of {model.num_codebooks} codebooks{reads}"
            )
        super().__init__(model, **options)
        self.settings, self.null = settings, null

    def loss(
        self, network: str, modules: Mapping[str, nn.Module], batch: Batch, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Masked cross-entropy of one batch; terms: ``accuracy`` over masked tokens."""
        settings = self.settings
        tokens = batch["tokens"]
        cond = batch_cond(batch, draw_dropped(batch, settings.label_dropout, self.rows), self.null)
        mask = random_mask(
            tokens.shape,
            schedule=settings.schedule,
            min_ratio=settings.min_ratio,
            draw=settings.draw,
            visible_codebooks=settings.visible_codebooks,
            ratio=self._ratios(step * len(tokens), len(tokens), tokens.device),
            generator=self.rows,
            device=tokens.device,
        )
        logits = modules["model"](tokens.masked_fill(mask, self.model.vocab_size), cond)
        logits, tokens, mask = (grid[:, :, settings.visible_codebooks :] for grid in (logits, tokens, mask))
        loss = masked_cross_entropy(
            logits,
            tokens,
            mask,
            label_smoothing=settings.label_smoothing,
            normalize=settings.normalize,
            unmasked_weight=settings.unmasked_weight,
            over_processes=mean_over_processes,
        )
        return loss, {"accuracy": masked_accuracy(logits.detach(), tokens, mask)}

    def _ratios(self, first: int, count: int, device: torch.device) -> Tensor | None:
        if self.settings.ratios == "uniform":
            return None
        start = (first * self.rows.world) + self.rows.rank * count
        return sobol_ratios(self.settings.sobol_seed, start, count).to(device)

    def units(self, batch: Batch) -> int:
        """Tokens in the batch."""
        return batch["tokens"].numel()

    def flops(self, batch: Batch) -> float:
        """Of a model whose operations are known by its config; see ``maskgen.models.flops``."""
        return training_flops(self.model, len(batch["tokens"]))

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Unsmoothed loss (nats a token) and accuracy on held-out tokens, under masks that never change."""
        if self.held_out is None:
            return {}
        settings = self.settings
        visible = settings.visible_codebooks

        def mask(batch: Batch, generator: torch.Generator) -> Tensor:
            return random_mask(
                batch["tokens"].shape,
                schedule=settings.schedule,
                draw=settings.draw,
                visible_codebooks=visible,
                generator=generator,
            )

        def forward(batch: Batch, masked: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            tokens = batch["tokens"]
            logits = model(tokens.masked_fill(masked, self.model.vocab_size), batch_cond(batch))
            logits, tokens, masked = (grid[:, :, visible:] for grid in (logits, tokens, masked))
            return masked_cross_entropy(logits, tokens, masked), masked_accuracy(logits, tokens, masked)

        score, accuracy = fixed_validation(self.held_out, device, mask, forward)
        return {"score": score, "accuracy": accuracy}
