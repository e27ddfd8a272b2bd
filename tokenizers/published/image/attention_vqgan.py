"""What the VQGANs with attention have in common: settings, the tokenizer, and reading official weights by a table of names.

A family's file (``taming.py``, ``llamagen.py``, ``ibq.py``, ``amused.py``) holds what is its own: its settings, its
quantizer, its pixel range, and its ``NameMap``; the ``Family`` record makes ``config_from`` and ``convert`` of them.

Shapes: B batch, H W pixels, h w token grid, N = h * w, D width of a code, Z width of the latents, C channels, L levels.
"""

import dataclasses
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from maskgen.checkpoint import check_state
from maskgen.tokenizers.image.base import ImageTokenizer
from maskgen.tokenizers.published.image.blocks import Decoder, Encoder, NetworkConfig
from maskgen.tokenizers.quantizers.autoencoder import Autoencoder
from maskgen.tokenizers.quantizers.vector import QuantizerConfig, VectorQuantizer
from maskgen.tokenizers.settings import freeze_lists

__all__ = [
    "AttentionVQGAN",
    "AttentionVQGANConfig",
    "Family",
    "MultiplierConfig",
    "NameMap",
    "convert_state",
    "measure",
    "multiples",
]


@dataclass(frozen=True, kw_only=True)
class AttentionVQGANConfig:
    """Base of the families' settings, which all come down to a ``NetworkConfig``; its attributes are described there."""

    def __post_init__(self) -> None:
        freeze_lists(self)
        _ = self.network, self.quantizer  # refuse what cannot be built

    @property
    @abstractmethod
    def network(self) -> NetworkConfig:
        """The shared network in these sizes."""

    @property
    def quantizer(self) -> QuantizerConfig:
        """Settings of a learned codebook of the network's size; the official losses have no entropy term."""
        network = self.network
        return QuantizerConfig(codebook_size=network.codebook_size, dim=network.code_dim, entropy_weight=0.0)


@dataclass(frozen=True, kw_only=True)
class MultiplierConfig(AttentionVQGANConfig):
    """Base of settings that give widths as multiples of the first one.

    Attributes:
        channels: width after the first convolution.
        multipliers: width of each level as a multiple of ``channels``; L levels give a stride of 2^(L-1).
        res_blocks: residual blocks a level of the encoder; the decoder has one more.
        latent_channels: Z.
        code_dim: D.
        codebook_size: number of codes.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    latent_channels: int = 256
    code_dim: int = 256
    codebook_size: int = 1024

    def _network(self, *, attention_levels: tuple[int, ...], groups: int) -> NetworkConfig:
        """The network in these sizes, with an attention in the middle."""
        return NetworkConfig(
            stem=self.channels,
            widths=tuple(self.channels * multiplier for multiplier in self.multipliers),
            res_blocks=self.res_blocks,
            latent_channels=self.latent_channels,
            code_dim=self.code_dim,
            codebook_size=self.codebook_size,
            attention_levels=attention_levels,
            middle_attention=True,
            groups=groups,
        )


class AttentionVQGAN(ImageTokenizer, Autoencoder):
    """Base of the families: encoder, ``quant_conv``, quantizer, ``post_quant_conv``, decoder.

    Signal: float images [B, 3, H, W] in [0, 1] whatever the family was trained on; ``encode`` and ``decode`` rescale.
    H and W must be multiples of the stride: the network would cut off what is left over at the bottom and right.
    ``decode`` is not clamped. ``latents`` and ``pixels`` are the same network in the family's own pixel range.

    Fresh weights start as torch starts them; these classes are made to be filled with published weights.

    Args:
        config: settings.

    Attributes:
        signed: whether the family's pixels run from -1 to 1 instead of 0 to 1.
        quantizer_type: the family's quantizer.
    """

    signed: ClassVar[bool] = True
    quantizer_type: ClassVar[type[VectorQuantizer]] = VectorQuantizer

    def __init__(self, config: AttentionVQGANConfig) -> None:
        super().__init__()
        self.config: Any = config
        network = config.network
        quantizer = self.quantizer_type(config.quantizer)  # starts first: seeded models are the ones they were
        self.encoder = Encoder(network)
        self.quant_conv = torch.nn.Conv2d(network.latent_channels, network.code_dim, kernel_size=1)
        self.quantizer = quantizer
        self.post_quant_conv = torch.nn.Conv2d(network.code_dim, network.latent_channels, kernel_size=1)
        self.decoder = Decoder(network)

    @property
    def stride(self) -> tuple[int, ...]:
        """Pixels per token, for both axes."""
        side = 2 ** (len(self.encoder.down) - 1)
        return (side, side)

    def axes(self, signal_shape: Sequence[int]) -> tuple[int, ...]:
        """Token grid (H / stride, W / stride) of images [B, 3, H, W].

        Raises:
            ValueError: when it is no image batch or the stride does not divide the size.
        """
        return self._whole_axes(signal_shape)

    def latents(self, pixels: Tensor) -> Tensor:
        """Vectors to quantize.

        Args:
            pixels: float [B, 3, H, W] in the family's own range.

        Returns:
            Float [B, D, h, w].
        """
        out: Tensor = self.quant_conv(self.encoder(pixels))
        return out

    def pixels(self, vectors: Tensor) -> Tensor:
        """Images of code vectors.

        Args:
            vectors: float [B, D, h, w].

        Returns:
            Float [B, 3, h * stride, w * stride], nominally in the family's own range, not clamped.
        """
        out: Tensor = self.decoder(self.post_quant_conv(vectors.to(self.last_layer.dtype)))
        return out

    def _latents(self, signal: Tensor) -> Tensor:
        pixels = signal.to(self.last_layer.dtype)
        return self.latents(2 * pixels - 1 if self.signed else pixels)

    def _signal(self, latents: Tensor) -> Tensor:
        pixels = self.pixels(latents)
        return (pixels + 1) / 2 if self.signed else pixels


@dataclass(frozen=True, kw_only=True)
class NameMap:
    """How a family calls the weights of the shared network.

    Attributes:
        family: what an error calls these weights.
        rules: pairs of a pattern and its replacement, applied in turn, that make an official name of one of ours.
        run_order: the decoder's levels are counted as they run, the lowest resolution first; ours start at the full one.
        linear_attention: the projections of attentions are [C, C]; ours are 1 x 1 convolutions, [C, C, 1, 1].
        ignored: beginnings of official names that are no part of the tokenizer.
    """

    family: str
    rules: tuple[tuple[str, str], ...]
    run_order: bool
    linear_attention: bool = False
    ignored: tuple[str, ...] = ()

    def official(self, name: str, levels: int) -> str:
        """Official name of one of our weights or modules.

        Args:
            name: ours, e.g. "decoder.up.0.block.1.conv1.weight".
            levels: L of the model.

        Returns:
            The family's name for it.
        """
        if self.run_order:
            name = re.sub(r"^decoder\.up\.(\d+)", lambda match: f"decoder.up.{levels - 1 - int(match[1])}", name)
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        return name


def convert_state(state: Mapping[str, Tensor], model: AttentionVQGAN, names: NameMap) -> dict[str, Tensor]:
    """Official weights as the state dict of a model.

    Args:
        state: official name to tensor.
        model: the model to fill; may be on the meta device.
        names: the family's names.

    Returns:
        State dict of the model: the given tensors themselves or views of them, in the precision they came in.

    Raises:
        ValueError: every official name that is missing, unexpected or mis-shaped.
    """
    ours = {name: tensor.shape for name, tensor in model.state_dict().items()}
    official = {name: names.official(name, len(model.encoder.down)) for name in ours}
    projection = re.compile(r"\.(attn\.\d+|attn_1)\.(q|k|v|proj_out)\.weight$")
    expected = {
        official[name]: shape[:2] if names.linear_attention and projection.search(name) else shape
        for name, shape in ours.items()
    }
    found = {name: tensor for name, tensor in state.items() if not name.startswith(names.ignored)}
    check_state(found, expected, f"{names.family} weights")
    return {name: found[official[name]].reshape(shape) for name, shape in ours.items()}


def measure(state: Mapping[str, Tensor], names: NameMap, groups: int) -> NetworkConfig:
    """Sizes of the network, read from the shapes of official weights.

    Args:
        state: official name to tensor.
        names: the family's names.
        groups: not visible in the weights.

    Returns:
        Settings; ``convert_state`` tells whether all weights agree with them.

    Raises:
        ValueError: when weights that fix a size are missing, or sizes make no network.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    def shape(ours: str) -> tuple[int, ...] | None:
        return shapes.get(names.official(ours, 0))  # only the decoder's names depend on the number of levels

    needed = [
        *("encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight", "encoder.conv_out.weight"),
        *("quant_conv.weight", "quantizer.codebook"),
    ]
    missing = [names.official(name, 0) for name in needed if not shape(name)]
    if missing:
        raise ValueError(f"these are no {names.family} weights: {len(shapes)} found, without {', '.join(missing)}")
    widths: list[int] = []
    while kernel := shape(f"encoder.down.{len(widths)}.block.0.conv1.weight"):
        widths.append(kernel[0])
    res_blocks = 1
    while shape(f"encoder.down.0.block.{res_blocks}.conv1.weight"):
        res_blocks += 1
    stem, _, latent, _, codes = (shape(name) or () for name in needed)
    if len(codes) != 2:
        raise ValueError(f"{names.official('quantizer.codebook', 0)}: got shape {codes}, expected [codes, width]")
    return NetworkConfig(
        stem=stem[0],
        widths=tuple(widths),
        res_blocks=res_blocks,
        latent_channels=latent[0],
        code_dim=codes[1],
        codebook_size=codes[0],
        attention_levels=tuple(
            level for level in range(len(widths)) if shape(f"encoder.down.{level}.attn.0.norm.weight")
        ),
        middle_attention=shape("encoder.mid.attn_1.norm.weight") is not None,
        groups=groups,
    )


def multiples(network: NetworkConfig) -> tuple[int, ...]:
    """Widths of the levels as multiples of the first convolution's, for families that are described so.

    Raises:
        ValueError: when a width is no multiple.
    """
    if any(width % network.stem for width in network.widths):
        raise ValueError(f"level widths: got {network.widths}, expected multiples of the first one's {network.stem}")
    return tuple(width // network.stem for width in network.widths)


C = TypeVar("C", bound=AttentionVQGANConfig)


@dataclass(frozen=True, kw_only=True)
class Family(Generic[C]):
    """A family of published weights: its names, its settings, its model.

    Attributes:
        names: how it calls the weights of the shared network.
        config: class of its settings.
        model: class of its tokenizer.
    """

    names: NameMap
    config: type[C]
    model: type[AttentionVQGAN]

    def config_from(self, state: Mapping[str, Tensor], *, groups: int = 32) -> C:
        """Settings that official weights were made with, read from their shapes.

        Args:
            state: official name to tensor (what the file has under "state_dict" or "model").
            groups: not visible in the weights; 32 in the official code.

        Raises:
            ValueError: when weights that fix a size are missing or make no network.
        """
        network = measure(state, self.names, groups)
        names = {field.name for field in dataclasses.fields(self.config)}
        seen = {name: value for name, value in vars(network).items() if name in names}
        if "multipliers" in names:
            seen |= {"channels": network.stem, "multipliers": multiples(network)}
        return self.config(**seen)

    def convert(self, state: Mapping[str, Tensor], config: C) -> dict[str, Tensor]:
        """Official weights as the state dict of the family's tokenizer; see ``convert_state``.

        Args:
            state: official name to tensor.
            config: settings of the model to fill.

        Raises:
            ValueError: every official name that is missing, unexpected or mis-shaped.
        """
        with torch.device("meta"):
            model = self.model(config)
        return convert_state(state, model, self.names)
