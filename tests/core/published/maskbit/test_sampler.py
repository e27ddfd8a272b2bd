"""MaskBit's sampler beyond the recorded traces: rows that differ, ties, and where the official loop goes wrong.

Shapes: B batch, N tokens, K sub-tokens, V ids of a sub-token.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.published.maskbit.sampler import (
    MaskBitSampling,
    maskbit_counts,
    maskbit_guided_logits,
    maskbit_ratio,
    maskbit_weights,
    sample_maskbit,
)
from maskgen.published.maskbit.transformer import MaskBitConfig, MaskBitTransformer
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.loop import SampleStep
from maskgen.testing import UniformModel


def tiny_model() -> MaskBitTransformer:
    """2 x 3 tokens of 2 sub-tokens of 3 bits, 5 classes, weights large enough to matter."""
    torch.manual_seed(0)
    config = MaskBitConfig(
        vocab_size=8, num_classes=5, axes=(2, 3), width=16, layers=2, heads=2, mlp_width=24, dropout=0.0
    )
    model = MaskBitTransformer(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.5)
    return model


class Fixed:
    """Noise that is 0 for the draw and given for the ranking."""

    def __init__(self, ranking: Tensor | None = None) -> None:
        self.ranking = ranking

    def sample(self, step: int, shape: Any) -> Tensor:
        return torch.zeros(tuple(shape))

    def choice(self, step: int, shape: Any) -> Tensor:
        return torch.zeros(tuple(shape)) if self.ranking is None else self.ranking.clone()


def official_mask(confidence: Tensor, mask: Tensor, schedule: str, progress: float) -> Tensor:
    """The places the official loop hides: one count for the batch, from row 0, and known places +inf."""
    ranked = torch.where(mask, confidence, torch.inf)
    planned = torch.floor(maskbit_ratio(schedule, progress) * mask[0].numel())
    hidden = mask[0].sum()
    count = int(torch.clamp(planned, torch.ones_like(hidden), hidden - 1))
    threshold = ranked.flatten(1).sort(dim=-1).values[:, count - 1]  # count 0 reads the last, the largest
    return ranked <= threshold[:, None, None]


def decode(tokens: Tensor, mask: Tensor, noise: Any, **changes: Any) -> tuple[Tensor, list[SampleStep]]:
    seen: list[SampleStep] = []
    settings: dict[str, Any] = {"steps": 4, "schedule": "linear", "choice_temperature": 1.0} | changes
    model = UniformModel(8)
    chosen = MaskBitSampling(**settings)
    final = sample_maskbit(lambda ids, step: model(ids), tokens, mask, chosen, noise=noise, callback=seen.append)
    return final, seen


def test_rows_with_different_numbers_of_masks() -> None:
    """The official count of row 0 is too many for a row that knows more: it would hide known places."""
    mask = torch.ones(2, 4, 2, dtype=torch.bool)
    mask[1, :2] = False
    tokens = torch.where(mask, 8, 5)
    ranking = torch.arange(16.0).reshape(2, 4, 2)
    final, seen = decode(tokens, mask, Fixed(ranking))
    # The last step has no ranking noise, and a tie: nothing more is kept.
    assert [step.mask.flatten(1).sum(1).tolist() for step in seen] == [[6, 3], [4, 2], [2, 1], [2, 1]]
    assert torch.equal(final[~mask], tokens[~mask])
    for before, after in zip([mask, *(step.mask for step in seen)], [step.mask for step in seen], strict=False):
        assert not (after & ~before).any()
    confidence = seen[0].confidence + ranking * 0.75
    official = official_mask(confidence, mask, "linear", 0.25)
    assert official.flatten(1).sum(1).tolist() == [6, 8]
    assert torch.equal(seen[0].mask[0], official[0])


def test_more_steps_than_places() -> None:
    """With one place left the official count is 0, whose threshold is +inf: everything is hidden again."""
    mask = torch.ones(1, 2, 1, dtype=torch.bool)
    final, seen = decode(torch.full((1, 2, 1), 8), mask, Fixed(torch.tensor([[[0.0], [1.0]]])), steps=5)
    assert [int(step.mask.sum()) for step in seen] == [1, 1, 1, 1, 1]
    assert (final < 8).all()
    left = seen[0].mask
    assert official_mask(seen[1].confidence, left, "linear", 0.4).all()


def test_ties_are_all_hidden() -> None:
    """At or below the cut, as officially; ``maskgen.sampling.loop`` hides strictly below it."""
    mask = torch.ones(1, 4, 2, dtype=torch.bool)
    _, seen = decode(torch.full((1, 4, 2), 8), mask, Fixed())
    assert all(step.mask.all() for step in seen)


def test_sub_tokens_are_ranked_together() -> None:
    mask = torch.ones(1, 4, 2, dtype=torch.bool)
    ranking = torch.tensor([[[0.0, 9.0], [1.0, 8.0], [2.0, 7.0], [3.0, 6.0]]])
    _, seen = decode(torch.full((1, 4, 2), 8), mask, Fixed(ranking), steps=2)
    assert seen[0].mask[0].tolist() == [[True, False]] * 4


def test_an_item_depends_on_its_seed_alone() -> None:
    model, labels = tiny_model(), torch.tensor([0, 1, 2])
    hidden = torch.full((3, 6, 2), 8)

    def run(rows: slice) -> Tensor:
        logits_fn = maskbit_guided_logits(model, Cond(labels=labels[rows]), Guidance(scale=2.0, ramp="cosine"), steps=3)
        part = hidden[rows]
        return sample_maskbit(logits_fn, part, part == 8, MaskBitSampling(steps=3), seeds=[5, 6, 7][rows])

    whole = run(slice(None))
    assert (whole < 8).all()
    for i in range(3):
        assert torch.equal(run(slice(i, i + 1))[0], whole[i])


def test_nothing_to_decide() -> None:
    tokens = torch.arange(8).reshape(1, 4, 2)
    final, seen = decode(tokens, torch.zeros(1, 4, 2, dtype=torch.bool), Fixed())
    assert torch.equal(final, tokens)
    assert not any(step.mask.any() for step in seen)


def test_temperatures() -> None:
    """The noise prefers id 0 by 1, the model id 1 by 0.9 T: annealing goes from T = 1.1 to 0.5 in 4 steps."""

    class Prefers(Fixed):
        def sample(self, step: int, shape: Any) -> Tensor:
            noise = torch.zeros(tuple(shape))
            noise[..., 0] = 1.0
            return noise

    mask = torch.ones(1, 4, 2, dtype=torch.bool)
    logits = torch.tensor([0.0, 0.9]).expand(1, 4, 2, 2)

    def first_ids(**settings: Any) -> list[int]:
        seen: list[SampleStep] = []
        hidden = torch.full((1, 4, 2), 2)
        chosen = MaskBitSampling(steps=4, **settings)
        sample_maskbit(lambda ids, step: logits, hidden, mask, chosen, noise=Prefers(), callback=seen.append)
        return [int(step.tokens[0, 0, 0]) for step in seen]

    assert first_ids(temperature=0.8) == [1, 1, 1, 1]
    assert first_ids() == [0, 0, 0, 0]
    assert first_ids(annealed=True) == [0, 0, 1, 1]  # T = 1.1, 0.9, 0.7, 0.5
    assert first_ids(temperature=0.0) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        ("constant", [3.0, 3.0, 3.0, 3.0]),
        ("linear", [0.0, 0.75, 1.5, 2.25]),
        ("cosine", [0.0, 0.4393398, 1.5, 2.5606602]),  # 3 (1 - cos(pi t / 4)) / 2
    ],
)
def test_guidance_ramps(ramp: str, expected: list[float]) -> None:
    assert maskbit_weights(Guidance(scale=3.0, ramp=ramp, power=1.0), 4) == pytest.approx(expected, abs=1e-6)


def test_a_higher_power_guides_later() -> None:
    high, low = (maskbit_weights(Guidance(scale=1.0, ramp="cosine", power=power), 4)[2] for power in (3.0, 1.0))
    assert high == pytest.approx((1 - 0.92387953) / 2)  # cos(pi / 8)
    assert high < low


def test_guided_logits() -> None:
    model, tokens = tiny_model(), torch.randint(9, (3, 6, 2))
    cond = Cond(labels=torch.tensor([0, 1, 2]))
    with torch.no_grad():
        c, u = model(tokens, cond), model(tokens, Cond())
        guided = maskbit_guided_logits(model, cond, Guidance(scale=2.0, ramp="linear"), steps=4)
        assert torch.equal(guided(tokens, 0), c)
        torch.testing.assert_close(guided(tokens, 3), c + 1.5 * (c - u), atol=1e-3, rtol=1e-5)
        assert torch.equal(maskbit_guided_logits(model, cond, Guidance(scale=0.0), steps=4)(tokens, 3), c)


def test_counts_are_per_row_and_at_least_one() -> None:
    total = torch.tensor([512, 10, 1, 0])
    assert maskbit_counts("cosine", 7, 12, total, total).tolist() == [255, 4, 1, 1]  # cos(pi / 3) is under 1 / 2


def wrong_shape(tokens: Tensor, step: int) -> Tensor:
    return torch.zeros(1, 4, 1, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda t, m: sample_maskbit(UniformModel(8), t[0], m[0], MaskBitSampling(steps=2), seeds=[0]),
            r"expected int64 \[B, N, K\]",
        ),
        (
            lambda t, m: sample_maskbit(UniformModel(8), t, m.int(), MaskBitSampling(steps=2), seeds=[0]),
            "mask: got torch.int32",
        ),
        (lambda t, m: sample_maskbit(UniformModel(8), t, m, MaskBitSampling(steps=0), seeds=[0]), "steps: got 0"),
        (lambda t, m: sample_maskbit(UniformModel(8), t, m, MaskBitSampling(steps=2)), "give either seeds"),
        (
            lambda t, m: sample_maskbit(UniformModel(8), t, m, MaskBitSampling(steps=2), seeds=[0], noise=Fixed()),
            "give either seeds",
        ),
        (
            lambda t, m: sample_maskbit(UniformModel(8), t, m, MaskBitSampling(steps=2, temperature=-1.0), seeds=[0]),
            "got -1.0",
        ),
        (
            lambda t, m: sample_maskbit(UniformModel(8), t, m, MaskBitSampling(steps=2, schedule="log"), seeds=[0]),
            "schedule: got 'log'",
        ),
        (
            lambda t, m: sample_maskbit(wrong_shape, t, m, MaskBitSampling(steps=2), seeds=[0]),
            r"returned \(1, 4, 1, 8\)",
        ),
    ],
)
def test_the_sampler_refuses(call: Callable[[Tensor, Tensor], object], message: str) -> None:
    tokens = torch.full((1, 4, 2), 8)
    with pytest.raises(ValueError, match=message):
        call(tokens, tokens == 8)
