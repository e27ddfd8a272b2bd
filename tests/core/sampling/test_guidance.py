"""Guidance as a wrapper, and the conditions it works on."""

import dataclasses
import math

import pytest
import torch

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.sampling.guidance import Guidance, guided_logits, model_logits
from tests.core.toys import FAMILIES, shaken, transformer


class Counting:
    """A model that notes how many rows it was given, and on which grid."""

    def __init__(self, family: str = "modern") -> None:
        self.model = shaken(transformer(family))
        self.rows: list[int] = []
        self.axes: list[object] = []

    def __call__(self, tokens: torch.Tensor, cond: Cond, axes: object = None) -> torch.Tensor:
        self.rows.append(len(tokens))
        self.axes.append(axes)
        return self.model(tokens, cond, axes)


def tokens() -> torch.Tensor:
    return torch.randint(12, (3, 12, 1), generator=torch.Generator().manual_seed(2))


LABELS = Cond(labels=torch.tensor([0, 2, 3]))


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_two_forwards(family: str) -> None:
    model = Counting(family)
    guided = guided_logits(model, LABELS, Guidance(scale=1.7), steps=4)(tokens(), 0)
    conditional, unconditional = model(tokens(), LABELS), model(tokens(), LABELS.unconditional())
    torch.testing.assert_close(guided, conditional + 1.7 * (conditional - unconditional), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(guided, conditional, atol=1e-2)
    assert model.rows == [6, 3, 3]


def test_weight_zero_skips_the_unconditional_half() -> None:
    model = Counting()
    plain = model_logits(model, LABELS)(tokens(), 0)
    assert torch.equal(guided_logits(model, LABELS, Guidance(scale=0), steps=4)(tokens(), 2), plain)
    ramped = guided_logits(model, LABELS, Guidance(scale=2.0, ramp="linear"), steps=3)
    assert torch.equal(ramped(tokens(), 0), plain)
    ramped(tokens(), 1)
    assert model.rows == [3, 3, 3, 6]


def test_each_step_has_its_own_weight() -> None:
    model = Counting()
    ramped = guided_logits(model, LABELS, Guidance(scale=2.0, ramp="cosine"), steps=5)
    for step in range(5):
        fixed = guided_logits(
            model, LABELS, Guidance(scale=Guidance(scale=2.0, ramp="cosine").weights(5)[step]), steps=5
        )
        assert torch.equal(ramped(tokens(), step), fixed(tokens(), step))


def test_the_grid_is_passed_on() -> None:
    model = Counting()
    guided_logits(model, LABELS, Guidance(scale=1.0), steps=2, axes=(4, 3))(tokens(), 0)
    guided_logits(model, LABELS, Guidance(scale=0.0), steps=2, axes=(6, 2))(tokens(), 0)
    model_logits(model, LABELS, (2, 6))(tokens(), 0)
    assert model.axes == [(4, 3), (6, 2), (2, 6)]


def test_ramps_in_closed_form() -> None:
    assert Guidance(scale=3.0, ramp="constant").weights(4) == [3.0] * 4
    assert Guidance(scale=3.0, ramp="linear").weights(4) == pytest.approx([0, 1, 2, 3])
    assert Guidance(scale=2.0, ramp="cosine").weights(5) == pytest.approx(
        [0, 1 - math.sqrt(0.5), 1, 1 + math.sqrt(0.5), 2]
    )
    assert [Guidance(scale=3.0, ramp=ramp).weights(1)[0] for ramp in ("constant", "linear", "cosine")] == [3.0] * 3


def test_mistakes_are_explained() -> None:
    with pytest.raises(ValueError, match=r"guidance.scale: got -1.0, expected 0 \(none\) or more"):
        guided_logits(Counting(), LABELS, Guidance(scale=-1.0), steps=2)
    with pytest.raises(ValueError, match="guidance.ramp: got 'cubic', expected 'constant', 'linear' or 'cosine'"):
        guided_logits(Counting(), LABELS, Guidance(scale=1.0, ramp="cubic"), steps=2)  # type: ignore[arg-type]


def full_cond(count: int = 2) -> Cond:
    return Cond(
        labels=torch.arange(count),
        task=torch.arange(count) + 5,
        context=torch.ones(count, 3, 4),
        context_mask=torch.ones(count, 3, dtype=torch.bool),
        pooled=torch.ones(count, 6),
        micro=torch.ones(count, 5),
        coarse=torch.arange(2 * count).reshape(count, 2, 1),
    )


def test_unconditional_drops_labels_and_context() -> None:
    empty = Cond(context=torch.zeros(2, 1, 4), pooled=torch.zeros(2, 6))
    cond = dataclasses.replace(full_cond(), null=empty)
    dropped = cond.unconditional()
    assert dropped.labels is not None
    assert dropped.labels.tolist() == [NO_LABEL, NO_LABEL]
    assert (dropped.context, dropped.context_mask, dropped.pooled) == (empty.context, None, empty.pooled)
    assert (dropped.task, dropped.micro, dropped.coarse) == (cond.task, cond.micro, cond.coarse)
    assert dropped.null is None
    assert Cond().unconditional() == Cond()
    with pytest.raises(ValueError, match="cond.null: got none beside context"):
        full_cond().unconditional()


def test_rows_of_conditions() -> None:
    cond = dataclasses.replace(full_cond(), null=Cond(context=torch.arange(2.0).reshape(2, 1, 1)))
    chosen = cond.rows([1, 1, 0])
    assert chosen.labels is not None
    assert cond.labels is not None
    assert chosen.labels.tolist() == cond.labels[[1, 1, 0]].tolist()
    assert chosen.coarse is not None
    assert chosen.coarse.flatten().tolist() == [2, 3, 2, 3, 0, 1]
    assert chosen.null is not None
    assert chosen.null.context is not None
    assert chosen.null.context.flatten().tolist() == [1, 1, 0]


def test_conditions_that_a_model_does_not_use_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"cond.context: Some does not use it \(it takes labels, task\); leave context"
    ):
        full_cond().check_used("Some", "labels", "task")
    model = ModernTransformer(ModernConfig(vocab_size=5, num_classes=2, axes=(2,), width=16, layers=1, heads=2))
    with pytest.raises(ValueError, match=r"cond.context: ModernTransformer does not use it"):
        model(torch.zeros(1, 2, 1, dtype=torch.long), Cond(context=torch.zeros(1, 1, 4)))


def test_map_changes_what_is_there() -> None:
    mapped = full_cond().map(lambda tensor: tensor[:1])
    given = [getattr(mapped, item.name) for item in dataclasses.fields(Cond) if item.name != "null"]
    assert [len(tensor) for tensor in given] == [1] * 7
    assert Cond(task=torch.ones(2)).map(lambda tensor: tensor + 1).labels is None


def test_cat_joins_every_field() -> None:
    joined = Cond.cat([full_cond(2), full_cond(3)])
    assert joined.labels is not None
    assert joined.labels.tolist() == [0, 1, 0, 1, 2]
    assert joined.task is not None
    assert joined.task.tolist() == [5, 6, 5, 6, 7]
    assert joined.context is not None
    assert joined.context.shape == (5, 3, 4)
    assert joined.context_mask is not None
    assert joined.context_mask.shape == (5, 3)
    assert joined.pooled is not None
    assert joined.pooled.shape == (5, 6)
    assert joined.micro is not None
    assert joined.micro.shape == (5, 5)
    assert joined.coarse is not None
    assert joined.coarse.flatten().tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    assert Cond.cat([Cond(), Cond()]) == Cond()
    with pytest.raises(ValueError, match=r"cond.labels is present in 1 of 2 parts; give all or none"):
        Cond.cat([Cond(), LABELS])
