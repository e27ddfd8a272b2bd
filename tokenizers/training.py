"""Stage 1: train a tokenizer to reconstruct (Esser et al. 2021, arXiv 2012.09841; MaskGIT's weights of the terms).

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from maskgen.data import Batch, Source
from maskgen.tokenizers.discriminator import DiscriminatorConfig, StyleGANDiscriminator
from maskgen.tokenizers.losses import (
    GANKind,
    LeCam,
    Perceptual,
    PerceptualNet,
    discriminator_loss,
    generator_loss,
    l1_loss,
    l2_loss,
    r1_penalty,
)
from maskgen.tokenizers.usage import codebook_usage
from maskgen.tokenizers.vqgan import VQGAN, VQGANOutput
from maskgen.trainer import Objective

__all__ = ["ReconstructionSettings", "VQGANTraining", "psnr"]


@dataclass(frozen=True, kw_only=True)
class ReconstructionSettings:
    """Terms of the stage-1 loss; the defaults are official MaskGIT's, with LPIPS in place of its unreleased ResNet-50.

    Attributes:
        pixel: ``l2`` or ``l1``.
        pixel_weight: of the pixel term.
        perceptual: LPIPS backbone, or None for no perceptual term.
        perceptual_weight: of that term.
        gan_weight: of the adversarial term; 0 trains no discriminator.
        gan_start: steps before the adversarial game begins.
        gan: form of the adversarial losses.
        r1_weight: gradient penalty on real images; 0 turns it off.
        lecam_weight: LeCam regularisation; 0 turns it off.
        discriminator: sizes of the discriminator.
    """

    pixel: Literal["l2", "l1"] = "l2"
    pixel_weight: float = 1.0
    perceptual: PerceptualNet | None = "vgg"
    perceptual_weight: float = 0.1
    gan_weight: float = 0.1
    gan_start: int = 0
    gan: GANKind = "non-saturating"
    r1_weight: float = 10.0
    lecam_weight: float = 0.0
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    def __post_init__(self) -> None:
        for name in ("pixel_weight", "perceptual_weight", "gan_weight", "gan_start", "r1_weight", "lecam_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")


class VQGANTraining(Objective):
    """Reconstruct images through the codes; optionally fool a discriminator.

    Batches hold ``images`` float ``[B, 3, H, W]`` in [0, 1]. The generator is updated first; the discriminator then sees
    the same reconstructions, which saves a second forward.

    Args:
        model: the tokenizer.
        settings: see ``ReconstructionSettings``.
        held_out: images for validation.
        show: called as ``show(model, folder, step)`` to write reconstructions while training.
    """

    def __init__(
        self,
        model: VQGAN,
        settings: ReconstructionSettings,
        *,
        held_out: Source | None = None,
        show: Callable[[nn.Module, Path, int], None] | None = None,
    ) -> None:
        super().__init__(model)
        self.settings, self.held_out, self._show = settings, held_out, show
        self.discriminator = StyleGANDiscriminator(settings.discriminator) if settings.gan_weight else None
        self.lecam = LeCam() if settings.gan_weight and settings.lecam_weight else None
        self.perceptual = Perceptual(settings.perceptual) if settings.perceptual else None
        self._fake: Tensor | None = None

    def players(self) -> dict[str, nn.Module]:
        """The tokenizer and, where the adversarial term is on, the discriminator."""
        if self.discriminator is None:
            return {"model": self.model}
        return {"model": self.model, "discriminator": self.discriminator}

    def state(self) -> nn.Module | None:
        """LeCam's running means."""
        return self.lecam

    def loss(
        self, player: str, modules: Mapping[str, nn.Module], batch: Batch, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the tokenizer or of the discriminator; see ``maskgen.trainer.Objective``."""
        if player == "discriminator":
            return self._discriminator_loss(modules["discriminator"], batch["images"], step)
        return self._generator_loss(modules, batch["images"], step)

    def units(self, batch: Batch) -> int:
        """Tokens in the batch."""
        images = batch["images"]
        height, width = self.model.axes(images.shape)
        return len(images) * height * width * int(self.model.num_codebooks)

    @torch.no_grad()
    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Held-out squared error (``score``), PSNR in dB, and how evenly the codes are used."""
        if self.held_out is None:
            return {}
        count = min(len(self.held_out), 512)
        images = self.held_out.batch(range(count), range(count))["images"]
        errors, codes = [], []
        for part in images.split(32):
            out: VQGANOutput = model(part.to(device))
            errors.append((_crop(out.reconstruction, part).clamp(0, 1).cpu() - part).square().flatten(1).mean(1))
            codes.append(out.quantized.codes.cpu())
        error = torch.cat(errors)
        usage = codebook_usage(torch.cat(codes), self.model.vocab_size)
        return {
            "score": float(error.mean()),
            "psnr": float(psnr(error).mean()),
            "codebook_usage": usage.share,
            "codebook_perplexity": usage.perplexity,
        }

    def show(self, model: nn.Module, folder: Path, step: int) -> None:
        """Write reconstructions, if the caller said how."""
        if self._show is not None:
            self._show(model, folder, step)

    def _generator_loss(
        self, modules: Mapping[str, nn.Module], images: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.settings
        out: VQGANOutput = modules["model"](images)
        fake = _crop(out.reconstruction, images)
        pixel = (l2_loss if settings.pixel == "l2" else l1_loss)(fake, images)
        terms = {"pixel": pixel, **out.quantized.terms}
        loss = settings.pixel_weight * pixel + out.quantized.loss
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual.to(images.device)(fake, images)
            loss = loss + settings.perceptual_weight * terms["perceptual"]
        if self.discriminator is not None and step >= settings.gan_start:
            with _frozen(modules["discriminator"]) as judge:
                terms["gan"] = generator_loss(judge(fake), settings.gan)
            loss = loss + settings.gan_weight * terms["gan"]
        self._fake = fake.detach()
        usage = codebook_usage(out.quantized.codes, self.model.vocab_size)
        terms["codebook_perplexity"] = loss.new_tensor(usage.perplexity)
        terms["codebook_usage"] = loss.new_tensor(usage.share)
        return loss, {name: term.detach() for name, term in terms.items()}

    def _discriminator_loss(self, judge: nn.Module, images: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.settings
        assert self.discriminator is not None
        assert self._fake is not None, "the generator plays first"
        if step < settings.gan_start:
            # The game has not begun. Adam must not move anything, and weight decay leaves biases alone.
            return self.discriminator.dense2.bias.sum() * 0.0, {}
        real, fake = judge(images), judge(self._fake)
        loss = discriminator_loss(real, fake, settings.gan)
        terms = {"real": real.mean(), "fake": fake.mean()}
        if settings.r1_weight:
            terms["r1"] = r1_penalty(judge, images, settings.r1_weight)
            loss = loss + terms["r1"]
        if self.lecam is not None:
            lecam = self.lecam.to(images.device)
            terms["lecam"] = lecam(real, fake)
            loss = loss + settings.lecam_weight * terms["lecam"]
            lecam.update(real, fake)
        return loss, {name: term.detach() for name, term in terms.items()}


def psnr(squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors of images in [0, 1]: -10 log10(error)."""
    return -10 * torch.log10(squared_error.clamp(min=1e-12))


def _crop(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Sizes the stride does not divide decode to larger images; only the real part is compared."""
    return reconstruction[..., : images.shape[-2], : images.shape[-1]]


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[nn.Module]:
    """The discriminator judges the generator without collecting gradients of its own."""
    module.requires_grad_(False)
    try:
        yield module
    finally:
        module.requires_grad_(True)
