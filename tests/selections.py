"""One step as a selector sees it, and settings of a sample, from the few things a test cares about."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.selectors.base import Selection
from maskgen.sampling.settings import AmusedChoices, Sampling, Speed, VampNetChoices, current_sampling

_GROUPS = {
    "guidance": Guidance,
    "filter": TokenFilter,
    "speed": Speed,
    "vampnet": VampNetChoices,
    "amused": AmusedChoices,
}


def call(loop: Callable[..., Tensor], kind: Any, **arguments: Any) -> Tensor:
    """A published loop with the fields of its settings among its arguments."""
    named = {item.name for item in dataclasses.fields(kind)}
    settings = kind(**{name: value for name, value in arguments.items() if name in named})
    return loop(settings=settings, **{name: value for name, value in arguments.items() if name not in named})


def flat_sampling(**flat: Any) -> Sampling:
    """``Sampling`` from fields side by side, as they were before they had groups: ``guidance=1.5, top_k=3``."""
    grouped = current_sampling(flat)
    return Sampling(**{k: _GROUPS[k](**v) if isinstance(v, dict) else v for k, v in grouped.items()})


def former_keys(saved: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a ``Sampling`` as it was written before it had groups."""
    groups = {path.partition(".")[0] for path in Sampling.former_names.values()}
    flat = {name: value for name, value in saved.items() if name not in groups}
    for former, path in Sampling.former_names.items():
        group, _, own = path.partition(".")
        flat[former] = saved[group][own]
    return flat


def selection(
    log_probs: Tensor, mask: Tensor, counts: Tensor, noise: Tensor | None = None, weight: float = 0.0, **more: Any
) -> Selection:
    """A step in the middle of a decoding of rows ``[B, M]`` that began with ``mask`` hidden; ``more`` replaces fields."""
    half = torch.full((len(mask), 1), 0.5)
    plain: dict[str, Any] = {
        "step": 1,
        "steps": 4,
        "tokens": torch.zeros_like(mask, dtype=torch.long),
        "log_probs": log_probs,
        "settled": log_probs,
        "logits": log_probs[..., None],
        "mask": mask,
        "start": mask,
        "counts": counts,
        "shares": (half, half / 2),
        "noise": torch.zeros(mask.shape) if noise is None else noise,
        "item_noise": torch.zeros(len(mask), 1),
        "weight": weight,
    }
    return Selection(**{**plain, **more})
