"""What Descript's codecs DAC and LAC share: convolutions with Snake, residual quantizers by cosine.

Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN" (arXiv 2306.06546), section 3.

Shapes: B batch, S samples, T frames, K codebooks used, k the first of them, V codes, D width of a code, Z width between
encoder and decoder, C channels of a layer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.tokenizers.audio.base import ConfiguredCodec

__all__ = ["CosineQuantizer", "DescriptTokenizer", "Encoding", "Parts", "Residual", "Snake", "check_sizes", "conv"]


class Snake(nn.Module):
    """``x + sin(a x)^2 / a`` with one ``a`` a channel (Ziyin et al. 2020, arXiv 2006.08195): a bend that keeps periods.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, S] -> [B, C, S]."""
        return x + (self.alpha + 1e-9).reciprocal() * (self.alpha * x).sin().square()


class Residual(nn.Sequential):
    """``x`` plus what the layers, in a row, make of it."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, S] -> [B, C, S]."""
        out = x
        for layer in self:
            out = layer(out)
        return x + out


def conv(channels: int, out: int, kernel: int, dilation: int = 1) -> nn.Conv1d:
    """A convolution that keeps the length; ``kernel`` is odd."""
    return nn.Conv1d(channels, out, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2)


class CosineQuantizer(nn.Module):
    """One level: project to D dimensions, take the code of the nearest direction, project back.

    Args:
        width: Z.
        codebook_size: V.
        codebook_dim: D.
    """

    def __init__(self, width: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Conv1d(width, codebook_dim, 1)
        self.out_proj = nn.Conv1d(codebook_dim, width, 1)
        self.codebook = nn.Embedding(codebook_size, codebook_dim)


class Parts(NamedTuple):
    """The pieces of a codec; a quantizer has ``in_proj``, ``codebook`` and ``out_proj`` as ``CosineQuantizer``."""

    encoder: nn.Module
    quantizers: Sequence[nn.Module]
    decoder: nn.Module


class Encoding(NamedTuple):
    """What an encoder knows of a sound.

    Attributes:
        tokens: long [B, T, K].
        latents: float [B, K * D, T], what each level projected before it chose a code, coarse level first.
        z_q: float [B, Z, T], what the decoder gets.
    """

    tokens: Tensor
    latents: Tensor
    z_q: Tensor


class DescriptTokenizer(ConfiguredCodec):
    """Mono codec of an encoder, residual quantizers by cosine, and a decoder.

    Signal: float [B, 1, S] in about [-1, 1]; stereo goes in as two items. ``decode`` stays in [-1, 1]. Nothing is drawn and
    no code is dropped, in training mode neither.

    Its config also has ``codebook_dim`` and ``latent_dim``.
    """

    @abstractmethod
    def parts(self) -> Parts:
        """Encoder, the K quantizers in use, and decoder."""

    @property
    def channels(self) -> int:
        """1: mono."""
        return 1

    def code_tables(self) -> Tensor:
        """Code vectors as stored, float [K, V, D]; only the search for the nearest one scales them to unit length."""
        return torch.stack([_table(quantizer) for quantizer in self.parts().quantizers])

    def analyse(self, signal: Tensor) -> Encoding:
        """Tokens of a sound with all that lies between.

        Args:
            signal: float [B, 1, S] in about [-1, 1].

        Raises:
            TypeError: when the signal is not floating point.
            ValueError: when its shape does not fit, or it holds NaN, infinite or huge samples.
        """
        padded = self._to_hops(signal)
        parts = self.parts()
        rest = parts.encoder(padded.to(_table(parts.quantizers[0]).dtype))
        if not bool(torch.isfinite(rest).all()):  # every sample reaches a frame
            raise ValueError(
                "audio: got NaN, infinite or huge samples, expected about [-1, 1]; they would become arbitrary tokens"
            )
        total, codes, latents = torch.zeros_like(rest), [], []
        for quantizer in parts.quantizers:
            latent = quantizer.in_proj(rest)  # type: ignore[operator]
            code = _nearest(latent, _table(quantizer))
            row = _vectors(code, quantizer)
            # Equal to ``row`` but for rounding; the next level sees that rounding, so codes are official only with it.
            back = quantizer.out_proj(latent + (row - latent).detach())  # type: ignore[operator]
            total, rest = total + back, rest - back
            codes.append(code)
            latents.append(latent)
        return Encoding(torch.stack(codes, dim=-1), torch.cat(latents, dim=1), total)

    def encode_scaled(self, signal: Tensor) -> tuple[Tensor, None]:
        """Tokens, and None: these codecs keep the loudness in the codes. Refuses what ``analyse`` refuses."""
        return self.analyse(signal).tokens, None

    def latents(self, tokens: Tensor) -> Tensor:
        """Code vectors of tokens side by side, which is what VampNet's embedding looks at.

        Args:
            tokens: long [B, T, k], ids in [0, V), 1 <= k <= K.

        Returns:
            Float [B, k * D, T], coarse codebook first.

        Raises:
            TypeError: when tokens are not long.
            ValueError: when shape or ids do not fit.
        """
        return torch.cat(self._rows(tokens, tokens.shape[1:2]), dim=1)

    def from_latents(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize latents again, each level for itself.

        The official VampNet decodes this way. Of two code vectors in the same direction the first is taken.

        Args:
            latents: float [B, k * D, T], 1 <= k <= K.

        Returns:
            ``z_q`` float [B, Z, T], for ``synthesise``, and the codes long [B, T, k].

        Raises:
            ValueError: when the shape does not fit, or there are NaN or infinite values.
        """
        width = int(self.config.codebook_dim)
        levels, left = divmod(latents.shape[1], width) if latents.ndim == 3 else (0, 0)
        if left or not 1 <= levels <= self.num_codebooks:
            raise ValueError(
                f"latents: got shape {tuple(latents.shape)}, expected [B, k * {width}, T] with 1 to "
                f"{self.num_codebooks} codebooks"
            )
        if not bool(torch.isfinite(latents).all()):
            raise ValueError("latents: got NaN or infinite values, expected finite ones")
        quantizers = self.parts().quantizers[:levels]
        codes = [
            _nearest(latent, _table(quantizer))
            for latent, quantizer in zip(latents.split(width, dim=1), quantizers, strict=True)
        ]
        tokens = torch.stack(codes, dim=-1)
        return self._sum(self._rows(tokens, tokens.shape[1:2])), tokens

    def synthesise(self, z_q: Tensor) -> Tensor:
        """Sound of quantized vectors.

        Args:
            z_q: float [B, Z, T].

        Returns:
            Float [B, 1, T x hop]. Where odd rates make the official decoder stop a few samples early (8 of 320 T for the
            published 16 and 24 kHz DAC) silence follows; where they make it run over, the rest is left out.

        Raises:
            ValueError: when the shape does not fit.
        """
        if z_q.ndim != 3 or z_q.shape[1] != self.config.latent_dim or z_q.shape[2] < 1:
            raise ValueError(f"z_q: got shape {tuple(z_q.shape)}, expected [B, {self.config.latent_dim}, T]")
        sound: Tensor = self.parts().decoder(z_q)
        return F.pad(sound, (0, z_q.shape[-1] * self.stride[0] - sound.shape[-1]))

    def decode(self, tokens: Tensor, axes: Sequence[int], scale: Tensor | None = None) -> Tensor:
        """Sound in [-1, 1] of tokens; see ``AudioTokenizer.decode``. A scale is refused, as ``encode_scaled`` gives none."""
        if scale is not None:
            raise ValueError("scale: got a tensor, expected None; this codec keeps the loudness in its codes")
        return self.synthesise(self._sum(self._rows(tokens, axes)))

    def _rows(self, tokens: Tensor, axes: Sequence[int]) -> list[Tensor]:
        """Code vectors [B, D, T] of each level."""
        self._check_codes(tokens, axes)
        quantizers = self.parts().quantizers[: tokens.shape[-1]]
        return [_vectors(code, quantizer) for code, quantizer in zip(tokens.unbind(-1), quantizers, strict=True)]

    def _sum(self, rows: list[Tensor]) -> Tensor:
        total: Tensor | float = 0.0
        for row, quantizer in zip(rows, self.parts().quantizers, strict=False):
            total = total + quantizer.out_proj(row)  # type: ignore[operator]
        assert isinstance(total, Tensor)
        return total


def _table(quantizer: nn.Module) -> Tensor:
    table: Tensor = quantizer.codebook.weight  # type: ignore[assignment, union-attr]
    return table


def _vectors(code: Tensor, quantizer: nn.Module) -> Tensor:
    """[B, T] -> [B, D, T]."""
    return rearrange(F.embedding(code, _table(quantizer)), "b t d -> b d t")


def _nearest(latents: Tensor, table: Tensor) -> Tensor:
    """Long [B, T]: index of the row [V, D] whose direction is nearest to that of [B, D, T]; the first of equal ones."""
    precise = torch.promote_types(table.dtype, torch.float32)  # in float16 the length of silence would be 0
    points = F.normalize(rearrange(latents.to(precise), "b d t -> (b t) d"))
    rows = F.normalize(table.to(precise))
    distance = points.square().sum(1, keepdim=True) - 2 * points @ rows.t() + rows.square().sum(1)
    return rearrange(distance.argmin(1), "(b t) -> b t", b=len(latents))


def check_sizes(config: Any, *names: str, levels: int) -> None:
    """Refuse sizes that make no codec.

    Args:
        config: settings with ``decoder_dim``.
        names: fields that must be positive numbers, or tuples of strides, one a level.
        levels: of the decoder, each of which halves ``decoder_dim``.

    Raises:
        ValueError: naming the first field that does not fit.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, tuple):
            if not value or any(not isinstance(rate, int) or rate < 2 for rate in value):
                raise ValueError(f"{name}: got {value}, expected whole numbers from 2 on, one a level")
        elif not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}, expected a positive whole number")
    if config.decoder_dim < 2**levels:
        raise ValueError(
            f"decoder_dim: got {config.decoder_dim}, expected {2**levels} or more: {levels} levels halve it"
        )
