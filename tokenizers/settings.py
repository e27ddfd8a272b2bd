"""What the settings of tokenizers share in ``__post_init__``: lists become tuples, and what cannot be built is named."""

import dataclasses
from collections.abc import Sequence
from typing import Any

__all__ = ["check_choice", "check_least", "check_levels", "freeze_lists"]


def freeze_lists(config: Any) -> None:
    """Make tuples of the lists in a frozen dataclass, which is what a config read back from JSON or YAML holds.

    Args:
        config: the dataclass; lists within its lists become tuples as well.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, list | tuple):
            object.__setattr__(config, field.name, _frozen(value))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def check_least(config: Any, **least: float) -> None:
    """Refuse numbers that are too small.

    Args:
        config: a dataclass.
        least: name of a field to the least it may be.

    Raises:
        ValueError: naming the first field below it.
    """
    for name, low in least.items():
        value = getattr(config, name)
        if value < low:
            raise ValueError(f"{name}: got {value}, expected {low} or more")


def check_choice(config: Any, **choices: Sequence[str]) -> None:
    """Refuse unknown words.

    Args:
        config: a dataclass.
        choices: name of a field to the words it may be.

    Raises:
        ValueError: naming the first field that is none of them.
    """
    for name, expected in choices.items():
        value = getattr(config, name)
        if value not in expected:
            *most, last = map(repr, expected)
            raise ValueError(f"{name}: got {value!r}, expected {', '.join(most)} or {last}")


def check_levels(config: Any, *, grouped: bool = True) -> None:
    """Refuse levels that make no network of convolutions.

    Args:
        config: a dataclass with ``channels``, ``multipliers``, ``groups`` and ``widths``.
        grouped: whether ``groups`` must divide the widths.

    Raises:
        ValueError: no levels, or a width that is not positive or no multiple of ``groups``.
    """
    if not config.multipliers or min(config.multipliers) < 1:
        raise ValueError(f"multipliers: got {config.multipliers}, expected one positive number a level")
    check_least(config, channels=1, groups=1)
    if grouped and any(width % config.groups for width in config.widths):
        raise ValueError(
            f"channels: got level widths {config.widths}, expected multiples of groups={config.groups}; choose other "
            "channels or fewer groups"
        )
