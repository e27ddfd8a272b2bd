"""ResNet-50 as a judge of pictures: the perceptual term of MaskGIT and MAGVIT.

MaskGIT compares the pooled features of an ImageNet ResNet-50, MAGVIT its logits on every frame (both mean squared errors).
Neither released its network; torchvision's is of the same kind and size, not the same weights.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.tokenizers.training.losses.image import Perceptual, l2_loss

__all__ = ["PerceptualKind", "ResNetPerceptual", "build_perceptual"]

PerceptualKind = Literal["vgg", "alex", "squeeze", "resnet50", "resnet50-logits"]

_SIDE = 224

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ResNetPerceptual(nn.Module):
    """Mean squared difference of ResNet-50 outputs; frozen, always in eval mode.

    Images are brought to 224 x 224 (bilinear, without antialiasing) and normalised as torchvision's weights want it.

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

    def train(self, mode: bool = True) -> ResNetPerceptual:
        """Stay in eval mode: batch norms must keep their statistics.

        Args:
            mode: ignored.

        Returns:
            Itself.
        """
        return super().train(False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Distance of two batches.

        Args:
            prediction: float [B, 3, H, W] in [0, 1].
            target: same shape and range.

        Returns:
            Scalar.

        Raises:
            ValueError: when the shapes differ.
        """
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction and target: got shapes {tuple(prediction.shape)} and {tuple(target.shape)}, expected equal ones"
            )
        with torch.no_grad():
            wanted = self._outputs(target)
        return l2_loss(self._outputs(prediction), wanted)

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


def _load_resnet(pretrained: bool) -> Any:
    from torchvision import models

    network = models.resnet50(weights=None)
    if not pretrained:
        return network
    url = models.ResNet50_Weights.IMAGENET1K_V1.url
    try:
        network.load_state_dict(torch.hub.load_state_dict_from_url(url, progress=False, weights_only=True))
    except OSError as error:  # URLError, timeouts and refused connections are all OSErrors
        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
        raise ConnectionError(
            f"cannot download the ResNet-50 weights of the perceptual loss: put {path.name} into {path.parent}, "
            "or choose perceptual=None"
        ) from error
    return network
