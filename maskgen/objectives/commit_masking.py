"""What is masked while a COMMIT model trains, and what the inputs and targets then are (MAGVIT, arXiv 2212.05199, 3.2).

1. ratio = schedule(r), r ~ U[0, 1), one for the whole batch (official) or one a row;
2. scores s ~ U[0, 1), one a position; masked are the n = max(1, floor(positions x ratio)) lowest of a row, condition or not;
3. input: the target where visible, the condition's token where masked and given, else the mask id;
4. the model answers for every position, or for the masked ones.

Shapes: B batch, N tokens on a grid ``axes``, K codebooks.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from maskgen.sampling.commit import CommitInputs
from maskgen.sampling.selectors.ranking import mask_lowest
from maskgen.schedules import get_schedule
from maskgen.training.distributed.rows import RandomRows, shared_uniform, uniform

ConditionMode = Literal["commit", "keep", "replace", "ignore"]
"""Where the condition goes. ``commit``: it is drafted and refined (official ``cond->input``, the paper). ``keep``: its
positions are never masked and show the target (``input->input``). ``replace``: they are never masked and show the condition,
which is also their target (``cond->cond``). ``ignore``: there is no condition (None)."""

LossOn = Literal["all", "masked"]
"""``all``: masked and visible positions weigh the same (official ``mask+refine+recons``, the default there and here);
``masked``: visible ones weigh nothing (``mask+refine``). Positions that are never masked never weigh."""


@dataclass(frozen=True)
class CommitExample:
    """A training example: inputs, targets and what counts.

    Attributes:
        inputs: what the model is shown.
        targets: long ``[B, N, K]``.
        weights: bool ``[B, N, K]``, True where a wrong answer costs.
    """

    inputs: CommitInputs
    targets: Tensor
    weights: Tensor


def commit_mask(
    given: Tensor,
    *,
    axes: Sequence[int],
    schedule: str = "cosine",
    ratios: Literal["batch", "row"] = "batch",
    mode: ConditionMode = "commit",
    block: Sequence[int] = (),
    frame_by_frame: bool = False,
    generator: torch.Generator | RandomRows | None = None,
) -> Tensor:
    """A training mask; see the head of this file.

    Args:
        given: bool ``[B, N, K]``, True where the condition has a token.
        axes: token grid, N its product.
        schedule: a name for ``maskgen.schedules.get_schedule``.
        ratios: one ratio for the whole batch, or one a row.
        mode: in ``keep`` and ``replace`` given positions are never masked and do not count.
        block: mask whole blocks of this shape, one size an axis; see ``block_scores``.
        frame_by_frame: mask later frames first; see ``late_frames_first``.
        generator: source of randomness on the device of ``given``, or a stream of rows; torch's global one by default.

    Returns:
        bool ``[B, N, K]``, True = masked.

    Raises:
        ValueError: an unknown schedule, or blocks that do not fit the grid.
    """
    among = ~given if mode in ("keep", "replace") else torch.ones_like(given)
    total = among.flatten(1).sum(1)
    rows, device = len(given), given.device
    draws = shared_uniform((1,), generator, device) if ratios == "batch" else uniform((rows,), generator, device)
    ratio = get_schedule(schedule)(draws.expand(rows), total)
    scores = uniform(given.shape, generator, device)
    if block:
        offsets = list(itertools.product(*map(range, block)))
        order = shared_uniform((len(offsets),), generator, device).argsort().tolist()
        ties = uniform(given.shape, generator, device)
        scores = block_scores(scores, axes, block, [offsets[index] for index in order], ties)
    if frame_by_frame:
        scores = late_frames_first(scores, axes)
    return mask_lowest(scores, among, commit_counts(total, ratio))


def commit_counts(total: Tensor, ratio: Tensor) -> Tensor:
    """How many positions are masked: floor(total x ratio) in float32, at least one.

    Args:
        total: positions of each row that may be masked, long ``[B]``.
        ratio: share of them, float32 ``[B]`` or scalar.

    Returns:
        long ``[B]``.
    """
    return torch.floor(total.float() * ratio.float()).long().clamp(min=1)


def block_scores(
    scores: Tensor, axes: Sequence[int], block: Sequence[int], offsets: Sequence[Sequence[int]], ties: Tensor
) -> Tensor:
    """Scores that neighbours share, so that whole blocks are masked.

    The grid grows by block - 1 copies of its first positions on each axis; then for every offset the window of the old size
    there is averaged block by block, each time from what the last offset left; the copies go, and 1e-3 x ``ties`` breaks
    ties. Codebooks stay apart.

    Args:
        scores: ``[B, N, K]``.
        axes: token grid.
        block: sizes of a block, dividing the axes.
        offsets: windows in the order of their averaging, each in [0, block) on every axis.
        ties: uniform numbers ``[B, N, K]``.

    Returns:
        ``[B, N, K]``.

    Raises:
        ValueError: blocks that do not divide the grid.
    """
    check_block(block, axes)
    grid = scores.unflatten(1, tuple(axes))
    for axis, (size, side) in enumerate(zip(axes, block, strict=True), start=1):
        grid = grid.index_select(axis, torch.arange(1 - side, size, device=grid.device).clamp(min=0))
    parts = [part for size, side in zip(axes, block, strict=True) for part in (size // side, side)]
    within = tuple(range(2, 2 * len(axes) + 1, 2))
    for offset in offsets:
        window = grid[:, *(slice(first, first + size) for first, size in zip(offset, axes, strict=True))]
        means = window.reshape(len(grid), *parts, -1).mean(within, keepdim=True)
        window.copy_(means.expand(len(grid), *parts, -1).reshape(window.shape))
    inner = grid[:, *(slice(side - 1, None) for side in block)]
    return inner.reshape(scores.shape) + 1e-3 * ties


def check_block(block: Sequence[int], axes: Sequence[int]) -> None:
    """Raise at construction, not in the middle of a run, when blocks do not fit.

    Raises:
        ValueError: not one positive size an axis, or one that does not divide it.
    """
    if len(block) != len(axes) or min(block) < 1 or any(size % side for size, side in zip(axes, block, strict=True)):
        raise ValueError(f"block: got {tuple(block)}, expected one size an axis, dividing the grid {tuple(axes)}")


def late_frames_first(scores: Tensor, axes: Sequence[int]) -> Tensor:
    """Scores that mask a frame only when all later ones are masked: brought to [0, 1] in each row, minus the frame's number.

    Args:
        scores: ``[B, N, K]``.
        axes: token grid, frames first.

    Returns:
        ``[B, N, K]``.
    """
    low, high = (limit.view(-1, 1, 1) for limit in scores.flatten(1).aminmax(dim=1))
    frames = torch.arange(axes[0], device=scores.device).repeat_interleave(math.prod(axes[1:]))
    return (scores - low) / (high - low).clamp(min=1e-12) - frames[:, None]


def commit_example(
    tokens: Tensor,
    condition: Tensor,
    given: Tensor,
    masked: Tensor,
    *,
    mask_id: int,
    mode: ConditionMode = "commit",
    loss_on: LossOn = "all",
) -> CommitExample:
    """Inputs, targets and weights under a mask.

    Args:
        tokens: long ``[B, N, K]``, tokens of the real signal.
        condition: long ``[B, N, K]``, tokens of the padded condition.
        given: bool ``[B, N, K]``, True where the condition has a token.
        masked: bool ``[B, N, K]``, of ``commit_mask`` with the same mode.
        mask_id: id of a masked token.
        mode: see ``ConditionMode``.
        loss_on: see ``LossOn``.
    """
    if mode == "ignore":
        given = torch.zeros_like(given)
    targets = torch.where(given, condition, tokens) if mode == "replace" else tokens
    draft = torch.where(given, condition, mask_id) if mode == "commit" else torch.full_like(tokens, mask_id)
    weights = masked if loss_on == "masked" else torch.ones_like(masked)
    if mode in ("keep", "replace"):
        weights = weights & ~given
    return CommitExample(CommitInputs(torch.where(masked, draft, targets), masked, given, mask_id), targets, weights)
