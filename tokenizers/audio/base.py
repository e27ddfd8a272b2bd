"""The contract between sound and tokens: what an audio codec adds to ``Tokenizer``.

Shapes: B batch, C channels, S samples, N = T frames, K codebooks, V codes, D width of a code.
"""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from maskgen.tokenizers.base import Tokenizer

__all__ = ["AudioTokenizer", "ConfiguredCodec", "check_audio"]


class AudioTokenizer(Tokenizer):
    """Sound to tokens and back.

    Signal: float [B, C, S] in about [-1, 1] at ``sample_rate``; S is any positive number of samples, padded on the right to
    whole hops by ``encode``. ``decode`` gives whole hops, T x hop samples: crop to an S that you know.

    Tokens are long [B, T, K], coarse codebook first. ``decode`` also takes the first k < K codebooks alone, which leaves out
    the finer detail.
    """

    modality: ClassVar[str] = "audio"
    is_spatial: ClassVar[bool] = True

    @property
    @abstractmethod
    def sample_rate(self) -> int:
        """Samples a second."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """C: 1 mono, 2 stereo."""

    @property
    def frame_rate(self) -> Fraction:
        """Tokens a second for each codebook, exactly: ``sample_rate`` over the hop."""
        return Fraction(self.sample_rate, self.stride[0])

    @abstractmethod
    def code_tables(self) -> Tensor:
        """The vectors the codes stand for, float [K, V, D], as the codec's quantizers look them up."""

    def axes(self, signal_shape: Sequence[int]) -> tuple[int, ...]:
        """Number of frames of a signal [B, C, S]: (ceil(S / hop),).

        Raises:
            ValueError: when it is no such batch or has another number of channels.
        """
        _check_shape(signal_shape, self.channels)
        return (-(-signal_shape[2] // self.stride[0]),)

    def encode(self, signal: Tensor) -> Tensor:
        """Turn sound into tokens, see ``Tokenizer.encode``; ``encode_scaled`` is for codecs that keep the loudness aside."""
        return self.encode_scaled(signal)[0]

    @abstractmethod
    def encode_scaled(self, signal: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens, and for codecs that normalise the loudness the factor [B] to give to ``decode`` (else None)."""

    @abstractmethod
    def decode(self, tokens: Tensor, axes: Sequence[int], scale: Tensor | None = None) -> Tensor:
        """Turn tokens back into sound, float [B, C, T x hop]; see ``Tokenizer.decode``.

        Args:
            tokens: long [B, T, k], ids in [0, V), 1 <= k <= K.
            axes: (T,).
            scale: what ``encode_scaled`` gave; 1 if left out.

        Raises:
            TypeError: when tokens are not long.
            ValueError: when shape, grid, ids or scale do not fit.
        """

    def frames(self, seconds: float) -> int:
        """Frames that cover a time: ceil(seconds x sample_rate / hop), in floating point as VampNet's ``s2t``."""
        return math.ceil(seconds * self.sample_rate / self.stride[0])

    def identity(self) -> str:
        """Name and hash of the code tables: tokens of another codec mean other sounds."""
        digest = hashlib.sha256(self.code_tables().detach().cpu().double().contiguous().numpy().tobytes())
        return f"{type(self).__name__}-{self.sample_rate}-{self.stride[0]}-{digest.hexdigest()[:16]}"

    def _check_codes(self, tokens: Tensor, axes: Sequence[int]) -> None:
        """``_check_tokens`` for the first k codebooks."""
        k = tokens.shape[-1] if tokens.ndim == 3 else 0
        if not 1 <= k <= self.num_codebooks:
            raise ValueError(
                f"tokens: got shape {tuple(tokens.shape)}, expected [B, T, k] with 1 to {self.num_codebooks} codebooks"
            )
        missing = self.num_codebooks - k
        self._check_tokens(F.pad(tokens, (0, missing)) if missing else tokens, axes)

    def _to_hops(self, signal: Tensor) -> Tensor:
        """Check, and pad with silence on the right to a multiple of the hop."""
        check_audio(signal, self.channels)
        return F.pad(signal, (0, -signal.shape[-1] % self.stride[0]))


class ConfiguredCodec(AudioTokenizer):
    """Base of codecs whose config says ``sample_rate``, ``channels``, ``hop``, ``codebooks`` and ``codebook_size``."""

    @property
    def vocab_size(self) -> int:
        """V, the same for every codebook."""
        return int(self.config.codebook_size)

    @property
    def num_codebooks(self) -> int:
        """K, the codebooks in use."""
        return int(self.config.codebooks)

    @property
    def stride(self) -> tuple[int, ...]:
        """Samples a frame: (hop,)."""
        return (int(self.config.hop),)

    @property
    def sample_rate(self) -> int:
        """Samples a second."""
        return int(self.config.sample_rate)

    @property
    def channels(self) -> int:
        """C: 1 mono, 2 stereo."""
        return int(self.config.channels)


def check_audio(signal: Tensor, channels: int) -> None:
    """Refuse anything but a floating point batch of sounds.

    Args:
        signal: tensor to look at.
        channels: what C must be.

    Raises:
        TypeError: when it is not floating point.
        ValueError: when its shape is not [B, C, S].
    """
    if not signal.is_floating_point():
        raise TypeError(f"audio: got {signal.dtype}, expected floating point samples in [-1, 1]; divide int16 by 32768")
    _check_shape(signal.shape, channels)


def _check_shape(shape: Sequence[int], channels: int) -> None:
    if len(shape) != 3 or shape[1] != channels or shape[2] < 1:
        raise ValueError(
            f"audio: got shape {tuple(shape)}, expected [B, {channels}, S]: batch, then {channels} channel(s), then samples"
        )
