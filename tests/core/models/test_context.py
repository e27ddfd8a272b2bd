"""What a transformer is told beside its grid: texts, their pooled vector, the tokens of a smaller grid."""

import dataclasses

import pytest
import torch
from torch import nn

from maskgen.conditioning import Cond
from maskgen.models.context import CoarseConfig, ContextConfig, nearest
from maskgen.models.flops import forward_flops
from maskgen.models.modern import ModernConfig, ModernTransformer

CONTEXT = ContextConfig(width=12, pooled=6, every=2, coarse=CoarseConfig(vocab_size=9, axes=(2, 2), layers=2))


def model(context: ContextConfig = CONTEXT, layers: int = 5) -> ModernTransformer:
    """With weights that let everything through: at the start of a training contexts change nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ModernConfig(
            vocab_size=16, num_classes=3, axes=(4, 4), width=32, layers=layers, heads=2, context=context
        )
        made = ModernTransformer(config).eval()
        for weight in made.parameters():
            nn.init.normal_(weight, std=0.2)
    return made


def batch(rows: int = 3) -> tuple[torch.Tensor, Cond]:
    draw = torch.Generator().manual_seed(1)
    mask = torch.rand(rows, 7, generator=draw) > 0.4
    mask[:, 0] = True
    cond = Cond(
        labels=torch.arange(rows) - 1,
        context=torch.randn(rows, 7, 12, generator=draw),
        context_mask=mask,
        pooled=torch.randn(rows, 6, generator=draw),
        coarse=torch.randint(0, 10, (rows, 4, 1), generator=draw),
    )
    return torch.randint(0, 17, (rows, 16, 1), generator=draw), cond


@torch.no_grad()
def test_prepared_once_is_the_same_as_forward() -> None:
    made, (tokens, cond) = model(), batch()
    whole = made(tokens, cond)
    prepared = made.prepare(cond, tokens)
    torch.testing.assert_close(made.logits_at(tokens, prepared), whole)
    at = torch.tensor([[1, 5], [0, 15], [7, 8]])
    torch.testing.assert_close(
        made.logits_at(tokens, prepared, at), whole[torch.arange(3)[:, None], at], atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_rows_do_not_see_each_other() -> None:
    made, (tokens, cond) = model(), batch()
    together = made(tokens, cond)
    for row in range(3):
        alone = made(tokens[[row]], cond.rows([row]))
        torch.testing.assert_close(alone, together[[row]], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["context", "pooled", "coarse", "context_mask"])
def test_every_part_is_looked_at(name: str) -> None:
    made, (tokens, cond) = model(), batch()
    value = getattr(cond, name)
    changed = ~value if value.dtype == torch.bool else value.flip(1)
    other = made(tokens, dataclasses.replace(cond, **{name: changed}))
    assert (other - made(tokens, cond)).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@torch.no_grad()
def test_masked_features_are_not_looked_at() -> None:
    made, (tokens, cond) = model(), batch()
    assert cond.context is not None
    assert cond.context_mask is not None
    noise = torch.where(cond.context_mask[..., None], cond.context, 99.0)
    torch.testing.assert_close(made(tokens, dataclasses.replace(cond, context=noise)), made(tokens, cond))


@torch.no_grad()
def test_backends_agree_under_a_mask() -> None:
    tokens, cond = batch()
    made = model()
    expected = made(tokens, cond)
    eager = ModernTransformer(dataclasses.replace(made.config, attention="eager")).eval()
    eager.load_state_dict(made.state_dict())
    torch.testing.assert_close(eager(tokens, cond), expected, atol=1e-5, rtol=1e-5)


def test_a_context_changes_nothing_at_the_start_of_a_training() -> None:
    config = dataclasses.replace(model().config)
    tokens, cond = batch()
    assert cond.context is not None
    fresh = ModernTransformer(config).eval()
    nn.init.normal_(fresh.head.weight)
    other = dataclasses.replace(cond, context=cond.context.flip(1))
    torch.testing.assert_close(fresh(tokens, cond), fresh(tokens, other))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": None}, r"cond.context: got none, but this model needs the features of a text"),
        ({"context": torch.zeros(3, 7, 5)}, r"cond.context: got \(3, 7, 5\), expected \(3, 'any', 12\)"),
        ({"pooled": torch.zeros(3, 5)}, r"cond.pooled: got \(3, 5\), expected \(3, 6\)"),
        ({"coarse": None}, r"cond.coarse: got none, but this model needs tokens of the grid \(2, 2\)"),
    ],
)
def test_a_part_that_is_missing_is_refused(change: dict[str, torch.Tensor | None], message: str) -> None:
    tokens, cond = batch()
    with pytest.raises(ValueError, match=message):
        model()(tokens, dataclasses.replace(cond, **change))


def test_a_model_without_text_refuses_it() -> None:
    tokens, cond = batch()
    with pytest.raises(ValueError, match="cond.context: ModernTransformer does not use it"):
        model(ContextConfig())(tokens, cond)


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="every 0"):
        ContextConfig(every=0)
    with pytest.raises(ValueError, match="context.coarse: got vocab_size 1"):
        CoarseConfig(vocab_size=1, axes=(2, 2))


def test_a_look_costs_a_sixth_of_a_block() -> None:
    plain, told = (
        forward_flops(ModernTransformer(ModernConfig(width=64, heads=2, layers=4, axes=(4, 4), context=context)), 2)
        for context in (ContextConfig(), ContextConfig(width=8, every=1))
    )
    assert told - plain == 4 * 2 * (2 * 2 * 16 * 64 * 64)


def test_the_cell_that_lies_over_a_position() -> None:
    assert nearest((4,), (2,)).tolist() == [0, 0, 1, 1]
    assert nearest((2, 3), (1, 3)).tolist() == [0, 1, 2, 0, 1, 2]
    assert nearest((3, 3), (2, 2)).tolist() == [0, 0, 1, 0, 0, 1, 2, 2, 3]


@torch.no_grad()
def test_a_small_token_tells_the_positions_under_it_most() -> None:
    made, (tokens, cond) = model(ContextConfig(coarse=CONTEXT.coarse), layers=1), batch()
    assert cond.coarse is not None
    told = Cond(coarse=cond.coarse)
    other = Cond(coarse=cond.coarse.clone())
    assert other.coarse is not None
    other.coarse[:, 0] = (other.coarse[:, 0] + 1) % 9
    change = (made(tokens, told) - made(tokens, other)).abs().mean((0, 2, 3)).view(4, 4)
    assert change[:2, :2].min() > change[2:].max()
