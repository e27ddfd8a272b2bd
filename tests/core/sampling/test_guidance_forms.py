"""The forms of guidance beside the plain one: exponents, intervals, negative labels, self-guidance."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.sampling.guidance import Guidance, guided_logits, self_guided_logits
from maskgen.sampling.loop import sample
from tests.core.sampling.test_guidance import LABELS, Counting, tokens

SEEDS = [3, 4, 5]
MASK = 11  # the mask id of the toys


def plain(model: Counting, seen: Tensor, cond: Cond = LABELS) -> Tensor:
    return model.model(seen, cond)


# Over the steps


def test_power_cosine_in_closed_form() -> None:
    found = Guidance(scale=2.0, ramp="power-cosine", power=2.0).weights(5)
    assert found == pytest.approx([1 - math.cos(math.pi * r * r) for r in (0, 0.25, 0.5, 0.75, 1)])
    for step in range(7):
        cosine = Guidance(scale=3.0, ramp="cosine").weights(7)[step]
        assert Guidance(scale=3.0, ramp="power-cosine", power=1.0).weights(7)[step] == cosine
    assert Guidance(scale=3.0, ramp="power-cosine").weights(1)[0] == 3.0


def test_an_interval_in_closed_form() -> None:
    def weights(ramp: str, interval: tuple[float, float], steps: int = 5) -> list[float]:
        return Guidance(scale=2.0, ramp=ramp, interval=interval).weights(steps)

    assert weights("constant", (0.25, 0.75)) == [0, 2, 2, 2, 0]
    assert weights("constant", (0.3, 1)) == [0, 0, 2, 2, 2]
    assert weights("linear", (0.5, 1)) == [0, 0, 1, 1.5, 2]
    assert weights("constant", (0.6, 0.6)) == [0] * 5
    assert weights("constant", (0, 1)) == [2] * 5
    assert weights("constant", (0, 0.5), steps=1) == [0]  # a single step is all of the progress


def test_steps_outside_the_interval_run_no_second_half() -> None:
    model = Counting()
    guided = guided_logits(model, LABELS, Guidance(scale=2.0, interval=(0.3, 0.7)), steps=4)
    for step in range(4):
        guided(tokens(), step)
    assert model.rows == [3, 6, 6, 3]
    assert torch.equal(guided(tokens(), 0), plain(model, tokens()))


def test_the_exponent_reaches_the_logits() -> None:
    model = Counting()
    guided = guided_logits(model, LABELS, Guidance(scale=2.0, ramp="power-cosine", power=2.0), steps=5)
    fixed = guided_logits(
        model, LABELS, Guidance(scale=Guidance(scale=2.0, ramp="power-cosine", power=2.0).weights(5)[3]), steps=5
    )
    assert torch.equal(guided(tokens(), 3), fixed(tokens(), 3))
    other = guided_logits(model, LABELS, Guidance(scale=2.0, ramp="power-cosine", power=4.0), steps=5)
    assert not torch.equal(guided(tokens(), 3), other(tokens(), 3))


# Negative labels


def test_a_negative_label_takes_the_place_of_none() -> None:
    model = Counting()
    negative = Cond(labels=torch.tensor([3, 3, 1]))
    guided = guided_logits(model, LABELS, Guidance(scale=1.5), steps=2, against=negative)(tokens(), 0)
    given, away = plain(model, tokens()), plain(model, tokens(), negative)
    torch.testing.assert_close(guided, given + 1.5 * (given - away), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(
        guided, guided_logits(model, LABELS, Guidance(scale=1.5), steps=2)(tokens(), 0), atol=1e-2
    )


def test_pushing_away_from_the_own_class_changes_nothing() -> None:
    model = Counting()
    guided = guided_logits(model, LABELS, Guidance(scale=1.5), steps=2, against=LABELS)(tokens(), 0)
    torch.testing.assert_close(guided, plain(model, tokens()), atol=1e-4, rtol=1e-4)


# Self-guidance


class Spy:
    """Keeps what it was asked about; answers with the ids themselves."""

    def __init__(self) -> None:
        self.tokens: list[Tensor] = []
        self.conds: list[Cond] = []

    def __call__(self, seen: Tensor, cond: Cond, axes: object = None) -> Tensor:
        self.tokens.append(seen)
        self.conds.append(cond)
        return seen[..., None].float() * torch.arange(1.0, MASK + 1)


def guided(model: object, rows: slice = slice(None), **changes: object) -> object:
    seeds = changes.pop("seeds", SEEDS[rows])
    guidance = Guidance(**{"scale": 1.5, "drop": 0.5, **changes})  # type: ignore[arg-type]
    cond = Cond(labels=LABELS.labels[rows])  # type: ignore[index]
    return self_guided_logits(model, cond, guidance, steps=4, seeds=seeds, mask_id=MASK)  # type: ignore[arg-type]


def test_the_weaker_half_sees_fewer_tokens_under_the_same_conditions() -> None:
    spy = Spy()
    seen = torch.randint(MASK, (3, 400, 2), generator=torch.Generator().manual_seed(0))
    logits = guided(spy, drop=0.3)(seen, 1)  # type: ignore[operator]
    strong, weak = spy.tokens[0].chunk(2)
    assert torch.equal(strong, seen)
    hidden = weak == MASK
    assert torch.equal(weak[~hidden], seen[~hidden])
    assert abs(float(hidden.float().mean()) - 0.3) < 0.04
    assert spy.conds[0].labels is not None
    assert torch.equal(spy.conds[0].labels, torch.cat((LABELS.labels, LABELS.labels)))  # type: ignore[arg-type]
    answers = [part[..., None].float() * torch.arange(1.0, MASK + 1) for part in (strong, weak)]
    torch.testing.assert_close(logits, answers[0] + 1.5 * (answers[0] - answers[1]))


def test_what_is_hidden_depends_on_seed_and_step_alone() -> None:
    spy = Spy()
    seen = torch.randint(MASK, (3, 40, 1), generator=torch.Generator().manual_seed(0))
    whole = guided(spy)
    for step in (0, 1, 1):
        whole(seen, step)  # type: ignore[operator]
    guided(spy, slice(1, 2))(seen[1:2], 1)  # type: ignore[operator]
    first, second, again, alone = (asked.chunk(2)[1] for asked in spy.tokens)
    assert torch.equal(second, again)
    assert torch.equal(alone[0], second[1])
    assert not torch.equal(first, second)
    assert not torch.equal(second[0] == MASK, second[1] == MASK)


def test_nothing_is_pushed_where_nothing_is_visible() -> None:
    model = Counting()
    hidden = torch.full((3, 12, 1), MASK)
    torch.testing.assert_close(guided(model)(hidden, 0), plain(model, hidden), atol=1e-4, rtol=1e-4)  # type: ignore[operator]
    assert not torch.allclose(guided(model)(tokens(), 0), plain(model, tokens()), atol=1e-2)  # type: ignore[operator]


def test_self_guidance_has_ramps_and_intervals() -> None:
    model = Counting()
    ramped = guided(model, ramp="linear", interval=(0, 0.9))
    for step in range(4):
        ramped(tokens(), step)  # type: ignore[operator]
    assert model.rows == [3, 6, 6, 3]


def test_self_guidance_in_the_sampler_keeps_items_apart() -> None:
    model = Counting()
    hidden = torch.full((3, 12, 1), MASK)
    mask = torch.ones_like(hidden, dtype=torch.bool)
    whole = sample(guided(model), hidden, mask, steps=4, seeds=SEEDS)  # type: ignore[arg-type]
    one = slice(1, 2)
    alone = sample(guided(model, one), hidden[one], mask[one], steps=4, seeds=SEEDS[one])  # type: ignore[arg-type]
    assert torch.equal(whole[one], alone)
    assert not torch.equal(whole, sample(lambda ids, step: plain(model, ids), hidden, mask, steps=4, seeds=SEEDS))


# Mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": -1.0}, "guidance.scale: got -1.0, expected 0"),
        ({"scale": math.inf}, "guidance.scale: got inf"),
        ({"ramp": "cubic"}, "guidance.ramp: got 'cubic', expected .*'power-cosine' with an exponent"),
        ({"power": 0.0}, "guidance.power: got 0.0, expected a finite number over 0"),
        ({"power": math.nan}, "guidance.power: got nan"),
        ({"interval": (0.7, 0.3)}, r"guidance.interval: got \(0.7, 0.3\), expected 0 <= first <= last <= 1"),
        ({"interval": (-0.1, 0.3)}, "guidance.interval: got"),
        ({"interval": (0.5, 1.1)}, "guidance.interval: got"),
        ({"against": "noise"}, "guidance.against: got 'noise', expected 'unconditional', 'label' or 'self'"),
        (
            {"against": "label"},
            "guidance.negative_label: got None with guidance.against 'label', expected a class number",
        ),
        ({"negative_label": 3}, "guidance.negative_label: got 3 with guidance.against 'unconditional'"),
        *(
            ({"drop": drop}, f"guidance.drop: got {drop}, expected a share over 0, at most 1")
            for drop in (0.0, 1.5, math.nan)
        ),
    ],
)
def test_mistakes_are_explained(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guidance(**change)


def test_what_only_some_have() -> None:
    with pytest.raises(ValueError, match=r"cond.labels is present in 1 of 2 parts"):
        guided_logits(Counting(), LABELS, Guidance(scale=1.0), steps=2, against=Cond())
    with pytest.raises(ValueError, match="noise: got a batch of 3, expected 2"):
        guided(Counting(), seeds=[1, 2])(tokens(), 0)  # type: ignore[operator]
