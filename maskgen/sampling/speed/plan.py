"""What is known of all steps before the first one: how many tokens each masks, how many positions it can concern, and which
steps change nothing.

The host waits for the device here alone, once: in the loop every shape is fixed, whatever is sampled.

Shapes: B batch, N tokens, K codebooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.sampling.selectors.base import Selector
from maskgen.schedules import Schedule, mask_counts


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of one decoding; lists have an entry for each step of the schedule.

    Attributes:
        run: numbers of the steps that are run.
        planned: how many tokens the schedule leaves masked after each step, long ``[B]``, at least 1.
        shares: the same as shares of what was masked at the start, ``[B, 1]``.
        masked: largest number of positions with a masked token, or with one that may be masked again, that any row has
            before each step.
        decided: largest number of positions any row unmasks at each step; used by selectors that choose positions before
            the forward pass.
    """

    run: Sequence[int]
    planned: list[Tensor]
    shares: list[Tensor]
    masked: list[int]
    decided: list[int]


def plan_steps(
    mask: Tensor, gamma: Schedule, selector: Selector, *, steps: int, start_step: int, every_step: bool
) -> Plan:
    """Plan a decoding.

    Steps that change nothing are left out: as soon as no row can have more than one masked token, each step but the last
    would sample that token and mask it again.

    Args:
        mask: bool ``[B, N, K]``, True where a token is to be decided.
        gamma: the schedule.
        selector: what is remasked; without ``bounded`` any masked position counts at every step.
        steps: of the schedule.
        start_step: first step that is run.
        every_step: whether steps that change nothing are run, too.
    """
    seen = torch.ones(mask.shape, dtype=torch.bool) if mask.is_meta else mask  # benchmarks count a decoding of all
    tokens, positions = torch.stack((seen.flatten(1).sum(1), seen.any(-1).sum(1))).tolist()
    total = torch.tensor(tokens)
    shares = torch.stack([gamma.at_step(step, steps, total).expand(len(total)) for step in range(steps)])
    planned = mask_counts(shares, total, total + 1)
    counts = planned.tolist()
    most, largest, masked, decided = tokens, [], [], []
    for step in range(steps):
        largest.append(max(most, default=0))
        masked.append(max(map(min, most, positions), default=0))
        after = most
        if selector.bounded and step >= start_step:
            among = tokens if selector.revises else most
            after = [min(now, max(1, min(now - 1, count))) for now, count in zip(among, counts[step], strict=True)]
        kept = max((before - now for before, now in zip(most, after, strict=True)), default=0)
        decided.append(min(masked[step], kept + selector.ties))
        most = after
    run: Sequence[int] = range(start_step, steps)
    if not every_step:
        run = _needed(run, largest, selector, single=mask.shape[1:].numel() == 1)
    on_device = [list(numbers.to(mask.device)) for numbers in (planned, shares[..., None])]
    return Plan(run=run, planned=on_device[0], shares=on_device[1], masked=masked, decided=decided)


def _needed(run: Sequence[int], largest: Sequence[int], selector: Selector, single: bool) -> Sequence[int]:
    """The steps that change something, by the largest number of tokens any row may have masked before each.

    A row of a single token (``single``) is final after its first sample, whatever the selector.
    """
    if largest[run[0]] == 0:
        return ()
    if single or not selector.bounded or selector.revises or selector.adaptive:
        return run
    return [step for step in run if largest[step] > 1 or step == run[-1]]
