"""A small convolutional classifier: features where there is no published network, and what CAS trains.

Shapes: B batch, H W pixels, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.checkpoint import load_module
from maskgen.precision import fast_matmul
from maskgen.tasks.evaluation.features.base import FeatureBatch, FeatureExtractor, weights_digest
from maskgen.tokenizers.image.base import check_images

__all__ = ["Classifier", "ClassifierConfig", "ClassifierFeatures", "predict"]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Sizes of a ``Classifier``.

    Attributes:
        num_classes: C; 0 takes that of the data it is trained on.
        size: (H, W) of the images; (0, 0) takes that of the data.
        patch: stride of the first convolution; 1 sees more of tiny images, 2 is four times as fast.
        width: channels of the first level.
        multipliers: channels of each level as multiples of ``width``; each level but the first halves the image.
        blocks: residual blocks of a level.
        groups: of the group norms, dividing every level's channels. No batch norm: its averages would leak from one example
            to another, and into the averaged weights.
        dropout: before the last layer.
    """

    num_classes: int = 0
    size: tuple[int, int] = (0, 0)
    patch: int = 2
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2
    groups: int = 8
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if (
            self.num_classes < 0
            or min(self.patch, self.width) < 1
            or not self.multipliers
            or self.blocks < 1
            or not 0 <= self.dropout < 1
        ):
            raise ValueError(
                f"classifier: got num_classes {self.num_classes}, patch {self.patch}, width {self.width}, multipliers "
                f"{self.multipliers}, blocks {self.blocks}, dropout {self.dropout}; expected positive sizes and a "
                "dropout in [0, 1)"
            )
        wrong = [self.width * by for by in self.multipliers if self.groups < 1 or (self.width * by) % self.groups]
        if wrong:
            raise ValueError(f"groups: got {self.groups}, expected a divisor of the levels' channels {wrong}")


class Classifier(nn.Module):
    """Residual convolutions, a mean over the image, a linear layer.

    Args:
        config: complete sizes.

    Raises:
        ValueError: no classes, or a size left open.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        if config.num_classes < 1 or min(config.size) < 1:
            raise ValueError(
                f"classifier: got {config.num_classes} classes of images {config.size}, expected 1 or more and a size"
            )
        self.config = config
        widths = [config.width * by for by in config.multipliers]
        self.stem = nn.Conv2d(3, widths[0], 2 * config.patch + 1, config.patch, padding=config.patch)
        layers: list[nn.Module] = []
        for level, width in enumerate(widths):
            for number in range(config.blocks):
                first = number == 0
                channels = widths[max(0, level - 1)] if first else width
                layers.append(_Block(channels, width, config.groups, stride=2 if first and level else 1))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.GroupNorm(config.groups, widths[-1])
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(widths[-1], config.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [0, 1] to ``[B, F]``."""
        check_images(images)
        hidden = self.norm(self.layers(self.stem(images * 2 - 1)))
        return F.silu(hidden).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, C]`` of images ``[B, 3, H, W]`` in [0, 1]."""
        logits: Tensor = self.head(self.dropout(self.features(images)))
        return logits


class ClassifierFeatures(FeatureExtractor):
    """Features and logits of a classifier made by ``maskgen train classifier``.

    Args:
        folder: of its run.

    Raises:
        FileNotFoundError, ValueError: no classifier there.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"features.folder: got {folder}, which holds no classifier (no config.json); make one with `maskgen train "
                "classifier`"
            )
        self._network = load_module(folder, Classifier).requires_grad_(False)
        config = self._network.config
        self.input_size = (config.size[0], config.size[1])
        self.name = f"classifier-{config.num_classes}-{config.size[0]}x{config.size[1]}"
        self._digest = weights_digest(self._network)

    def identity(self) -> str:
        """The name and a hash of the weights."""
        return f"{self.name}-{self._digest}"

    @torch.no_grad()
    def embed(self, batch: Tensor) -> FeatureBatch:
        """See ``FeatureExtractor``."""
        features = self._network.features(batch)
        return FeatureBatch(features, self._network.head(features))

    def to(self, device: torch.device | str) -> FeatureExtractor:
        """Move the network."""
        self._network.to(device)
        return self


@torch.no_grad()
def predict(network: nn.Module, images: Tensor | Iterable[Tensor], device: torch.device | str = "cpu") -> Tensor:
    """Most likely class of each image, long ``[M]``.

    Args:
        network: gives logits.
        images: float ``[M, 3, H, W]`` in [0, 1], or batches of them.
        device: where the network is.
    """
    parts = images.split(256) if isinstance(images, Tensor) else images
    with fast_matmul(device):
        return torch.cat([network(part.to(device)).argmax(1).cpu() for part in parts])


class _Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int, width: int, groups: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, channels), nn.Conv2d(channels, width, 3, stride, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, width), nn.Conv2d(width, width, 3, padding=1)
        plain = channels == width and stride == 1
        self.shortcut = nn.Identity() if plain else nn.Conv2d(channels, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.shortcut(x) + hidden
