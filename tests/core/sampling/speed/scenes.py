"""Small models whose weights matter, rows for them to decode, and a look at the forwards that the sampler makes."""

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.models.base import PartialTransformer
from maskgen.sampling.guidance import Guidance, guided_logits, model_logits
from maskgen.sampling.loop import sample
from tests.core.toys import shaken, transformer

LABELS = (1, 1, 3, 1)


@functools.cache
def model_of(family: str, axes: tuple[int, ...], codebooks: int) -> PartialTransformer:
    changes = {"num_codebooks": codebooks} if family == "modern" else {}
    model = shaken(transformer(family, axes=axes, layers=3, **changes))
    assert isinstance(model, PartialTransformer)
    with torch.no_grad():  # weights with which labels and neighbours matter about as much as the noise does
        for name, parameter in model.named_parameters():
            if family == "bert":
                parameter.mul_(2.0 if parameter.ndim > 1 else 1.0)
            elif name == "embedding.weight" or "out.weight" in name:
                parameter.mul_(4.0)
            elif "query_norm" in name or "key_norm" in name:
                parameter.mul_(2.0)
    return model.requires_grad_(False)


def scene(axes: tuple[int, ...], codebooks: int, seed: int, kind: str) -> tuple[Tensor, Tensor]:
    """Four rows. ``free``: all masked. ``edit``: masks of their own, of one token and of none, too. ``same``: equal."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4, math.prod(axes), codebooks)
    known = torch.randint(11, shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.6
    if kind == "free":
        mask = torch.ones_like(mask)
    elif kind == "edit":
        mask[1] = False
        mask[2] = False
        mask[2, 5, 0] = True
    else:
        known, mask = known[:1].expand(shape).clone(), mask[:1].expand(shape).clone()
    return known.masked_fill(mask, 11), mask


class Watched:
    """A model whose partial forwards are noted as (rows, number of queried positions or None)."""

    def __init__(self, model: PartialTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, self.forwards, self.prepared = model, [], 0  # type: ignore[var-annotated]
        real, prepare = model.logits_at, model.prepare

        def logits_at(tokens: Tensor, prepared: Any, positions: Any = None, memory: Any = None) -> Tensor:
            self.forwards.append((len(tokens), None if positions is None else positions.shape[1]))
            return real(tokens, prepared, positions, memory)

        def prepared(*arguments: Any) -> Any:
            self.prepared += 1
            return prepare(*arguments)

        monkeypatch.setattr(model, "logits_at", logits_at)
        monkeypatch.setattr(model, "prepare", prepared)


def decode(model: PartialTransformer, kind: str, guidance: dict[str, Any] | None = None, **options: Any) -> None:
    tokens, mask = scene((3, 4), 1, 0, kind)
    cond, steps = Cond(labels=torch.tensor(LABELS)), options["steps"]
    prediction = (
        guided_logits(model, cond, Guidance(**guidance), steps=steps) if guidance else model_logits(model, cond)
    )
    sample(prediction, tokens, mask, seeds=[4, 5, 6, 7], **options)
