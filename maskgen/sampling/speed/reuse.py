"""Keys and values used again between steps: only one step in so many computes all positions.

Shapes: B batch, N tokens, P and C some of them, K codebooks.
"""

import torch
from torch import Tensor

from maskgen.models.partial import FeatureMemory, first_positions
from maskgen.sampling.selectors.base import Selector
from maskgen.sampling.speed.query import Query


def check_selector_reuse(selector: Selector, every: int) -> None:
    """Refuse selectors that remask decided tokens, whose keys and values would be stale.

    Raises:
        ValueError: naming the selectors that work.
    """
    if every > 1 and (selector.revises or not selector.bounded):
        raise ValueError(
            f"reuse: got {every}, which works with selectors that follow the schedule and take "
            "nothing back: 'confidence', 'random', 'halton', 'moment' and 'entropy'; use 1, or one of these"
        )


class Reuse:
    """Which positions each step computes, and the keys and values of the others.

    Which positions a row computes depends on that row alone, so that its sample does not depend on its batch.

    Args:
        every: one step in so many is whole.
        first: the first step that is run, which is whole.
    """

    def __init__(self, every: int, first: int) -> None:
        self._every, self._first = every, first
        self._memory = FeatureMemory()
        self._queried: list[Tensor] = []  # positions of each query since the last whole step, that included

    def query(self, wanted: Tensor, step: int, count: int, chooses_first: bool) -> Query:
        """What a step asks of the model.

        Args:
            wanted: bool ``[B, N]``, the positions whose logits matter.
            step: counted from 0.
            count: P, see ``maskgen.models.partial.first_positions``.
            chooses_first: whether ``wanted`` is chosen before each forward, and may grow; else it only shrinks between
                whole steps.
        """
        if (step - self._first) % self._every == 0:
            positions = first_positions(wanted, count, repeat=True)
            self._queried = [positions]
            return Query(positions=positions, may_repeat=step == self._first, memory=self._memory)
        if chooses_first:
            positions = first_positions(wanted, count, repeat=True)
            self._queried.append(positions)
            changed = torch.cat(self._queried, dim=1)
            within = torch.arange(changed.shape[1] - count, changed.shape[1], device=wanted.device)
            within = within.expand(len(wanted), -1)
        else:  # whatever is masked now was masked, and queried, at the last whole step
            (changed,) = self._queried
            within = first_positions(wanted.gather(1, changed), count, repeat=True)
            positions = changed.gather(1, within)
        return Query(positions=positions, memory=self._memory, changed=changed, within=within)
