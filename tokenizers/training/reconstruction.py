"""Stage 1 of images and clips: a tokenizer learns to reconstruct (Esser et al. 2021, arXiv 2012.09841).

Weights of the terms are MaskGIT's for images and MAGVIT's for clips (arXiv 2212.05199). With ``gan_adaptive`` the
adversary's weight is Esser et al.'s: ``gan_weight`` times how much stronger the reconstruction pulls at the last layer.

Shapes: B batch, T frames, H W pixels. ``...`` is (H, W) or (T, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Unpack

from torch import Tensor, nn

from maskgen.checkpoint import settings_from
from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.quantizers.autoencoder import Reconstruction
from maskgen.tokenizers.quantizers.care import CodebookSettings
from maskgen.tokenizers.training.base import TokenizerTraining, crop_like, frozen
from maskgen.tokenizers.training.discriminators.image import DiscriminatorConfig, StyleGANDiscriminator
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
    as_images,
    discriminator_loss,
    generator_loss,
    l1_loss,
    l2_loss,
    r1_penalty,
)
from maskgen.tokenizers.training.losses.perceptual import PerceptualKind, build_perceptual
from maskgen.training.distributed.whole_batch import whole_mean
from maskgen.training.objective import ObjectiveOptions


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """Terms of the loss; the defaults are the official ones, with LPIPS in place of a ResNet-50.

    Attributes:
        pixel: ``l2`` (official) or ``l1``.
        pixel_weight: of the pixel term.
        perceptual: of every image or frame: ``vgg``, ``alex`` or ``squeeze`` for LPIPS, ``resnet50`` (MaskGIT's: pooled
            features, see ``maskgen.tokenizers.training.losses.perceptual``), ``resnet50-logits`` (MAGVIT's), or None for no
            perceptual term.
        perceptual_weight: of that term.
        gan_weight: of the adversarial term; 0 trains no discriminator.
        gan_adaptive: whether the weight follows the gradients at the last layer; officially not.
        gan_start: steps before the adversarial game begins.
        gan: form of the adversarial losses.
        r1_weight: gradient penalty on real signals; 0 turns it off.
        lecam_weight: LeCam regularisation, of each image's logit or of the means of a batch of clips; 0 turns it off.
        lecam_decay: of its running means.
        entropy_boost: see ``maskgen.tokenizers.quantizers.care.CodebookSettings``, as the next three.
        entropy_boost_steps: see there.
        revive_every: see there.
        revive_last: see there.
        validation: how many held-out signals a validation takes at most.
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
    validation: int = 512

    def __post_init__(self) -> None:
        for name in ("pixel_weight", "perceptual_weight", "gan_weight", "gan_start", "r1_weight", "lecam_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if self.validation < 1:
            raise ValueError(f"validation: got {self.validation}, expected 1 or more")
        self.codebook()

    def codebook(self) -> CodebookSettings:
        """What is done for the codebook."""
        return settings_from(self, CodebookSettings)


@dataclass(frozen=True, kw_only=True)
class ReconstructionSettings(_Terms):
    """Terms of the loss of images: those above, and the sizes of the discriminator.

    Attributes:
        discriminator: its sizes.
    """

    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    def objective(
        self, model: Tokenizer, size: tuple[int, ...], **options: Unpack[ObjectiveOptions]
    ) -> ReconstructionTraining:
        """See ``maskgen.tokenizers.training.base.TrainingLoss``."""
        side = self.discriminator.image_size
        if self.gan_weight and tuple(size) != (side, side):
            raise ValueError(
                f"loss.discriminator.image_size: got {side}, but the images are {' x '.join(map(str, size))}; set it to "
                "the images' side, or gan_weight to 0"
            )
        return ReconstructionTraining(model, self, **options)


@dataclass(frozen=True, kw_only=True)
class VideoReconstructionSettings(_Terms):
    """Terms of the loss of clips: those above, and the discriminator.

    Attributes:
        discriminator: whether it sees clips or frames, and its sizes.
        validation: how many held-out clips a validation takes at most.
    """

    discriminator: VideoDiscriminatorConfig = field(default_factory=VideoDiscriminatorConfig)
    validation: int = 64

    def objective(
        self, model: Tokenizer, size: tuple[int, ...], **options: Unpack[ObjectiveOptions]
    ) -> ReconstructionTraining:
        """See ``maskgen.tokenizers.training.base.TrainingLoss``."""
        expected = tuple(self.discriminator.size)
        seen = expected if self.discriminator.kind == "clip" else (size[0], *expected[1:])
        if self.gan_weight and tuple(size) != seen:
            raise ValueError(
                f"loss.discriminator.size: got {list(expected)}, but the clips are {list(size)} (frames, height, width); "
                "set it to theirs, or gan_weight to 0"
            )
        return ReconstructionTraining(model, self, **options)


class ReconstructionTraining(TokenizerTraining):
    """Reconstruct images or clips through the codes; optionally fool a discriminator.

    Batches hold ``images`` float ``[B, 3, H, W]`` or ``video`` float ``[B, 3, T, H, W]``, in [0, 1]. Both networks are
    updated from the same weights, as in the official step.

    Args:
        model: the tokenizer.
        settings: those of its modality.
        options: see ``maskgen.training.objective.ObjectiveOptions``.

    Raises:
        ValueError: help for a codebook that the model's quantizer does not have, or an adaptive weight for a model without a
            ``last_layer``.
        ConnectionError: no weights for the perceptual term.
    """

    discriminator: StyleGANDiscriminator | ClipDiscriminator | FrameDiscriminator | None

    def __init__(
        self,
        model: Tokenizer,
        settings: ReconstructionSettings | VideoReconstructionSettings,
        **options: Unpack[ObjectiveOptions],
    ) -> None:
        if settings.gan_adaptive and not hasattr(model, "last_layer"):
            raise ValueError(f"gan_adaptive: {type(model).__name__} has no last_layer to measure at; set it to false")
        self.settings = settings
        self.lecam = LeCam(settings.lecam_decay) if settings.gan_weight and settings.lecam_weight else None
        self.perceptual = build_perceptual(settings.perceptual) if settings.perceptual else None
        super().__init__(
            model,
            key="video" if model.modality == "video" else "images",
            discriminator=_build_discriminator(settings.discriminator) if settings.gan_weight else None,
            lecam=self.lecam,
            care=settings.codebook(),
            validation=settings.validation,
            **options,
        )

    def _errors(self, difference: Tensor) -> Tensor:
        """Of each image ``[B]``, or of each frame ``[B, T]``."""
        return super()._errors(difference) if difference.ndim == 4 else difference.square().mean((1, 3, 4))

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
            terms["perceptual"] = self.perceptual.to(signal.device)(as_images(fake), as_images(signal))
            loss = loss + settings.perceptual_weight * terms["perceptual"]
        if self.discriminator is not None and step >= settings.gan_start:
            with frozen(modules["discriminator"]) as discriminator:
                assert discriminator is not None
                terms["gan"] = generator_loss(discriminator(fake), settings.gan)
            weight: float | Tensor = settings.gan_weight
            if settings.gan_adaptive:
                fidelity = loss - out.quantized.loss
                terms["gan_weight"] = weight = weight * adaptive_weight(fidelity, terms["gan"], self.model.last_layer)
            loss = loss + weight * terms["gan"]
        return loss, terms, fake, out.quantized.codes

    def _discriminator_loss(
        self, discriminator: nn.Module, signal: Tensor, fake: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.settings
        if step < settings.gan_start:
            assert self.discriminator is not None
            # The game has not begun. Adam must not move anything, and weight decay leaves biases alone.
            return self.discriminator.dense2.bias.sum() * 0.0, {}
        real, made = discriminator(signal), discriminator(fake)
        loss = discriminator_loss(real, made, settings.gan)
        terms = {"real": real.mean(), "fake": made.mean()}
        if settings.r1_weight:
            terms["r1"] = r1_penalty(discriminator, signal, settings.r1_weight)
            loss = loss + terms["r1"]
        if self.lecam is not None:
            lecam = self.lecam.to(signal.device)
            if self.key == "video":  # MAGVIT's is of the means of a whole batch, MaskGIT's of each image's logit
                terms["lecam"] = lecam(whole_mean(terms["real"]), whole_mean(terms["fake"]))
            else:
                terms["lecam"] = lecam(real, made)
            loss = loss + settings.lecam_weight * terms["lecam"]
            lecam.update(real, made)
        return loss, {name: term.detach() for name, term in terms.items()}


def _build_discriminator(
    config: DiscriminatorConfig | VideoDiscriminatorConfig,
) -> StyleGANDiscriminator | ClipDiscriminator | FrameDiscriminator:
    if isinstance(config, DiscriminatorConfig):
        return StyleGANDiscriminator(config)
    return build_video_discriminator(config)
