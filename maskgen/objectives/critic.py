"""A model that tells sampled tokens from real ones, and how it is trained (Token-Critic, Lezama et al. 2022, 2209.04439).

A critic is an ordinary ``MaskedTransformer`` on complete tokens: what it says of a token is the logit of that very token at
its position, read as the log-odds that the token is real. No other head is needed, a critic has the same files as a
generator, and a generator can be its own critic: masked modelling puts no price on the logits of visible positions, so they
are free to learn this. The paper trains a head of one output instead; it was read about, not run, and what follows it is
from memory: the generator is frozen, a real grid is masked at random and filled by one sample of the generator, and binary
cross-entropy over all positions teaches which tokens stood there before.

Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.conditioning import Cond
from maskgen.data import Batch, Source
from maskgen.models.base import MaskedTransformer
from maskgen.noise import SeededNoise
from maskgen.objectives.conditions import batch_cond, check_dropout, draw_dropped
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from maskgen.objectives.masking import random_mask
from maskgen.objectives.validation import fixed_validation
from maskgen.sampling.critics import check_critic, token_scores
from maskgen.schedules import get_schedule
from maskgen.training.distributed.rows import RandomRows
from maskgen.training.objective import Objective, ObjectiveOptions


@dataclass(frozen=True, kw_only=True)
class CriticSettings:
    """What a critic is shown, and what it costs.

    Attributes:
        schedule: distribution of the mask ratio, see ``maskgen.schedules.get_schedule``.
        temperature: of the generator's samples; 0 takes the most likely tokens.
        label_dropout: share of rows shown without their label and text; 0 for models without a null class.
        equal_is_real: whether a sampled token that equals the real one counts as real; the paper's target is the mask.
        weight: of the critic's loss beside the generator's, where the generator is its own critic.
    """

    schedule: str = "cosine"
    temperature: float = 1.0
    label_dropout: float = 0.1
    equal_is_real: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        get_schedule(self.schedule)
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout: got {self.label_dropout}, expected a number in [0, 1]")
        for name in ("temperature", "weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a finite number of 0 or more")


class CriticModeling(Objective):
    """Train a critic on the samples of a frozen generator.

    Batches hold ``tokens`` long ``[B, N, K]`` and conditions, see ``maskgen.objectives.masked.MaskedModeling``.

    Args:
        model: the critic, which is trained.
        generator: samples tokens; is not changed.
        settings: see ``CriticSettings``.
        null: see ``maskgen.objectives.masked.MaskedModeling``.
        options: see ``maskgen.training.objective.ObjectiveOptions``.

    Raises:
        ValueError: a critic that does not fit the generator, or label dropout without a null class.
    """

    def __init__(
        self,
        model: MaskedTransformer,
        generator: MaskedTransformer,
        settings: CriticSettings,
        *,
        null: Cond | None = None,
        **options: Unpack[ObjectiveOptions],
    ) -> None:
        check_critic(model, generator)
        check_dropout("label_dropout", settings.label_dropout, generator)
        super().__init__(model, **options)
        self.generator = generator.eval().requires_grad_(False)
        self.settings, self.null = settings, null

    def loss(
        self, network: str, modules: Mapping[str, nn.Module], batch: Batch, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Binary cross-entropy of one batch; terms: ``accuracy`` over all positions."""
        generator = self.generator.to(batch["tokens"].device)
        how = (self.settings, self.model.vocab_size, self.rows, self.null)
        return _critic_loss(modules["model"], generator, batch, *how)

    def units(self, batch: Batch) -> int:
        """Tokens in the batch."""
        return batch["tokens"].numel()

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Loss (nats a token) and accuracy on held-out tokens, under masks and samples that never change."""
        if self.held_out is None:
            return {}
        generator = self.generator.to(device)
        loss, accuracy = _validate(model, generator, self.held_out, self.settings, self.model.vocab_size, device)
        return {"score": loss, "accuracy": accuracy}


class SelfCriticModeling(MaskedModeling):
    """Masked modelling and, with the same weights, the critic of one's own samples (after Lezama et al. and lucidrains).

    Args:
        model: what is trained, usually from trained weights on.
        masking: see ``MaskedModeling``.
        settings: of the critic.
        null: see ``MaskedModeling``.
        options: see ``maskgen.training.objective.ObjectiveOptions``.

    Raises:
        ValueError: see ``MaskedModeling``; or a loss on visible tokens, whose logits are the critic's.
    """

    def __init__(
        self,
        model: MaskedTransformer,
        masking: MaskingSettings,
        settings: CriticSettings,
        *,
        null: Cond | None = None,
        **options: Unpack[ObjectiveOptions],
    ) -> None:
        check_dropout("label_dropout", settings.label_dropout, model)
        if masking.unmasked_weight or masking.visible_codebooks:
            raise ValueError(
                f"masking: got unmasked_weight {masking.unmasked_weight} and visible_codebooks {masking.visible_codebooks}, "
                "expected 0 and 0: the logits of visible tokens are what a self-critic says of them"
            )
        super().__init__(model, masking, null=null, **options)
        self.critic_settings = settings

    def loss(
        self, network: str, modules: Mapping[str, nn.Module], batch: Batch, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Masked cross-entropy + weight x binary cross-entropy; terms: ``accuracy`` and ``critic_accuracy``."""
        loss, terms = super().loss(network, modules, batch, step)
        model, settings = modules["model"], self.critic_settings
        critic, critic_terms = _critic_loss(model, model, batch, settings, self.model.vocab_size, self.rows, self.null)
        return loss + settings.weight * critic, terms | {"critic_accuracy": critic_terms["accuracy"]}

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """See ``MaskedModeling``; the score is the sum of both losses."""
        numbers = super().validate(model, device)
        if self.held_out is None:
            return numbers
        settings = self.critic_settings
        loss, accuracy = _validate(model, model, self.held_out, settings, self.model.vocab_size, device)
        return {**numbers, "score": numbers["score"] + settings.weight * loss, "critic_accuracy": accuracy}


def _critic_loss(
    critic: nn.Module,
    generator: nn.Module,
    batch: Batch,
    settings: CriticSettings,
    mask_id: int,
    rows: RandomRows,
    null: Cond | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    tokens, cond = batch["tokens"], batch_cond(batch, draw_dropped(batch, settings.label_dropout, rows), null)
    mask = random_mask(tokens.shape, schedule=settings.schedule, generator=rows, device=tokens.device)
    noise = SeededNoise(rows.seeds(len(tokens), tokens.device), tokens.device)
    return _scored(critic, generator, tokens, mask, cond, settings, mask_id, noise)


def _scored(
    critic: nn.Module,
    generator: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    cond: Cond,
    settings: CriticSettings,
    mask_id: int,
    noise: SeededNoise,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fill the masked positions by one sample; the critic says of every position whether its token is real."""
    with torch.no_grad():
        logits = generator(tokens.masked_fill(mask, mask_id), cond).float()
        filled = torch.where(mask, _sampled(logits, settings.temperature, noise), tokens)
    real = ~mask | (filled == tokens) if settings.equal_is_real else ~mask
    scores = token_scores(critic(filled, cond), filled)
    loss = F.binary_cross_entropy_with_logits(scores, real.float())
    return loss, {"accuracy": ((scores.detach() > 0) == real).float().mean()}


def _sampled(logits: Tensor, temperature: float, noise: SeededNoise) -> Tensor:
    """One id a position from the softmax of logits / temperature, ``[B, N, K, V]`` -> ``[B, N, K]``."""
    if temperature == 0:
        return logits.argmax(-1)
    return (logits / temperature + noise.sample(0, logits.shape)).argmax(-1)


def _validate(
    critic: nn.Module,
    generator: nn.Module,
    held_out: Source,
    settings: CriticSettings,
    mask_id: int,
    device: torch.device,
) -> tuple[float, float]:
    """Loss and accuracy under masks and samples that never change."""

    def mask(batch: Batch, generator: torch.Generator) -> Tensor:
        return random_mask(batch["tokens"].shape, schedule=settings.schedule, generator=generator)

    def forward(batch: Batch, masked: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        cond, noise = batch_cond(batch), SeededNoise(rows.tolist(), device)
        loss, terms = _scored(critic, generator, batch["tokens"], masked, cond, settings, mask_id, noise)
        return loss, terms["accuracy"]

    return fixed_validation(held_out, device, mask, forward)
