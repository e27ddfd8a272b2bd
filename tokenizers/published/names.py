"""Official weights under our names, with every misfit reported at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.checkpoint import check_state

__all__ = ["empty_shapes", "renamed"]


def empty_shapes(kind: Callable[[Any], nn.Module], config: Any) -> dict[str, torch.Size]:
    """Name to shape of the weights of ``kind(config)``, which is built without memory."""
    with torch.device("meta"):
        return {name: weight.shape for name, weight in kind(config).state_dict().items()}


def renamed(
    state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], official: Callable[[str], str], where: str
) -> dict[str, Tensor]:
    """Official weights as a state dict of ours: the given tensors themselves, in the precision they came in.

    Args:
        state: official name to weight.
        shapes: our name to the expected shape.
        official: our name to the official one.
        where: named in the error.

    Raises:
        ValueError: every official name that is missing, unexpected or mis-shaped.
    """
    names = {name: official(name) for name in shapes}
    check_state(state, {names[name]: shape for name, shape in shapes.items()}, where)
    return {name: state[names[name]] for name in shapes}
