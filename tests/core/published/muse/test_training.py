"""Lucidrains' training rule: what is masked, shown and dropped, and that it teaches what it should.

Shapes: B batch, N tokens.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.data import Batch
from maskgen.published.muse.training import (
    MuseModeling,
    MuseTraining,
    masked_tokens,
    muse_loss,
    muse_mask,
    shown_tokens,
)
from maskgen.published.muse.transformer import MuseConfig, MuseTransformer, without_text
from maskgen.training.distributed.rows import RandomRows
from tests.core.published.muse.toys import BASE, CASES, conditions, model_of, tokens_of
from tests.core.toys import fit


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_counts_are_rounded_and_at_least_one() -> None:
    times = torch.tensor([0.0, 0.5, 2 / 3, 1.0])
    mask = muse_mask(times, uniform(4, 10))
    assert mask.sum(1).tolist() == [10, 7, 5, 1]
    assert muse_mask(times[3:].expand(2000), uniform(2000, 10)).float().mean(0).max() < 0.13, "any place alike"


def test_mean_share_is_that_of_the_paper() -> None:
    share = muse_mask(uniform(4000), uniform(4000, 64, seed=1)).float().mean()
    assert share == pytest.approx(2 / math.pi, abs=0.02)


@pytest.mark.parametrize(("share", "expected"), [(0.0, [0, 0, 0]), (0.25, [3, 1, 1]), (1.0, [10, 4, 1])])
def test_a_share_of_the_masked_tokens_is_shown(share: float, expected: list[int]) -> None:
    """Rounded up, as the published comparison of ranks with a fraction does."""
    mask = torch.arange(10) < torch.tensor([10, 4, 1])[:, None]
    shown = shown_tokens(mask, share, uniform(3, 10))
    assert shown.sum(1).tolist() == expected
    assert not (shown & ~mask).any()


def test_shown_tokens_are_seen_and_paid_for() -> None:
    model, tokens, cond = model_of(BASE), tokens_of(BASE, masked=False), conditions(BASE)
    mask = torch.tensor([True, True, True, False, False, False]).expand(3, -1)
    shown = torch.tensor([True, False, False, False, False, False]).expand(3, -1)
    seen = masked_tokens(tokens, mask, 11, shown)
    assert seen[:, 1:3].eq(11).all()
    assert torch.equal(seen[:, [0, 3, 4, 5]], tokens[:, [0, 3, 4, 5]])
    loss, _ = muse_loss(model, tokens, cond, mask, mask_id=11, shown=shown)
    cost = -model(seen, cond)[:, :, 0].log_softmax(-1).gather(-1, tokens)[:, :3]
    torch.testing.assert_close(loss, cost.mean())


class Watching(MuseTransformer):
    """Notes what it is given."""

    def forward(
        self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None, previous: Tensor | None = None
    ) -> Tensor:
        self.seen = (tokens, cond, previous)
        return super().forward(tokens, cond, axes, previous)


def step_of(settings: MuseTraining, rows: RandomRows, count: int = 400) -> Watching:
    config = dataclasses.replace(CASES["self-conditioned"], coarse_size=4)
    torch.manual_seed(0)
    model = Watching(config)
    cond, tokens = conditions(config, count), tokens_of(config, count, masked=False)
    assert cond.context is not None
    assert cond.context_mask is not None
    assert cond.coarse is not None
    batch: Batch = {"tokens": tokens, "context": cond.context, "context_mask": cond.context_mask, "coarse": cond.coarse}
    share = slice(rows.rank * count // rows.world, (rows.rank + 1) * count // rows.world)
    objective = MuseModeling(model, settings)
    objective.rows = rows
    loss, terms = objective.loss("model", {"model": model}, {name: part[share] for name, part in batch.items()}, 0)
    assert loss.isfinite()
    assert 0 <= terms["accuracy"] <= 1
    return model


def test_text_goes_for_the_share_of_rows_that_is_asked_for() -> None:
    """The published pairs of this kind keep it for that share instead (open-muse's issue 143)."""
    settings = MuseTraining(text_dropout=0.2, self_conditioning=0.7)
    _, cond, previous = step_of(settings, RandomRows(torch.Generator().manual_seed(0))).seen
    assert cond.context_mask is not None
    assert previous is not None
    dropped, empty = ~cond.context_mask.any(1), previous.eq(0).flatten(1).all(1)
    assert dropped.float().mean() == pytest.approx(0.2, abs=0.06)
    assert empty.float().mean() == pytest.approx(0.3, abs=0.07)
    assert not previous.requires_grad
    assert (dropped & ~empty).any()
    assert cond.coarse is not None, "low-resolution tokens stay"


def test_a_row_is_trained_alike_on_one_process_or_two() -> None:
    settings = MuseTraining(shown_share=0.3)
    whole, *halves = (
        step_of(settings, RandomRows(torch.Generator().manual_seed(4), rank, world)).seen
        for rank, world in ((0, 1), (0, 2), (1, 2))
    )
    assert torch.equal(whole[0], torch.cat([half[0] for half in halves]))
    assert whole[1].context_mask is not None
    masks = [half[1].context_mask for half in halves]
    assert torch.equal(whole[1].context_mask, torch.cat([mask for mask in masks if mask is not None]))


class Texts:
    """Grids filled with the code that the text names."""

    def __init__(self, config: MuseConfig) -> None:
        self.config = config

    def __len__(self) -> int:
        return self.config.codebook_size

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        codes = torch.tensor(list(indices))
        words = torch.randn(len(self), 1, self.config.text_width, generator=torch.Generator().manual_seed(0))
        tokens = codes[:, None, None].expand(-1, math.prod(self.config.axes), 1).clone()
        return {"tokens": tokens, "context": words[codes], "context_mask": torch.ones(len(codes), 1, dtype=torch.bool)}


def test_it_learns_what_the_text_says(tmp_path: Path) -> None:
    config = dataclasses.replace(CASES["self-conditioned"], codebook_size=4)
    torch.manual_seed(0)
    model, texts = MuseTransformer(config), Texts(config)
    training = MuseTraining(text_dropout=0.4)
    fit(MuseModeling(model, training), texts, tmp_path, steps=80, batch_size=16, ema_decay=0.5)
    batch = texts.batch(range(4), range(4))
    cond, hidden = Cond(context=batch["context"]), torch.full_like(batch["tokens"], 4)
    with torch.no_grad():
        told, untold = (model(hidden, half)[:, :, 0].softmax(-1) for half in (cond, without_text(cond)))
    assert told.gather(-1, batch["tokens"]).min() > 0.8
    assert torch.equal(untold, untold[:1].expand_as(untold)), "without its text no row is told apart"


@pytest.mark.parametrize("name", ["text_dropout", "shown_share", "self_conditioning"])
def test_shares_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: got 1.5, expected a share in \[0, 1\]"):
        MuseTraining(**{name: 1.5})
