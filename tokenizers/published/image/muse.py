"""The tokenizer of lucidrains' Muse (``VQGanVAE`` with lookup-free bits, muse-maskgit-pytorch 0.3.5).

Convolutions only. Each level halves the grid by a 4 x 4 convolution of stride 2; residual blocks stand at the deepest level
by default. Ids are those of ``LookupFreeQuantizer``: channel 0 is the most significant bit (MaskBit: the least).

Shapes: B batch, C channels, H W pixels of a feature map, h w token grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from maskgen.checkpoint import empty_shapes, renamed
from maskgen.tokenizers.image.base import ImageTokenizer
from maskgen.tokenizers.quantizers.autoencoder import Autoencoder
from maskgen.tokenizers.quantizers.vector import LookupFreeQuantizer, QuantizerConfig
from maskgen.tokenizers.settings import check_least, freeze_lists

_SLOPE = 0.1  # of all LeakyReLUs


@dataclass(frozen=True, kw_only=True)
class MuseVQGANConfig:
    """Settings; the defaults are those of the original's README.

    Attributes:
        channels: width at full resolution.
        multipliers: width of each level as a multiple of ``channels``; L levels give a stride of 2^L.
        res_blocks: residual blocks of each level.
        groups: groups of every normalisation; must divide the widths.
        first_kernel: side of the first convolution, odd.
        codebook_size: number of ids, a power of two.
    """

    channels: int = 256
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    res_blocks: tuple[int, ...] = (0, 0, 0, 1)
    groups: int = 16
    first_kernel: int = 5
    codebook_size: int = 65536

    def __post_init__(self) -> None:
        freeze_lists(self)
        check_least(self, channels=1, groups=1, first_kernel=1)
        if not self.multipliers or len(self.res_blocks) != len(self.multipliers) or min(self.res_blocks) < 0:
            raise ValueError(
                f"res_blocks: got {self.res_blocks} for multipliers {self.multipliers}, expected 0 or more for each level, "
                "of which there is at least one"
            )
        if wrong := [width for width in self.widths if width < 1 or width % self.groups]:
            raise ValueError(f"multipliers: got a width of {wrong[0]}, expected multiples of groups {self.groups}")
        if self.first_kernel % 2 == 0:
            raise ValueError(f"first_kernel: got {self.first_kernel}, expected an odd number")
        _ = self.quantizer  # its own checks

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each level, the largest grid first."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def quantizer(self) -> QuantizerConfig:
        """Settings of the quantizer."""
        return QuantizerConfig(kind="lfq", codebook_size=self.codebook_size, dim=self.widths[-1])


class MuseResBlock(nn.Module):
    """x + a 1 x 1 convolution of twice (3 x 3 convolution, norm and activation); the decoder's is gated before the norm."""

    def __init__(self, channels: int, groups: int, *, gated: bool) -> None:
        super().__init__()
        self.net = nn.Sequential()
        for _ in range(2):
            self.net.append(nn.Conv2d(channels, channels * (2 if gated else 1), 3, padding=1))
            norm = nn.GroupNorm(groups, channels)
            self.net.extend((nn.GLU(dim=1), norm) if gated else (norm, nn.LeakyReLU(_SLOPE)))
        self.net.append(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return x + self.net(x)


class MuseEncoder(nn.Module):
    """Pixels to latents."""

    def __init__(self, config: MuseVQGANConfig) -> None:
        super().__init__()
        before, kernel = config.channels, config.first_kernel
        self.layers = nn.ModuleList([nn.Conv2d(3, before, kernel, padding=kernel // 2)])
        for width, blocks in zip(config.widths, config.res_blocks, strict=True):
            self.layers.append(nn.Sequential(nn.Conv2d(before, width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)))
            self.layers.extend(MuseResBlock(width, config.groups, gated=False) for _ in range(blocks))
            before = width

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C, h, w]."""
        for layer in self.layers:
            x = layer(x)
        return x


class MuseDecoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: MuseVQGANConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        after = (config.channels, *config.widths)
        for level in reversed(range(len(config.widths))):
            width = config.widths[level]
            self.layers.extend(MuseResBlock(width, config.groups, gated=True) for _ in range(config.res_blocks[level]))
            up = nn.ConvTranspose2d(width, after[level], 4, stride=2, padding=1)
            self.layers.append(nn.Sequential(up, nn.LeakyReLU(_SLOPE)))
        self.conv_out = nn.Conv2d(config.channels, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, H, W]."""
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.conv_out(x)
        return out


class MuseVQGAN(ImageTokenizer, Autoencoder):
    """Lucidrains' tokenizer; the weights were trained on pixels in [0, 1].

    Signal: float images [B, 3, H, W] in [0, 1], H and W multiples of the stride. ``decode`` returns what the last
    convolution gives, which may leave [0, 1].
    """

    def __init__(self, config: MuseVQGANConfig) -> None:
        super().__init__()
        self.config: MuseVQGANConfig = config
        self.encoder = MuseEncoder(config)
        self.quantizer = LookupFreeQuantizer(config.quantizer)
        self.decoder = MuseDecoder(config)

    @property
    def stride(self) -> tuple[int, ...]:
        """Pixels per token, for both axes."""
        return (2 ** len(self.config.multipliers),) * 2

    def axes(self, signal_shape: Sequence[int]) -> tuple[int, ...]:
        """Token grid (h, w) of images [B, 3, H, W].

        Raises:
            ValueError: when it is no such batch, or its sizes are no multiples of the stride.
        """
        return self._whole_axes(signal_shape)


def config_from(state: Mapping[str, Tensor], *, groups: int = 16) -> MuseVQGANConfig:
    """Settings that weights were made with, read from their names and shapes.

    Args:
        state: official name to weight, see ``convert``.
        groups: of the normalisations; not visible in the weights.

    Raises:
        ValueError: when weights that fix a size are missing, as those of the bits are in a model with a codebook.
    """
    state, prefix = _own(state), "enc_dec.encoders."
    first = state.get(f"{prefix}0.weight")
    bits = state.get("quantizer.mask")
    if first is None or bits is None or first.ndim != 4:
        raise ValueError(
            "these are no weights of lucidrains' VQGanVAE with lookup-free bits: "
            f"{prefix}0.weight or quantizer.mask is missing"
        )
    widths: list[int] = []
    blocks: list[int] = []
    count = 1 + max(int(name.removeprefix(prefix).partition(".")[0]) for name in state if name.startswith(prefix))
    for index in range(1, count):
        down = state.get(f"{prefix}{index}.0.weight")
        if down is not None:
            widths.append(down.shape[0])
            blocks.append(0)
        elif blocks:
            blocks[-1] += 1
    return MuseVQGANConfig(
        channels=first.shape[0],
        multipliers=tuple(width // first.shape[0] for width in widths),
        res_blocks=tuple(blocks),
        groups=groups,
        first_kernel=first.shape[-1],
        codebook_size=2 ** len(bits),
    )


def convert(state: Mapping[str, Tensor], config: MuseVQGANConfig) -> dict[str, Tensor]:
    """Official weights as the state dict of ``MuseVQGAN(config)``; tensors are passed on, not copied.

    Args:
        state: official name to weight: of a ``VQGanVAE`` (its discriminator is left out), or of a whole ``MaskGit``, whose
            ``vae`` is taken.
        config: settings of the model to fill, usually ``config_from(state)``.

    Raises:
        ValueError: naming every weight that is missing, unexpected or of another shape.
    """
    shapes = empty_shapes(MuseVQGAN, config)
    last = len({name.split(".")[2] for name in shapes if name.startswith("decoder.layers.")})

    def official(name: str) -> str:
        name = name.replace("decoder.conv_out", f"enc_dec.decoders.{last}").replace("quantizer.inner.", "quantizer.")
        return name.replace("encoder.layers", "enc_dec.encoders").replace("decoder.layers", "enc_dec.decoders")

    return renamed(_own(state), shapes, official, "Muse tokenizer")


def _own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tokenizer's own weights."""
    inner = {name.removeprefix("vae."): weight for name, weight in state.items() if name.startswith("vae.")}
    return {name: weight for name, weight in (inner or state).items() if not name.startswith(("discr.", "_vgg."))}
