"""Numbers of pairs that come some at a time: one a pair, by name; their means with intervals.

Shapes: M pairs.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from maskgen.tasks.evaluation.metrics.base import Metric, bootstrap


class PairScores:
    """Numbers of pairs, by name. What compares pairs computes them and hands them to ``add``.

    Args:
        what: is compared, named in errors.
        notes: settings that each number depends on, by its name.
    """

    def __init__(self, what: str, notes: Mapping[str, str]) -> None:
        self.what, self.notes = what, dict(notes)
        self._found: dict[str, list[Tensor]] = {name: [] for name in notes}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Note the numbers of some pairs.

        Args:
            values: one number a pair, by name.
        """
        for name, found in self._found.items():
            found.append(values[name].detach().double().cpu())

    def values(self) -> dict[str, Tensor]:
        """One number a pair so far, float64 ``[M]``, by name."""
        empty = torch.zeros(0, dtype=torch.float64)
        return {name: torch.cat([empty, *found]) for name, found in self._found.items()}

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from what ``values`` gave, of several meters perhaps."""
        self._found = {name: [values[name]] for name in self.notes}

    def metrics(self, *, draws: int = 1000, seed: int = 0) -> dict[str, Metric]:
        """The means over pairs by name, with bootstrap intervals.

        Args:
            draws: of the bootstrap.
            seed: of the draws.

        Raises:
            ValueError: nothing was compared.
        """
        values = self.values()
        if not all(map(len, values.values())):
            raise ValueError(f"{self.what}: got no pairs, expected at least one")
        return {
            name: bootstrap(each.numpy(), draws=draws, seed=seed, note=self.notes[name])
            for name, each in values.items()
        }


def check_measures(measures: Sequence[str], known: Sequence[str]) -> None:
    """Refuse unknown measures.

    Raises:
        ValueError: naming those there are.
    """
    unknown = sorted(set(measures) - set(known))
    if unknown:
        raise ValueError(f"measures: got {unknown}, expected some of {list(known)}")
