"""The discriminators Open-MAGVIT2 trains against: patches of images, patches of clips, and blurred patches of images.

Shapes: B batch, C channels, T frames, H W pixels. ``...`` is (H, W) or (T, H, W).
"""

import itertools
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from maskgen.tokenizers.training.discriminators.image import BlurPool


@dataclass(frozen=True, kw_only=True)
class PatchDiscriminatorConfig:
    """Settings of a discriminator; the defaults are those of most published tokenizers.

    Attributes:
        kind: "patch" for images and clips (Isola et al. 2017), "blur" for images only: a low-pass before each downsampling.
        width: channels of the first layer; 64 for the published patches, 128 for the published blur.
        layers: how often the signal is halved.
    """

    kind: Literal["patch", "blur"] = "patch"
    width: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        if self.kind not in ("patch", "blur"):
            raise ValueError(f"kind: got {self.kind!r}, expected 'patch' or 'blur'")
        if self.width < 1 or self.layers < 1:
            raise ValueError(f"width, layers: got {self.width} and {self.layers}, expected 1 or more of each")
        if self.kind == "blur" and self.width % _BLUR_GROUPS:
            raise ValueError(f"width: got {self.width}, expected a multiple of {_BLUR_GROUPS} for kind 'blur'")


_BLUR_GROUPS = 32


class PatchDiscriminator(nn.Module):
    """A logit for each patch of a signal: strided convolutions with batch normalisation and leaky ReLU 0.2.

    Images see 4 x 4 windows, clips 3 x 3 x 3 ones; only the first two layers halve time. Kernels start N(0, 0.02),
    normalisations N(1, 0.02).

    Args:
        width: channels of the first layer; each of the next doubles it, up to eight times.
        layers: how often the signal is halved.
        dims: 2 for images, 3 for clips.
    """

    def __init__(self, width: int, layers: int, *, dims: Literal[2, 3]) -> None:
        super().__init__()
        conv: type[nn.Conv2d | nn.Conv3d] = nn.Conv2d if dims == 2 else nn.Conv3d
        norm: type[nn.BatchNorm2d | nn.BatchNorm3d] = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
        kernel = 4 if dims == 2 else 3
        widths = [width * min(2**layer, 8) for layer in range(layers + 1)]
        main: list[nn.Module] = [conv(3, width, kernel, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers + 1):
            step: int | tuple[int, int, int] = 2 if layer < layers else 1
            if dims == 3 and 2 <= layer < layers:
                step = (1, 2, 2)
            main += [
                conv(widths[layer - 1], widths[layer], kernel, stride=step, padding=1, bias=False),  # type: ignore[arg-type]
                norm(widths[layer]),
                nn.LeakyReLU(0.2),
            ]
        main.append(conv(widths[-1], 1, kernel, padding=1))
        self.main = nn.Sequential(*main)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, signal: Tensor) -> Tensor:
        """[B, 3, ...] in -1..1 -> logits [B, 1, ...] of the patches."""
        logits: Tensor = self.main(signal)
        return logits


class BlurPatchDiscriminator(nn.Module):
    """The same for images with group normalisation, leaky ReLU 0.1 and a binomial low-pass before each halving.

    Args:
        width: channels of the first layer, a multiple of 32; the first stage keeps it, each of the next doubles it.
        stages: how often the image is halved.
    """

    def __init__(self, width: int, stages: int) -> None:
        super().__init__()
        self.block_in = nn.Sequential(nn.Conv2d(3, width, 5, padding=2), nn.LeakyReLU(0.1))
        widths = [width, *(width * 2**stage for stage in range(stages))]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(narrow, wide, 3, padding=1), BlurPool(4), nn.GroupNorm(_BLUR_GROUPS, wide), nn.LeakyReLU(0.1)
            )
            for narrow, wide in itertools.pairwise(widths)
        )
        self.to_logits = nn.Sequential(
            nn.Conv2d(widths[-1], widths[-1], 1), nn.LeakyReLU(0.1), nn.Conv2d(widths[-1], 1, 5, padding=2)
        )

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 -> logits [B, 1, H / 2^stages, W / 2^stages] (rounded up) of the patches."""
        x: Tensor = self.block_in(images)
        for block in self.blocks:
            x = block(x)
        x = self.to_logits(x)
        return x


def build_discriminator(config: PatchDiscriminatorConfig, *, dims: Literal[2, 3]) -> nn.Module:
    """The discriminator that a config describes, newly made.

    Args:
        config: settings.
        dims: 2 for images, 3 for clips.

    Raises:
        ValueError: "blur" for clips.
    """
    if config.kind == "patch":
        return PatchDiscriminator(config.width, config.layers, dims=dims)
    if dims == 3:
        raise ValueError("kind: got 'blur' for video, expected 'patch'; 'blur' is for images only")
    return BlurPatchDiscriminator(config.width, config.layers)
