"""What Open-MAGVIT2's tokenizers pay in stage 1, term for term (Luo et al. 2024, arXiv 2409.04410).

Signals are in the network's own range, -1..1, in this file.

Shapes: B batch, T frames, H W pixels. ``...`` is (H, W) or (T, H, W).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from maskgen.tokenizers.quantizers.lookup_free import LFQOutput
from maskgen.tokenizers.training.discriminators.patch import PatchDiscriminatorConfig
from maskgen.tokenizers.training.losses.adaptive import adaptive_weight
from maskgen.tokenizers.training.losses.image import LeCam, as_images, discriminator_loss, generator_loss, l1_loss
from maskgen.tokenizers.training.losses.perceptual import Perceptual, PerceptualNet

PatchGAN = Literal["hinge", "vanilla", "non-saturating"]


@dataclass(frozen=True, kw_only=True)
class Magvit2LossSettings:
    """Terms of the loss; the defaults are those of the 256-pixel image weights.

    Attributes:
        perceptual: LPIPS backbone, or None for no perceptual term.
        perceptual_weight: of that term.
        discriminator: sizes of the discriminator; None trains none.
        gan_start: steps before the adversarial game begins. The discriminator sees batches before that too, for its running
            statistics, as in the original.
        gan: form of the discriminator's loss; the generator's is always non-saturating.
        gan_weight: of the adversarial term; None balances it with the reconstruction at the last layer of the decoder.
        adaptive_weight: factor on that balance.
        lecam_weight: LeCam regularisation; 0 turns it off.
        entropy_weight: of the quantizer's entropy term.
        entropy_boost: times ``entropy_weight`` that is added at the start, falling to 0 at ``entropy_boost_steps``.
        entropy_boost_steps: see above.
        commitment_weight: of the quantizer's commitment.
        validation: how many held-out signals a validation takes at most.
    """

    perceptual: PerceptualNet | None = "vgg"
    perceptual_weight: float = 1.0
    discriminator: PatchDiscriminatorConfig | None = field(default_factory=PatchDiscriminatorConfig)
    gan_start: int = 0
    gan: PatchGAN = "hinge"
    gan_weight: float | None = 0.1
    adaptive_weight: float = 0.8
    lecam_weight: float = 0.05
    entropy_weight: float = 0.1
    entropy_boost: float = 0.0
    entropy_boost_steps: int = 2000
    commitment_weight: float = 0.25
    validation: int = 64

    def __post_init__(self) -> None:
        names = ("perceptual_weight", "gan_start", "adaptive_weight", "lecam_weight", "entropy_weight", "entropy_boost")
        for name in (*names, "commitment_weight", *(["gan_weight"] if self.gan_weight is not None else [])):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if self.entropy_boost_steps < 1 or self.validation < 1:
            raise ValueError(
                f"entropy_boost_steps, validation: got {self.entropy_boost_steps} and {self.validation}, expected 1 or more"
            )
        if self.gan not in ("hinge", "vanilla", "non-saturating"):
            raise ValueError(f"gan: got {self.gan!r}, expected 'hinge', 'vanilla' or 'non-saturating'")


PUBLISHED_LOSSES: dict[str, Magvit2LossSettings] = {
    "imagenet_128_L": Magvit2LossSettings(lecam_weight=0.01),
    "imagenet_256_L": Magvit2LossSettings(),
    "pretrain256_262144": Magvit2LossSettings(),
    "pretrain256_16384": Magvit2LossSettings(discriminator=PatchDiscriminatorConfig(kind="blur", width=128)),
    "video_128_262144": Magvit2LossSettings(gan_weight=0.3),
}
"""What each published tokenizer was trained with. All with Adam (betas 0.5 and 0.9, no decay, no clipping) at 1e-4."""


def generator_terms(
    settings: Magvit2LossSettings,
    signal: Tensor,
    reconstruction: Tensor,
    quantized: LFQOutput,
    *,
    step: int,
    discriminator: Callable[[Tensor], Tensor] | None,
    last_layer: Tensor,
    perceptual: Perceptual | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of the tokenizer.

    mean |x - x'| + w_p LPIPS + d [step >= start] gan(D(x')) + s(step) entropy + w_c commitment, where d is a constant or
    ``adaptive_weight`` and s is ``entropy_weight``.

    Args:
        settings: weights.
        signal: [B, 3, ...] in -1..1.
        reconstruction: same shape, not clamped.
        quantized: what the quantizer made.
        step: optimiser steps done.
        discriminator: [B, 3, ...] -> logits [B, 1, ...]; None without the game.
        last_layer: kernel of the decoder's last convolution.
        perceptual: LPIPS; None without that term.

    Returns:
        Loss, and its parts by name (for the log; unweighted but for "gan").

    Raises:
        ValueError: when the shapes differ.
    """
    terms = {"pixel": l1_loss(reconstruction, signal)}
    fidelity = terms["pixel"]
    if perceptual is not None:
        terms["perceptual"] = perceptual(*(as_images(part + 1) / 2 for part in (reconstruction, signal)))
        fidelity = fidelity + settings.perceptual_weight * terms["perceptual"]
    loss = fidelity + entropy_weight(settings, step) * quantized.entropy
    loss = loss + settings.commitment_weight * quantized.commitment
    if discriminator is not None:
        begun = step >= settings.gan_start
        # It looks before that, too, for its running statistics.
        logits = discriminator(reconstruction if begun else reconstruction.detach())
        if begun:
            gan = patch_generator_loss(logits)
            weight = gan.new_tensor(settings.gan_weight or 0.0)
            if settings.gan_weight is None:
                weight = settings.adaptive_weight * adaptive_weight(fidelity, gan, last_layer)
            loss = loss + weight * gan
            terms |= {"gan": weight * gan, "gan_weight": weight}
    terms |= {name: getattr(quantized, name) for name in ("sample_entropy", "batch_entropy", "entropy", "commitment")}
    return loss, {name: term.detach() for name, term in terms.items()}


def discriminator_terms(
    settings: Magvit2LossSettings, real: Tensor, fake: Tensor, *, step: int, lecam: LeCam | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of the discriminator; 0 before the game begins.

    LeCam's running means move first, then the penalty is taken against them. While the game has not begun those of images
    move already and those of clips do not: so do the two originals.

    Args:
        settings: weights.
        real: logits [B, 1, ...] of signals.
        fake: logits of reconstructions.
        step: optimiser steps done.
        lecam: running means; None without that term.

    Returns:
        Loss, and what to log.
    """
    begun = step >= settings.gan_start
    game = patch_discriminator_loss(real, fake, settings.gan)
    loss, terms = game, {"gan": game, "real": real.mean(), "fake": fake.mean()}
    if lecam is not None and (begun or real.ndim == 4):
        lecam.update(real, fake)
        terms["lecam"] = lecam(real, fake)
        loss = loss + settings.lecam_weight * terms["lecam"]
    # Times 0 and not left out: every weight of the discriminator needs a gradient.
    return loss if begun else 0.0 * loss, {name: term.detach() for name, term in terms.items()}


def patch_generator_loss(logits: Tensor) -> Tensor:
    """Non-saturating loss of the mean logit of each signal (not of each patch), [B, 1, ...] to a scalar."""
    return generator_loss(logits.flatten(1).mean(1), "non-saturating")


def patch_discriminator_loss(real: Tensor, fake: Tensor, kind: PatchGAN) -> Tensor:
    """What the discriminator pays for its mistakes.

    "hinge" and "vanilla" (softplus) are means over patches, halved; "non-saturating" is the softplus of each signal's mean
    logit, not halved. Logits [B, 1, ...] to a scalar.
    """
    if kind == "non-saturating":
        return discriminator_loss(real.flatten(1).mean(1), fake.flatten(1).mean(1), "non-saturating")
    return 0.5 * discriminator_loss(real, fake, "hinge" if kind == "hinge" else "non-saturating")


def entropy_weight(settings: Magvit2LossSettings, step: int) -> float:
    """Weight of the entropy term after so many optimiser steps: w (1 + boost * max(0, 1 - step / boost_steps))."""
    extra = settings.entropy_boost * max(0.0, 1 - step / settings.entropy_boost_steps)
    return settings.entropy_weight * (1 + extra)
