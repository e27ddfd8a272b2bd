"""MAGVIT-v2's tokenizers (Yu et al. 2024, arXiv 2310.05737) as Open-MAGVIT2 built them (arXiv 2409.04410), image and video.

The 18 bits of an id are spoken as equal parts, low bits first: with ``token_bits`` (9, 9) a token is two sub-tokens of 512
codes. Ids in one piece or in unequal parts are made with ``maskgen.tokenizers.quantizers.lookup_free``.

Shapes: B batch, T frames, H W pixels, t h w token grid, N its product, K parts of an id, V = 2^bits of a part, d bits of an
id. ``...`` is (H, W) or (T, H, W).
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maskgen.checkpoint import settings_from
from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.image.base import ImageTokenizer
from maskgen.tokenizers.magvit2.layers import Decoder, Encoder, Magvit2Network
from maskgen.tokenizers.quantizers.lookup_free import LFQ, LFQConfig, LFQOutput, factor_ids, join_ids
from maskgen.tokenizers.settings import freeze_lists
from maskgen.tokenizers.video.base import VideoTokenizer


@dataclass(frozen=True, kw_only=True)
class Magvit2Config:
    """Settings that both tokenizers have; use ``Magvit2ImageConfig`` or ``Magvit2VideoConfig``.

    Attributes:
        channels, multipliers, res_blocks: see ``Magvit2Network``.
        token_bits: bits of each of the K parts that an id is spoken in, all alike; their sum is d.
        groups: groups of every normalisation; official 32. Must divide every width.
        temperature: of the entropies in training.
        sample_weight: of the entropy of a token.
        batch_weight: of the entropy of the mean distribution.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 4
    token_bits: tuple[int, ...] = (9, 9)
    groups: int = 32
    temperature: float = 0.01
    sample_weight: float = 1.0
    batch_weight: float = 1.0

    def __post_init__(self) -> None:
        freeze_lists(self)
        if not self.token_bits or min(self.token_bits) < 1 or len(set(self.token_bits)) > 1:
            raise ValueError(
                f"token_bits: got {self.token_bits}, expected equal parts of an id such as (9, 9), or (18,) for ids in one "
                "piece: the codebooks of a token share one vocabulary. "
                "maskgen.tokenizers.quantizers.lookup_free.factor_ids cuts ids unequally"
            )
        _ = self.network, self.quantizer  # refuse what cannot be built

    @property
    def bits(self) -> int:
        """Bits of an id, d."""
        return sum(self.token_bits)

    @property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """Strides between the levels, along each axis of the signal."""
        return ((2, 2),) * (len(self.multipliers) - 1)

    @property
    def network(self) -> Magvit2Network:
        """The shared network in these sizes."""
        return settings_from(self, Magvit2Network, strides=self.steps)

    @property
    def quantizer(self) -> LFQConfig:
        """Settings of the quantizer."""
        return settings_from(self, LFQConfig)


@dataclass(frozen=True, kw_only=True)
class Magvit2ImageConfig(Magvit2Config):
    """Settings of the image tokenizer; the defaults are those of the 256-pixel weights with 2^18 codes.

    See ``Magvit2Config``. Every level but the last halves both axes.
    """


@dataclass(frozen=True, kw_only=True)
class Magvit2VideoConfig(Magvit2Config):
    """Settings of the video tokenizer; the defaults are those of the published weights: 17 frames of 128 pixels.

    See ``Magvit2Config`` for the others.

    Attributes:
        strides: (frames, rows, columns) from each level to the next.
    """

    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    strides: tuple[tuple[int, int, int], ...] = ((1, 2, 2), (2, 2, 2), (2, 2, 2))

    def __post_init__(self) -> None:
        freeze_lists(self)
        if any(len(stride) != 3 for stride in self.strides):
            raise ValueError(f"strides: got {self.strides}, expected (frames, rows, columns) for each of them")
        super().__post_init__()

    @property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """``strides``."""
        return self.strides


@dataclass(frozen=True)
class Magvit2Output:
    """One pass for stage-1 training.

    Attributes:
        reconstruction: [B, 3, ...] nominally in [0, 1], not clamped; sizes that the stride does not divide come back larger.
        quantized: what the quantizer made; its ids are whole ids.
        tokens: long [B, N, K], the ids as the tokenizer speaks them.
    """

    reconstruction: Tensor
    quantized: LFQOutput
    tokens: Tensor


class _Magvit2(Tokenizer):
    """What the two have in common: everything but the signal's axes."""

    training_loss: ClassVar[type | str] = "maskgen.tokenizers.training.magvit2.Magvit2Settings"
    config: Magvit2Config

    def _build(self, config: Magvit2Config) -> None:
        self.encoder = Encoder(config.network)
        self.decoder = Decoder(config.network)
        self.quantizer = LFQ(config.quantizer)

    @property
    def vocab_size(self) -> int:
        """Ids of a part of a token."""
        return int(2 ** self.config.token_bits[0])

    @property
    def num_codebooks(self) -> int:
        """Parts of a token, K."""
        return len(self.config.token_bits)

    @property
    def stride(self) -> tuple[int, ...]:
        """Signal units a token covers: pixels, or frames and pixels."""
        return self.config.network.stride

    @property
    def last_layer(self) -> Tensor:
        """Kernel of the decoder's last convolution, where an adaptive GAN weight is measured."""
        return self.decoder.conv_out.weight

    def encode(self, signal: Tensor) -> Tensor:
        """Tokens of a signal; see ``Tokenizer.encode``."""
        return self._tokens(self.quantizer.encode(self.latents(self._signed(signal))))

    def decode(self, tokens: Tensor, axes: Sequence[int]) -> Tensor:
        """Signal of tokens, not clamped; see ``Tokenizer.decode``."""
        self._check_tokens(tokens, axes)
        ids = join_ids(tokens.unbind(-1), self.config.token_bits)
        return (self.pixels(self.quantizer.lookup(ids[..., None], axes)) + 1) / 2

    def forward(self, signal: Tensor) -> Magvit2Output:
        """Reconstruct with gradients, for stage-1 training.

        Args:
            signal: float [B, 3, ...] in [0, 1].

        Returns:
            Reconstruction, what the quantizer made, and tokens.

        Raises:
            TypeError: when the signal is not floating point.
            ValueError: when its shape does not fit.
        """
        quantized: LFQOutput = self.quantizer(self.latents(self._signed(signal)))
        return Magvit2Output((self.pixels(quantized.latents) + 1) / 2, quantized, self._tokens(quantized.ids))

    def latents(self, pixels: Tensor) -> Tensor:
        """Vectors whose signs are the bits.

        Args:
            pixels: float [B, 3, ...] in the network's own range, -1..1.

        Returns:
            Float [B, d, ...].
        """
        out: Tensor = self.encoder(pixels)
        return out

    def pixels(self, codes: Tensor) -> Tensor:
        """Signal of codes in the network's own range.

        Args:
            codes: float [B, d, ...], of -1 and 1.

        Returns:
            Float [B, 3, ...], nominally in -1..1, not clamped.
        """
        out: Tensor = self.decoder(codes.to(self.last_layer.dtype))
        return out

    def _signed(self, signal: Tensor) -> Tensor:
        """The checked signal in -1..1."""
        self._check_signal(signal)
        return 2 * signal.to(self.last_layer.dtype) - 1

    @abstractmethod
    def _check_signal(self, signal: Tensor) -> None:
        """Refuse what ``encode`` cannot take."""

    def _tokens(self, ids: Tensor) -> Tensor:
        """Whole ids [B, N, 1] in parts [B, N, K]."""
        return torch.stack(factor_ids(ids.squeeze(-1), self.config.token_bits), dim=-1)


class Magvit2Image(ImageTokenizer, _Magvit2):
    """Image tokenizer.

    Signal: float images [B, 3, H, W] in [0, 1]. The network itself works in -1..1: ``encode`` and ``decode`` rescale.
    ``decode`` is not clamped (the official scripts clamp afterwards). Sizes that the stride does not divide round up, and
    decode to the larger size. Normalisations and scales are taken over the whole image, so a part of an image has other
    tokens than the same pixels within it.

    Weights start as torch starts them.
    """

    def __init__(self, config: Magvit2ImageConfig) -> None:
        super().__init__()
        self.config: Magvit2ImageConfig = config
        self._build(config)


class Magvit2Video(VideoTokenizer, _Magvit2):
    """Video tokenizer with causal convolutions; an image is a clip of one frame.

    Signal: float clips [B, 3, T, H, W] in [0, 1] of T = 1 + s * n frames, s the stride along time: the first frame has
    tokens of its own, s frames share each of the others. Other lengths are refused; the network would silently shorten
    them. The network itself works in -1..1: ``encode`` and ``decode`` rescale. ``decode`` is not clamped.

    A clip is encoded in one piece whatever its length. The published weights were trained on 17 frames, and their authors
    cut longer clips into windows of 17 that know nothing of each other. Normalisations run over all frames, so windows,
    single frames and whole clips have different tokens: do in training what you do later.

    Weights start as torch starts them, or from an image tokenizer (``maskgen.tokenizers.magvit2.inflation``).
    """

    def __init__(self, config: Magvit2VideoConfig) -> None:
        super().__init__()
        self.config: Magvit2VideoConfig = config
        self._build(config)

    @property
    def first_alone(self) -> bool:
        """Always: the convolutions are causal."""
        return True
