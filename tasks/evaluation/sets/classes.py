"""Sets with the class numbers of another side, by the classes' names."""

import hashlib
from collections.abc import Sequence

from maskgen.tasks.conditions.classes import class_places
from maskgen.tasks.evaluation.sets.base import SampleSet, Subset


class MatchedSamples(Subset):
    """A set with the class numbers of another side.

    Args:
        samples: the set.
        names: of the other side, or none.
        where: what errors call that.

    Raises:
        ValueError: see ``class_places``.
    """

    def __init__(self, samples: SampleSet, names: Sequence[str], where: str) -> None:
        super().__init__(samples, range(len(samples)))
        places = class_places(samples.labels or (), samples.class_names, names, samples.name, where)
        self.whole, self.class_names = samples, tuple(names)
        self.labels = None if samples.labels is None else [places[label] for label in samples.labels]

    def digest(self) -> str:
        """See ``SampleSet``; classes that keep their numbers do not change it."""
        found = self.whole.digest()
        if self.labels == self.whole.labels:
            return found
        return hashlib.sha256(f"{found} {self.labels}".encode()).hexdigest()[:16]
