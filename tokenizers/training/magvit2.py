"""Stage 1 of Open-MAGVIT2: train its tokenizers to reconstruct images or clips (Luo et al. 2024, arXiv 2409.04410).

Shapes: B batch, T frames, H W pixels. ``...`` is (H, W) or (T, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Unpack

from torch import Tensor, nn

from maskgen.tokenizers.magvit2.tokenizer import Magvit2Image, Magvit2Output, Magvit2Video
from maskgen.tokenizers.training.base import TokenizerTraining, crop_like, frozen
from maskgen.tokenizers.training.discriminators.patch import build_discriminator
from maskgen.tokenizers.training.losses.image import LeCam
from maskgen.tokenizers.training.losses.magvit2 import Magvit2LossSettings, discriminator_terms, generator_terms
from maskgen.tokenizers.training.losses.perceptual import Perceptual
from maskgen.training.objective import ObjectiveOptions


@dataclass(frozen=True, kw_only=True)
class Magvit2Settings(Magvit2LossSettings):
    """The terms of the loss, as ``maskgen train tokenizer`` takes them."""

    def objective(
        self, model: Magvit2Image | Magvit2Video, size: tuple[int, ...], **options: Unpack[ObjectiveOptions]
    ) -> Magvit2Training:
        """See ``maskgen.tokenizers.training.base.TrainingLoss``; signals of any size will do."""
        return Magvit2Training(model, self, **options)


class Magvit2Training(TokenizerTraining):
    """Reconstruct through the codes; optionally fool a discriminator.

    Batches hold ``images`` float ``[B, 3, H, W]``, or ``video`` float ``[B, 3, T, H, W]`` with a T that the tokenizer takes,
    both in [0, 1].

    Args:
        model: the tokenizer.
        settings: see ``Magvit2LossSettings``.
        options: see ``maskgen.training.objective.ObjectiveOptions``.

    Raises:
        ValueError: a discriminator that is not for this kind of signal.
    """

    def __init__(
        self, model: Magvit2Image | Magvit2Video, settings: Magvit2LossSettings, **options: Unpack[ObjectiveOptions]
    ) -> None:
        self.settings = settings
        key = "video" if model.modality == "video" else "images"
        discriminator = None
        if settings.discriminator is not None:
            discriminator = build_discriminator(settings.discriminator, dims=3 if key == "video" else 2)
        self.lecam = LeCam() if discriminator is not None and settings.lecam_weight else None
        self.perceptual = Perceptual(settings.perceptual) if settings.perceptual else None
        super().__init__(
            model, key=key, discriminator=discriminator, lecam=self.lecam, validation=settings.validation, **options
        )

    def _codes(self, out: Magvit2Output) -> Tensor:
        return out.tokens

    def _generator_loss(
        self, modules: Mapping[str, nn.Module], signal: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        out: Magvit2Output = modules["model"](signal)
        fake = 2 * crop_like(out.reconstruction, signal) - 1
        with frozen(modules.get("discriminator")) as discriminator:
            loss, terms = generator_terms(
                self.settings,
                2 * signal - 1,
                fake,
                out.quantized,
                step=step,
                discriminator=discriminator,
                last_layer=self.model.last_layer,
                perceptual=None if self.perceptual is None else self.perceptual.to(signal.device),
            )
        return loss, terms, fake, out.tokens

    def _discriminator_loss(
        self, discriminator: nn.Module, signal: Tensor, fake: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        real, made = discriminator(2 * signal - 1), discriminator(fake)
        lecam = None if self.lecam is None else self.lecam.to(signal.device)
        return discriminator_terms(self.settings, real, made, step=step, lecam=lecam)
