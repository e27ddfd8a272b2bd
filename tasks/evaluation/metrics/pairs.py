"""Numbers of pairs that come some at a time: one a pair, by name; their means with intervals.

Some numbers are not defined for some pairs: of a silent truth there is no signal-to-distortion ratio, and equal pictures
have an infinite PSNR. One such pair would make the mean, so it is left out and counted.

Shapes: M pairs.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from maskgen.tasks.evaluation.metrics.base import Metric, bootstrap

CEILING = 120.0
"""dB of equal signals, whose ratio of signal to error is infinite."""


class PairScores:
    """Numbers of pairs, by name. What compares pairs computes them and hands them to ``add``.

    Args:
        what: is compared, named in errors.
        notes: settings that each number depends on, by its name.
        ratios: names of numbers in dB that reach ``CEILING`` where a pair is equal.
    """

    def __init__(self, what: str, notes: Mapping[str, str], ratios: Sequence[str] = ()) -> None:
        self.what, self.notes, self.ratios = what, dict(notes), tuple(ratios)
        self._found: dict[str, list[Tensor]] = {name: [] for name in notes}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Note the numbers of some pairs.

        Args:
            values: one number a pair, by name; NaN where it is not defined.
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

        Pairs without a defined number are left out of its mean, and so are equal ones among others in ``ratios``; how many
        stands in ``Metric.left_out``. With nothing left the number is NaN of 0 pairs.

        Args:
            draws: of the bootstrap.
            seed: of the draws.

        Raises:
            ValueError: nothing was compared.
        """
        values = self.values()
        if not all(map(len, values.values())):
            raise ValueError(f"{self.what}: got no pairs, expected at least one")
        return {name: self._mean(name, each, draws, seed) for name, each in values.items()}

    def _mean(self, name: str, values: Tensor, draws: int, seed: int) -> Metric:
        kept, note = values[~values.isnan()], self.notes[name]
        undefined = len(values) - len(kept)
        told = [f"{undefined} of {len(values)} pairs left out: silent"] if undefined else []
        unequal = kept[kept < CEILING - 1e-6]
        if name in self.ratios and 0 < len(unequal) < len(kept):
            told.append(f"{len(kept) - len(unequal)} of {len(values)} pairs left out: equal, so infinite")
            kept = unequal
        note, left_out = "; ".join([part for part in (note, *told) if part]), len(values) - len(kept) or None
        if not len(kept):
            return Metric(value=float("nan"), count=0, note=note, left_out=left_out)
        return dataclasses.replace(bootstrap(kept.numpy(), draws=draws, seed=seed, note=note), left_out=left_out)


def check_measures(measures: Sequence[str], known: Sequence[str]) -> None:
    """Refuse unknown measures.

    Raises:
        ValueError: naming those there are.
    """
    unknown = sorted(set(measures) - set(known))
    if unknown:
        raise ValueError(f"measures: got {unknown}, expected some of {list(known)}")
