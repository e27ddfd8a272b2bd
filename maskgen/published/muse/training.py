"""How lucidrains' Muse is trained (muse-maskgit-pytorch 0.3.5): what is masked, and what it costs.

It differs from ``maskgen.objectives.masked`` in the masks (round(N cos(u pi / 2)) tokens, by another use of the same random
numbers), in tokens that are paid for though they are shown, and in self-conditioning.

Ours where the original differs: each row has its own draw for self-conditioning, so that a run does not depend on how its
rows are spread over processes; and text is dropped for the stated share of the rows, 0.1 by default as in the paper (0.5).

Shapes: B batch, N tokens of the grid, D width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.conditioning import Cond
from maskgen.data import Batch
from maskgen.published.muse.transformer import MuseTransformer, without_text
from maskgen.training.distributed.whole_batch import mean_over_processes
from maskgen.training.objective import Objective, ObjectiveOptions


@dataclass(frozen=True, kw_only=True)
class MuseTraining:
    """Settings of the training.

    Attributes:
        text_dropout: share of the rows that are shown without text, which guidance needs.
        shown_share: share of the masked tokens that are shown all the same and still predicted ("no_mask_token_prob").
        self_conditioning: share of the rows that read their own features, for self-conditioned models.
    """

    text_dropout: float = 0.1
    shown_share: float = 0.0
    self_conditioning: float = 0.9

    def __post_init__(self) -> None:
        for name in ("text_dropout", "shown_share", "self_conditioning"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a share in [0, 1]")


def muse_mask(times: Tensor, ranks: Tensor) -> Tensor:
    """Which tokens are predicted: max(1, round(N cos(u pi / 2))) of each row, half to even.

    Args:
        times: u of each row, uniform in [0, 1), ``[B]``.
        ranks: uniform in [0, 1), ``[B, N]``.

    Returns:
        bool ``[B, N]``.
    """
    counts = (ranks.shape[1] * torch.cos(times * math.pi * 0.5)).round().clamp(min=1)
    return ranks.argsort(-1) < counts[:, None]


def shown_tokens(mask: Tensor, share: float, ranks: Tensor) -> Tensor:
    """Of the masked tokens of each row the given share, rounded up, those of the lowest ranks.

    Args:
        mask: bool ``[B, N]``.
        share: in [0, 1].
        ranks: uniform in [0, 1), ``[B, N]``.

    Returns:
        bool ``[B, N]``.
    """
    places = ranks.masked_fill(~mask, torch.inf).argsort(-1).argsort(-1)
    return (places < mask.sum(-1, keepdim=True) * share) & mask


def muse_loss(
    model: nn.Module,
    tokens: Tensor,
    cond: Cond,
    mask: Tensor,
    *,
    mask_id: int,
    shown: Tensor | None = None,
    previous: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the masked tokens of the whole batch, on however many processes.

    Args:
        model: a ``MuseTransformer``, also as Accelerate wrapped it.
        tokens: long ``[B, N, 1]``.
        cond: with the text of some rows dropped.
        mask: bool ``[B, N]``.
        mask_id: K.
        shown: bool ``[B, N]``, masked tokens that the model sees.
        previous: see ``MuseNetwork.features``.

    Returns:
        Loss in nats, and the share of the masked tokens whose most likely code is right; scalars.
    """
    logits = model(masked_tokens(tokens, mask, mask_id, shown), cond, None, previous)[:, :, 0][mask].float()
    targets = tokens[..., 0][mask]
    cost = F.cross_entropy(logits, targets, reduction="sum") / mean_over_processes(mask.sum().float())
    return cost, (logits.detach().argmax(-1) == targets).float().mean()


def masked_tokens(tokens: Tensor, mask: Tensor, mask_id: int, shown: Tensor | None = None) -> Tensor:
    """What the model sees, ``[B, N, 1]``; arguments as of ``muse_loss``."""
    return tokens.masked_fill((mask if shown is None else mask & ~shown)[..., None], mask_id)


class MuseModeling(Objective):
    """Train a ``MuseTransformer``; a super-resolution model on the tokens of the real small picture.

    Batches hold ``tokens`` long ``[B, N, 1]``, ``context`` ``[B, L, T]``, ``context_mask`` ``[B, L]`` and, for
    super-resolution, ``coarse`` long ``[B, M, 1]``.

    Args:
        model: what is trained.
        settings: see ``MuseTraining``.
        options: see ``maskgen.training.objective.ObjectiveOptions``.
    """

    def __init__(self, model: MuseTransformer, settings: MuseTraining, **options: Unpack[ObjectiveOptions]) -> None:
        super().__init__(model, **options)
        self.settings = settings

    def loss(
        self, network: str, modules: Mapping[str, nn.Module], batch: Batch, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``muse_loss``; terms: ``accuracy`` over masked tokens."""
        tokens, settings, mask_id = batch["tokens"], self.settings, self.model.vocab_size
        given = Cond(context=batch.get("context"), context_mask=batch.get("context_mask"), coarse=batch.get("coarse"))
        # Drawn whether used or not, so that a setting does not change the other draws.
        times, text, own = self.rows.rand((len(tokens), 3), tokens.device).unbind(1)
        ranks, shown_ranks = self.rows.rand((len(tokens), 2, tokens.shape[1]), tokens.device).unbind(1)
        mask = muse_mask(times, ranks)
        shown = shown_tokens(mask, settings.shown_share, shown_ranks)
        previous = None
        if self.model.config.self_conditioned:
            with torch.no_grad():  # with all text, as in the original; zeros are what the first step has
                features = self.model.features(masked_tokens(tokens, mask, mask_id, shown), given)
            previous = features * (own < settings.self_conditioning)[:, None, None]
        cond = without_text(given, text < settings.text_dropout)
        loss, accuracy = muse_loss(
            modules["model"], tokens, cond, mask, mask_id=mask_id, shown=shown, previous=previous
        )
        return loss, {"accuracy": accuracy}

    def units(self, batch: Batch) -> int:
        """Tokens in the batch."""
        return batch["tokens"].numel()
