"""Settings that lie over others: what they do not name stays as it is below."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self


@dataclass(frozen=True)
class Layer:
    """Base of frozen dataclasses whose objects know which fields somebody named when they were made.

    ``Sampling(steps=4)`` over a model's settings changes the steps alone, also where another number of steps is the default.
    """

    __slots__ = ("_named",)  # not among the fields' values, which jsonargparse takes for arguments
    _named: ClassVar[frozenset[str]]  # of each object; without ClassVar it would be a field

    def __new__(cls, **named: Any) -> Self:
        """Remember the names; the dataclass takes the values."""
        made = super().__new__(cls)
        object.__setattr__(made, "_named", frozenset(named))
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_named": self._named}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def names(self, field: str) -> bool:
        """Whether a field was named."""
        return field in self._named

    def over(self, below: Self) -> Self:
        """The settings of ``below`` with what is named here, group by group.

        Raises:
            ValueError: what is named does not go with the rest.
        """
        changes = {name: getattr(self, name) for name in self._named}
        for name, value in changes.items():
            if isinstance(value, Layer):
                changes[name] = value.over(getattr(below, name))
        made = dataclasses.replace(below, **changes)
        object.__setattr__(made, "_named", self._named | below._named)
        return made
