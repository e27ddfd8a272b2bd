"""What is masked while it trains.

Shapes: B batch, N tokens, K codebooks; M = N x K positions of a row.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from maskgen.schedules import get_schedule
from maskgen.training.distributed.rows import RandomRows, uniform

Draw = Literal["exact", "bernoulli", "rounded"]


def random_mask(
    shape: Sequence[int],
    *,
    schedule: str = "cosine",
    min_ratio: float = 0.0,
    draw: Draw = "exact",
    visible_codebooks: int = 0,
    ratio: Tensor | None = None,
    generator: torch.Generator | RandomRows | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """A training mask: every row has its own ratio r ~ U[0, 1), and gamma = max(schedule(r), min_ratio).

    ``exact``: ceil(gamma x M) positions, at least one, chosen uniformly (MaskGIT, section 3.1). ``rounded``: the whole
    number nearest to gamma x M, halves to the even one, at least one (open-muse, aMUSEd, Meissonic). ``bernoulli``: each
    position with probability gamma by itself (VampNet); a row that came out without any masked position, which would teach
    nothing, gets one chosen uniformly (the original leaves such rows).

    Args:
        shape: ``(B, N, K)``.
        schedule: a name for ``maskgen.schedules.get_schedule``.
        min_ratio: lower bound of the mask ratio, in [0, 1].
        draw: see above.
        visible_codebooks: the first so many codebooks are never masked and do not count in M.
        ratio: the r of each row, ``[B]`` in [0, 1], instead of sampling it.
        generator: source of randomness on ``device``, or a stream of rows; torch's global one by default.
        device: where the mask is made.

    Returns:
        bool ``[B, N, K]``, True = masked.

    Raises:
        ValueError: ``min_ratio`` outside [0, 1], an unknown schedule or draw, ``ratio`` of another length, or no codebook
            that may be masked.
    """
    if not 0 <= min_ratio <= 1:
        raise ValueError(f"min_ratio: got {min_ratio}, expected a share in [0, 1]")
    if not 0 <= visible_codebooks < shape[2]:
        raise ValueError(
            f"visible_codebooks: got {visible_codebooks} of {shape[2]}, expected 0 or more and fewer than all"
        )
    rows, positions = shape[0], shape[1] * (shape[2] - visible_codebooks)
    if ratio is None:
        ratio = uniform((rows,), generator, device)
    if ratio.shape != (rows,):
        raise ValueError(f"ratio: got shape {tuple(ratio.shape)}, expected one ratio for each of the {rows} rows")
    gamma = get_schedule(schedule)(ratio, torch.full_like(ratio, positions)).clamp(min=min_ratio)
    if draw == "bernoulli":
        chances = uniform((rows, positions), generator, device)
        mask = mask_independently(gamma, chances)
        # Given that none is masked, the smallest chance is at every position equally often.
        nearest = F.one_hot(chances.argmin(1), positions).bool()
        mask = torch.where(mask.any(1, keepdim=True), mask, nearest)
    elif draw in ("exact", "rounded"):
        # gamma is at least 1e-6, so the ceiling is at least one position.
        wanted = gamma * positions
        counts = (wanted.ceil() if draw == "exact" else wanted.round().clamp(min=1)).long()
        mask = mask_exactly(counts, positions, generator=generator)
    else:
        raise ValueError(f"draw: got {draw!r}, expected 'exact' or 'bernoulli' or 'rounded'")
    return F.pad(rearrange(mask, "b (n k) -> b n k", n=shape[1]), (visible_codebooks, 0))


def mask_exactly(counts: Tensor, positions: int, *, generator: torch.Generator | RandomRows | None = None) -> Tensor:
    """Mask exactly ``counts[b]`` of ``positions`` in row b, uniformly at random.

    Args:
        counts: long ``[B]``, each in [0, positions].
        positions: M.
        generator: source of randomness on the device of ``counts``, or a stream of rows.

    Returns:
        bool ``[B, M]``.
    """
    scores = uniform((len(counts), positions), generator, counts.device)
    order = scores.argsort(dim=-1)
    chosen = torch.arange(positions, device=counts.device) < counts[:, None]
    return torch.zeros_like(chosen).scatter(1, order, chosen)


def mask_independently(gamma: Tensor, chances: Tensor) -> Tensor:
    """Mask each position with probability ``gamma[b]``: where its chance is below (VampNet's random mask).

    Args:
        gamma: ``[B]``, in [0, 1].
        chances: ``[B, ...]``, uniform in [0, 1).

    Returns:
        bool ``[B, ...]``.
    """
    return chances < gamma.view(-1, *(1,) * (chances.ndim - 1))


def sobol_ratios(seed: int, first: int, count: int) -> Tensor:
    """Ratios ``first`` .. ``first + count`` - 1 of a scrambled Sobol sequence, which fill [0, 1) evenly (Owen 1998).

    A function of its arguments, so a resumed training needs no state. Reaching an index costs time in proportion to it:
    57 ms for 25 million, measured on one core.

    Args:
        seed: of the scrambling.
        first: index of the first; from 2^30 on the sequence repeats.
        count: how many.

    Returns:
        float32 ``[count]`` in [0, 1], on the CPU; what VampNet's training draws with this seed.
    """
    engine = torch.quasirandom.SobolEngine(1, scramble=True, seed=seed)
    start = first % 2**30
    if start:
        engine.fast_forward(start)
    return engine.draw(count, dtype=torch.float32).squeeze(1)
