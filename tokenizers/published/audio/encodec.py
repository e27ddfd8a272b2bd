"""EnCodec (Défossez et al. 2022) through Hugging Face's transformers: sound to residual codes and back.

``maskgen.tokenizers.published.audio.encodec_package`` runs the same weights through the ``encodec`` package; both have
the names of transformers in their state dict. ``maskgen.tokenizers.published.audio.encodec_files`` reads published
weights.

Shapes: B batch, C channels, S samples, T frames, K codebooks in use, V codes, D width of a code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from maskgen.tokenizers.audio.base import ConfiguredCodec, check_audio
from maskgen.tokenizers.settings import check_choice, check_least, freeze_lists

__all__ = ["EncodecBase", "EncodecTokenizer", "EncodecTokenizerConfig"]

Norm = Literal["weight_norm", "time_group_norm"]

_LONGEST = 2**24  # samples; transformers counts frames in float32


@dataclass(frozen=True, kw_only=True)
class EncodecTokenizerConfig:
    """Sizes of an EnCodec; the defaults are those of the 24 kHz model.

    Attributes:
        bandwidth: kilobits a second to use, one of ``bandwidths``; decides K.
        bandwidths: what the codec offers, ascending; the last one uses all its codebooks.
        sample_rate: samples a second.
        channels: C.
        ratios: strides of the decoder, in its order; their product is the hop.
        filters: width next to the signal; doubles with each stride.
        residual_layers: residual blocks a stride.
        lstm_layers: layers of each LSTM.
        dim: D.
        codebook_size: V, a power of two.
        causal: whether a frame hears nothing later than itself.
        norm: of the convolutions; ``time_group_norm`` needs ``causal`` off.
        normalize: whether the loudness is kept aside: sound is divided by its root mean square before it is encoded.
        conv_shortcut: whether residual blocks have a convolution on their way around.
    """

    bandwidth: float = 6.0
    bandwidths: tuple[float, ...] = (1.5, 3.0, 6.0, 12.0, 24.0)
    sample_rate: int = 24_000
    channels: int = 1
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    filters: int = 32
    residual_layers: int = 1
    lstm_layers: int = 2
    dim: int = 128
    codebook_size: int = 1024
    causal: bool = True
    norm: Norm = "weight_norm"
    normalize: bool = False
    conv_shortcut: bool = True

    def __post_init__(self) -> None:
        freeze_lists(self)
        object.__setattr__(self, "bandwidths", tuple(map(float, self.bandwidths)))
        check_least(self, sample_rate=1, filters=1, residual_layers=1, lstm_layers=1, dim=1)
        if self.channels not in (1, 2):
            raise ValueError(f"channels: got {self.channels}, expected 1 or 2")
        if not self.ratios or min(self.ratios) < 2:
            raise ValueError(f"ratios: got {self.ratios}, expected strides of 2 or more")
        if self.codebook_size < 2 or self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"codebook_size: got {self.codebook_size}, expected a power of two")
        check_choice(self, norm=("weight_norm", "time_group_norm"))
        if self.norm == "time_group_norm" and self.causal:
            raise ValueError("norm: time_group_norm looks at the whole sound, so causal must be False")
        if not self.bandwidths or list(self.bandwidths) != sorted(set(self.bandwidths)) or self.bandwidths[0] <= 0:
            raise ValueError(f"bandwidths: got {self.bandwidths}, expected ascending positive numbers")
        if self.codebooks_at(self.bandwidths[-1]) < 1:
            raise ValueError(f"bandwidths: {self.bandwidths[-1]} kbps is less than one codebook needs")
        for value in self.bandwidths:
            if len(counts := self._counts(value)) > 1:
                raise ValueError(
                    f"bandwidths: {value} kbps is {' or '.join(map(str, sorted(counts)))} codebooks, as rounding goes in "
                    "one library or the other; give a millionth more"
                )
        if self.bandwidth not in self.bandwidths:
            offered = ", ".join(f"{value:g} ({self.codebooks_at(value)} codebooks)" for value in self.bandwidths)
            raise ValueError(f"bandwidth: got {self.bandwidth}, but this codec has {offered} kbps")

    @classmethod
    def encodec_24khz(cls, bandwidth: float = 6.0) -> EncodecTokenizerConfig:
        """Mono, causal, 75 frames a second: 2, 4, 8, 16 or 32 codebooks at 1.5, 3, 6, 12 or 24 kbps."""
        return cls(bandwidth=bandwidth)

    @classmethod
    def encodec_48khz(cls, bandwidth: float = 6.0) -> EncodecTokenizerConfig:
        """Stereo, normalised, 150 frames a second: 2, 4, 8 or 16 codebooks at 3, 6, 12 or 24 kbps.

        The whole sound is one chunk here, which gives a uniform grid and one factor of loudness. The original cuts it into
        seconds that overlap by 1 %, each with its own factor: the same for sounds of up to 0.99 s, and for longer ones
        other tokens, as the norms look at the chunk.
        """
        return cls(
            bandwidth=bandwidth,
            bandwidths=(3.0, 6.0, 12.0, 24.0),
            sample_rate=48_000,
            channels=2,
            causal=False,
            norm="time_group_norm",
            normalize=True,
        )

    @classmethod
    def encodec_32khz(cls) -> EncodecTokenizerConfig:
        """Mono, 50 frames a second, 4 codebooks of 2048: the codec of MusicGen and MAGNeT."""
        return cls(
            bandwidth=2.2,
            bandwidths=(2.2,),
            sample_rate=32_000,
            ratios=(8, 5, 4, 4),
            filters=64,
            codebook_size=2048,
            causal=False,
            conv_shortcut=False,
        )

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return math.prod(self.ratios)

    @property
    def quantizers(self) -> int:
        """Codebooks that the weights hold, of which K are used."""
        return self.codebooks_at(self.bandwidths[-1])

    def codebooks_at(self, bandwidth: float) -> int:
        """Codebooks that fit into so many kilobits a second; frames a second rounded up, as the original does."""
        return int(1000 * bandwidth // self._bits)

    @property
    def _bits(self) -> int:
        """Bits a second of one codebook."""
        return -(-self.sample_rate // self.hop) * (self.codebook_size.bit_length() - 1)

    def _counts(self, bandwidth: float) -> set[int]:
        """The same by the three formulas of the libraries, which round differently."""
        found = {math.floor(bandwidth * 1000 / self._bits), math.floor(bandwidth / (self._bits / 1000))}
        return found | {self.codebooks_at(bandwidth)}


class EncodecBase(ConfiguredCodec):
    """What both ways to run an EnCodec share; see ``AudioTokenizer`` for the signal.

    The end of a sound that is no whole number of hops is filled as the original does it, by the padding of its
    convolutions. Before weights are loaded the code tables are drawn at random: both libraries start from zeros, where every
    sound is code 0.

    Args:
        config: sizes.
    """

    def __init__(self, config: EncodecTokenizerConfig) -> None:
        super().__init__()
        self.config: EncodecTokenizerConfig = config

    @property
    def num_codebooks(self) -> int:
        """K, as many as the bandwidth pays for."""
        return self.config.codebooks_at(self.config.bandwidth)

    def code_tables(self) -> Tensor:
        """Float [K, V, D]: what the quantizers add up."""
        return torch.stack([book.get_buffer("embed") for book in self._books()[: self.num_codebooks]])

    def encode_scaled(self, signal: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens, and for codecs that normalise the root mean square [B] of the channels' mean (else None)."""
        check_audio(signal, self.channels)
        dtype = self._books()[0].get_buffer("embed").dtype
        codes, scale = self._encode(signal.to(dtype))
        assert codes.shape[1:] == (self.num_codebooks, *self.axes(signal.shape))
        return rearrange(codes, "b k t -> b t k").contiguous(), None if scale is None else scale.flatten()

    def decode(self, tokens: Tensor, axes: Sequence[int], scale: Tensor | None = None) -> Tensor:
        """Turn tokens back into sound; see ``AudioTokenizer.decode``."""
        self._check_codes(tokens, axes)
        if scale is not None and tuple(scale.shape) != (len(tokens),):
            raise ValueError(f"scale: got shape {tuple(scale.shape)}, expected [{len(tokens)}], one factor an item")
        signal = self._decode(rearrange(tokens, "b t k -> b k t"))
        assert signal.shape == (len(tokens), self.channels, axes[0] * self.config.hop)
        return signal if scale is None else signal * scale.to(signal)[:, None, None]

    def identity(self) -> str:
        """One name for both libraries: their codes are the same."""
        return "Encodec-" + super().identity().partition("-")[2]

    def _books(self) -> list[nn.Module]:
        """All code tables' modules, with the buffers ``embed`` [V, D] and ``inited``."""
        raise NotImplementedError

    def _encode(self, signal: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes [B, K, T] and scale of a checked signal."""
        raise NotImplementedError

    def _decode(self, codes: Tensor) -> Tensor:
        """Signal [B, C, S] of codes [B, k, T], unscaled."""
        raise NotImplementedError

    @torch.no_grad()
    def _fill_tables(self) -> None:
        for book in self._books():
            book.get_buffer("embed").normal_()
            book.get_buffer("inited").fill_(1)  # else the package would run k-means in training


class EncodecTokenizer(EncodecBase):
    """EnCodec through transformers' ``EncodecModel``.

    Args:
        config: sizes.

    Raises:
        ImportError: transformers is not installed.
    """

    def __init__(self, config: EncodecTokenizerConfig) -> None:
        super().__init__(config)
        try:
            from transformers import EncodecConfig, EncodecModel
        except ImportError as error:
            raise ImportError('EnCodec needs transformers: pip install "maskgen[text]"') from error
        self.codec: Any = EncodecModel(
            EncodecConfig(
                target_bandwidths=list(config.bandwidths),
                sampling_rate=config.sample_rate,
                audio_channels=config.channels,
                normalize=config.normalize,
                chunk_length_s=None,
                overlap=None,
                hidden_size=config.dim,
                num_filters=config.filters,
                num_residual_layers=config.residual_layers,
                upsampling_ratios=list(config.ratios),
                norm_type=config.norm,
                use_causal_conv=config.causal,
                num_lstm_layers=config.lstm_layers,
                codebook_size=config.codebook_size,
                use_conv_shortcut=config.conv_shortcut,
            )
        )
        self._fill_tables()

    def _books(self) -> list[nn.Module]:
        return [layer.codebook for layer in self.codec.quantizer.layers]

    def _encode(self, signal: Tensor) -> tuple[Tensor, Tensor | None]:
        if signal.shape[-1] > _LONGEST:
            raise ValueError(f"audio: got {signal.shape[-1]} samples, expected at most {_LONGEST}; encode it in parts")
        found = self.codec.encode(signal, bandwidth=self.config.bandwidth)
        return found.audio_codes[0], found.audio_scales[0]

    def _decode(self, codes: Tensor) -> Tensor:
        return self.codec.decode(codes[None], [None]).audio_values
