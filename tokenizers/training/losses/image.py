"""Stage-1 losses: pure functions of tensors, and a small module where a loss has state.

Shapes: B batch, C channels, T frames, H W pixels.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from maskgen.tokenizers.quantizers.entropy import unknown_kind
from maskgen.training.distributed.whole_batch import mean_over_processes

GANKind = Literal["non-saturating", "hinge"]


def as_images(signal: Tensor) -> Tensor:
    """Clips ``[B, 3, T, H, W]`` as images ``[B x T, 3, H, W]``; images as they are."""
    return signal if signal.ndim == 4 else rearrange(signal, "b c t h w -> (b t) c h w")


def check_pair(prediction: Tensor, target: Tensor) -> None:
    """Refuse two tensors of different shapes.

    Raises:
        ValueError: naming both.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target: got shapes {tuple(prediction.shape)} and {tuple(target.shape)}, expected equal ones; "
            "broadcasting would change the mean"
        )


def l1_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of two tensors of one shape; scalar.

    Raises:
        ValueError: when the shapes differ.
    """
    check_pair(prediction, target)
    return (prediction - target).abs().mean()


def l2_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of two tensors of one shape; scalar.

    Raises:
        ValueError: when the shapes differ.
    """
    check_pair(prediction, target)
    return (prediction - target).square().mean()


def generator_loss(fake_logits: Tensor, kind: GANKind) -> Tensor:
    """What the generator pays for being found out.

    "non-saturating": mean softplus(-D(fake)) (Goodfellow et al. 2014); "hinge": -mean D(fake) (Lim & Ye 2017). Logits
    of any shape to a scalar.

    Raises:
        ValueError: for another kind.
    """
    if kind == "non-saturating":
        return F.softplus(-fake_logits).mean()
    if kind == "hinge":
        return -fake_logits.mean()
    raise unknown_kind(kind, "'non-saturating' or 'hinge'")


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, kind: GANKind) -> Tensor:
    """What the discriminator pays for its mistakes.

    "non-saturating": mean softplus(-D(real)) + mean softplus(D(fake)); "hinge": mean relu(1 - D(real)) +
    mean relu(1 + D(fake)). Neither is halved. Logits of any shape to a scalar.

    Raises:
        ValueError: for another kind.
    """
    if kind == "non-saturating":
        return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
    if kind == "hinge":
        return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()
    raise unknown_kind(kind, "'non-saturating' or 'hinge'")


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real_images: Tensor, weight: float = 10.0) -> Tensor:
    """Gradient penalty on real images (Mescheder et al. 2018), as the official code weighs it.

    weight * mean over the batch of sum over pixels of (d logit / d pixel)^2, without the paper's factor 1/2. The result
    can be differentiated again, so call it with gradients on.

    Args:
        discriminator: images [B, C, H, W] to logits [B, ...], each image on its own.
        real_images: [B, C, H, W].
        weight: official 10.

    Returns:
        Scalar.
    """
    images = real_images.detach().requires_grad_(True)
    logits = discriminator(images)
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return weight * gradient.float().square().flatten(1).sum(dim=1).mean()


class LeCam(nn.Module):
    """Regulariser against a discriminator that memorises (Tseng et al. 2021, "Regularizing GANs under limited data").

    mean relu(D(real) - ema_fake)^2 + mean relu(ema_real - D(fake))^2, where the two running means start at 0 and are
    buffers, so a resumed run goes on where it stopped. On several processes they are means over the whole batch.

    Args:
        decay: of the running means, in [0, 1).
    """

    ema_real: Tensor
    ema_fake: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay: got {decay}, expected 0 <= decay < 1")
        self.decay = decay
        self.register_buffer("ema_real", torch.zeros(()))
        self.register_buffer("ema_fake", torch.zeros(()))

    @torch.no_grad()
    def update(self, real_logits: Tensor, fake_logits: Tensor) -> None:
        """Move the running means towards these logits' means; logits of any shape."""
        self.ema_real.lerp_(mean_over_processes(real_logits.float().mean()), 1 - self.decay)
        self.ema_fake.lerp_(mean_over_processes(fake_logits.float().mean()), 1 - self.decay)

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The penalty against the running means as they stand, scalar; nothing is updated. Logits of any shape."""
        real = F.relu(real_logits - self.ema_fake).square().mean()
        fake = F.relu(self.ema_real - fake_logits).square().mean()
        return real + fake
