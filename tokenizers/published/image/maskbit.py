"""MaskBit's tokenizers: a VQGAN of convolutions with lookup-free bits or a codebook (Weber et al. 2024, arXiv 2409.16211).

The blocks are those of ``VQGAN`` with the shortcut on the branch; new are the strided 3 x 3 convolution that halves the
grid, the order of the bits (``maskbit_codes``), and ids that come in parts.

MaskBit's generator predicts an id of M x b bits as M sub-tokens of b bits (sub-token 0 holds the low bits). With
``splits=M`` the tokenizer speaks sub-tokens itself, and fits that generator in a ``Pipeline``.

Shapes: B batch, N tokens, K sub-tokens of an id, D width of a code, H W pixels, h w token grid.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from maskgen.checkpoint import empty_shapes, renamed
from maskgen.tokenizers.image.base import ImageTokenizer
from maskgen.tokenizers.image.vqgan import Decoder, Encoder, VQGANConfig
from maskgen.tokenizers.layers.conv2d import ConvDownsample, ResBlock
from maskgen.tokenizers.published.image.maskbit_codes import (
    BitQuantizer,
    UnitQuantizer,
    check_split,
    merge_ids,
    split_ids,
)
from maskgen.tokenizers.published.image.maskgit_torch import Layout, network_sizes, official_name
from maskgen.tokenizers.quantizers.autoencoder import Autoencoder
from maskgen.tokenizers.quantizers.vector import Quantizer, QuantizerConfig, VectorQuantizer
from maskgen.tokenizers.settings import check_choice, freeze_lists

_IGNORED = ("quantize.bits_to_indices", "quantize.codebook")  # constants of the lookup-free quantizer


@dataclass(frozen=True, kw_only=True)
class MaskBitTokenizerConfig:
    """Settings of the tokenizer; the defaults are the published one of 14 bits.

    Attributes:
        quantizer: "lookup-free" (signs) or "lookup" (nearest row of a codebook: VQGAN+).
        token_size: D; the number of bits for "lookup-free".
        codebook_size: number of ids; 2^token_size for "lookup-free".
        l2_normalised: "lookup" only: latents and rows are scaled to unit length first. No published model does.
        channels: width of the first level.
        multipliers: width of each level as a multiple of ``channels``.
        res_blocks: residual blocks a level, and in the middle.
        downsample: "conv" (3 x 3, stride 2) or "average".
        splits: K, sub-tokens an id is given and taken in; 2 for the published generators.
    """

    quantizer: Literal["lookup-free", "lookup"] = "lookup-free"
    token_size: int = 14
    codebook_size: int = 16384
    l2_normalised: bool = False
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    downsample: Literal["conv", "average"] = "conv"
    splits: int = 1

    def __post_init__(self) -> None:
        freeze_lists(self)
        check_choice(self, quantizer=("lookup-free", "lookup"), downsample=("conv", "average"))
        free = self.quantizer == "lookup-free"
        if free and self.codebook_size != 2**self.token_size:
            raise ValueError(
                f"codebook_size: got {self.codebook_size}, expected 2^token_size = {2**self.token_size} for "
                "'lookup-free' (the official code ignores the number in its settings file)"
            )
        if free and self.l2_normalised:
            raise ValueError("l2_normalised: got True for 'lookup-free', expected False; signs have no length")
        if self.splits != 1:
            if self.codebook_size & (self.codebook_size - 1):
                raise ValueError(
                    f"splits: got {self.splits} for {self.codebook_size} ids, expected a power of two of them"
                )
            check_split(self.bits, self.splits)
        _ = self.network  # its own checks

    @property
    def bits(self) -> int:
        """Bits of an id, rounded up."""
        return (self.codebook_size - 1).bit_length()

    @property
    def network(self) -> VQGANConfig:
        """Settings of encoder and decoder, which keep "average" where this file puts in its own convolution."""
        kind: Literal["lfq", "vq"] = "lfq" if self.quantizer == "lookup-free" else "vq"
        return VQGANConfig(
            channels=self.channels,
            multipliers=self.multipliers,
            res_blocks=self.res_blocks,
            quantizer=QuantizerConfig(kind=kind, codebook_size=self.codebook_size, dim=self.token_size),
        )


class MaskBitEncoder(Encoder):
    """VQGAN's encoder with MaskBit's downsampling.

    The first convolution gives ``channels``, so the first block widens where the first multiplier is not 1.
    """

    def __init__(self, config: MaskBitTokenizerConfig) -> None:
        net = config.network
        super().__init__(net)
        self.conv_in = nn.Conv2d(3, net.channels, kernel_size=3, padding=1, bias=False)
        self.blocks[0] = ResBlock(
            net.channels, net.widths[0], groups=net.groups, activation=net.activation, shortcut=net.shortcut
        )
        if config.downsample == "conv":
            self.downs = nn.ModuleList(ConvDownsample(width, kernel=3) for width in net.widths[:-1])


class MaskBitTokenizer(ImageTokenizer, Autoencoder):
    """MaskBit's ``ConvVQModel``.

    Signal: float images [B, 3, H, W] in [0, 1]. ``decode`` returns what the last convolution gives, which may leave
    [0, 1], as the official code does. Sizes that the stride does not divide round up.
    """

    def __init__(self, config: MaskBitTokenizerConfig) -> None:
        super().__init__()
        self.config: MaskBitTokenizerConfig = config
        network = config.network
        self.encoder = MaskBitEncoder(config)
        self.decoder = Decoder(network)
        self.quantizer: Quantizer
        if config.quantizer == "lookup-free":
            self.quantizer = BitQuantizer(network.quantizer)
        else:
            self.quantizer = (UnitQuantizer if config.l2_normalised else VectorQuantizer)(network.quantizer)

    @property
    def vocab_size(self) -> int:
        """Ids of a sub-token; of the whole token where ``splits`` is 1."""
        return self.config.codebook_size if self.config.splits == 1 else 2 ** (self.config.bits // self.config.splits)

    @property
    def num_codebooks(self) -> int:
        """K, the splits."""
        return self.config.splits

    @property
    def stride(self) -> tuple[int, ...]:
        """Pixels per token, for both axes."""
        return (2 ** (len(self.config.multipliers) - 1),) * 2

    def _tokens(self, codes: Tensor) -> Tensor:
        if self.config.splits == 1:
            return codes
        return split_ids(codes[..., 0], bits=self.config.bits, splits=self.config.splits)

    def _codes(self, tokens: Tensor) -> Tensor:
        return tokens if self.config.splits == 1 else merge_ids(tokens, bits=self.config.bits)[..., None]


def config_from(state: Mapping[str, Tensor], *, splits: int = 1, l2_normalised: bool = False) -> MaskBitTokenizerConfig:
    """Settings that weights were made with, read from their names and shapes.

    Args:
        state: official name to weight.
        splits: sub-tokens to speak in; no property of the weights.
        l2_normalised: not visible in the weights; False in the releases.

    Raises:
        ValueError: when weights that fix a size are missing.
    """
    channels, multipliers, res_blocks = network_sizes(state, _layout(state), "MaskBit tokenizer")
    if "encoder.conv_out.weight" not in state:
        raise ValueError("these are no MaskBit tokenizer weights: encoder.conv_out.weight is missing")
    token_size = state["encoder.conv_out.weight"].shape[0]
    codebook = state.get("quantize.embedding.weight")
    return MaskBitTokenizerConfig(
        quantizer="lookup-free" if codebook is None else "lookup",
        token_size=token_size,
        codebook_size=2**token_size if codebook is None else len(codebook),
        l2_normalised=l2_normalised,
        channels=channels,
        multipliers=multipliers,
        res_blocks=res_blocks,
        downsample="conv" if any(".down_conv." in name for name in state) else "average",
        splits=splits,
    )


def convert(state: Mapping[str, Tensor], config: MaskBitTokenizerConfig) -> dict[str, Tensor]:
    """Official weights, of the current or the legacy decoder, as the state dict of ``MaskBitTokenizer(config)``.

    Args:
        state: official name to weight; the two constants of the lookup-free quantizer may be there and are left out.
        config: settings of the model to fill, usually ``config_from(state)``.

    Returns:
        State dict, complete and of the right shapes, sharing the memory of ``state``.

    Raises:
        ValueError: naming every weight that is missing, unexpected or of another shape.
    """
    ignored = _IGNORED if config.quantizer == "lookup-free" else ()
    kept = {name: weight for name, weight in state.items() if name not in ignored}
    official = functools.partial(official_name, config=config.network, layout=_layout(state))
    return renamed(kept, empty_shapes(MaskBitTokenizer, config), official, "MaskBit tokenizer")


def _layout(state: Mapping[str, Tensor]) -> Layout:
    """The legacy decoder counts levels from full resolution, so its number 0, and only that, doubles nothing."""
    legacy = "decoder.up.0.upsample_conv.weight" not in state and "decoder.up.1.upsample_conv.weight" in state
    return Layout(level="res_blocks.", middle="res_blocks.", run_order=not legacy)


_BASE = MaskBitTokenizerConfig(splits=2)

_VQGAN_PLUS = dataclasses.replace(_BASE, quantizer="lookup", splits=1)

PUBLISHED: dict[str, MaskBitTokenizerConfig] = {
    f"maskbit_tokenizer_{bits}bit": dataclasses.replace(_BASE, token_size=bits, codebook_size=2**bits)
    for bits in (10, 12, 14, 16, 18)
} | {
    "vqgan_plus_paper": dataclasses.replace(_VQGAN_PLUS, codebook_size=1024, token_size=256),
    "vqgan_plus_12bit": dataclasses.replace(_VQGAN_PLUS, codebook_size=4096, token_size=64),
    "maskgit_tokenizer": dataclasses.replace(_VQGAN_PLUS, codebook_size=1024, token_size=256, downsample="average"),
}
"""Published name (hub user markweber) to full-size settings. The lookup-free ones speak 2 sub-tokens, as every published
generator does; ``maskgit_tokenizer`` is Google's in MaskBit's legacy layout. Apache-2.0 code, weights for research."""
