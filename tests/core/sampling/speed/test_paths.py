"""The loop on its fast paths against the same loop on a plain function, and against the slow reference, id for id."""

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.models.base import PartialTransformer
from maskgen.noise import SeededNoise
from maskgen.sampling.guidance import Guidance, guided_logits, model_logits
from maskgen.sampling.loop import sample
from maskgen.sampling.selectors.named import get_selector
from tests.core.sampling.reference import reference_sample
from tests.core.toys import transformer

AXES, VOCAB, STEPS, SEEDS = (4, 5), 11, 6, [3, 4, 5, 6]
COND = Cond(labels=torch.tensor([0, 1, 2, 1]))
GUIDANCE = Guidance(scale=1.5, ramp="linear")
SELECTS = [
    *("confidence", "random", "halton", "moment", "entropy:0.8", "critic"),
    *("remdm-cap:0.05", "remdm-rescale:0.05", "remdm-conf:1", "span3"),
]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": "linear:1.3,0.6", "choice_temperature": "cosine:3,1", "start_step": 1},
]
MODELS = [("modern", 1), ("modern", 2), ("bert", 1)]
SHARES = (1.0, 0.6, 0.15)  # of the tokens that are masked; of the second, the first row has none


@functools.cache
def model_of(family: str, codebooks: int) -> PartialTransformer:
    """Weights with which labels, neighbours and the noise all matter."""
    changes = {"num_codebooks": codebooks} if family == "modern" else {}
    model = transformer(family, axes=AXES, layers=3, num_classes=3, **changes).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(codebooks)
    for parameter in model.parameters():
        parameter.normal_(std=0.4, generator=generator)
    assert isinstance(model, PartialTransformer)
    return model


def scene(share: float, codebooks: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(int(10 * share))
    tokens = torch.randint(0, VOCAB, (4, 20, codebooks), generator=generator)
    mask = torch.rand(4, 20, codebooks, generator=generator) < share
    mask[0] &= share != SHARES[1]
    return tokens.masked_fill(mask, VOCAB), mask


def critic(tokens: Tensor, step: int) -> Tensor:
    return torch.sin(tokens.float() * 1.7 + step)


def plainly(model: PartialTransformer, guided: bool) -> Any:
    """Guidance by the book: each half for itself, everywhere, at every step."""
    weights = GUIDANCE.weights(STEPS)

    def logits_fn(tokens: Tensor, step: int) -> Tensor:
        logits: Tensor = model(tokens, COND)
        return logits + weights[step] * (logits - model(tokens, COND.unconditional())) if guided else logits

    return logits_fn


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize(("family", "codebooks"), MODELS)
def test_fast_and_plain_give_the_same_ids(family: str, codebooks: int, select: str, guided: bool) -> None:
    model, selector = model_of(family, codebooks), get_selector(select, axes=AXES, critic=critic)
    fast = guided_logits(model, COND, GUIDANCE, steps=STEPS) if guided else model_logits(model, COND)
    for share, settings in itertools.product(SHARES, SETTINGS):
        tokens, mask = scene(share, codebooks)
        options: dict[str, Any] = {"steps": STEPS, "select": selector, "seeds": SEEDS, **settings}
        expected = sample(plainly(model, guided), tokens, mask, **options)
        assert torch.equal(sample(fast, tokens, mask, **options), expected), (share, settings)
        watched = sample(fast, tokens, mask, callback=lambda step: None, **options)
        assert torch.equal(watched, expected), (share, settings, "watched")


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("select", SELECTS[:5])
def test_reuse_does_not_depend_on_the_batch_or_on_who_watches(select: str, guided: bool, every: int) -> None:
    model, selector = model_of("modern", 2), get_selector(select, axes=AXES)
    for share, settings in itertools.product(SHARES, SETTINGS):
        tokens, mask = scene(share, 2)
        options: dict[str, Any] = {"steps": STEPS, "select": selector, **settings}

        def decode(part: slice, options: dict[str, Any] = options, given: Any = (tokens, mask), **more: Any) -> Tensor:
            cond = COND.map(lambda rows: rows[part])
            fast = guided_logits(model, cond, GUIDANCE, steps=STEPS) if guided else model_logits(model, cond)
            return sample(fast.reusing(every), *(rows[part] for rows in given), seeds=SEEDS[part], **options, **more)

        whole = decode(slice(None))
        assert torch.equal(decode(slice(None), callback=lambda step: None), whole)
        assert torch.equal(decode(slice(2, 3)), whole[2:3])


@pytest.mark.parametrize("select", [name for name in SELECTS if not name.startswith("span")])
@pytest.mark.parametrize(("family", "codebooks"), MODELS)
def test_fast_ids_are_those_of_the_slow_reference(family: str, codebooks: int, select: str) -> None:
    model, selector = model_of(family, codebooks), get_selector(select, axes=AXES, critic=critic)
    for share, settings in zip(SHARES, SETTINGS, strict=True):
        tokens, mask = scene(share, codebooks)
        plain: dict[str, Any] = {"temperature": 1.0, "choice_temperature": 4.5, "start_step": 0, **settings}
        ids, _ = reference_sample(
            plainly(model, False),
            tokens,
            mask,
            SeededNoise(SEEDS),
            steps=STEPS,
            schedule="cosine",
            select=select,
            axes=AXES,
            critic=critic if select == "critic" else None,
            **plain,
        )
        found = sample(model_logits(model, COND), tokens, mask, steps=STEPS, select=selector, seeds=SEEDS, **settings)
        assert found.flatten(1).tolist() == ids, (share, settings)
