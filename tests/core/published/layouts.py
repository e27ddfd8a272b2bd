"""Names and shapes of full-size official weights, and state dicts made of them that take no memory."""

import json
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tests.parity.support import LAYOUTS


def layout(name: str) -> tuple[dict[str, tuple[int, ...]], int]:
    """Official name -> shape of one release, and its number of parameters; skips where the list is not there."""
    entry = json.loads(LAYOUTS.read_text(encoding="utf-8"))[name]
    assert len(entry["repeats"]) == 1, "one range of numbers for all blocks"
    first, last = re.fullmatch(r"(\d+)\.\.(\d+)", next(iter(entry["repeats"]))).groups()  # type: ignore[union-attr]
    shapes: dict[str, tuple[int, ...]] = {}
    for key, shape in entry["keys"].items():
        numbers = range(int(first), int(last) + 1) if "{i}" in key else range(1)
        shapes |= {key.replace("{i}", str(number)): tuple(shape) for number in numbers}
    assert len(shapes) == entry["n_keys"]
    return shapes, entry["n_params"]


def weightless(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of these shapes that all show one number: nothing is allocated."""
    return {name: torch.full((), 0.5).expand(shape) for name, shape in shapes.items()}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
