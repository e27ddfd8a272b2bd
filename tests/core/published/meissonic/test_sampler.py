"""What Meissonic's decoding adds to aMUSEd's: the time of each step, under any guidance.

Shapes: B batch, N tokens, K codes.
"""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.published.amused.sampler import AmusedSampling, sample_amused
from maskgen.published.amused.transformer import micro_conditions
from maskgen.published.loops import Decoding, decide
from maskgen.published.meissonic.sampler import PUBLISHED_SAMPLING, meissonic_logits, timed_logits, with_time
from maskgen.published.meissonic.transformer import PUBLISHED, MeissonicConfig, MeissonicTransformer
from maskgen.sampling.guidance import Guidance, guided_logits
from maskgen.sampling.settings import Sampling
from tests.core.toys import shaken
from tests.selections import flat_sampling


class Spy:
    """Says which numbers it is told; logits depend on the context and the time."""

    def __init__(self) -> None:
        self.told: list[Tensor] = []

    def __call__(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        assert cond.micro is not None
        assert cond.context is not None
        self.told.append(cond.micro)
        code = torch.arange(5.0)
        logits = (cond.context[:, :1] + 0.1 * cond.micro[:, None, 5:]) * code
        return logits[:, :, None].expand(*tokens.shape, 5)


def conditions(count: int = 2) -> Cond:
    context = torch.linspace(-1, 1, count)[:, None, None].expand(count, 3, 1)
    null = Cond(context=torch.full((count, 3, 1), 0.25), pooled=torch.zeros(count, 1))
    return Cond(context=context, pooled=torch.ones(count, 1), micro=micro_conditions(count, 8, 4), null=null)


def masked(count: int = 2) -> Tensor:
    return torch.full((count, 6, 1), 5)


def test_published_settings() -> None:
    assert PUBLISHED_SAMPLING.keys() == PUBLISHED.keys()
    settings = PUBLISHED_SAMPLING["meissonic-1024"]
    assert (settings.steps, settings.guidance, settings.schedule) == (48, 9.0, "cosine")
    assert settings.temperature == (2.0, 0.0)


@pytest.mark.parametrize("scale", [1.0, 9.0])
def test_the_time_runs_from_the_steps_left_down_to_zero(scale: float) -> None:
    spy, settings = Spy(), dataclasses.replace(PUBLISHED_SAMPLING["meissonic-1024"], steps=4)
    logits_fn = meissonic_logits(spy, conditions(), steps=4, scale=scale)
    sample_amused(logits_fn, masked(), torch.ones(2, 6, 1, dtype=torch.bool), settings, seeds=[1, 2])
    assert [told[:, 5].unique().tolist() for told in spy.told] == [[3], [2], [1], [0]]
    rows = 2 if scale <= 1 else 4
    assert all(torch.equal(told[:, :5], micro_conditions(rows, 8, 4)) for told in spy.told)


def test_both_halves_of_guidance_are_told_the_same_time() -> None:
    spy, cond = Spy(), conditions()
    negative = Cond(context=torch.full((2, 3, 1), -0.5), pooled=torch.zeros(2, 1))
    for weaker, context in ((None, cond.null), (negative, negative)):
        assert context is not None
        guided = meissonic_logits(spy, cond, weaker, steps=7, scale=3.0)(masked(), 2)
        wanted, without = (
            spy(masked(), dataclasses.replace(half, null=None, micro=with_time(cond, 4).micro))
            for half in (cond, context)
        )
        torch.testing.assert_close(guided, without + 3 * (wanted - without))


def test_any_guidance_goes_with_the_time() -> None:
    """Our own form, c + w (c - u), ramped over the steps: w is s - 1 at the last."""
    spy, cond = Spy(), conditions()
    ramp = Guidance(scale=2.0, ramp="linear")
    logits_fn = timed_logits(lambda timed: guided_logits(spy, timed, ramp, steps=3), cond, 3)
    torch.testing.assert_close(logits_fn(masked(), 2), meissonic_logits(spy, cond, steps=3, scale=3.0)(masked(), 2))
    torch.testing.assert_close(logits_fn(masked(), 0), meissonic_logits(spy, cond, steps=3, scale=1.0)(masked(), 0))


def test_a_loop_with_more_steps_than_told_is_refused() -> None:
    logits_fn = meissonic_logits(Spy(), conditions(), steps=3)
    with pytest.raises(ValueError, match="step: got 3, expected 0 to 2; give the steps that the loop has"):
        logits_fn(masked(), 3)


def test_guidance_needs_something_to_push_away_from() -> None:
    cond = dataclasses.replace(conditions(), null=None)
    with pytest.raises(ValueError, match="guidance needs the context of the empty prompt"):
        meissonic_logits(Spy(), cond, steps=3)
    meissonic_logits(Spy(), cond, steps=3, scale=1.0)
    with pytest.raises(ValueError, match="guidance: got -1, expected 0 or more"):
        meissonic_logits(Spy(), cond, steps=3, scale=-1)(masked(), 0)


def test_a_time_stands_behind_five_numbers_in_float32() -> None:
    cond = conditions()
    assert with_time(cond, 47).micro.tolist() == [[8, 4, 0, 0, 6, 47]] * 2  # type: ignore[union-attr]
    again = with_time(with_time(cond, 47), torch.tensor([1, 2]))
    assert again.micro is not None
    assert again.micro[:, 5].tolist() == [1, 2]
    half = with_time(cond.map(lambda value: value.to(torch.bfloat16)), 575.875)
    assert half.micro is not None
    assert (half.micro.dtype, half.micro[0, 5].item()) == (torch.float32, 575.875)
    assert again.null is cond.null
    with pytest.raises(ValueError, match=r"cond.micro: got None, expected \[B, 5\]; give micro_conditions\(\)"):
        with_time(Cond(), 3)
    with pytest.raises(ValueError, match=r"cond.micro: got \(2, 4\), expected \[B, 5\]"):
        with_time(Cond(micro=torch.zeros(2, 4)), 3)


TINY = MeissonicConfig(
    codebook_size=11,
    rows=14,
    mask_row=12,
    axes=(4, 4),
    width=16,
    text_width=1,
    double_layers=1,
    single_layers=1,
    heads=2,
    rotary_widths=(2, 2, 4),
)


def decoding(axes: tuple[int, int] = (4, 4), null: bool = True) -> Decoding:
    """Two items of a small model, of which a token each is given."""
    torch.manual_seed(0)
    model = shaken(MeissonicTransformer(TINY))
    generator = torch.Generator().manual_seed(3)
    parts = [
        Cond(context=torch.randn(2, 3, 1, generator=generator), pooled=torch.randn(2, 16, generator=generator))
        for _ in range(2)
    ]
    cond = dataclasses.replace(parts[0], micro=micro_conditions(2, 8, 4), null=parts[1] if null else None)
    tokens = torch.full((2, 16, 1), 11)
    tokens[:, 5] = 3
    return Decoding(model=model, cond=cond, tokens=tokens, mask=tokens == 11, axes=axes, seeds=[4, 5])


def test_the_loop_by_name_tells_the_time_and_guides() -> None:
    made = decoding()
    sampling = Sampling(sampler="amused", steps=5, choice_temperature=2.0, guidance=Guidance(scale=2.0))
    result = decide(made, sampling)
    logits_fn = meissonic_logits(made.model, made.cond, steps=5, scale=3.0, axes=made.axes)
    settings = AmusedSampling(steps=5, starting_mask_ratio="row")
    assert torch.equal(result, sample_amused(logits_fn, made.tokens, made.mask, settings, seeds=made.seeds))
    assert torch.equal(result[:, 5], made.tokens[:, 5])
    assert result.max() < 11
    other = decide(made, sampling.override(guidance=0.0))
    assert not torch.equal(result, other)


@pytest.mark.parametrize("against", ["unconditional", "self"])
def test_our_own_loop_tells_the_time_too(against: str) -> None:
    guidance = Guidance(scale=1.0, ramp="linear", against=against)  # type: ignore[arg-type]
    result = decide(decoding(), Sampling(steps=3, guidance=guidance))
    assert result.max() < 11
    with pytest.raises(ValueError, match="reuse: got 2, but a Meissonic computes all positions or none"):
        decide(decoding(), flat_sampling(steps=3, reuse=2))


def test_guidance_by_name_needs_the_empty_prompt() -> None:
    with pytest.raises(ValueError, match="cond.null: got none beside context; guidance needs the context of the empty"):
        decide(decoding(null=False), Sampling(sampler="amused", steps=3, guidance=Guidance(scale=2.0)))
