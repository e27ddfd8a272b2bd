"""Keys and values used again between steps: what is computed, what stays stale, and that rows stay independent.

The model's own blocks, run over all places on what a place's row was at its last computation, are the slow reference.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.models.base import PartialTransformer
from maskgen.models.bert import BertTransformer
from maskgen.models.partial import FeatureMemory, first_positions, take
from maskgen.sampling.guidance import Guidance, guided_logits, model_logits, self_guided_logits
from maskgen.sampling.loop import SampleStep, sample
from maskgen.sampling.selectors.named import get_selector
from tests.core.sampling.speed.test_exact import LABELS, model_of, scene

KINDS = [("bert", (3, 4), 1), ("modern", (2, 2, 3), 3)]
COND = Cond(labels=torch.tensor(LABELS))
ORDERS = ["confidence", "random", "halton", "moment", "entropy:2"]


class Slow:
    """Every layer's input of all places, of which a step renews some."""

    def __init__(self, model: PartialTransformer, axes: tuple[int, ...]) -> None:
        self.model, self.axes = model, axes
        self.inputs: list[Tensor] = []

    def renew(self, layer: int, x: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:
            self.inputs = [*self.inputs[:layer], x, *self.inputs[layer + 1 :]]
        else:
            at = rows[..., None].expand(-1, -1, x.shape[-1])
            self.inputs[layer] = self.inputs[layer].scatter(1, at, x.gather(1, at))
        return self.inputs[layer]

    def logits(self, tokens: Tensor, places: Tensor | None) -> Tensor:
        """All places; those outside ``places`` are not to be looked at."""
        model = self.model
        if isinstance(model, BertTransformer):
            x = model.embedding_norm(model.embed(model.table_ids(tokens, COND)))
            for layer, block in enumerate(model.blocks):
                first = torch.zeros(4, model.prefix, dtype=torch.long)  # the class is a row of its own, always renewed
                rows = None if places is None else torch.cat((first, places + model.prefix), dim=1)
                x = block(self.renew(layer, x, rows))
            x = model.head_norm(torch.nn.functional.gelu(model.head(x), approximate="tanh"))
            found = torch.nn.functional.linear(x, model.word_embedding.weight, model.head_bias)
            return found[:, model.prefix :, None, : model.vocab_size]
        prepared = model.prepare(COND, tokens, self.axes)
        position, cos, sin = prepared.shared
        offsets = torch.arange(tokens.shape[2]) * 12
        x = model.embedding(tokens + offsets).sum(2) + position
        for layer, block in enumerate(model.blocks):
            x = block(self.renew(layer, x, places), prepared.rows[layer], cos, sin)
        shift, scale = prepared.rows[-1].chunk(2, dim=-1)
        return model.head(model.final_norm(x) * (1 + scale) + shift).unflatten(-1, (tokens.shape[2], 11))


@pytest.mark.parametrize(("family", "axes", "codebooks"), KINDS)
@torch.no_grad()
def test_a_step_sees_what_did_not_change_as_it_was(family: str, axes: tuple[int, ...], codebooks: int) -> None:
    model = model_of(family, axes, codebooks)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(12, (4, 12, codebooks), generator=generator)
    prepared, memory, slow = model.prepare(COND, tokens, axes), FeatureMemory(), Slow(model, axes)
    assert len(memory) == 0
    torch.testing.assert_close(model.logits_at(tokens, prepared, None, memory), slow.logits(tokens, None))
    assert len(memory) == 4
    for turn in range(3):
        places = torch.rand(4, 12, generator=generator).argsort(dim=1)[:, :5]
        tokens = tokens.scatter(1, places[:, :3, None].expand(-1, -1, codebooks), turn)
        memory.positions = torch.cat((places, places[:, :1]), dim=1)  # a place may stand there twice
        within = torch.tensor([3, 0, 5]).expand(4, -1)
        found = model.logits_at(tokens, prepared, within, memory)
        expected = slow.logits(tokens, places)
        torch.testing.assert_close(found, take(expected, memory.positions.gather(1, within)), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, model(tokens, COND, axes), atol=1e-3)  # it is an approximation
    memory.positions = torch.arange(12).expand(4, -1)
    whole = model.logits_at(tokens, prepared, memory.positions, memory)
    torch.testing.assert_close(whole, model(tokens, COND, axes), atol=1e-5, rtol=1e-5)


def decode(select: str, every: int, kind: str, rows: slice = slice(None), **more: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask and result of some rows of a scene."""
    family, axes, codebooks = KINDS[more.pop("model", 0)]
    model = model_of(family, axes, codebooks)
    tokens, mask = scene(axes, codebooks, 3, kind)
    if kind == "mixed":
        mask[0] = True
        tokens = tokens.masked_fill(mask, 11)
    cond, steps = COND.map(lambda part: part[rows]), more.pop("steps", 7)
    prediction = model_logits(model, cond, axes)
    if scale := more.pop("scale", 0.0):
        prediction = guided_logits(model, cond, Guidance(scale=scale, interval=(0.4, 1.0)), steps=steps, axes=axes)
    chosen = get_selector(select, axes=axes)
    options: dict[str, Any] = {"steps": steps, "seeds": [4, 5, 6, 7][rows], "select": chosen, **more}
    return tokens, mask, sample(prediction.reusing(every), tokens[rows], mask[rows], **options)


@pytest.mark.parametrize("select", ORDERS)
def test_samples_are_whole_and_rows_independent(select: str) -> None:
    for model, scale in ((0, 1.0), (1, 0.0)):
        tokens, mask, done = decode(select, 3, "mixed", model=model, scale=scale)
        assert done.max() < 11
        assert torch.equal(done[~mask], tokens[~mask])
        for row in range(4):
            part = slice(row, row + 1)
            assert torch.equal(decode(select, 3, "mixed", part, model=model, scale=scale)[2], done[part])
        seen: list[SampleStep] = []
        watched = decode(select, 3, "mixed", model=model, scale=scale, callback=seen.append)[2]
        assert torch.equal(watched, done)  # whoever watches
        assert all(0 <= step.tokens.min() <= step.tokens.max() < 11 for step in seen)


def test_it_approximates() -> None:
    others = [decode("halton", every, "free", model=1, steps=12)[2] for every in (1, 2, 12)]
    assert not torch.equal(others[0], others[2])
    alike = [(others[0] == other).float().mean() for other in others]
    assert alike[0] == 1
    assert min(alike) > 0.5


def test_where_all_is_renewed_it_is_exact() -> None:
    """The second of two steps of ``confidence`` renews all that was hidden at the first, which is everything."""
    for guided in (0.0, 1.5):
        assert torch.equal(
            decode("confidence", 2, "free", steps=2, scale=guided)[2],
            decode("confidence", 1, "free", steps=2, scale=guided)[2],
        )


def test_only_what_changed_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(*KINDS[0])
    seen: list[tuple[int | None, int]] = []
    real = model.logits_at

    def watched(tokens: Tensor, prepared: Any, positions: Tensor | None = None, memory: Any = None) -> Tensor:
        renewed = None if memory.positions is None else memory.positions.shape[1]
        found: Tensor = real(tokens, prepared, positions, memory)
        seen.append((renewed, found.shape[1]))
        return found

    monkeypatch.setattr(model, "logits_at", watched)
    decode("confidence", 2, "edit", steps=4)
    hidden = scene((3, 4), 1, 3, "edit")[1].flatten(1).sum(1).max()
    assert [renewed for renewed, _ in seen] == [None, int(hidden), None, seen[2][1]]
    seen.clear()
    decode("random", 4, "free", steps=12, schedule="linear")
    # One place a step, up to 4 more that might tie, and all that is left at the last.
    assert [renewed is None for renewed, _ in seen] == [True, False, False, False] * 3


@pytest.mark.parametrize("select", ["critic", "remdm-cap", "remdm-conf", "span3"])
def test_orders_that_take_back_are_refused(select: str) -> None:
    model = model_of(*KINDS[0])
    tokens, mask = scene((3, 4), 1, 0, "free")
    chosen = get_selector(select, axes=(3, 4), critic=lambda ids, step: torch.zeros(ids.shape))
    with pytest.raises(
        ValueError, match="reuse: got 2, which works with selectors that follow the schedule and take nothing"
    ):
        sample(model_logits(model, COND).reusing(2), tokens, mask, steps=3, seeds=[1, 2, 3, 4], select=chosen)


def test_models_that_cannot_are_refused() -> None:
    with pytest.raises(
        ValueError, match="reuse: got 2, but function computes all positions or none; use 1 with this model"
    ):
        model_logits(lambda tokens, cond, axes=None: tokens[..., None].float(), Cond()).reusing(2)
    weaker = self_guided_logits(model_of(*KINDS[0]), COND, Guidance(scale=1.0), steps=3, seeds=[1, 2, 3, 4], mask_id=11)
    with pytest.raises(ValueError, match="reuse: got 3 with guidance that masks other tokens at every step; use 1"):
        weaker.reusing(3)
    with pytest.raises(ValueError, match="reuse: got 0, expected at least 1"):
        weaker.reusing(0)
    assert weaker.reusing(1).reuse == 1


def test_places_may_be_repeated() -> None:
    wanted = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    assert first_positions(wanted, 4, repeat=True).tolist() == [[1, 3, 4, 1], [2, 2, 2, 2], [0, 0, 0, 0]]
