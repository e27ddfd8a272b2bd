"""Quantizers: vectors to code ids and back. This is the only file that imports `vector-quantize-pytorch`.

Shapes: B batch, D width of a latent, N positions (product of the trailing axes, raster order), K codebooks, V codes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from maskgen.tokenizers.quantizers.entropy import EntropyKind, entropy_loss
from maskgen.tokenizers.settings import check_choice, check_least, freeze_lists

QuantizerKind = Literal["vq", "fsq", "lfq", "rvq"]


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """Settings of a quantizer.

    Attributes:
        kind: "vq" learned codebook (official MaskGIT), "fsq" finite scalar (Mentzer et al. 2023), "lfq" lookup-free
            (Yu et al. 2023), "rvq" residual (Zeghidour et al. 2021).
        codebook_size: codes per codebook; a power of two for "lfq". "fsq" takes it from ``levels``: leave it alone
            there, or give their product.
        dim: D, width of the latents that come in and go out.
        commitment_weight: of the term that pulls latents to their codes ("fsq" has none).
        entropy_weight: of the entropy term of "vq" and "lfq".
        entropy_temperature: of the softmax in that term.
        entropy_loss: "softmax" or "argmax" form of that term.
        levels: levels of each "fsq" dimension, 3 or more each; empty for the other kinds.
        num_quantizers: codebooks of "rvq"; 1 for the other kinds.
    """

    kind: QuantizerKind = "vq"
    codebook_size: int = 1024
    dim: int = 256
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    entropy_temperature: float = 0.01
    entropy_loss: EntropyKind = "softmax"
    levels: tuple[int, ...] = ()
    num_quantizers: int = 1

    def __post_init__(self) -> None:
        freeze_lists(self)
        kind, size, levels = self.kind, self.codebook_size, self.levels
        check_choice(self, kind=("vq", "fsq", "lfq", "rvq"), entropy_loss=("softmax", "argmax"))
        check_least(self, codebook_size=2, dim=1, num_quantizers=1, commitment_weight=0, entropy_weight=0)
        temperature = self.entropy_temperature
        _require(temperature > 0, f"entropy_temperature: got {temperature}, expected a positive number")
        bits = kind != "lfq" or size & (size - 1) == 0
        _require(bits, f"codebook_size: got {size}, expected a power of two for 'lfq', one bit a dimension")
        steps = self.num_quantizers
        _require(
            steps == 1 or kind == "rvq", f"num_quantizers: got {steps} for {kind!r}, expected 1; only 'rvq' has more"
        )
        if kind != "fsq":
            _require(not levels, f"levels: got {levels} for {kind!r}, expected none; only 'fsq' has levels")
            return
        fit = bool(levels) and min(levels) >= 3
        _require(fit, f"levels: got {levels}, expected 3 or more for each dimension, e.g. (8, 5, 5, 5)")
        product = math.prod(levels)
        alone = size in (product, QuantizerConfig.codebook_size)
        _require(alone, f"codebook_size: got {size}, expected {product} for levels {levels}; leave it out")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


@dataclass(frozen=True)
class Quantized:
    """What a quantizer makes of latents.

    Attributes:
        latents: [B, D, ...], the quantized latents, with the gradient of the unquantized ones (straight-through).
        codes: long [B, N, K].
        loss: scalar to add to the reconstruction loss.
        terms: detached parts of the loss by name, for the log; weighted, so they add up to ``loss``.
    """

    latents: Tensor
    codes: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class Quantizer(nn.Module, ABC):
    """Latents to codes and back; any number of trailing axes, flattened in raster order.

    Computes in float32 whatever autocast says: a nearest code in half precision is often another code. Keep its own
    weights in float32 too (only "vq" may be cast).
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def vocab_size(self) -> int:
        """V, codes per codebook."""
        return self.config.codebook_size

    @property
    def num_codebooks(self) -> int:
        """K, codes per position."""
        return 1

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize with gradients and losses, for training.

        Args:
            latents: float [B, D, ...].

        Returns:
            Quantized latents, codes and losses.

        Raises:
            ValueError: when the width is not D or there is no trailing axis.
        """
        rows = self._rows(latents)
        with torch.autocast(latents.device.type, enabled=False):
            quantized, codes, terms = self._quantize(rows, with_loss=True)
            loss = torch.stack([*terms.values()]).sum() if terms else rows.new_zeros(())
        out = to_grid(quantized, latents.shape[2:]).to(latents.dtype)
        return Quantized(out, codes, loss, {name: term.detach() for name, term in terms.items()})

    def encode(self, latents: Tensor) -> Tensor:
        """Codes only, long [B, N, K], of float latents [B, D, ...]; refuses what ``forward`` refuses."""
        rows = self._rows(latents)
        with torch.autocast(latents.device.type, enabled=False):
            return self._quantize(rows, with_loss=False)[1]

    def lookup(self, codes: Tensor, axes: Sequence[int]) -> Tensor:
        """Vectors of codes, exactly as stored.

        Args:
            codes: long [B, N, K], ids in [0, V).
            axes: grid whose product is N.

        Returns:
            Float32 [B, D, *axes].

        Raises:
            ValueError: when the shape does not fit.
        """
        expected = (len(codes), math.prod(axes), self.num_codebooks)
        _require(codes.shape == expected, f"codes: got shape {tuple(codes.shape)}, expected {expected} for axes {axes}")
        with torch.autocast(codes.device.type, enabled=False):
            rows = self._vectors(codes)
        return to_grid(rows, axes)

    def _rows(self, latents: Tensor) -> Tensor:
        """[B, D, ...] -> float32 [B, N, D]."""
        shape, D = tuple(latents.shape), self.config.dim
        _require(len(shape) > 2 and shape[1] == D, f"latents: got shape {shape}, expected [B, {D}, ...]")
        return rearrange(latents, "b d ... -> b (...) d").float()

    @abstractmethod
    def _quantize(self, rows: Tensor, *, with_loss: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """[B, N, D] -> straight-through rows, codes [B, N, K], weighted terms of the loss (if cheap, or ``with_loss``)."""

    @abstractmethod
    def _vectors(self, codes: Tensor) -> Tensor:
        """[B, N, K] -> [B, N, D]."""


def to_grid(rows: Tensor, axes: Sequence[int]) -> Tensor:
    """[B, N, D] -> [B, D, *axes]."""
    return rearrange(rows, "b n d -> b d n").unflatten(2, tuple(axes))


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """Value of ``quantized``, gradient of ``latents``."""
    return latents + (quantized - latents).detach()


def _entropy_term(config: QuantizerConfig, affinity: Tensor) -> Tensor:
    return config.entropy_weight * entropy_loss(affinity, config.entropy_loss, config.entropy_temperature)


class VectorQuantizer(Quantizer):
    """The official MaskGIT quantizer: nearest codebook row in squared distance, no projection, no running means.

    loss = mean((q - sg x)^2) + commitment_weight * mean((sg q - x)^2) + entropy_weight * entropy, the entropy on
    negative squared distances (``losses.entropy_loss``). The first of equally near codes wins. Codebook rows start
    uniform in +-sqrt(3 / V), the official start (a fan-in of V, not of D).
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.codebook = nn.Parameter(torch.empty(config.codebook_size, config.dim))
        bound = math.sqrt(3 / config.codebook_size)
        nn.init.uniform_(self.codebook, -bound, bound)

    def _distances(self, rows: Tensor) -> Tensor:
        """[M, D] -> squared distances [M, V], by the official expansion."""
        codes = self._table()
        return rows.square().sum(-1, keepdim=True) - 2 * rows @ codes.t() + codes.square().sum(-1)

    def _table(self) -> Tensor:
        """Float32 [V, D], what latents are compared with."""
        return self.codebook.float()

    def _vectors(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[..., 0], self.codebook.float())

    def _quantize(self, rows: Tensor, *, with_loss: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        config = self.config
        distances = self._distances(rearrange(rows, "b n d -> (b n) d"))
        codes = rearrange(distances.argmin(-1), "(b n) -> b n 1", b=len(rows))
        quantized = self._vectors(codes)
        terms = {
            "q_latent": (quantized - rows.detach()).square().mean(),
            "e_latent": config.commitment_weight * (quantized.detach() - rows).square().mean(),
        }
        if with_loss and config.entropy_weight:
            terms["entropy"] = _entropy_term(config, -distances)
        return straight_through(rows, quantized), codes, terms


class NormalizedQuantizer(VectorQuantizer):
    """Nearest code by direction, as MAGVIT's ``latent_normalize``: vectors of codes keep the length they have.

    Latents are scaled to length 1, in the losses as well; codes are scaled in the distance only.
    """

    def _rows(self, latents: Tensor) -> Tensor:
        return F.normalize(super()._rows(latents), dim=-1)

    def _table(self) -> Tensor:
        return F.normalize(self.codebook.float(), dim=-1)


class _Projected(Quantizer):
    """Base of the two quantizers whose own width is fixed by their codes.

    A linear map on each position (a 1 x 1 convolution) goes in and one comes out, only where D differs from that width.
    """

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__(config)
        same = width == config.dim
        self.project_in: nn.Module = nn.Identity() if same else nn.Linear(config.dim, width)
        self.project_out: nn.Module = nn.Identity() if same else nn.Linear(width, config.dim)
        self.inner: Any

    def _vectors(self, codes: Tensor) -> Tensor:
        vectors: Tensor = self.project_out(self.inner.indices_to_codes(codes[..., 0]))
        return vectors


class FiniteScalarQuantizer(_Projected):
    """FSQ (Mentzer et al. 2023): each dimension is bounded and rounded to its own few levels; no codebook, no loss."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config, len(config.levels))
        from vector_quantize_pytorch import FSQ

        self.inner = FSQ(levels=list(config.levels))

    @property
    def vocab_size(self) -> int:
        """Product of the levels."""
        return math.prod(self.config.levels)

    def _quantize(self, rows: Tensor, *, with_loss: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        quantized, codes = self.inner(self.project_in(rows))
        return self.project_out(quantized), codes.long()[..., None], {}


class LookupFreeQuantizer(_Projected):
    """LFQ (Yu et al. 2023): each of log2(V) dimensions is one bit, its sign.

    The library quantizes; the loss is ours: entropy_weight * entropy on 2 x.c (up to a constant per row the negative
    squared distance) + commitment_weight * mean((x - sg q)^2). The library's own loss (1.32) drops the result of its
    all-reduce and still divides by the number of processes, so on several GPUs it weighs diversity wrongly.
    Memory is M x V in training: for codebooks of 2^14 and more take a small batch.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config, config.codebook_size.bit_length() - 1)
        from vector_quantize_pytorch import LFQ

        self.inner = LFQ(codebook_size=config.codebook_size).eval()

    def train(self, mode: bool = True) -> "LookupFreeQuantizer":
        """Switch mode, but keep the library's part in eval mode, where it computes no loss of its own."""
        super().train(mode)
        self.inner.eval()
        return self

    def _quantize(self, rows: Tensor, *, with_loss: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        config = self.config
        narrow: Tensor = self.project_in(rows)
        quantized, codes, _ = self.inner(narrow)
        terms = {"commitment": config.commitment_weight * (narrow - quantized.detach()).square().mean()}
        if with_loss and config.entropy_weight:
            terms["entropy"] = _entropy_term(config, 2 * narrow @ self.inner.codebook.t())
        out: Tensor = self.project_out(straight_through(narrow, quantized))
        return out, codes.long()[..., None], terms


class ResidualQuantizer(Quantizer):
    """RVQ (Zeghidour et al. 2021): each codebook quantizes what the ones before it left over.

    The library quantizes, with codebooks that learn by gradient: no running means, no k-means start, no replaced codes,
    so no random draw in forward, and several GPUs agree through the ordinary gradient exchange. Its loss is
    commitment_weight * mean((q - x)^2) summed over codebooks, pulling code and latent alike; it is 0 in eval mode.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        from vector_quantize_pytorch import ResidualVQ

        self.inner: Any = ResidualVQ(
            dim=config.dim,
            num_quantizers=config.num_quantizers,
            codebook_size=config.codebook_size,
            commitment_weight=config.commitment_weight,
            learnable_codebook=True,
            ema_update=False,
            rotation_trick=False,
        )
        bound = math.sqrt(3 / config.codebook_size)  # the start of "vq"; the library's shrinks with V * D
        with torch.no_grad():
            for layer in self.inner.layers:
                layer.codebook = torch.empty(config.codebook_size, config.dim).uniform_(-bound, bound)

    @property
    def num_codebooks(self) -> int:
        """Number of residual steps."""
        return self.config.num_quantizers

    def _vectors(self, codes: Tensor) -> Tensor:
        vectors: Tensor = sum(
            layer.get_codes_from_indices(ids) for layer, ids in zip(self.inner.layers, codes.unbind(-1), strict=True)
        )
        return vectors

    def _quantize(self, rows: Tensor, *, with_loss: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        quantized, codes, losses = self.inner(rows)
        if not self.training:  # there the library leaves the gradient out
            quantized = straight_through(rows, quantized)
        return quantized, codes, {"commitment": losses.sum()}


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer that a config describes, newly made."""
    if config.kind == "vq":
        return VectorQuantizer(config)
    if config.kind == "fsq":
        return FiniteScalarQuantizer(config)
    return LookupFreeQuantizer(config) if config.kind == "lfq" else ResidualQuantizer(config)
