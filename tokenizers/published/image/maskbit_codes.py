"""MaskBit's codes: quantizers, and ids in parts (Weber et al. 2024, arXiv 2409.16211).

Bit c of an id is 1 where channel c is above 0, so channel 0 is the least significant bit; zero counts as below.

Shapes: B batch, N tokens, K sub-tokens of an id, D width of a code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.tokenizers.quantizers.lookup_free import factor_ids, join_ids
from maskgen.tokenizers.quantizers.vector import NormalizedQuantizer, Quantizer, straight_through


class BitQuantizer(Quantizer):
    """One bit a channel, its sign, least significant first; codes are vectors of -1 and 1. No weights and no loss.

    Args:
        config: settings of kind "lfq" whose width is the number of bits.
    """

    def _bits(self, device: torch.device) -> Tensor:
        return torch.arange(self.config.dim, device=device)

    def _quantize(self, rows: Tensor, *, with_loss: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        above = rows > 0
        codes = (above.long() << self._bits(rows.device)).sum(-1, keepdim=True)
        return straight_through(rows, above.float() * 2 - 1), codes, {}

    def _vectors(self, codes: Tensor) -> Tensor:
        return ((codes >> self._bits(codes.device)) & 1).float() * 2 - 1


class UnitQuantizer(NormalizedQuantizer):
    """Nearest row of a codebook after latents and rows are scaled to unit length; looks up unit rows."""

    def _distances(self, rows: Tensor) -> Tensor:
        """The official order of the sum."""
        codebook = self._table()
        return rows.square().sum(-1, keepdim=True) + codebook.square().sum(-1) - 2 * rows @ codebook.t()

    def _vectors(self, codes: Tensor) -> Tensor:
        return F.normalize(super()._vectors(codes), dim=-1)


def split_ids(ids: Tensor, *, bits: int, splits: int) -> Tensor:
    """Ids as sub-tokens, the low bits first.

    Args:
        ids: long [...], in [0, 2^bits).
        bits: bits of an id.
        splits: K, dividing ``bits``.

    Returns:
        Long [..., K], in [0, 2^(bits / K)).

    Raises:
        TypeError: when ids are not long.
        ValueError: when they are out of range or ``splits`` does not divide ``bits``.
    """
    sizes = (check_split(bits, splits),) * splits
    return torch.stack(factor_ids(ids, sizes), dim=-1)


def merge_ids(tokens: Tensor, *, bits: int) -> Tensor:
    """Inverse of ``split_ids``, in integers. The official code adds in float32, which is exact up to 2^24 only.

    Args:
        tokens: long [..., K], in [0, 2^(bits / K)).
        bits: bits of an id.

    Returns:
        Long [...], in [0, 2^bits).

    Raises:
        TypeError: when tokens are not long.
        ValueError: when they are out of range or K does not divide ``bits``.
    """
    splits = tokens.shape[-1]
    return join_ids(tokens.unbind(-1), (check_split(bits, splits),) * splits)


def check_split(bits: int, splits: int) -> int:
    """Bits of a sub-token.

    Args:
        bits: bits of an id, at most 62, so that an int64 holds it.
        splits: number of sub-tokens.

    Raises:
        ValueError: unless ``splits`` divides ``bits``.
    """
    if not 0 < bits < 63 or splits < 1 or bits % splits:
        raise ValueError(f"splits: got {splits} for ids of {bits} bits, expected a divisor of 1 to 62 bits")
    return bits // splits
