"""LAC, the codec VampNet's models were trained with (github.com/hugofloresgarcia/lac): a predecessor of DAC.

Encoder and quantizers are DAC's; the decoder mixes residual branches of three kernel sizes after each upsampling, as
HiFi-GAN does (Kong et al. 2020, arXiv 2010.05646), and may have more levels than the encoder. VampNet's own codec has 14
codebooks at hop 768 and 44.1 kHz; its rates stand in its file and nowhere else.

Shapes: B batch, S samples, T frames, K codebooks, V codes, D width of a code, Z width between encoder and decoder.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from maskgen.checkpoint import empty_shapes, renamed
from maskgen.tokenizers.published.audio.descript_blocks import (
    CosineQuantizer,
    DescriptTokenizer,
    Parts,
    Residual,
    Snake,
    check_sizes,
    conv,
)
from maskgen.tokenizers.published.audio.descript_files import find_sizes, fold_weight_norm, read_descript
from maskgen.tokenizers.settings import freeze_lists

_KERNELS = (3, 7, 11)

_DILATIONS = (1, 3, 5)


# What stands before each number of an official name, from outside in; our nested layers need no such words.
_WORDS = {"encoder": ("block", "block", "block"), "decoder": ("model", "block", "mrf_blocks", "block", "layer")}


@dataclass(frozen=True, kw_only=True)
class LACConfig:
    """Settings; the defaults are LAC's own.

    Attributes:
        sample_rate: samples a second.
        encoder_dim: width of the first layer; each level doubles it.
        encoder_rates: stride of each level; even, since an odd one loses a frame of a whole number of hops.
        decoder_dim: width of the decoder's first layer; each level halves it.
        decoder_rates: stride of each level; their product is that of ``encoder_rates``.
        codebooks: K.
        codebook_size: V.
        codebook_dim: D.
    """

    sample_rate: int = 44100
    encoder_dim: int = 64
    encoder_rates: tuple[int, ...] = (2, 4, 8, 8)
    decoder_dim: int = 512
    decoder_rates: tuple[int, ...] = (4, 4, 4, 2, 2, 2)
    codebooks: int = 9
    codebook_size: int = 1024
    codebook_dim: int = 8

    def __post_init__(self) -> None:
        freeze_lists(self)
        check_sizes(self, *vars(self), levels=len(self.decoder_rates))
        if any(rate % 2 for rate in self.encoder_rates):
            raise ValueError(f"encoder_rates: got {self.encoder_rates}, expected even ones; an odd one loses a frame")
        if math.prod(self.decoder_rates) != self.hop:
            raise ValueError(
                f"decoder_rates: got {self.decoder_rates} with product {math.prod(self.decoder_rates)}, expected "
                f"{self.hop}, the product of encoder_rates {self.encoder_rates}"
            )

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return math.prod(self.encoder_rates)

    @property
    def latent_dim(self) -> int:
        """Z."""
        return int(self.encoder_dim * 2 ** len(self.encoder_rates))


class Mean(nn.ModuleList):
    """The mean of what several branches make of the same signal."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, S] -> [B, C, S]."""
        first, *others = self
        total: Tensor = first(x)
        for branch in others:
            total = total + branch(x)
        return total / len(self)


class LACTokenizer(DescriptTokenizer):
    """LAC as a tokenizer.

    Signal: float [B, 1, S] in about [-1, 1] at ``sample_rate``; ``decode`` gives [B, 1, T x hop] in [-1, 1].

    VampNet decodes with ``synthesise(from_latents(latents(tokens))[0])``, which is ``decode(tokens)`` unless two code
    vectors of one codebook have the same direction.
    """

    def __init__(self, config: LACConfig) -> None:
        super().__init__()
        self.config: LACConfig = config
        self.encoder = _encoder(config)
        self.quantizers = nn.ModuleList(
            CosineQuantizer(config.latent_dim, config.codebook_size, config.codebook_dim)
            for _ in range(config.codebooks)
        )
        self.decoder = _decoder(config)

    def parts(self) -> Parts:
        """Encoder, quantizers, decoder."""
        return Parts(self.encoder, list(self.quantizers), self.decoder)


def _unit(width: int, kernel: int, dilation: int, last: int) -> Residual:
    return Residual(Snake(width), conv(width, width, kernel, dilation), Snake(width), conv(width, width, last))


def _encoder(config: LACConfig) -> nn.Sequential:
    width = config.encoder_dim
    layers: list[nn.Module] = [conv(1, width, 7)]
    for rate in config.encoder_rates:
        units = [_unit(width, 7, dilation, 1) for dilation in (1, 3, 9)]
        down = nn.Conv1d(width, 2 * width, 2 * rate, stride=rate, padding=rate // 2)
        layers.append(nn.Sequential(*units, Snake(width), down))
        width *= 2
    return nn.Sequential(*layers, Snake(width), conv(width, config.latent_dim, 3))


def _decoder(config: LACConfig) -> nn.Sequential:
    width = config.decoder_dim
    layers: list[nn.Module] = [conv(config.latent_dim, width, 7)]
    for rate in config.decoder_rates:
        half = width // 2
        up = nn.ConvTranspose1d(width, half, 2 * rate, stride=rate, padding=rate // 2)
        branches = [nn.Sequential(*[_unit(half, size, dilation, size) for dilation in _DILATIONS]) for size in _KERNELS]
        layers.append(nn.Sequential(Snake(width), up, Mean(branches)))
        width = half
    return nn.Sequential(*layers, Snake(width), conv(width, 1, 7), nn.Tanh())


def _official(name: str) -> str:
    """Our name of a weight in official words: ``decoder.1.0.alpha`` is ``decoder.model.1.block.0.alpha``."""
    part, *rest = name.split(".")
    if part == "quantizers":
        return f"quantizer.{name}"
    numbers = [word for word in rest if word.isdigit()]
    words = [f"{word}.{number}" for word, number in zip(_WORDS[part], numbers, strict=False)]
    return ".".join([part, *words, *rest[len(numbers) :]])


def convert(state: Mapping[str, Tensor], config: LACConfig) -> dict[str, Tensor]:
    """Official weights as the state dict of ``LACTokenizer(config)``.

    Args:
        state: official name to weight, with weight norm or plain.
        config: settings of the model to fill.

    Raises:
        ValueError: naming every weight that is missing, unexpected or of another shape; or these are DAC's.
    """
    plain = fold_weight_norm(state, "LAC")
    _check_family(plain, "LAC")
    return renamed(plain, empty_shapes(LACTokenizer, config), _official, "LAC")


def lac_from_file(path: str | Path, *, sample_rate: int | None = None) -> tuple[LACConfig, dict[str, Tensor]]:
    """Settings and weights of an official LAC file such as VampNet's ``codec.pth``.

    Args:
        path: ``{"state_dict", "metadata": {"kwargs"}}`` as audiotools saves it without its package, or bare weights.
        sample_rate: needed for bare weights alone, which show all sizes but this one.

    Returns:
        Settings, and the state dict of ``LACTokenizer(settings)``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a torch.package archive, a damaged file, or weights that do not fit.
    """
    source = Path(path)
    state, stated = read_descript(source)
    _check_family(state, str(source))
    sizes = find_sizes(state, stated, sample_rate, str(source))
    config = LACConfig(
        sample_rate=sizes.sample_rate,
        encoder_dim=sizes.encoder_dim,
        encoder_rates=sizes.encoder_rates,
        decoder_dim=sizes.decoder_dim,
        decoder_rates=sizes.decoder_rates,
        codebooks=sizes.n_codebooks,
        codebook_size=sizes.codebook_size,
        codebook_dim=sizes.codebook_dim,
    )
    return config, convert(state, config)


def _check_family(state: Mapping[str, Tensor], where: str) -> None:
    if not any(".mrf_blocks." in name for name in state):
        raise ValueError(
            f"{where}: no LAC weights: the decoder has no branches (mrf_blocks); DAC's: see dac_from_files"
        )
