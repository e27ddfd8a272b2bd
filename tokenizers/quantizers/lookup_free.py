"""Lookup-free quantization (Yu et al. 2024, arXiv 2310.05737), number for number as Open-MAGVIT2 trains and counts it.

A code is a corner of a cube: channel i is -1 or 1 and is bit i of the id, so channel 0 is the LEAST significant bit (in
vector-quantize-pytorch the most significant). A channel that is 0 counts as below 0.

The losses look at p(code | x) = softmax(2 x.code / T), a product over bits: bit i is set with probability
sigmoid(4 x_i / T). Hence two shortcuts, both exact: the entropy of a token is the sum of its bits' entropies, and the mean
distribution over all 2^d codes is one product of two matrices of 2^(d/2) columns. No table of tokens x 2^d is ever built.

Shapes: B batch, N positions, C codebooks, d bits of a code, M tokens, V = 2^d codes, P parts of an id.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.tokenizers.quantizers.vector import to_grid

# Added inside the logarithm of the mean distribution, and there only: for 2^18 codes, whose mean probability is smaller,
# the official batch entropy reads up to 1.3 nats low.
_EPS = 1e-5

_MOST_BITS = 24  # the mean distribution has 2^bits entries


@dataclass(frozen=True, kw_only=True)
class LFQConfig:
    """Settings of the quantizer; the defaults are those of the published 18-bit tokenizers.

    Attributes:
        bits: d, bits of a code.
        codebooks: C; codebook c reads channels c * d to (c + 1) * d - 1.
        temperature: T of the softmax in the losses.
        sample_weight: of the mean entropy of a token, which training makes small.
        batch_weight: of the entropy of the mean distribution, which training makes large.
    """

    bits: int = 18
    codebooks: int = 1
    temperature: float = 0.01
    sample_weight: float = 1.0
    batch_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= _MOST_BITS or self.codebooks < 1:
            raise ValueError(
                f"bits, codebooks: got {self.bits} and {self.codebooks}, expected 1 to {_MOST_BITS} bits and 1 or more "
                "codebooks; more bits go into more codebooks"
            )
        if self.temperature <= 0 or self.sample_weight < 0 or self.batch_weight < 0:
            raise ValueError(
                f"temperature, sample_weight, batch_weight: got {self.temperature}, {self.sample_weight}, "
                f"{self.batch_weight}, expected a positive temperature and weights of 0 or more"
            )


@dataclass(frozen=True)
class EntropyTerms:
    """The two entropies of a batch, in nats.

    Attributes:
        sample: mean over tokens of the entropy of a token's distribution.
        batch: entropy of the mean distribution, as the official code computes it.
    """

    sample: Tensor
    batch: Tensor


@dataclass(frozen=True)
class LFQOutput:
    """What the quantizer makes of latents.

    Attributes:
        latents: [B, C * d, ...], the codes with the gradient of the latents: x + (code - x), so -1 and 1 up to rounding.
        ids: long [B, N, C], positions in raster order.
        sample_entropy: see ``EntropyTerms``.
        batch_entropy: see ``EntropyTerms``.
        entropy: sample_weight * sample_entropy - batch_weight * batch_entropy.
        commitment: mean over all elements of (x - code)^2.
    """

    latents: Tensor
    ids: Tensor
    sample_entropy: Tensor
    batch_entropy: Tensor
    entropy: Tensor
    commitment: Tensor


class LFQ(nn.Module):
    """Latents to codes and back; no weights. Computes in float32 whatever autocast says.

    Losses are there in either mode; the official code leaves them 0 in evaluation mode, where nothing reads them.
    """

    def __init__(self, config: LFQConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, latents: Tensor, mask: Tensor | None = None) -> LFQOutput:
        """Quantize with gradients and losses.

        Args:
            latents: float [B, C * d, ...], one or more trailing axes.
            mask: bool [B, N], True where a position counts in the losses; all do without it.

        Returns:
            Codes, ids and losses.

        Raises:
            ValueError: when latents or mask have another shape.
        """
        rows = self._rows(latents)  # [B, N, C, d]
        if mask is not None and mask.shape != rows.shape[:2]:
            raise ValueError(f"mask: got shape {tuple(mask.shape)}, expected {tuple(rows.shape[:2])}, one a position")
        with torch.autocast(latents.device.type, enabled=False):
            bits = rows > 0
            codes = bits.float() * 2 - 1
            quantized = rows + (codes - rows).detach()
            weights = None if mask is None else repeat(mask, "b n -> (b n c)", c=rows.shape[2]).float()
            tokens = rearrange(rows, "b n c d -> (b n c) d")
            terms = bit_entropies(tokens, temperature=self.config.temperature, weights=weights)
            entropy = self.config.sample_weight * terms.sample - self.config.batch_weight * terms.batch
            commitment = _mean((rows - codes).square().mean(-1).flatten(), weights)
        out = to_grid(rearrange(quantized, "b n c d -> b n (c d)"), latents.shape[2:]).to(latents.dtype)
        return LFQOutput(out, bits_to_ids(bits), terms.sample, terms.batch, entropy, commitment)

    def encode(self, latents: Tensor) -> Tensor:
        """Ids only.

        Args:
            latents: float [B, C * d, ...].

        Returns:
            Long [B, N, C], ids in [0, 2^d).

        Raises:
            ValueError: when the shape does not fit.
        """
        return bits_to_ids(self._rows(latents) > 0)

    def lookup(self, ids: Tensor, axes: Sequence[int]) -> Tensor:
        """Codes of ids, exactly -1 and 1.

        Args:
            ids: long [B, N, C], in [0, 2^d).
            axes: grid whose product is N.

        Returns:
            Float32 [B, C * d, *axes].

        Raises:
            TypeError: when ids are not long.
            ValueError: when the shape does not fit or ids are out of range.
        """
        expected = (len(ids), math.prod(axes), self.config.codebooks)
        if tuple(ids.shape) != expected:
            raise ValueError(f"ids: got shape {tuple(ids.shape)}, expected {expected} for axes {tuple(axes)}")
        codes = ids_to_codes(ids, self.config.bits)
        return to_grid(rearrange(codes, "b n c d -> b n (c d)"), axes)

    def _rows(self, latents: Tensor) -> Tensor:
        """[B, C * d, ...] -> float32 [B, N, C, d]."""
        width = self.config.bits * self.config.codebooks
        if latents.ndim < 3 or latents.shape[1] != width:
            raise ValueError(f"latents: got shape {tuple(latents.shape)}, expected [B, {width}, ...]")
        return rearrange(latents, "b (c d) ... -> b (...) c d", d=self.config.bits).float()


def bits_to_ids(bits: Tensor) -> Tensor:
    """Ids of bits, the first bit the least significant.

    Args:
        bits: bool [..., d].

    Returns:
        Long [...].
    """
    return (bits.long() << torch.arange(bits.shape[-1], device=bits.device)).sum(-1)


def ids_to_codes(ids: Tensor, bits: int) -> Tensor:
    """Codes of ids.

    Args:
        ids: long [...], in [0, 2^bits).
        bits: d.

    Returns:
        Float32 [..., d], exactly -1 and 1.

    Raises:
        TypeError: when ids are not long.
        ValueError: when they are out of range.
    """
    _check(ids, bits)
    return ((ids[..., None] >> torch.arange(bits, device=ids.device)) & 1).float() * 2 - 1


def factor_ids(ids: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Cut ids into parts, the low bits first; parts may have different sizes.

    Open-MAGVIT2's generators call the first of two parts "pre" and the second "post": 6 and 12 of 18 bits.

    Args:
        ids: long [...], in [0, 2^sum(sizes)).
        sizes: bits of each of the P parts.

    Returns:
        P times long [...], part p in [0, 2^sizes[p]).

    Raises:
        TypeError: when ids are not long.
        ValueError: when they are out of range or a size is not positive.
    """
    _check(ids, _total(sizes))
    starts = itertools.accumulate((0, *sizes[:-1]))
    return tuple((ids >> start) & (2**size - 1) for start, size in zip(starts, sizes, strict=True))


def join_ids(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Inverse of ``factor_ids``.

    Args:
        parts: P times long [...] of one shape, part p in [0, 2^sizes[p]).
        sizes: bits of each part.

    Returns:
        Long [...], in [0, 2^sum(sizes)).

    Raises:
        TypeError: when parts are not long.
        ValueError: when they are out of range or not as many as sizes.
    """
    _total(sizes)
    if len(parts) != len(sizes):
        raise ValueError(f"parts: got {len(parts)}, expected {len(sizes)}, one for each of the sizes {tuple(sizes)}")
    ids = torch.zeros_like(parts[0])
    for part, size, start in zip(parts, sizes, itertools.accumulate((0, *sizes[:-1])), strict=True):
        _check(part, size)
        ids = ids + (part << start)
    return ids


def bit_entropies(tokens: Tensor, *, temperature: float, weights: Tensor | None = None) -> EntropyTerms:
    """The two entropies over all 2^d codes, without a table of tokens x codes.

    Memory is M * 2^(d/2) + 2^d numbers.

    Args:
        tokens: float32 [M, d], unquantized.
        temperature: T.
        weights: float [M], 0 or more: how much a token counts in both means; all count alike without it.

    Returns:
        The entropies, with gradients.
    """
    d = tokens.shape[1]
    logits = tokens * (4 / temperature)
    # Not 1 - p for the other side: its rounding would be most of the gradient where a bit is nearly sure.
    entropy = -logits.sigmoid() * F.logsigmoid(logits) - (-logits).sigmoid() * F.logsigmoid(-logits)
    low, high = (_code_chances(part, temperature) for part in tokens.split((d // 2, d - d // 2), dim=1))
    counts = torch.ones_like(tokens[:, 0]) if weights is None else weights
    mean = (high * counts[:, None]).t() @ low / counts.sum()
    # [2^high, 2^low]; flat, the row is the high part of the id.
    return EntropyTerms(_mean(entropy.sum(-1), weights), _batch_entropy(mean.flatten()))


def entropies(logits: Tensor, *, temperature: float, mask: Tensor | None = None) -> EntropyTerms:
    """The same two entropies for any logits, e.g. those of a learned codebook.

    Args:
        logits: float [..., V].
        temperature: they are divided by it.
        mask: bool [...], True where a row counts; all do without it.

    Returns:
        The entropies, with gradients.

    Raises:
        ValueError: when the temperature is not positive or the mask has another shape.
    """
    if temperature <= 0:
        raise ValueError(f"temperature: got {temperature}, expected a positive number")
    if mask is not None and mask.shape != logits.shape[:-1]:
        raise ValueError(
            f"mask: got shape {tuple(mask.shape)}, expected {tuple(logits.shape[:-1])}, one a row of logits"
        )
    rows = logits.flatten(end_dim=-2).float() / temperature
    weights = None if mask is None else mask.flatten().float()
    chances = rows.softmax(-1)
    sample = -(chances * rows.log_softmax(-1)).sum(-1)
    mean = chances.mean(0) if weights is None else (chances * weights[:, None]).sum(0) / weights.sum()
    return EntropyTerms(_mean(sample, weights), _batch_entropy(mean))


def _code_chances(part: Tensor, temperature: float) -> Tensor:
    """[M, k] -> softmax over the 2^k codes of these k bits."""
    k = part.shape[1]
    codes = ids_to_codes(torch.arange(2**k, device=part.device), k)
    return (part @ codes.t() * (2 / temperature)).softmax(-1)


def _batch_entropy(mean: Tensor) -> Tensor:
    return -(mean * (mean + _EPS).log()).sum()


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of [M], or weighted mean."""
    return values.mean() if weights is None else (values * weights).sum() / weights.sum()


def _total(sizes: Sequence[int]) -> int:
    if not sizes or min(sizes) < 1 or sum(sizes) > 62:
        raise ValueError(f"sizes: got {tuple(sizes)}, expected bits of each part, 1 or more, 62 or less together")
    return sum(sizes)


def _check(ids: Tensor, bits: int) -> None:
    if ids.dtype != torch.long:
        raise TypeError(f"ids: got {ids.dtype}, expected torch.int64; convert them with .long()")
    if ids.numel() == 0 or ids.is_meta:
        return
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= 2**bits:
        raise ValueError(f"ids: got {low} to {high}, expected 0 to {2**bits - 1} ({bits} bits)")
