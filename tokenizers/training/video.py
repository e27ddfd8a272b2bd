"""Stage 1 for video: train a tokenizer of clips to reconstruct (MAGVIT's terms and weights, arXiv 2212.05199).

Shapes: B batch, T frames, H W pixels, t h w token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor, nn

from maskgen.data import Source
from maskgen.tokenizers.quantizers.care import CodebookCare, CodebookSettings
from maskgen.tokenizers.quantizers.vector import Quantized
from maskgen.tokenizers.training.adversarial import AdversarialTraining, crop_like, frozen
from maskgen.tokenizers.training.discriminators.video import (
    ClipDiscriminator,
    FrameDiscriminator,
    VideoDiscriminatorConfig,
    build_video_discriminator,
)
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
from maskgen.tokenizers.video.base import VideoTokenizer
from maskgen.training.distributed.whole_batch import whole_mean

__all__ = ["VideoReconstructionSettings", "VideoTokenizerTraining"]


@dataclass(frozen=True, kw_only=True)
class VideoReconstructionSettings:
    """Terms of the loss; the defaults are official MAGVIT's, with LPIPS in place of its ResNet-50.

    Attributes:
        pixel: ``l2`` (official) or ``l1``.
        pixel_weight: of the pixel term.
        perceptual: of every frame: ``vgg``, ``alex`` or ``squeeze`` for LPIPS, ``resnet50-logits`` (official, see
            ``perceptual_resnet``), ``resnet50``, or None for no perceptual term.
        perceptual_weight: of that term.
        gan_weight: of the adversarial term; 0 trains no discriminator.
        gan_adaptive: times how much stronger the reconstruction pulls at the last layer (Esser et al. 2021); officially not.
        gan_start: steps before the adversarial game begins.
        gan: form of the adversarial losses.
        r1_weight: gradient penalty on real clips; 0 turns it off.
        lecam_weight: LeCam regularisation on the means of a batch; 0 (official) turns it off.
        lecam_decay: of its running means.
        entropy_boost: the quantizer's entropy term starts this many times stronger, and falls back to its weight in a line.
        entropy_boost_steps: how long that takes.
        revive_every: see ``maskgen.tokenizers.quantizers.care.CodebookSettings``.
        revive_last: see there.
        discriminator: what judges, and its sizes.
        validation: how many held-out clips a validation takes at most.
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
    lecam_decay: float = 0.999
    entropy_boost: float = 0.0
    entropy_boost_steps: int = 2000
    revive_every: int = 0
    revive_last: int = 100_000
    discriminator: VideoDiscriminatorConfig = field(default_factory=VideoDiscriminatorConfig)
    validation: int = 64

    def __post_init__(self) -> None:
        weights = ("pixel_weight", "perceptual_weight", "gan_weight", "r1_weight", "lecam_weight", "entropy_boost")
        for name in (*weights, "gan_start"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        for name in ("entropy_boost_steps", "validation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        self.codebook()

    def codebook(self) -> CodebookSettings:
        """What is done for the codebook."""
        return CodebookSettings(
            entropy_boost=self.entropy_boost,
            entropy_boost_steps=self.entropy_boost_steps,
            revive_every=self.revive_every,
            revive_last=self.revive_last,
        )


class _Pass(Protocol):
    """What a training pass of a tokenizer gives, as ``Reconstruction``."""

    @property
    def reconstruction(self) -> Tensor: ...

    @property
    def quantized(self) -> Quantized: ...


class VideoTokenizerTraining(AdversarialTraining):
    """Reconstruct clips through the codes; optionally fool a discriminator.

    Batches hold ``video`` float ``[B, 3, T, H, W]`` in [0, 1]. The generator is updated first; the discriminator then sees
    the same reconstructions, so that both gradients belong to the same weights, as in the official step.

    Args:
        model: a tokenizer whose ``forward`` gives a ``reconstruction`` and a ``quantized``, as ``VQ3D``'s.
        settings: see ``VideoReconstructionSettings``.
        held_out: clips for validation.
        show: called as ``show(model, folder, step)`` to write reconstructions while training.

    Raises:
        ValueError: help for a codebook that the model's quantizer does not have, or an adaptive weight for a model without a
            ``last_layer``.
        ConnectionError: no weights for the perceptual term.
    """

    def __init__(
        self,
        model: VideoTokenizer,
        settings: VideoReconstructionSettings,
        *,
        held_out: Source | None = None,
        show: Callable[[nn.Module, Path, int], None] | None = None,
    ) -> None:
        if settings.gan_adaptive and not hasattr(model, "last_layer"):
            raise ValueError(f"gan_adaptive: {type(model).__name__} has no last_layer to measure at; set it to false")
        self.settings = settings
        self.lecam = LeCam(settings.lecam_decay) if settings.gan_weight and settings.lecam_weight else None
        self.perceptual = build_perceptual(settings.perceptual) if settings.perceptual else None
        super().__init__(
            model,
            key="video",
            discriminator=build_video_discriminator(settings.discriminator) if settings.gan_weight else None,
            lecam=self.lecam,
            care=CodebookCare(model, settings.codebook()),
            held_out=held_out,
            validation=settings.validation,
            show=show,
        )

    def _errors(self, difference: Tensor) -> Tensor:
        """Of each frame, ``[B, T]``."""
        return difference.square().mean((1, 3, 4))

    def _generator_loss(
        self, modules: Mapping[str, nn.Module], signal: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        settings = self.settings
        out: _Pass = modules["model"](signal)
        fake = crop_like(out.reconstruction, signal)
        pixel = (l2_loss if settings.pixel == "l2" else l1_loss)(fake, signal)
        terms = {"pixel": pixel, **out.quantized.terms}
        loss = settings.pixel_weight * pixel + out.quantized.loss
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual.to(signal.device)(_frames(fake), _frames(signal))
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
        assert isinstance(self.discriminator, ClipDiscriminator | FrameDiscriminator)
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
            terms["lecam"] = lecam(whole_mean(terms["real"]), whole_mean(terms["fake"]))
            loss = loss + settings.lecam_weight * terms["lecam"]
            lecam.update(real, made)
        return loss, {name: term.detach() for name, term in terms.items()}


def _frames(video: Tensor) -> Tensor:
    """[B, 3, T, H, W] -> [B * T, 3, H, W]."""
    return video.transpose(1, 2).flatten(0, 1)
