"""Networks that compare pictures: the perceptual term of a stage 1.

MaskGIT compares the pooled features of an ImageNet ResNet-50, MAGVIT its logits on every frame (both mean squared errors).
Neither released its network; torchvision's is of the same kind and size, not the same weights. LPIPS is what the field uses
instead.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.tokenizers.training.losses.image import check_pair, l2_loss

PerceptualNet = Literal["vgg", "alex", "squeeze"]

PerceptualKind = Literal["vgg", "alex", "squeeze", "resnet50", "resnet50-logits"]

# Torchvision's file of each backbone: what `lpips` asks the hub for.
_BACKBONES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}

_SIDE = 224

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Frozen(nn.Module):
    """A network that is never trained."""

    def train(self, mode: bool = True) -> _Frozen:
        """Stay in eval mode: dropout would make the distance random, and batch norms must keep their statistics."""
        return super().train(False)


class Perceptual(_Frozen):
    """LPIPS distance (Zhang et al. 2018) through the `lpips` package; frozen, always in eval mode.

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

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean distance of two batches.

        Args:
            prediction: float [B, 3, H, W] in [0, 1]; "vgg" needs sides of 16 or more, "alex" of 63, "squeeze" of 17.
            target: same shape and range.

        Raises:
            ValueError: when the shapes differ.
        """
        check_pair(prediction, target)
        distance: Tensor = self.lpips(prediction * 2 - 1, target * 2 - 1)
        return distance.mean()


class ResNetPerceptual(_Frozen):
    """Mean squared difference of ResNet-50 outputs; frozen, always in eval mode.

    Images are brought to 224 x 224 (bilinear, without antialiasing) and normalised as torchvision's weights need it.

    Args:
        logits: compare the 1000 logits (MAGVIT) instead of the 2048 pooled features (MaskGIT).
        pretrained: False gives random weights, for tests without a network.

    Raises:
        ConnectionError: when the weights are neither on disk nor can be downloaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, logits: bool = False, pretrained: bool = True) -> None:
        super().__init__()
        self.network = _load_resnet(pretrained)
        if not logits:
            self.network.fc = nn.Identity()
        self.requires_grad_(False).eval()
        for name, values in (("mean", _MEAN), ("std", _STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Distance of two batches; see ``Perceptual``."""
        check_pair(prediction, target)
        with torch.no_grad():
            expected = self._outputs(target)
        return l2_loss(self._outputs(prediction), expected)

    def _outputs(self, images: Tensor) -> Tensor:
        if images.shape[2:] != (_SIDE, _SIDE):
            images = F.interpolate(images, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
        outputs: Tensor = self.network((images - self.mean) / self.std)
        return outputs


def build_perceptual(kind: PerceptualKind, *, pretrained: bool = True) -> nn.Module:
    """A perceptual distance by name, called as ``distance(prediction, target)`` on float [B, 3, H, W] in [0, 1].

    Args:
        kind: ``vgg``, ``alex`` or ``squeeze`` for LPIPS; ``resnet50`` or ``resnet50-logits``.
        pretrained: False gives random weights, for tests without a network.

    Raises:
        ImportError: LPIPS without its package.
        ConnectionError: weights that are neither on disk nor can be downloaded.
        ValueError: another name.
    """
    if kind not in get_args(PerceptualKind):
        raise ValueError(f"perceptual: got {kind!r}, expected one of {', '.join(get_args(PerceptualKind))}, or null")
    if kind in ("resnet50", "resnet50-logits"):
        return ResNetPerceptual(logits=kind == "resnet50-logits", pretrained=pretrained)
    return Perceptual(kind, pretrained=pretrained)  # type: ignore[arg-type]


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
        raise _unreachable(net, _BACKBONES[net]) from error


def _load_resnet(pretrained: bool) -> Any:
    from torchvision import models

    network = models.resnet50(weights=None)
    if not pretrained:
        return network
    url = models.ResNet50_Weights.IMAGENET1K_V1.url
    try:
        network.load_state_dict(torch.hub.load_state_dict_from_url(url, progress=False, weights_only=True))
    except OSError as error:
        raise _unreachable("ResNet-50", url.rsplit("/", 1)[1]) from error
    return network


def _unreachable(net: str, file: str) -> ConnectionError:
    return ConnectionError(
        f"cannot download the {net} weights of the perceptual loss: put {file} into "
        f"{Path(torch.hub.get_dir()) / 'checkpoints'}, or choose perceptual=None"
    )
