"""Stage-1 losses: pure functions of tensors, and two small modules where a loss has state or weights.

Shapes: B batch, M rows, V codes, C H W image axes.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.tokenizers.quantizers.entropy import _unknown
from maskgen.training.distributed.whole_batch import mean_over_processes

__all__ = [
    "GANKind",
    "LeCam",
    "Perceptual",
    "PerceptualNet",
    "discriminator_loss",
    "generator_loss",
    "l1_loss",
    "l2_loss",
    "r1_penalty",
]

GANKind = Literal["non-saturating", "hinge"]

PerceptualNet = Literal["vgg", "alex", "squeeze"]


# Torchvision's file of each backbone: what `lpips` asks the hub for.
_BACKBONES = {
    "vgg": "vgg16-397923af.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}


def _check_pair(first: Tensor, second: Tensor, names: str) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"{names}: got shapes {tuple(first.shape)} and {tuple(second.shape)}, expected equal ones; "
            "broadcasting would change the mean"
        )


def l1_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference.

    Args:
        prediction: any shape.
        target: same shape.

    Returns:
        Scalar.

    Raises:
        ValueError: when the shapes differ.
    """
    _check_pair(prediction, target, "prediction and target")
    return (prediction - target).abs().mean()


def l2_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference.

    Args:
        prediction: any shape.
        target: same shape.

    Returns:
        Scalar.

    Raises:
        ValueError: when the shapes differ.
    """
    _check_pair(prediction, target, "prediction and target")
    return (prediction - target).square().mean()


def generator_loss(fake_logits: Tensor, kind: GANKind) -> Tensor:
    """What the generator pays for being found out.

    "non-saturating": mean softplus(-D(fake)) (Goodfellow et al. 2014); "hinge": -mean D(fake) (Lim & Ye 2017).

    Args:
        fake_logits: discriminator logits of generated images, any shape.
        kind: form of the loss.

    Returns:
        Scalar.

    Raises:
        ValueError: for another kind.
    """
    if kind == "non-saturating":
        return F.softplus(-fake_logits).mean()
    if kind == "hinge":
        return -fake_logits.mean()
    raise _unknown(kind, "'non-saturating' or 'hinge'")


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, kind: GANKind) -> Tensor:
    """What the discriminator pays for its mistakes.

    "non-saturating": mean softplus(-D(real)) + mean softplus(D(fake)); "hinge": mean relu(1 - D(real)) +
    mean relu(1 + D(fake)). Neither is halved.

    Args:
        real_logits: logits of real images, any shape.
        fake_logits: logits of generated images, any shape.
        kind: form of the loss.

    Returns:
        Scalar.

    Raises:
        ValueError: for another kind.
    """
    if kind == "non-saturating":
        return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
    if kind == "hinge":
        return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()
    raise _unknown(kind, "'non-saturating' or 'hinge'")


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
        """Move the running means towards these logits' means.

        Args:
            real_logits: logits of real images, any shape.
            fake_logits: logits of generated images, any shape.
        """
        self.ema_real.lerp_(mean_over_processes(real_logits.float().mean()), 1 - self.decay)
        self.ema_fake.lerp_(mean_over_processes(fake_logits.float().mean()), 1 - self.decay)

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The penalty against the running means as they stand; nothing is updated.

        Args:
            real_logits: logits of real images, any shape.
            fake_logits: logits of generated images, any shape.

        Returns:
            Scalar.
        """
        real = F.relu(real_logits - self.ema_fake).square().mean()
        fake = F.relu(self.ema_real - fake_logits).square().mean()
        return real + fake


class Perceptual(nn.Module):
    """LPIPS distance (Zhang et al. 2018) through the `lpips` package; frozen, always in eval mode.

    The official MaskGIT used ResNet-50 features (see ``perceptual_resnet``); LPIPS is what the field uses instead.

    Args:
        net: backbone: "vgg" (usual for training), "alex" or "squeeze".
        pretrained: False gives random weights, for tests without a network.

    Raises:
        ImportError: when `lpips` is not installed.
        ConnectionError: when the backbone's weights are neither on disk nor can be downloaded.
        ValueError: for another backbone.
    """

    def __init__(self, net: PerceptualNet = "vgg", *, pretrained: bool = True) -> None:
        super().__init__()
        if net not in _BACKBONES:
            raise ValueError(f"net: got {net!r}, expected one of {sorted(_BACKBONES)}")
        self.lpips = _load_lpips(net, pretrained).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Perceptual":
        """Stay in eval mode: its dropout would make the distance random.

        Args:
            mode: ignored.

        Returns:
            Itself.
        """
        return super().train(False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean distance of two batches.

        Args:
            prediction: float [B, 3, H, W] in [0, 1]; "vgg" needs sides of 16 or more, "alex" of 63, "squeeze" of 17.
            target: same shape and range.

        Returns:
            Scalar.

        Raises:
            ValueError: when the shapes differ.
        """
        _check_pair(prediction, target, "prediction and target")
        distance: Tensor = self.lpips(prediction * 2 - 1, target * 2 - 1)
        return distance.mean()


def _load_lpips(net: str, pretrained: bool) -> Any:
    try:
        import lpips
    except ImportError as error:
        raise ImportError('the perceptual loss needs lpips: pip install "maskgen[train]"') from error
    try:
        with warnings.catch_warnings():
            # lpips 0.1.4 calls torchvision with the old `pretrained=` argument, which warns on every construction.
            warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
            return lpips.LPIPS(net=net, pretrained=pretrained, pnet_rand=not pretrained, verbose=False)
    except OSError as error:  # URLError, timeouts and refused connections are all OSErrors
        path = Path(torch.hub.get_dir()) / "checkpoints" / _BACKBONES[net]
        raise ConnectionError(
            f"cannot download the {net} weights of the perceptual loss: put {path.name} into {path.parent}, "
            "or choose perceptual=None"
        ) from error
