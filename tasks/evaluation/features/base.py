"""What turns samples into feature vectors: the contract, and extractors that need no downloaded network.

The distances of ``metrics_frechet`` and ``metrics_manifold`` mean what their features mean, so every report names the
extractor. See also ``features_inception`` (images), ``i3d`` (video) and ``classifier`` (your own network).

Shapes: B batch, M feature vectors, F features, C classes, H W pixels, T frames, S samples.
"""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.checkpoint import check_state
from maskgen.tasks.data.base import Modality
from maskgen.tasks.media.audio.features import mel_filters
from maskgen.weights.files import read_weights


@dataclasses.dataclass(frozen=True)
class FeatureBatch:
    """What an extractor says about some samples.

    Attributes:
        features: float ``[M, F]``; for images and video M = B, sound may give several vectors a sample.
        logits: ``[B, C]`` of a classifier, which the Inception score needs; None from other networks.
    """

    features: Tensor
    logits: Tensor | None = None


class FeatureExtractor(ABC):
    """Samples in, feature vectors out.

    Attributes:
        modality: "image", "video" or "audio".
        name: how reports call it.
        input_size: (H, W) that images are resized to by the rule of the protocol; None leaves them as they are.
        sample_rate: that sound is resampled to; None for other modalities.
        any_size: whether a set may hold images of several sizes, because the extractor resizes by itself.
    """

    modality: Modality = "image"
    name: str
    any_size: bool = False
    input_size: tuple[int, int] | None = None
    sample_rate: int | None = None

    @abstractmethod
    def identity(self) -> str:
        """The name and a hash of everything that decides the features: statistics of another are no reference."""

    @abstractmethod
    def embed(self, batch: Tensor) -> FeatureBatch:
        """Features of some samples.

        Args:
            batch: images float ``[B, 3, H, W]`` in [0, 1], clips float ``[B, 3, T, H, W]`` in [0, 1], or sounds float
                ``[B, 1, S]``, on the device given to ``to``.
        """

    def to(self, device: torch.device | str) -> FeatureExtractor:
        """Move to a device; returns itself. Extractors without weights have nothing to move."""
        return self


class JointFeatures(FeatureExtractor):
    """Pictures and texts as unit vectors of one space: how well a picture shows its caption is their cosine.

    Attributes:
        score: what the mean cosine is called in a report; "" where it means nothing beyond this very extractor.
        precision: what R-precision is called.
    """

    any_size = True
    score: str = ""
    precision: str

    @abstractmethod
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors ``[B, F]`` of B texts, on the device given to ``to``."""

    @abstractmethod
    def cut(self, texts: Sequence[str]) -> int:
        """How many of some texts are longer than the window, so that their ends are not seen."""


def weights_digest(module: nn.Module) -> str:
    """16 hex digits of a hash of a module's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class ModuleFeatures(FeatureExtractor):
    """Any network: ``[B, ...]`` in, one vector for each sample out.

    Args:
        module: called on a batch; gives features, flattened to ``[B, F]``, or a pair of features and logits ``[B, C]``.
        weights: file of its weights (safetensors, or a state dict of ``torch.save``); None takes the module as it is.
        modality: what it is for.
        input_size: see ``FeatureExtractor``.
        sample_rate: see ``FeatureExtractor``; needed for sound.
        mean: subtracted from each channel of images and video.
        std: what each channel is divided by.

    Raises:
        FileNotFoundError, ValueError: weights that are not there or do not fit, sound without a rate.
    """

    def __init__(
        self,
        module: nn.Module,
        weights: Path | None = None,
        modality: Modality = "image",
        input_size: tuple[int, int] | None = None,
        sample_rate: int | None = None,
        mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
        std: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ) -> None:
        if (modality == "audio") != (sample_rate is not None) or min(std) <= 0:
            raise ValueError(
                f"ModuleFeatures: got modality {modality!r}, sample_rate {sample_rate}, std {std}; expected a sample rate "
                "for audio and for nothing else, and std above 0"
            )
        self.modality, self.input_size, self.sample_rate = modality, input_size, sample_rate
        self.name = type(module).__name__
        if weights is not None:
            found = read_weights(weights)
            check_state(found, {key: tensor.shape for key, tensor in module.state_dict().items()}, str(weights))
            module.load_state_dict(found)
        self._module = module.eval().requires_grad_(False)
        shape = {"image": (1, 3, 1, 1), "video": (1, 3, 1, 1, 1), "audio": (1, 1, 1)}[modality]
        scale = (mean, std) if modality != "audio" else ((0.0,), (1.0,))
        self._mean, self._std = (torch.tensor(values).view(shape) for values in scale)

    def identity(self) -> str:
        """Class, scaling and weights."""
        scale = f"{self._mean.flatten().tolist()} {self._std.flatten().tolist()} {self.input_size} {self.sample_rate}"
        settings = hashlib.sha256(f"{self._module!r} {scale}".encode()).hexdigest()[:8]
        return f"{type(self._module).__module__}.{self.name}-{settings}-{weights_digest(self._module)}"

    @torch.no_grad()
    def embed(self, batch: Tensor) -> FeatureBatch:
        """See ``FeatureExtractor``.

        Raises:
            TypeError: the module returns neither.
        """
        found = self._module((batch - self._mean) / self._std)
        parts = found if isinstance(found, tuple) else (found,)
        if len(parts) > 2 or not all(isinstance(part, Tensor) for part in parts):
            raise TypeError(
                f"{self.name}: returned {type(found).__name__}, expected a tensor of features, or a pair of features and "
                "logits; wrap the module in one that picks them"
            )
        return FeatureBatch(parts[0].flatten(1), parts[1].flatten(1) if len(parts) == 2 else None)

    def to(self, device: torch.device | str) -> FeatureExtractor:
        """Move the module."""
        self._module.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self


class PixelFeatures(FeatureExtractor):
    """Pictures averaged down to a few pixels: for small data such as digits, and where no network can be had.

    Args:
        side: pixels along each axis.
        colour: three numbers a pixel instead of one.
    """

    def __init__(self, side: int = 8, colour: bool = False) -> None:
        if side < 1:
            raise ValueError(f"side: got {side}, expected at least 1 pixel")
        self.side, self.colour = side, colour
        self.name = f"pixels-{side}x{side}-{'colour' if colour else 'grey'}"

    def identity(self) -> str:
        """The name says it all."""
        return self.name

    @torch.no_grad()
    def embed(self, batch: Tensor) -> FeatureBatch:
        """See ``FeatureExtractor``."""
        shown = batch if self.colour else batch.mean(1, keepdim=True)
        return FeatureBatch(F.adaptive_avg_pool2d(shown, self.side).flatten(1))


class LogMelFeatures(FeatureExtractor):
    """Sound by its log-mel spectrogram: mean and standard deviation over time of each band, in dB, one vector a window.

    An embedding that anyone can compute, for Frechet audio distances that are compared with each other; numbers on VGGish
    or another trained network (Kilgour et al. 2019, arXiv 1812.08466) are no numbers on this one.

    Args:
        sample_rate: that all sound is resampled to.
        bands: mel bands.
        window: seconds of sound that make a vector; 0.96 is VGGish's. The last one may be shorter, down to a half.
    """

    modality: Modality = "audio"

    def __init__(self, sample_rate: int = 16_000, bands: int = 64, window: float = 0.96) -> None:
        if sample_rate < 1000 or bands < 1 or not 0.05 <= window < 60:
            raise ValueError(
                f"LogMelFeatures: got {sample_rate} Hz, {bands} bands, windows of {window} s; expected 1,000 Hz or more, at "
                "least one band and windows of 0.05 to 60 s"
            )
        self.sample_rate, self.bands, self.window = sample_rate, bands, window
        self.name = f"log-mel-{bands}-moments-{sample_rate}-{window:g}s"
        self._samples = round(window * sample_rate)
        # About 25 ms, a power of two, with a hop of 10 ms: what speech and VGGish take.
        self._size = 1 << (round(0.025 * sample_rate) - 1).bit_length()
        self._hop = max(1, round(0.01 * sample_rate))
        self._filters = mel_filters(sample_rate, self._size, bands)
        self._hann = torch.hann_window(self._size)

    def identity(self) -> str:
        """The name says it all."""
        return self.name

    @torch.no_grad()
    def embed(self, batch: Tensor) -> FeatureBatch:
        """See ``FeatureExtractor``; the vectors of a sample come one after the other."""
        parts = list(batch[:, 0].split(self._samples, dim=1))
        if len(parts) > 1 and parts[-1].shape[1] < self._samples // 2:
            parts.pop()
        found = torch.stack([self._moments(part) for part in parts], dim=1)
        return FeatureBatch(found.flatten(0, 1))

    def to(self, device: torch.device | str) -> FeatureExtractor:
        """Move the filters."""
        self._filters, self._hann = self._filters.to(device), self._hann.to(device)
        return self

    def _moments(self, sound: Tensor) -> Tensor:
        """``[B, S]`` to ``[B, 2 bands]``."""
        padded = F.pad(sound, (self._size // 2, self._size // 2))
        spectrum = torch.stft(padded, self._size, self._hop, window=self._hann, center=False, return_complex=True)
        levels = self._filters @ (spectrum.abs() * (2 / float(self._hann.sum())))
        decibels = 20 * levels.clamp(min=1e-4).log10()
        return torch.cat((decibels.mean(2), decibels.std(2, correction=0)), dim=1)


def pixel_features(images: Tensor, side: int = 8) -> NDArray[np.float64]:
    """Grey images averaged down to ``side`` x ``side`` and flattened.

    Args:
        images: float ``[M, 3, H, W]`` in [0, 1].
        side: pixels along each axis.

    Returns:
        ``[M, side * side]`` in [0, 1].
    """
    small: NDArray[np.float64] = PixelFeatures(side).embed(images).features.double().numpy()
    return small


def centred_features(frames: Tensor, side: int) -> NDArray[np.float64]:
    """The square around what is lit, wherever that lies, at half the resolution: for things that move over black.

    Args:
        frames: float ``[M, 3, H, W]`` in [0, 1].
        side: pixels of the square; its middle is the centre of the light.

    Returns:
        ``[M, (side // 2) ** 2]`` in [0, 1].
    """
    grey = frames.mean(1).clamp(0, 1)
    grey = torch.where(grey > 0.1, grey, 0.0)  # a faint glow anywhere would pull the centre
    total = grey.sum((1, 2)).clamp(min=1e-6)
    grids = []
    for axis in (2, 1):  # x comes first where grids are sampled
        size = grey.shape[axis]
        places = (torch.arange(size) + 0.5) / size * 2 - 1
        centre = (grey.sum(3 - axis) * places).sum(1) / total
        grids.append(centre[:, None] + (torch.arange(side) + 0.5) / size * 2 - side / size)
    across, down = grids
    grid = torch.stack((across[:, None].expand(-1, side, -1), down[:, :, None].expand(-1, -1, side)), dim=-1)
    cut = F.grid_sample(grey[:, None], grid, align_corners=False, padding_mode="zeros")
    found: NDArray[np.float64] = F.avg_pool2d(cut, 2).flatten(1).double().numpy()
    return found
