"""A model that tells drawn tokens from real ones, and how it is trained (Token-Critic, Lezama et al. 2022, 2209.04439).

A critic is an ordinary ``MaskedTransformer`` on complete tokens: what it says of a token is the logit of that very token at
its place, read as the log-odds that the token is real. No other head is needed, a critic has the same files as a
generator, and a generator can be its own critic: masked modelling puts no price on the logits of visible places, so they
are free to learn this. The paper trains a head of one output instead; it was read about, not run, and what follows it is
from memory: the generator is frozen, a real grid is masked at random and filled by one draw from the generator, and binary
cross-entropy over all places teaches which tokens stood there before.

Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.data import Batch, Source
from maskgen.models.base import MaskedTransformer
from maskgen.noise import SeededNoise
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from maskgen.objectives.masking import random_mask
from maskgen.sampling.critics import check_critic, token_scores
from maskgen.schedules import get_schedule
from maskgen.training.distributed.rows import RandomRows
from maskgen.training.objective import Objective

__all__ = ["CriticModeling", "CriticSettings", "SelfCriticModeling"]


@dataclass(frozen=True, kw_only=True)
class CriticSettings:
    """What a critic is shown, and what it costs.

    Attributes:
        schedule: distribution of the mask ratio, see ``maskgen.schedules.get_schedule``.
        temperature: of the generator's draw; 0 takes the most likely tokens.
        label_dropout: share of rows shown without their label; 0 for models without a null class.
        equal_is_real: whether a drawn token that equals the real one counts as real; the paper's target is the mask.
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
    """Train a critic on the draws of a frozen generator.

    Batches hold ``tokens`` long ``[B, N, K]`` and, for class-conditional models, ``labels`` long ``[B]``.

    Args:
        model: the critic, which is trained.
        generator: draws tokens; is not changed.
        settings: see ``CriticSettings``.
        held_out: examples for the validation loss.

    Raises:
        ValueError: a critic that does not fit the generator, or label dropout without a null class.
    """

    def __init__(
        self,
        model: MaskedTransformer,
        generator: MaskedTransformer,
        settings: CriticSettings,
        *,
        held_out: Source | None = None,
    ) -> None:
        check_critic(model, generator)
        _check_dropout(settings, generator)
        super().__init__(model)
        self.generator = generator.eval().requires_grad_(False)
        self.settings, self.held_out = settings, held_out

    def loss(
        self, network: str, modules: Mapping[str, nn.Module], batch: Batch, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Binary cross-entropy of one batch; terms: ``accuracy`` over all places."""
        generator = self.generator.to(batch["tokens"].device)
        return _critic_loss(modules["model"], generator, batch, self.settings, self.model.vocab_size, self.rows)

    def units(self, batch: Batch) -> int:
        """Tokens in the batch."""
        return batch["tokens"].numel()

    @torch.no_grad()
    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Loss (nats a token) and accuracy on held-out tokens, under masks and draws that never change."""
        if self.held_out is None:
            return {}
        generator = self.generator.to(device)
        loss, accuracy = _validate(model, generator, self.held_out, self.settings, self.model.vocab_size, device)
        return {"score": loss, "accuracy": accuracy}


class SelfCriticModeling(MaskedModeling):
    """Masked modelling and, with the same weights, the critic of one's own draws (after Lezama et al. and lucidrains).

    Args:
        model: what is trained, usually from trained weights on.
        masking: see ``MaskedModeling``.
        settings: of the critic.
        held_out: examples for the validation loss.
        show: see ``MaskedModeling``.

    Raises:
        ValueError: see ``MaskedModeling``; or a loss on visible tokens, whose logits are the critic's.
    """

    def __init__(
        self,
        model: MaskedTransformer,
        masking: MaskingSettings,
        settings: CriticSettings,
        *,
        held_out: Source | None = None,
        show: Callable[[nn.Module, Path, int], None] | None = None,
    ) -> None:
        _check_dropout(settings, model)
        if masking.unmasked_weight or masking.visible_codebooks:
            raise ValueError(
                f"masking: got unmasked_weight {masking.unmasked_weight} and visible_codebooks {masking.visible_codebooks}, "
                "expected 0 and 0: the logits of visible tokens are what a self-critic says of them"
            )
        super().__init__(model, masking, held_out=held_out, show=show)
        self.critic_settings = settings

    def loss(
        self, network: str, modules: Mapping[str, nn.Module], batch: Batch, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Masked cross-entropy + weight x binary cross-entropy; terms: ``accuracy`` and ``critic_accuracy``."""
        loss, terms = super().loss(network, modules, batch, step)
        model, settings = modules["model"], self.critic_settings
        critic, critic_terms = _critic_loss(model, model, batch, settings, self.model.vocab_size, self.rows)
        return loss + settings.weight * critic, terms | {"critic_accuracy": critic_terms["accuracy"]}

    @torch.no_grad()
    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """See ``MaskedModeling``; the score is the sum of both losses."""
        numbers = super().validate(model, device)
        if self.held_out is None:
            return numbers
        settings = self.critic_settings
        loss, accuracy = _validate(model, model, self.held_out, settings, self.model.vocab_size, device)
        return {**numbers, "score": numbers["score"] + settings.weight * loss, "critic_accuracy": accuracy}


def _check_dropout(settings: CriticSettings, generator: MaskedTransformer) -> None:
    if settings.label_dropout and generator.num_classes and not generator.null_class:
        raise ValueError(
            f"label_dropout: got {settings.label_dropout}, but the model has no null class; set null_class or 0"
        )


def _critic_loss(
    critic: nn.Module, generator: nn.Module, batch: Batch, settings: CriticSettings, mask_id: int, rows: RandomRows
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    tokens, labels = batch["tokens"], batch.get("labels")
    if labels is not None and settings.label_dropout:
        dropped = rows.rand((len(labels),), labels.device) < settings.label_dropout
        labels = labels.masked_fill(dropped, NO_LABEL)
    mask = random_mask(tokens.shape, schedule=settings.schedule, generator=rows, device=tokens.device)
    noise = SeededNoise(rows.seeds(len(tokens), tokens.device), tokens.device)
    return _judged(critic, generator, tokens, mask, Cond(labels=labels), settings, mask_id, noise)


def _judged(
    critic: nn.Module,
    generator: nn.Module,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    cond: Cond,
    settings: CriticSettings,
    mask_id: int,
    noise: SeededNoise,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Fill the hidden places by one draw and ask the critic of every place whether its token is real."""
    with torch.no_grad():
        logits = generator(tokens.masked_fill(mask, mask_id), cond).float()
        filled = torch.where(mask, _drawn(logits, settings.temperature, noise), tokens)
    real = ~mask | (filled == tokens) if settings.equal_is_real else ~mask
    scores = token_scores(critic(filled, cond), filled)
    loss = F.binary_cross_entropy_with_logits(scores, real.float())
    return loss, {"accuracy": ((scores.detach() > 0) == real).float().mean()}


def _drawn(logits: torch.Tensor, temperature: float, noise: SeededNoise) -> torch.Tensor:
    """One id a place from the softmax of logits / temperature, ``[B, N, K, V]`` -> ``[B, N, K]``."""
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
    """Loss and accuracy on up to 512 examples; masks and draws come from a seed."""
    count = min(len(held_out), 512)
    batch = held_out.batch(range(count), range(count))
    random = torch.Generator().manual_seed(0)
    mask = random_mask(batch["tokens"].shape, schedule=settings.schedule, generator=random)
    totals = torch.zeros(2)
    for part in torch.arange(count).split(64):
        tokens, hidden = batch["tokens"][part].to(device), mask[part].to(device)
        labels = batch["labels"][part].to(device) if "labels" in batch else None
        cond = Cond(labels=labels)
        noise = SeededNoise(part.tolist(), device)
        loss, terms = _judged(critic, generator, tokens, hidden, cond, settings, mask_id, noise)
        totals += torch.stack((loss, terms["accuracy"])).cpu() * len(part) / count
    return float(totals[0]), float(totals[1])
