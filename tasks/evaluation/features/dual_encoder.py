"""A small dual encoder of pictures and captions, trained on real pairs where no CLIP can be had.

Shapes: B batch, P width of the text encoder's pooled vector, F features, H W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.checkpoint import load_module, read_json
from maskgen.tasks.conditions.text.pretrained import PretrainedText, PretrainedTextConfig
from maskgen.tasks.evaluation.features.base import FeatureBatch, FeatureExtractor, JointFeatures, weights_digest
from maskgen.tasks.evaluation.features.classifier import Classifier, ClassifierConfig
from maskgen.tasks.evaluation.features.clip import ClipFeatures

_TEXTS = 64  # at a time

_FIRST_SCALE = 10.0  # of the cosines, learned from there; CLIP begins with 1 / 0.07


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig:
    """Sizes of a dual encoder.

    Attributes:
        pictures: of the network for pictures; its classes are the features.
        text: the frozen text encoder, with a pooled vector; by its folder or name; set by the training.
        text_identity: of the encoder it was trained with; set by the training.
        text_width: P; set by the training.
        width: F.
        hidden: width of the network on top of the text encoder.
    """

    pictures: ClassifierConfig = field(default_factory=lambda: ClassifierConfig(dropout=0.0))
    text: PretrainedTextConfig | None = None
    text_identity: str = ""
    text_width: int = 0
    width: int = 128
    hidden: int = 256

    def __post_init__(self) -> None:
        if min(self.width, self.hidden) < 1:
            raise ValueError(f"dual_encoder: got width {self.width}, hidden {self.hidden}; expected at least 1")


class DualEncoder(nn.Module):
    """Two networks that meet in one space: convolutions for pictures, two layers on a frozen text encoder's vector.

    Args:
        config: complete sizes.

    Raises:
        ValueError: sizes left open.
    """

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__()
        if config.text is None or config.text_width < 1:
            raise ValueError(
                "dual_encoder: got no text encoder, or no width of its pooled vector; expected the config of a trained one"
            )
        self.config = config
        self.pictures = Classifier(dataclasses.replace(config.pictures, num_classes=config.width))
        self.texts = nn.Sequential(
            nn.LayerNorm(config.text_width),
            nn.Linear(config.text_width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.width),
        )
        self.scale = nn.Parameter(torch.tensor(_FIRST_SCALE).log())

    def forward(self, images: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors ``[B, F]`` of images ``[B, 3, H, W]`` in [0, 1] and of texts ``[B, P]``, and the cosines' scale."""
        return F.normalize(self.pictures(images), dim=1), self.read(pooled), self.scale.exp().clamp(max=100)

    def read(self, pooled: Tensor) -> Tensor:
        """Unit vectors ``[B, F]`` of texts by their pooled vectors ``[B, P]``."""
        return F.normalize(self.texts(pooled), dim=1)


class DualEncoderFeatures(JointFeatures):
    """A dual encoder made by ``maskgen train dual-encoder``.

    Its cosines mean nothing to others; R-precision does, beside that of real pairs.

    Args:
        folder: of its run.

    Raises:
        FileNotFoundError, ValueError: no dual encoder there, or another text encoder than it was trained with.
    """

    precision = "dual_encoder_r_precision"

    def __init__(self, folder: Path) -> None:
        self._network = load_module(folder, DualEncoder).requires_grad_(False)
        config = self._network.config
        assert config.text is not None, "a dual encoder was built of it"
        self._encoder = PretrainedText(config.text)
        if self._encoder.identity() != config.text_identity:
            raise ValueError(
                f"dual_encoder: {folder} was trained with the text encoder {config.text_identity}, but "
                f"{config.text.source!r} is {self._encoder.identity()}; put that encoder back, or train anew"
            )
        height, width = config.pictures.size
        self.input_size, self.any_size = (height, width), False
        self.name = f"dual-encoder-{height}x{width}"
        self._digest = weights_digest(self._network)

    def identity(self) -> str:
        """The name, a hash of the weights, and the text encoder."""
        return f"{self.name}-{self._digest}-{self._encoder.identity()}"

    @torch.no_grad()
    def embed(self, batch: Tensor) -> FeatureBatch:
        """See ``FeatureExtractor``."""
        return FeatureBatch(F.normalize(self._network.pictures(batch), dim=1))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """See ``JointFeatures``."""
        return self._network.read(pooled_texts(self._encoder, texts))

    def cut(self, texts: Sequence[str]) -> int:
        """See ``JointFeatures``."""
        return sum(bool(self._encoder.cut(text)) for text in texts)

    def to(self, device: torch.device | str) -> FeatureExtractor:
        """Move both networks."""
        self._network.to(device)
        self._encoder.to(device)
        return self


def pooled_texts(encoder: PretrainedText, texts: Sequence[str]) -> Tensor:
    """A text encoder's pooled vectors ``[B, P]``, on its device."""
    found = []
    for first in range(0, len(texts), _TEXTS):
        pooled = encoder.encode(texts[first : first + _TEXTS]).pooled
        assert pooled is not None, "see train_dual_encoder"
        found.append(pooled)
    return torch.cat(found)


def open_dual_encoder(place: str) -> JointFeatures:
    """What compares pictures with captions: a folder of ``maskgen train dual-encoder``, or a CLIP by its folder or name.

    Raises:
        FileNotFoundError, ImportError, ValueError: see ``DualEncoderFeatures`` and ``ClipFeatures``.
    """
    config = Path(place).expanduser() / "config.json"
    if config.is_file() and "model_type" not in read_json(config):
        return DualEncoderFeatures(config.parent)
    return ClipFeatures(str(config.parent) if config.parent.is_dir() else place)
