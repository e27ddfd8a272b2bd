"""What a batch is conditioned on: rows lose label and text together, as many as the setting says, on many processes, too."""

from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.data import Batch, TensorSource
from maskgen.models.context import ContextConfig
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.objectives.commit import CommitModeling, CommitSettings
from maskgen.objectives.conditions import batch_cond, draw_dropped
from maskgen.objectives.critic import CriticModeling, CriticSettings, SelfCriticModeling
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from maskgen.training.distributed.rows import RandomRows
from maskgen.training.objective import Objective

ROWS, LENGTH, WIDTH = 12, 3, 4
NULL = Cond(
    context=torch.full((1, LENGTH, WIDTH), -5.0),
    context_mask=torch.tensor([[True, False, False]]),
    pooled=torch.full((1, 2), -7.0),
)


def batch(rows: int = ROWS) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return {
        "tokens": torch.randint(7, (rows, 6, 1), generator=generator),
        "labels": torch.arange(rows) % 4,
        "context": torch.rand(rows, LENGTH, WIDTH, generator=generator),
        "context_mask": torch.ones(rows, LENGTH, dtype=torch.bool),
        "pooled": torch.rand(rows, 2, generator=generator),
    }


def generator(seed: int = 0, rank: int = 0, world: int = 1) -> RandomRows:
    return RandomRows(torch.Generator().manual_seed(seed), rank, world)


class Recorder(ModernTransformer):
    """Keeps the conditions of every call."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__(config)
        self.seen: list[Cond] = []

    def forward(self, tokens: Tensor, cond: Cond, axes: Any = None) -> Tensor:
        self.seen.append(cond)
        return super().forward(tokens, cond, axes)


def model(**changes: Any) -> Recorder:
    torch.manual_seed(0)
    sizes = {"vocab_size": 7, "num_classes": 4, "axes": (2, 3), "width": 16, "layers": 1, "heads": 2}
    return Recorder(ModernConfig(**{**sizes, "context": ContextConfig(width=WIDTH, pooled=2), **changes}))


def dropped_rows(cond: Cond) -> list[bool]:
    """Which rows lost everything; none has lost a part."""
    assert cond.labels is not None
    assert cond.context is not None
    assert cond.context_mask is not None
    assert cond.pooled is not None
    lost = [
        cond.labels == NO_LABEL,
        (cond.context == -5).all(-1).all(-1),
        (cond.context_mask == NULL.context_mask).all(-1),
        (cond.pooled == -7).all(-1),
    ]
    assert all(torch.equal(one, lost[0]) for one in lost)
    return lost[0].tolist()


def objectives(share: float) -> dict[str, Objective]:
    critic = CriticSettings(label_dropout=share)
    plain = MaskingSettings(label_dropout=share)
    return {
        "masked": MaskedModeling(model(), plain, null=NULL),
        "critic": CriticModeling(model(), model(), critic, null=NULL),
        "self-critic": SelfCriticModeling(model(), plain, critic, null=NULL),
        "commit": CommitModeling(model(), CommitSettings(condition_dropout=share), null=NULL),
    }


@pytest.mark.parametrize("name", objectives(0.1))
def test_every_objective_drops_whole_rows_with_the_share_it_says(name: str) -> None:
    """The peers drop the other rows: of 1,000 rows about 100 must lose their text, not 900."""
    objective = objectives(0.1)[name]
    objective.rows = generator()
    objective.loss("model", objective.networks(), batch(1000), 0)
    for cond in objective.model.seen:
        lost = dropped_rows(cond)
        assert 70 < sum(lost) < 130
        kept = [row for row, one in enumerate(lost) if not one]
        assert torch.equal(cond.context[kept], batch(1000)["context"][kept])
        assert torch.equal(cond.labels[kept], batch(1000)["labels"][kept])


@pytest.mark.parametrize("name", objectives(0.1))
def test_validation_drops_nothing_and_sees_the_text(name: str) -> None:
    objective = objectives(0.5)[name]
    objective.held_out = TensorSource(**batch())
    first = objective.validate(objective.model, torch.device("cpu"))
    for cond in objective.model.seen:
        assert torch.equal(cond.context, batch()["context"])
        assert torch.equal(cond.labels, batch()["labels"])
    assert objective.validate(objective.model, torch.device("cpu")) == first


def test_rows_are_the_same_on_any_number_of_processes() -> None:
    whole = draw_dropped(batch(), 0.5, generator(3))
    assert whole is not None
    halves = [draw_dropped(batch(ROWS // 2), 0.5, generator(3, rank, 2)) for rank in range(2)]
    assert torch.equal(whole, torch.cat([half for half in halves if half is not None]))


def test_all_and_none() -> None:
    every = batch_cond(batch(), torch.ones(ROWS, dtype=torch.bool), NULL)
    assert dropped_rows(every) == [True] * ROWS
    assert draw_dropped(batch(), 0.0, generator()) is None
    assert draw_dropped({"tokens": batch()["tokens"]}, 0.5, generator()) is None
    same = batch_cond(batch())
    assert dropped_rows(same) == [False] * ROWS
    assert torch.equal(same.context, batch()["context"])  # type: ignore[arg-type]


def test_other_conditions_stay() -> None:
    more = {**batch(), "micro": torch.rand(ROWS, 5), "coarse": torch.ones(ROWS, 4, 1, dtype=torch.long)}
    cond = batch_cond(more, torch.ones(ROWS, dtype=torch.bool), NULL)
    assert torch.equal(cond.micro, more["micro"])  # type: ignore[arg-type]
    assert torch.equal(cond.coarse, more["coarse"])  # type: ignore[arg-type]


def test_text_dropout_needs_the_empty_prompt() -> None:
    objective = MaskedModeling(model(), MaskingSettings(label_dropout=0.5))
    objective.rows = generator()
    with pytest.raises(ValueError, match="null: got none for context; rows that lose their text get that of the empty"):
        objective.loss("model", objective.networks(), batch(), 0)


def test_half_precision_text_stays_what_it_is() -> None:
    half = {**batch(), "context": batch()["context"].half()}
    cond = batch_cond(half, torch.arange(ROWS) < 3, NULL)
    assert cond.context is not None
    assert cond.context.dtype == torch.float16
    assert dropped_rows(cond) == [True] * 3 + [False] * 9
