"""What is known of all steps before the first one: how many tokens each hides, how many places it can concern, and which
steps change nothing.

Only here the host waits for the device, once: in the loop every shape is fixed, whatever is drawn.

Shapes: B batch, N tokens, K codebooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from maskgen.sampling.selectors.base import Selector
from maskgen.schedules import Schedule, mask_counts, step_ratio

__all__ = ["Plan", "plan_steps"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of one decoding; lists have an entry a step of the schedule.

    Attributes:
        run: numbers of the steps that are run.
        planned: what the schedule hides after each step, long ``[B]``, at least 1.
        shares: the same as shares of what was hidden at the start, ``[B, 1]``.
        hidden: the most places with a hidden token that any row has before each step, or that may be hidden again.
        decided: the most places of any row that each step decides, for an order that is asked before the model.
    """

    run: Sequence[int]
    planned: list[torch.Tensor]
    shares: list[torch.Tensor]
    hidden: list[int]
    decided: list[int]


def plan_steps(
    mask: torch.Tensor, gamma: Schedule, selector: Selector, *, steps: int, start_step: int, watched: bool
) -> Plan:
    """Plan a decoding.

    Steps that change nothing are left out where nobody watches: as soon as no row can have more than one hidden token, each
    step but the last would draw that token and hide it again.

    Args:
        mask: bool ``[B, N, K]``, True where a token is to be decided.
        gamma: the schedule.
        selector: what decides which; without ``bounded`` any hidden place counts at every step.
        steps: of the schedule.
        start_step: first step that is run.
        watched: whether somebody wants to see every step.
    """
    total = mask.flatten(1).sum(1)
    ratios = [step_ratio(step, steps).to(total.device) for step in range(steps)]
    planned = [mask_counts(gamma, ratio, total, total + 1) for ratio in ratios]
    shares = [gamma(ratio, total).expand(len(total))[:, None] for ratio in ratios]
    tokens, places, counts = _on_host(mask, planned, gamma, steps)
    most, cells, hidden, decided = tokens, [], [], []
    for step in range(steps):
        cells.append(max(most, default=0))
        hidden.append(max(map(min, most, places), default=0))
        after = most
        if selector.bounded and step >= start_step:
            among = tokens if selector.revises else most
            after = [min(now, max(1, min(now - 1, count))) for now, count in zip(among, counts[step], strict=True)]
        kept = max((before - now for before, now in zip(most, after, strict=True)), default=0)
        decided.append(min(hidden[step], kept + selector.ties))
        most = after
    run: Sequence[int] = range(start_step, steps)
    if not watched:
        run = _needed(run, cells, selector, alone=mask.shape[1:].numel() == 1)
    return Plan(run=run, planned=planned, shares=shares, hidden=hidden, decided=decided)


def _needed(run: Sequence[int], cells: Sequence[int], selector: Selector, alone: bool) -> Sequence[int]:
    """The steps that change something, by how many tokens a row may hide before each.

    Where a row has no other place at all (``alone``) the cut of every order is that place itself, and its first draw stays.
    """
    if cells[run[0]] == 0:
        return ()
    if alone or not selector.bounded or selector.revises or selector.adaptive:
        return run
    return [step for step in run if cells[step] > 1 or step == run[-1]]


def _on_host(
    mask: torch.Tensor, planned: Sequence[torch.Tensor], gamma: Schedule, steps: int
) -> tuple[list[int], list[int], list[list[int]]]:
    """Hidden tokens and places with any, of each row, and what the schedule hides after each step, of each row."""
    if mask.is_meta:  # holds nothing: benchmarks count a decoding in which all is hidden
        mask = torch.ones(mask.shape, dtype=torch.bool)
        total = mask.flatten(1).sum(1)
        planned = [mask_counts(gamma, step_ratio(step, steps), total, total + 1) for step in range(steps)]
    numbers = torch.stack((mask.flatten(1).sum(1), mask.any(-1).sum(1), *planned)).tolist()
    return numbers[0], numbers[1], numbers[2:]
