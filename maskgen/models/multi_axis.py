"""Multi-axis self-attention (HiT, Zhao et al. 2021, arXiv 2106.07631), which Muse uses on its large grid (arXiv 2301.00704).

The grid is cut into equal blocks. Half of the heads attend within each block, so to neighbours; the other half across the
blocks, each position to those at its own place in all blocks, so to the whole grid, spread out. With n positions a block of
N in all a position sees n and N / n others instead of N: at 64 x 64 in blocks of 8 x 8, 64 and 64 instead of 4096.

Shapes: B batch, H heads, N positions of the grid, D head width.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from maskgen.models.attention import AttentionBackend, attend


def check_blocks(grid: Sequence[int], block: Sequence[int], heads: int) -> None:
    """Refuse sizes that cannot be: for models at construction, and for calls with another grid.

    Raises:
        ValueError: an odd number of heads, or a block that does not divide the grid.
    """
    if heads < 2 or heads % 2:
        raise ValueError(f"heads: got {heads}, expected an even number: half attend within blocks, half across them")
    if len(block) != len(grid) or any(part < 1 or side % part for side, part in zip(grid, block, strict=False)):
        raise ValueError(f"block: got {tuple(block)}, expected a divisor of each side of the grid {tuple(grid)}")


def multi_axis_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    block: Sequence[int],
    *,
    backend: AttentionBackend = "sdpa",
    dropout: float = 0.0,
) -> Tensor:
    """Attention of the first half of the heads within blocks, of the second across them.

    Args:
        q: ``[B, H, N, D]``, row-major on the grid; as ``k`` and ``v``.
        k: keys.
        v: values.
        grid: sides, of any number of axes, N = their product.
        block: sides of a block, each dividing that of the grid.
        backend: see ``attend``.
        dropout: see ``attend``.

    Returns:
        ``[B, H, N, D]``.

    Raises:
        ValueError: see ``check_blocks``; another number of positions than the grid has.
    """
    check_blocks(grid, block, q.shape[1])
    if any(x.shape[2] != torch.Size(grid).numel() for x in (q, k, v)):
        raise ValueError(
            f"got {q.shape[2]} queries and {k.shape[2]} keys, expected one for each position of {tuple(grid)}"
        )
    which, where = ([f"{letter}{axis}" for axis in range(len(grid))] for letter in ("block", "offset"))
    sizes = dict(zip(where, block, strict=True)) | {
        name: side // part for name, side, part in zip(which, grid, block, strict=True)
    }
    positions = " ".join(f"{a} {b}" for a, b in zip(which, where, strict=True))

    def attend_along(apart: list[str], together: list[str], heads: tuple[Tensor, ...]) -> Tensor:
        rows = f"(B {' '.join(apart)}) H ({' '.join(together)}) D"
        split = (rearrange(x, f"B H ({positions}) D -> {rows}", **sizes) for x in heads)
        attended = attend(*split, backend=backend, dropout=dropout)
        return rearrange(attended, f"{rows} -> B H ({positions}) D", **sizes)

    first, second = zip(*(x.chunk(2, dim=1) for x in (q, k, v)), strict=True)
    return torch.cat((attend_along(which, where, first), attend_along(where, which, second)), dim=1)
