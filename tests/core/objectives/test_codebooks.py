"""What audio models add to training: independent masks, codebooks that are always visible, Sobol ratios, Noam's rate.

Shapes: B batch, N tokens, K codebooks.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from maskgen.conditioning import Cond
from maskgen.data import TensorSource
from maskgen.objectives.loss import masked_accuracy, masked_cross_entropy
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from maskgen.objectives.masking import mask_independently, random_mask, sobol_ratios
from maskgen.published.vampnet.blocks import VampNetConfig
from maskgen.published.vampnet.transformer import VampNetTransformer
from maskgen.schedules import get_schedule
from maskgen.training.optim.optimizers import OptimizerSettings, learning_rate
from tests.core.toys import fit, transformer

DRAWS = ("exact", "bernoulli")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vampnet(**changes: Any) -> VampNetTransformer:
    """A small coarse-to-fine model with the same weights at every call."""
    torch.manual_seed(0)
    plain: dict[str, Any] = {"vocab_size": 5, "num_codebooks": 3, "conditioning_codebooks": 1, "code_width": 4}
    sizes = {"axes": (12,), "width": 32, "layers": 2, "heads": 2, "dropout": 0.0}
    return VampNetTransformer(VampNetConfig(**(plain | sizes | changes)))


def sounds(count: int = 4, frames: int = 12) -> TensorSource:
    return TensorSource(tokens=torch.randint(5, (count, frames, 3), generator=generator(9)))


def fine(**changes: Any) -> MaskingSettings:
    """VampNet's training of its fine stage."""
    plain: dict[str, Any] = {"draw": "bernoulli", "normalize": "batch", "visible_codebooks": 1, "label_dropout": 0.0}
    return MaskingSettings(**(plain | changes))


@given(
    draw=st.sampled_from(DRAWS),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 4)),
    visible=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_visible_codebooks_stay_visible_and_something_is_hidden(
    draw: Any, shape: tuple[int, int, int], visible: int, seed: int
) -> None:
    visible = min(visible, shape[2] - 1)
    mask = random_mask(shape, draw=draw, visible_codebooks=visible, generator=generator(seed))
    assert mask.shape == shape
    assert mask.dtype == torch.bool
    assert not mask[:, :, :visible].any()
    assert mask.flatten(1).any(1).all()


@given(visible=st.integers(0, 2), seed=st.integers(0, 99))
def test_exact_counts_are_over_what_may_be_hidden(visible: int, seed: int) -> None:
    mask = random_mask((5, 7, 3), visible_codebooks=visible, generator=generator(seed))
    places = 7 * (3 - visible)
    gamma = get_schedule("cosine")(torch.rand(5, generator=generator(seed)), torch.full((5,), places))
    assert mask.flatten(1).sum(1).tolist() == [math.ceil(float(g) * places) for g in gamma]


@given(min_ratio=st.sampled_from([0.0, 0.4]), visible=st.integers(0, 2), seed=st.integers(0, 99))
def test_bernoulli_is_the_rule(min_ratio: float, visible: int, seed: int) -> None:
    """Written out: a ratio and a chance for each place, hidden where the chance is below."""
    source, shape = generator(seed), (6, 5, 3)
    mask = random_mask(
        shape, draw="bernoulli", min_ratio=min_ratio, visible_codebooks=visible, generator=generator(seed)
    )
    ratios = torch.rand(6, generator=source)
    chances = torch.rand(6, 5 * (3 - visible), generator=source).view(6, 5, 3 - visible)
    for b in range(6):
        chance = max(math.cos(float(ratios[b]) * math.pi / 2), min_ratio)
        expected = chances[b] < chance
        if not expected.any():
            expected = chances[b] == chances[b].min()
        assert torch.equal(mask[b, :, visible:], expected)


def test_bernoulli_hides_about_its_share() -> None:
    """Given the ratio the count is binomial; over all ratios the share is 2 / pi."""
    ratio = torch.full((400,), 0.5)
    counts = random_mask((400, 50, 2), draw="bernoulli", ratio=ratio, generator=generator()).flatten(1).sum(1).float()
    chance = math.cos(math.pi / 4)
    deviation = math.sqrt(100 * chance * (1 - chance))
    assert abs(float(counts.mean()) - 100 * chance) < 4 * deviation / 20
    assert float(counts.std()) == pytest.approx(deviation, rel=0.15)
    mask = random_mask((4000, 500, 1), draw="bernoulli", generator=generator())
    assert float(mask.float().mean()) == pytest.approx(2 / math.pi, abs=0.02)


def test_the_one_that_is_hidden_after_all_is_anywhere() -> None:
    rows, places = 6000, 8
    mask = random_mask((rows, places, 1), draw="bernoulli", ratio=torch.full((rows,), 0.99999), generator=generator())
    assert mask.sum() < 1.01 * rows
    share = 1 / places
    assert ((mask.float().mean(0) - share).abs() < 4 * math.sqrt(share * (1 - share) / rows)).all()


def test_the_rule_itself_adds_nothing() -> None:
    """``mask_independently`` is the original's: it may leave a row without any hidden place."""
    chances = torch.rand(3, 4, 2, generator=generator())
    mask = mask_independently(torch.tensor([0.0, 0.5, 1.0]), chances)
    assert not mask[0].any()
    assert torch.equal(mask[1], chances[1] < 0.5)
    assert mask[2].all()


@pytest.mark.parametrize("draw", DRAWS)
def test_given_ratios_are_used(draw: Any) -> None:
    ratio = torch.tensor([0.0, 0.99])
    mask = random_mask((2, 100, 1), draw=draw, ratio=ratio, generator=generator())
    assert mask[0].all()
    assert 1 <= int(mask[1].sum()) < 15


def test_masks_are_checked() -> None:
    with pytest.raises(ValueError, match="visible_codebooks: got 2 of 2, expected 0 or more and fewer than all"):
        random_mask((1, 3, 2), visible_codebooks=2)
    with pytest.raises(ValueError, match=r"ratio: got shape \(3,\), expected one ratio for each of the 2 rows"):
        random_mask((2, 3, 2), ratio=torch.zeros(3))
    with pytest.raises(ValueError, match="draw: got 'often', expected 'exact' or 'bernoulli'"):
        random_mask((1, 3, 2), draw="often")  # type: ignore[arg-type]


@given(seed=st.integers(0, 1000), first=st.integers(0, 5000), count=st.integers(1, 9))
def test_sobol_is_a_function_of_seed_and_index(seed: int, first: int, count: int) -> None:
    ratios = sobol_ratios(seed, first, count)
    assert ratios.dtype == torch.float32
    assert 0 <= float(ratios.min()) <= float(ratios.max()) <= 1
    one_by_one = torch.cat([sobol_ratios(seed, first + i, 1) for i in range(count)])
    assert torch.equal(ratios, one_by_one)


def test_sobol_fills_the_interval() -> None:
    """Every aligned run of 2^n has one in each of 2^n equal parts, and seeds differ."""
    for first in (0, 64, 640):
        parts = (sobol_ratios(3, first, 64) * 64).long()
        assert parts.sort().values.tolist() == list(range(64))
    assert not torch.equal(sobol_ratios(3, 0, 8), sobol_ratios(4, 0, 8))


def test_sobol_goes_round_and_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    assert torch.equal(sobol_ratios(3, 2**30, 4), sobol_ratios(3, 0, 4))
    assert torch.equal(torch.get_rng_state(), state)


def watched(model: nn.Module, seen: list[Tensor]) -> Any:
    def call(tokens: Tensor, cond: Cond) -> Tensor:
        seen.append(tokens)
        return model(tokens, cond)

    return call


def test_the_steps_of_a_run_take_one_sequence() -> None:
    """Steps 0, 1 and 2 of four rows are ratios 0 to 11, whatever the random state."""
    model, ratios, seen = vampnet(), sobol_ratios(5, 0, 12), []
    objective = MaskedModeling(model, fine(draw="exact", ratios="sobol", sobol_seed=5))
    for step in range(3):
        objective.loss("model", {"model": watched(model, seen)}, sounds().tensors, step)
    counts = [int(count) for tokens in seen for count in (tokens == 5).flatten(1).sum(1)]
    gamma = get_schedule("cosine")(ratios, torch.full((12,), 24))
    assert counts == torch.ceil(gamma * 24).long().tolist()


@pytest.mark.parametrize("draw", DRAWS)
def test_a_fine_stage_pays_for_what_it_predicts_only(draw: Any) -> None:
    """Loss and accuracy from their parts; weight on visible tokens does not reach the codebooks that are given."""
    model = vampnet()
    objective = MaskedModeling(model, fine(draw=draw, unmasked_weight=0.3))
    tokens, seen = sounds().tensors["tokens"], []
    torch.manual_seed(3)
    loss, terms = objective.loss("model", {"model": watched(model, seen)}, {"tokens": tokens}, 0)
    torch.manual_seed(3)
    mask = random_mask(tokens.shape, draw=draw, visible_codebooks=1)
    assert torch.equal(seen[0], tokens.masked_fill(mask, 5))
    logits = model.predicted_logits(seen[0])
    expected = masked_cross_entropy(
        logits, tokens[:, :, 1:], mask[:, :, 1:], label_smoothing=0.1, normalize="batch", unmasked_weight=0.3
    )
    assert torch.equal(loss, expected)
    assert torch.equal(terms["accuracy"], masked_accuracy(logits, tokens[:, :, 1:], mask[:, :, 1:]))


def test_validation_of_a_fine_stage() -> None:
    model = vampnet().eval()
    with torch.no_grad():
        model.head.bias.copy_(torch.linspace(-2, 2, 10))
    objective = MaskedModeling(model, fine(), held_out=sounds())
    numbers = objective.validate(model, torch.device("cpu"))
    assert numbers == objective.validate(model, torch.device("cpu"))
    tokens = sounds().tensors["tokens"]
    mask = random_mask(tokens.shape, draw="bernoulli", visible_codebooks=1, generator=generator(0))
    with torch.no_grad():
        logits = model.predicted_logits(tokens.masked_fill(mask, 5))
    expected = masked_cross_entropy(logits, tokens[:, :, 1:], mask[:, :, 1:])
    assert numbers["score"] == pytest.approx(float(expected), rel=1e-5)


def test_a_family_that_predicts_everything_can_be_a_fine_stage() -> None:
    model = transformer("modern", num_codebooks=3)
    tokens = torch.randint(11, (4, 12, 3), generator=generator())
    loss, _ = MaskedModeling(model, fine(visible_codebooks=2)).loss("model", {"model": model}, {"tokens": tokens}, 0)
    loss.backward()  # type: ignore[no-untyped-call]
    used = model.head.weight.grad.view(3, 11, -1).abs().sum((1, 2)) > 0
    assert used.tolist() == [False, False, True]


def test_vampnet_overfits_one_batch(tmp_path: Path) -> None:
    """Learned by its own recipe: independent masks, Sobol ratios, Noam's rate, one mean over the batch."""
    objective = MaskedModeling(vampnet(), fine(label_smoothing=0.0, ratios="sobol"))
    noam: dict[str, Any] = {"decay": "noam", "noam_width": 32, "noam_factor": 0.4, "warmup_steps": 20}
    fit(objective, sounds(2, frames=6), tmp_path, steps=100, batch_size=8, log_every=10, optimizer=noam)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.2 < 1.3 < losses[0]


@pytest.mark.parametrize("visible", [0, 3])
def test_visible_codebooks_must_suit_the_model(visible: int) -> None:
    with pytest.raises(
        ValueError, match=f"visible_codebooks: got {visible}, expected 1 to 2 for a model of 3 codebooks"
    ):
        MaskedModeling(vampnet(), fine(visible_codebooks=visible))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draw": "often"}, "draw: got 'often', expected 'exact' or 'bernoulli'"),
        ({"ratios": "halton"}, "ratios: got 'halton', expected 'uniform' or 'sobol'"),
        ({"visible_codebooks": -1}, "got visible_codebooks -1, sobol_seed 0; expected 0 or more"),
        ({"sobol_seed": -1}, "got visible_codebooks 0, sobol_seed -1; expected 0 or more"),
    ],
)
def test_masking_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskingSettings(**changes)


@given(width=st.integers(1, 4096), warmup=st.integers(1, 20_000), factor=st.floats(0.1, 4))
def test_noam_rises_to_its_peak_and_falls_as_a_root(width: int, warmup: int, factor: float) -> None:
    settings = OptimizerSettings(decay="noam", noam_width=width, noam_factor=factor, warmup_steps=warmup)
    peak = factor / math.sqrt(width * warmup)
    assert learning_rate(settings, warmup - 1, 1) == pytest.approx(peak, rel=1e-9)
    assert learning_rate(settings, 0, 1) == pytest.approx(peak / warmup, rel=1e-9)
    assert learning_rate(settings, 4 * warmup - 1, 1) == pytest.approx(peak / 2, rel=1e-9)


def test_noam_at_vampnets_settings() -> None:
    """Peak 5.59e-4 at step 10,000, and 2.5e-3 for fine-tuning with 500 steps of warm-up."""
    settings = OptimizerSettings(decay="noam", warmup_steps=10_000)
    assert learning_rate(settings, 9_999, 1) == pytest.approx(5.59e-4, rel=1e-3)
    tuning = OptimizerSettings(decay="noam", warmup_steps=500)
    assert learning_rate(tuning, 499, 1) == pytest.approx(2.5e-3, rel=1e-3)


@pytest.mark.parametrize("changes", [{"noam_factor": 0.0}, {"noam_width": 0}, {"warmup_steps": 0}])
def test_noam_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected positive numbers for decay 'noam'"):
        OptimizerSettings(decay="noam", **changes)
    if "warmup_steps" not in changes:
        OptimizerSettings(**changes)  # not looked at by the others
