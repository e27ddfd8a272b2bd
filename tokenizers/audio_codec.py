"""A small convolutional sound codec with residual vector quantization, quick to train on a CPU.

The plan is SEANet's and SoundStream's (Zeghidour et al. 2021, arXiv 2107.03312): strided convolutions with residual units
down to frames, a residual quantizer, the mirror image back up. No attention and no recurrence, so any length works. Unlike
there, the first convolution already strides: a small codec cannot afford layers at the full sample rate.

Shapes: B batch, C channels, S samples, T frames, W width of a level, D width of a code, K codebooks, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.tokenizers.audio import AudioTokenizer
from maskgen.tokenizers.quantize import Quantized, QuantizerConfig, ResidualQuantizer

__all__ = ["AudioCodec", "AudioCodecConfig", "AudioCodecOutput", "ResidualUnit"]


@dataclass(frozen=True, kw_only=True)
class AudioCodecConfig:
    """Sizes of an ``AudioCodec``.

    Attributes:
        sample_rate: samples a second.
        channels: C, 1 or 2.
        strides: of the levels, the first next to the sound; their product is the hop.
        width: W of the first level; each further one is twice as wide.
        dilations: of the residual units of a level, one each.
        codebook_size: V.
        codebooks: K.
        dim: D.
        commitment_weight: see ``maskgen.tokenizers.quantize.QuantizerConfig``.
    """

    sample_rate: int = 16000
    channels: int = 1
    strides: tuple[int, ...] = (8, 8, 8)
    width: int = 48
    dilations: tuple[int, ...] = (1, 3)
    codebook_size: int = 256
    codebooks: int = 4
    dim: int = 16
    commitment_weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", tuple(self.strides))  # JSON brings lists
        object.__setattr__(self, "dilations", tuple(self.dilations))
        if self.channels not in (1, 2):
            raise ValueError(f"channels: got {self.channels}, expected 1 or 2")
        if self.sample_rate < 1 or self.width < 2:
            raise ValueError(
                f"got sample_rate {self.sample_rate} and width {self.width}, expected a positive rate and 2 or more"
            )
        if not self.strides or min(self.strides) < 2:
            raise ValueError(f"strides: got {self.strides}, expected one or more of at least 2")
        if min(self.dilations, default=1) < 1:
            raise ValueError(f"dilations: got {self.dilations}, expected positive numbers")
        self.quantizer()  # refuses the rest

    def quantizer(self) -> QuantizerConfig:
        """Settings of the residual quantizer."""
        return QuantizerConfig(
            kind="rvq",
            codebook_size=self.codebook_size,
            num_quantizers=self.codebooks,
            dim=self.dim,
            commitment_weight=self.commitment_weight,
        )


@dataclass(frozen=True)
class AudioCodecOutput:
    """What a training step needs.

    Attributes:
        reconstruction: float ``[B, C, T x hop]``.
        latents: float ``[B, D, T]``, before quantization.
        quantized: codes, straight-through latents and the commitment.
    """

    reconstruction: Tensor
    latents: Tensor
    quantized: Quantized


class AudioCodec(AudioTokenizer):
    """Sound float [B, C, S] in [-1, 1] at ``sample_rate`` to tokens [B, T, K] and back; loudness is not kept aside.

    Args:
        config: sizes.
    """

    def __init__(self, config: AudioCodecConfig) -> None:
        super().__init__()
        self.config: AudioCodecConfig = config
        widths = [config.width << level for level in range(len(config.strides))]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        above = config.channels
        for stride, width in zip(config.strides, widths, strict=True):
            # A dilated unit sees what its own level can use; the activation stands before each convolution that strides.
            down += [*_activation(above, config), _Down(above, width, stride)]
            if width < widths[-1]:
                down += [ResidualUnit(width, dilation) for dilation in config.dilations]
            units = [ResidualUnit(width, dilation) for dilation in config.dilations]
            up = [*units, nn.ELU(), _Up(width, above, stride), *up]
            above = width
        self.down = nn.Sequential(*down)
        self.loudness = _Magnitudes(config.channels, above, math.prod(config.strides))
        units = [ResidualUnit(above, dilation) for dilation in config.dilations]
        self.encoder = nn.Sequential(*units, nn.ELU(), nn.Conv1d(above, config.dim, 3, padding=1))
        self.norm = nn.BatchNorm1d(config.dim, affine=False)
        self.quantizer = ResidualQuantizer(config.quantizer())
        self.decoder = nn.Sequential(nn.Conv1d(config.dim, above, 3, padding=1), *up)
        self._init()

    def _init(self) -> None:
        """Keep the signal's size from layer to layer, biases 0: by torch's own start a constant drowns the sound."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                up = isinstance(module, nn.ConvTranspose1d)  # of its kernel only two places meet in a sample
                assert module.bias is not None
                taps = 2 if up else module.kernel_size[0]
                nn.init.normal_(module.weight, std=(module.in_channels * taps) ** -0.5)
                nn.init.zeros_(module.bias)
        first, last = self.down[0].conv, self.decoder[-1].conv
        assert isinstance(first, nn.Conv1d)
        assert isinstance(last, nn.ConvTranspose1d)
        basis = _lapped_basis(first.stride[0], min(first.out_channels, first.stride[0]))
        with torch.no_grad():
            first.weight[: len(basis)] = basis[:, None] / first.in_channels
            last.weight[: len(basis)] = basis[:, None]

    @property
    def sample_rate(self) -> int:
        """Samples a second."""
        return self.config.sample_rate

    @property
    def channels(self) -> int:
        """C."""
        return self.config.channels

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.config.codebook_size

    @property
    def num_codebooks(self) -> int:
        """K."""
        return self.config.codebooks

    @property
    def stride(self) -> tuple[int, ...]:
        """The hop, samples a frame."""
        return (math.prod(self.config.strides),)

    def code_tables(self) -> Tensor:
        """The vectors of the codes, ``[K, V, D]``; a code's vector is the sum over its codebooks."""
        return torch.stack([layer.codebook for layer in self.quantizer.inner.layers])

    @torch.no_grad()
    def replace_codes(self, codebook: int, codes: Tensor, vectors: Tensor) -> None:
        """Give some codes of one codebook new vectors.

        Args:
            codebook: which, from 0.
            codes: long ``[M]``, ids.
            vectors: float ``[M, D]``.
        """
        layer = self.quantizer.inner.layers[codebook]
        table = layer.codebook.detach().clone()
        table[codes] = vectors.to(table)
        layer.codebook = table

    def forward(self, audio: Tensor, quantize: bool = True) -> AudioCodecOutput:
        """Through the codes and back, for training; takes what ``encode`` takes.

        Args:
            audio: float ``[B, C, S]``.
            quantize: False gives the decoder the latents as they are.
        """
        latents = self.latents(audio)
        quantized = self.quantizer(latents)
        return AudioCodecOutput(self.decoder(quantized.latents if quantize else latents), latents, quantized)

    def latents(self, audio: Tensor) -> Tensor:
        """What the quantizer sees of ``[B, C, S]``: ``[B, D, T]``, mean square 1 in every frame.

        Without a fixed scale the commitment would shrink latents and codes together until they are all alike.
        """
        padded = self._to_hops(audio).to(next(self.encoder.parameters()).dtype)
        return self.norm(self.encoder(self.down(padded) + self.loudness(padded)))

    def encode_scaled(self, signal: Tensor) -> tuple[Tensor, None]:
        """See ``AudioTokenizer``; loudness is in the codes, so there is no scale."""
        return self.quantizer.encode(self.latents(signal)), None

    def decode(self, tokens: Tensor, axes: Sequence[int], scale: Tensor | None = None) -> Tensor:
        """See ``AudioTokenizer``."""
        self._check_codes(tokens, axes)
        tables = self.code_tables()
        latents = sum(
            (F.embedding(ids, table) for ids, table in zip(tokens.unbind(-1), tables, strict=False)),
            start=tables.new_zeros(()),
        )
        weight = next(self.decoder.parameters())
        audio: Tensor = self.decoder(latents.transpose(1, 2).to(weight.dtype)).float()
        return audio if scale is None else audio * scale.to(audio).view(-1, 1, 1)


class ResidualUnit(nn.Module):
    """x + conv1(ELU(conv3(ELU(x)))), the middle half as wide, as SEANet's; ``[B, W, T]`` to the same.

    Args:
        width: W.
        dilation: of the convolution over three places.
    """

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ELU(),
            nn.Conv1d(width, width // 2, 3, dilation=dilation, padding=dilation),
            nn.ELU(),
            nn.Conv1d(width // 2, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x + self.body(x)


def _activation(above: int, config: AudioCodecConfig) -> list[nn.Module]:
    """None on the sound itself."""
    return [] if above == config.channels else [nn.ELU()]


def _lapped_basis(stride: int, count: int) -> Tensor:
    """The ``count`` slowest functions of the MDCT with a sine window, ``[count, 2 x stride]``, orthonormal with overlap."""
    place = torch.arange(2 * stride, dtype=torch.float64) + 0.5
    frequency = torch.arange(count, dtype=torch.float64)[:, None] + 0.5
    window = (math.pi * place / (2 * stride)).sin()
    return (math.sqrt(2 / stride) * window * (math.pi / stride * (place + stride / 2) * frequency).cos()).float()


class _Magnitudes(nn.Module):
    """Logarithm of the short-time spectrum, a window of two hops centred on each, as features ``[B, W, T]``.

    Pitch and loudness are plain to see here; a few convolutions on the sound alone need long to find them.
    """

    def __init__(self, channels: int, width: int, hop: int) -> None:
        super().__init__()
        self.hop = hop
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(2 * hop), persistent=False)
        self.project = nn.Conv1d(channels * (hop + 1), width, 1)

    def forward(self, audio: Tensor) -> Tensor:
        flat = F.pad(audio, (self.hop // 2, self.hop - self.hop // 2)).flatten(0, 1)
        spectrum = torch.stft(flat, 2 * self.hop, self.hop, window=self.window, center=False, return_complex=True)
        levels = (spectrum.abs() / self.hop * 2).clamp(min=1e-4).log10() + 2  # about 0 +- 1
        return self.project(levels.unflatten(0, audio.shape[:2]).flatten(1, 2))


class _Down(nn.Module):
    """A convolution of twice its stride: ``[B, W, stride x T]`` to ``[B, W', T]``."""

    def __init__(self, above: int, below: int, stride: int) -> None:
        super().__init__()
        self.pad = (stride // 2, stride - stride // 2)
        self.conv = nn.Conv1d(above, below, 2 * stride, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pad))


class _Up(nn.Module):
    """The transposed convolution of ``_Down``: ``[B, W', T]`` to ``[B, W, stride x T]``."""

    def __init__(self, below: int, above: int, stride: int) -> None:
        super().__init__()
        self.start, self.stride = stride // 2, stride
        self.conv = nn.ConvTranspose1d(below, above, 2 * stride, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[..., self.start : self.start + x.shape[-1] * self.stride]
