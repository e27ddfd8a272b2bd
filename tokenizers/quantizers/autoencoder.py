"""Tokenizers that are an encoder, a quantizer and a decoder in a row.

Shapes: B batch, C channels of a signal, N tokens, K codebooks, D width of a code; ``...`` are the axes of a signal or grid.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.quantizers.vector import Quantized, Quantizer

__all__ = ["Autoencoder", "Reconstruction"]


@dataclass(frozen=True)
class Reconstruction:
    """One pass for stage-1 training.

    Attributes:
        reconstruction: [B, C, ...], not clamped; axes that the stride does not divide come back longer.
        quantized: latents, codes and losses of the quantizer.
    """

    reconstruction: Tensor
    quantized: Quantized


class Autoencoder(Tokenizer):
    """Base of tokenizers with ``encoder``, ``quantizer`` and ``decoder``; name it after the base of the modality.

    The decoder ends in a convolution ``conv_out``, whose element type is the one the network works in.
    """

    encoder: Any
    quantizer: Quantizer
    decoder: Any

    @property
    def vocab_size(self) -> int:
        """V, codes per codebook."""
        return self.quantizer.vocab_size

    @property
    def num_codebooks(self) -> int:
        """K, codes per position: 1, or the steps of a residual quantizer."""
        return self.quantizer.num_codebooks

    @property
    def last_layer(self) -> Tensor:
        """Kernel of the decoder's last convolution, where an adaptive GAN weight is measured."""
        kernel: Tensor = self.decoder.conv_out.weight
        return kernel

    def encode(self, signal: Tensor) -> Tensor:
        """Tokens of a signal; see ``Tokenizer.encode``."""
        self._check_signal(signal)
        return self._tokens(self.quantizer.encode(self._latents(signal)))

    def decode(self, tokens: Tensor, axes: Sequence[int]) -> Tensor:
        """Signal of tokens, not clamped; see ``Tokenizer.decode``."""
        self._check_tokens(tokens, axes)
        return self._signal(self.quantizer.lookup(self._codes(tokens), axes))

    def forward(self, signal: Tensor) -> Reconstruction:
        """Reconstruct with gradients, for stage-1 training.

        Args:
            signal: what ``encode`` takes.

        Raises:
            TypeError: when the signal is not floating point.
            ValueError: when its shape does not fit.
        """
        self._check_signal(signal)
        quantized: Quantized = self.quantizer(self._latents(signal))
        codes = self._tokens(quantized.codes)
        return Reconstruction(self._signal(quantized.latents), dataclasses.replace(quantized, codes=codes))

    @abstractmethod
    def _check_signal(self, signal: Tensor) -> None:
        """Refuse what ``encode`` cannot take."""

    def _latents(self, signal: Tensor) -> Tensor:
        """[B, C, ...] -> what the quantizer reads, [B, D, ...]."""
        latents: Tensor = self.encoder(signal.to(self.last_layer.dtype))
        return latents

    def _signal(self, latents: Tensor) -> Tensor:
        """What the quantizer gives, [B, D, ...] -> [B, C, ...]."""
        signal: Tensor = self.decoder(latents.to(self.last_layer.dtype))
        return signal

    def _tokens(self, codes: Tensor) -> Tensor:
        """The quantizer's codes [B, N, K'] as tokens [B, N, K]."""
        return codes

    def _codes(self, tokens: Tensor) -> Tensor:
        """Inverse of ``_tokens``."""
        return tokens
