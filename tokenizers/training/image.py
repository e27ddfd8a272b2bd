"""Stage 1: train a tokenizer to reconstruct (Esser et al. 2021, arXiv 2012.09841; MaskGIT's weights of the terms).

With ``gan_adaptive`` the adversary's weight is Esser et al.'s: ``gan_weight`` times how much stronger the reconstruction
pulls at the last layer.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from maskgen.data import Source
from maskgen.tokenizers.image.vqgan import VQGAN
from maskgen.tokenizers.quantizers.autoencoder import Reconstruction
from maskgen.tokenizers.quantizers.care import CodebookCare, CodebookSettings
from maskgen.tokenizers.training.adversarial import AdversarialTraining, crop_like, frozen
from maskgen.tokenizers.training.discriminators.image import DiscriminatorConfig, StyleGANDiscriminator
from maskgen.tokenizers.training.losses.adaptive import adaptive_weight
from maskgen.tokenizers.training.losses.image import (
    GANKind,
    LeCam,
    discriminator_loss,
    generator_loss,
    l1_loss,
    l2_loss,
    r1_penalty,
)
from maskgen.tokenizers.training.losses.perceptual import PerceptualKind, build_perceptual

__all__ = ["ReconstructionSettings", "VQGANTraining"]


@dataclass(frozen=True, kw_only=True)
class ReconstructionSettings:
    """Terms of the stage-1 loss; the defaults are official MaskGIT's, with LPIPS in place of its ResNet-50.

    Attributes:
        pixel: ``l2`` or ``l1``.
        pixel_weight: of the pixel term.
        perceptual: ``vgg``, ``alex`` or ``squeeze`` for LPIPS, ``resnet50`` (official: pooled features, see
            ``perceptual_resnet``), ``resnet50-logits``, or None for no perceptual term.
        perceptual_weight: of that term.
        gan_weight: of the adversarial term; 0 trains no discriminator.
        gan_adaptive: see the head of this file; official is a fixed weight.
        gan_start: steps before the adversarial game begins.
        gan: form of the adversarial losses.
        r1_weight: gradient penalty on real images; 0 turns it off.
        lecam_weight: LeCam regularisation; 0 turns it off.
        entropy_boost: see ``maskgen.tokenizers.quantizers.care.CodebookSettings``, as the next three.
        entropy_boost_steps: see there.
        revive_every: see there.
        revive_last: see there.
        discriminator: sizes of the discriminator.
    """

    pixel: Literal["l2", "l1"] = "l2"
    pixel_weight: float = 1.0
    perceptual: PerceptualKind | None = "vgg"
    perceptual_weight: float = 0.1
    gan_weight: float = 0.1
    gan_adaptive: bool = False
    gan_start: int = 0
    gan: GANKind = "non-saturating"
    r1_weight: float = 10.0
    lecam_weight: float = 0.0
    entropy_boost: float = 0.0
    entropy_boost_steps: int = 2000
    revive_every: int = 0
    revive_last: int = 100_000
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    def __post_init__(self) -> None:
        for name in ("pixel_weight", "perceptual_weight", "gan_weight", "gan_start", "r1_weight", "lecam_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        self.codebook()

    def codebook(self) -> CodebookSettings:
        """What is done for the codebook."""
        return CodebookSettings(
            entropy_boost=self.entropy_boost,
            entropy_boost_steps=self.entropy_boost_steps,
            revive_every=self.revive_every,
            revive_last=self.revive_last,
        )


class VQGANTraining(AdversarialTraining):
    """Reconstruct images through the codes; optionally fool a discriminator.

    Batches hold ``images`` float ``[B, 3, H, W]`` in [0, 1]. The generator is updated first; the discriminator then sees
    the same reconstructions, which saves a second forward.

    Args:
        model: the tokenizer.
        settings: see ``ReconstructionSettings``.
        held_out: images for validation.
        show: called as ``show(model, folder, step)`` to write reconstructions while training.

    Raises:
        ValueError: help for a codebook that the model's quantizer does not have.
        ConnectionError: no weights for the perceptual term.
    """

    def __init__(
        self,
        model: VQGAN,
        settings: ReconstructionSettings,
        *,
        held_out: Source | None = None,
        show: Callable[[nn.Module, Path, int], None] | None = None,
    ) -> None:
        self.settings = settings
        self.lecam = LeCam() if settings.gan_weight and settings.lecam_weight else None
        self.perceptual = build_perceptual(settings.perceptual) if settings.perceptual else None
        super().__init__(
            model,
            key="images",
            discriminator=StyleGANDiscriminator(settings.discriminator) if settings.gan_weight else None,
            lecam=self.lecam,
            care=CodebookCare(model, settings.codebook()),
            held_out=held_out,
            validation=512,
            show=show,
        )

    def _generator_loss(
        self, modules: Mapping[str, nn.Module], signal: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        settings = self.settings
        out: Reconstruction = modules["model"](signal)
        fake = crop_like(out.reconstruction, signal)
        pixel = (l2_loss if settings.pixel == "l2" else l1_loss)(fake, signal)
        terms = {"pixel": pixel, **out.quantized.terms}
        loss = settings.pixel_weight * pixel + out.quantized.loss
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual.to(signal.device)(fake, signal)
            loss = loss + settings.perceptual_weight * terms["perceptual"]
        if self.discriminator is not None and step >= settings.gan_start:
            with frozen(modules["discriminator"]) as judge:
                assert judge is not None
                terms["gan"] = generator_loss(judge(fake), settings.gan)
            weight: float | Tensor = settings.gan_weight
            if settings.gan_adaptive:
                fidelity = loss - out.quantized.loss
                terms["gan_weight"] = weight = weight * adaptive_weight(fidelity, terms["gan"], self.model.last_layer)
            loss = loss + weight * terms["gan"]
        return loss, terms, fake, out.quantized.codes

    def _discriminator_loss(
        self, judge: nn.Module, signal: Tensor, fake: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.settings
        assert isinstance(self.discriminator, StyleGANDiscriminator)
        if step < settings.gan_start:
            # The game has not begun. Adam must not move anything, and weight decay leaves biases alone.
            return self.discriminator.dense2.bias.sum() * 0.0, {}
        real, made = judge(signal), judge(fake)
        loss = discriminator_loss(real, made, settings.gan)
        terms = {"real": real.mean(), "fake": made.mean()}
        if settings.r1_weight:
            terms["r1"] = r1_penalty(judge, signal, settings.r1_weight)
            loss = loss + terms["r1"]
        if self.lecam is not None:
            lecam = self.lecam.to(signal.device)
            terms["lecam"] = lecam(real, made)
            loss = loss + settings.lecam_weight * terms["lecam"]
            lecam.update(real, made)
        return loss, {name: term.detach() for name, term in terms.items()}
