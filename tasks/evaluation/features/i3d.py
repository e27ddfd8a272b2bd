"""I3D, the network behind the Frechet video distance (Carreira and Zisserman 2017, arXiv 1705.07750; FVD: arXiv 1812.01717).

Built to the parameter tree of MAGVIT's evaluation (Inception v1 inflated to 3D, trained on Kinetics-400, batch norms without
a gain). No weights are shipped or downloaded; three files are read, all with the same numbers in them:

* MAGVIT's own, flax msgpack (``i3d_k400.flax``), or the same tree as safetensors;
* the PyTorch conversion of DeepMind's weights (``rgb_imagenet.pt`` of pytorch-i3d).

Shapes: B batch, T frames, H W pixels; inside the network [B, channels, T, H, W].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.checkpoint import check_state
from maskgen.tasks.data.base import Modality
from maskgen.tasks.evaluation.features.base import FeatureBatch, FeatureExtractor, weights_digest
from maskgen.tasks.media.video.frames import resize_tf1
from maskgen.weights.files import read_weights

__all__ = ["I3D", "Branch", "I3DFeatures", "Unit3D", "i3d_state_dict", "official_shapes", "read_i3d"]

_EPSILON = 1e-3

_SIDE, _FEWEST_FRAMES, _AT_A_TIME = 224, 9, 8

_HEAD = "Logits.Conv3d_0c_1x1"


# Output channels of the six convolutions of each branched block; None is a pooling layer: kernel, then stride.
_Widths = tuple[int, int, int, int, int, int]

_BLOCKS: tuple[tuple[str, _Widths], ...] = (
    ("Mixed_3b", (64, 96, 128, 16, 32, 32)),
    ("Mixed_3c", (128, 128, 192, 32, 96, 64)),
    ("Mixed_4b", (192, 96, 208, 16, 48, 64)),
    ("Mixed_4c", (160, 112, 224, 24, 64, 64)),
    ("Mixed_4d", (128, 128, 256, 24, 64, 64)),
    ("Mixed_4e", (112, 144, 288, 32, 64, 64)),
    ("Mixed_4f", (256, 160, 320, 32, 128, 128)),
    ("Mixed_5b", (256, 160, 320, 32, 128, 128)),
    ("Mixed_5c", (384, 192, 384, 48, 128, 128)),
)

_POOLS = {  # before the module of that name: kernel and stride
    "Conv3d_2b_1x1": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}


# pytorch-i3d calls the convolutions of a branched block so, in our order.
_PYTORCH_UNITS = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")

_UNITS = (
    *("Branch_0.Conv3d_0a_1x1", "Branch_1.Conv3d_0a_1x1", "Branch_1.Conv3d_0b_3x3"),
    *("Branch_2.Conv3d_0a_1x1", "Branch_2.Conv3d_0b_3x3", "Branch_3.Conv3d_0b_1x1"),
)


class Unit3D(nn.Module):
    """Convolution with TensorFlow's "same" padding, batch norm without a gain, ReLU; or a convolution with bias alone.

    Args:
        channels: of the input.
        width: output channels.
        kernel: side of the cubic kernel.
        stride: along each axis.
        norm: batch norm and ReLU instead of a bias.
    """

    def __init__(self, channels: int, width: int, kernel: int = 1, stride: int = 1, *, norm: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(
            torch.randn(width, channels, kernel, kernel, kernel) * (channels * kernel**3) ** -0.5
        )
        self.norm = norm
        # With a norm: beta, and the statistics it was trained with. Without: the bias.
        self.bias = nn.Parameter(torch.zeros(width))
        if norm:
            self.mean, self.variance = nn.Buffer(torch.zeros(width)), nn.Buffer(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, T, H, W]`` to ``[B, width, T / stride, ...]``, rounded up."""
        kernel = self.weight.shape[2]
        x = F.conv3d(_same(x, (kernel,) * 3, (self.stride,) * 3), self.weight, stride=self.stride)
        shape = (1, -1, 1, 1, 1)
        if not self.norm:
            return x + self.bias.view(shape)
        scale = torch.rsqrt(self.variance + _EPSILON)
        return F.relu((x - self.mean.view(shape)) * scale.view(shape) + self.bias.view(shape))


class Branch(nn.Module):
    """Four ways through a block, put side by side: 1, 1 then 3, 1 then 3, and the largest of 3 then 1.

    Args:
        channels: of the input.
        widths: output channels of the six convolutions in this order.
    """

    def __init__(self, channels: int, widths: _Widths) -> None:
        super().__init__()
        inputs = (channels, channels, widths[1], channels, widths[3], channels)
        kernels = (1, 1, 3, 1, 3, 1)
        self.units = nn.ModuleList(map(Unit3D, inputs, widths, kernels))
        self.width = widths[0] + widths[2] + widths[4] + widths[5]

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, T, H, W]`` to ``[B, width, T, H, W]``."""
        one, two_a, two_b, three_a, three_b, four = self.units
        pooled = _max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat((one(x), two_b(two_a(x)), three_b(three_a(x)), four(pooled)), dim=1)


class I3D(nn.Module):
    """The whole network.

    Args:
        classes: 400 of Kinetics-400.
    """

    def __init__(self, classes: int = 400) -> None:
        super().__init__()
        stem = {
            "Conv3d_1a_7x7": Unit3D(3, 64, 7, 2),
            "Conv3d_2b_1x1": Unit3D(64, 64),
            "Conv3d_2c_3x3": Unit3D(64, 192, 3),
        }
        layers: dict[str, nn.Module] = dict(stem)
        channels = 192
        for name, widths in _BLOCKS:
            block = Branch(channels, widths)
            layers[name], channels = block, block.width
        self.layers = nn.ModuleDict(layers)
        self.head = Unit3D(channels, classes, norm=False)

    def forward(self, video: Tensor) -> Tensor:
        """Mean logits over time, ``[B, classes]``; the features of FVD.

        Args:
            video: float ``[B, 3, T, 224, 224]`` in [-1, 1], 9 frames or more.

        Raises:
            ValueError: another shape, or fewer frames.
        """
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] < _FEWEST_FRAMES or min(video.shape[3:]) < _SIDE:
            raise ValueError(
                f"I3D: got shape {tuple(video.shape)}, expected [B, 3, T, {_SIDE}, {_SIDE}] with {_FEWEST_FRAMES} frames or "
                "more"
            )
        x = video
        for name, layer in self.layers.items():
            if name in _POOLS:
                x = _max_pool(x, *_POOLS[name])
            x = layer(x)
        logits: Tensor = self.head(F.avg_pool3d(x, (2, 7, 7), stride=1))
        return logits.mean((2, 3, 4))


class I3DFeatures(FeatureExtractor):
    """Features of the Frechet video distance: frames resized as TensorFlow 1 does it, mean logits of I3D.

    Args:
        weights: see the head of this file.
        first_size: (H, W) that frames are resized to first: (64, 64) in MAGVIT's offline tool and in its numbers on
            Kinetics-600; None goes from the clip's own size to 224 x 224 at once, as its training does.

    Raises:
        FileNotFoundError, ValueError: no such file, or other weights.
    """

    modality: Modality = "video"

    def __init__(self, weights: Path, first_size: tuple[int, int] | None = None) -> None:
        if first_size is not None and min(first_size) < 1:
            raise ValueError(f"first_size: got {first_size}, expected (height, width) of at least 1 pixel, or none")
        self.first_size = first_size
        self.name = "i3d-kinetics-400" + ("" if first_size is None else f"-through-{first_size[0]}x{first_size[1]}")
        self._network = read_i3d(weights).eval().requires_grad_(False)
        self._digest = weights_digest(self._network)

    def identity(self) -> str:
        """The name and a hash of the weights."""
        return f"{self.name}-{self._digest}"

    @torch.no_grad()
    def embed(self, batch: Tensor) -> FeatureBatch:
        """See ``FeatureExtractor``."""
        if self.first_size is not None:
            batch = resize_tf1(batch, self.first_size)
        # A clip of 16 frames takes 0.1 GB in the first layers, so few at a time.
        parts = batch.split(_AT_A_TIME)
        logits = torch.cat([self._network(resize_tf1(part, (_SIDE, _SIDE)) * 2 - 1) for part in parts])
        return FeatureBatch(logits)  # no Inception score: that of video is defined on C3D

    def to(self, device: torch.device | str) -> FeatureExtractor:
        """Move the network."""
        self._network.to(device)
        return self


def read_i3d(path: Path) -> I3D:
    """The network with the weights of a file.

    Raises:
        FileNotFoundError, ValueError: no such file, or other weights.
    """
    found = read_weights(path)
    with torch.device("meta"):
        network = I3D()
    if f"{_HEAD}/conv_3d/kernel" not in found and "logits.conv3d.weight" not in found:
        some = ", ".join(sorted(found)[:3])
        raise ValueError(
            f"{path}: no weights of I3D (its names are {some}, ...); expected MAGVIT's i3d_k400.flax or pytorch-i3d's "
            "rgb_imagenet.pt"
        )
    state = i3d_state_dict(found) if f"{_HEAD}/conv_3d/kernel" in found else _from_pytorch(found, path)
    check_state(state, {name: tensor.shape for name, tensor in network.state_dict().items()}, str(path))
    network.load_state_dict({name: tensor.float().contiguous() for name, tensor in state.items()}, assign=True)
    return network


def i3d_state_dict(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the official tree under our names; those of a single ``Unit3D`` or ``Branch`` as well.

    Args:
        official: "/"-joined names, kernels ``[T, H, W, in, out]``.
    """
    state = {}
    for name, tensor in official.items():
        owner, _, leaf = name.rpartition("/")
        place, _, part = owner.rpartition("/")
        if part not in ("conv_3d", "batch_norm"):
            state[name] = tensor  # nothing of I3D: named as unexpected when it is loaded
            continue
        key = {"kernel": "weight", "bias": "bias", "beta": "bias", "moving_mean": "mean", "moving_variance": "variance"}
        moved = rearrange(tensor, "t h w i o -> o i t h w") if leaf == "kernel" else tensor
        state[".".join(filter(None, (_own_name(place), key.get(leaf, leaf))))] = moved
    return state


def official_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official tree, for a network of ours: what a file must hold."""
    shapes = {}
    own = {_own_name(place): place for place in ("", *_places())}
    for name, tensor in network.state_dict().items():
        place, _, leaf = name.rpartition(".")
        shape = tuple(tensor.shape)
        norm = f"{place}.mean".lstrip(".") in network.state_dict()
        folder, last = {
            "weight": ("conv_3d", "kernel"),
            "bias": ("batch_norm", "beta") if norm else ("conv_3d", "bias"),
            "mean": ("batch_norm", "moving_mean"),
            "variance": ("batch_norm", "moving_variance"),
        }[leaf]
        moved = (*shape[2:], shape[1], shape[0]) if leaf == "weight" else shape
        shapes["/".join(filter(None, (own[place], folder, last)))] = moved
    return shapes


def _places() -> list[str]:
    """Where the units of the official tree are."""
    stem = ["Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3", _HEAD]
    return stem + list(_UNITS) + [f"{block}/{unit}" for block, _ in _BLOCKS for unit in _UNITS]


def _own_name(place: str) -> str:
    """Our name of a unit of the official tree."""
    block, _, unit = place.rpartition("/")
    if place == _HEAD:
        return "head"
    if unit in _UNITS:
        own = f"units.{_UNITS.index(unit)}"
        return f"layers.{block}.{own}" if block else own
    return f"layers.{place}" if place else ""


def _from_pytorch(found: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The names of pytorch-i3d; its batch norms have a gain, which in a conversion of DeepMind's weights is 1."""
    state = {}
    leaves = {"conv3d.weight": "weight", "conv3d.bias": "bias", "bn.bias": "bias"}
    leaves |= {"bn.running_mean": "mean", "bn.running_var": "variance"}
    for name, tensor in found.items():
        parts = name.split(".")
        leaf, unit = ".".join(parts[-2:]), parts[1] if len(parts) == 4 else ""
        if leaf == "bn.num_batches_tracked":
            continue
        if leaf == "bn.weight":
            if not torch.allclose(tensor, torch.ones_like(tensor)):
                raise ValueError(f"{path}: {name} is not 1 everywhere, as it is in the weights that FVD is defined on")
            continue
        place = "head" if parts[0] == "logits" else f"layers.{parts[0]}"
        if unit in _PYTORCH_UNITS:
            place += f".units.{_PYTORCH_UNITS.index(unit)}"
        state[f"{place}.{leaves.get(leaf, leaf)}"] = tensor
    return state


def _same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], value: float = 0.0) -> Tensor:
    """Padding for ceil(size / stride) outputs; an odd pixel comes at the end."""
    padding: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding, value=value) if any(padding) else x


def _max_pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(_same(x, kernel, stride, -torch.inf), kernel, stride)
