"""Temperatures over the steps: in numbers, through the sampler, and refused."""

import math

import pytest
import torch
from torch import Tensor

from maskgen.noise import SeededNoise
from maskgen.sampling.loop import sample
from maskgen.sampling.selectors.base import Selection
from maskgen.sampling.selectors.named import get_selector
from maskgen.sampling.temperatures import choice_weights, temperatures
from tests.core.sampling.cases import Case, run


def test_courses_in_closed_form() -> None:
    assert temperatures(0.7, 3) == [0.7, 0.7, 0.7]
    assert temperatures("constant:0.7", 3) == [0.7, 0.7, 0.7]
    assert temperatures("linear:2,0.5", 4) == pytest.approx([2, 1.5, 1, 0.5])
    assert temperatures("linear:.5,2.", 2) == [0.5, 2.0]
    assert temperatures("cosine:3,1", 5) == pytest.approx([3, 2 + math.sqrt(0.5), 2, 2 - math.sqrt(0.5), 1])
    assert [temperatures(word, 1) for word in ("linear:3,1", "cosine:3,1", "constant:3")] == [[3], [3], [3]]


def test_a_number_of_ranking_noise_falls_and_a_word_says_all() -> None:
    assert choice_weights(4.5, 4) == [4.5 * (1 - (step + 1) / 4) for step in range(4)]
    assert choice_weights("linear:4.5,0", 4) == pytest.approx([4.5, 3, 1.5, 0])
    assert choice_weights("constant:2", 3) == [2, 2, 2]
    # 4.5 in 12 steps as a word: first and last weight.
    falling = choice_weights(4.5, 12)
    assert choice_weights(f"linear:{falling[0]},{falling[-1]}", 12) == pytest.approx(falling)


def test_the_draw_has_the_temperature_of_its_step() -> None:
    case = Case(5, 2, (40,), 1, 6)
    heats = [2.0, 1.25, 0.5]

    def divided(tokens: Tensor, step: int) -> Tensor:
        return case.model(tokens, step) / heats[step]

    warm, _ = run(case, steps=3, temperature="linear:2,0.5")
    assert torch.equal(warm, sample(divided, case.tokens, case.mask, steps=3, seeds=case.seeds))
    assert not torch.equal(warm, run(case, steps=3)[0])


def test_temperature_zero_at_the_end_is_greedy_there() -> None:
    case = Case(6, 2, (40,), 1, 6)
    final, seen = run(case, steps=3, temperature="linear:3,0")
    before = torch.where(seen[1].mask, case.vocab, seen[1].tokens)
    best = case.model(before, 2).argmax(-1)
    assert torch.equal(final[seen[1].mask], best[seen[1].mask])
    first = case.model(case.tokens, 0).argmax(-1)
    assert not torch.equal(seen[0].tokens[case.mask], first[case.mask])


def test_the_ranking_noise_has_the_weight_of_its_step() -> None:
    case = Case(5, 2, (9,), 2, 6)
    weights: list[float] = []
    confidence = get_selector("confidence")

    def remask(seen: Selection) -> Tensor:
        weights.append(seen.weight)
        assert torch.equal(seen.noise, SeededNoise(case.seeds).choice(seen.step, case.mask.shape).flatten(1))
        assert torch.equal(seen.item_noise, SeededNoise(case.seeds).choice(1, case.mask.shape).flatten(1)[:, :1])
        return confidence.remask(seen)

    watched = type(confidence)(remask=remask)
    run(case, steps=5, start_step=1, select=watched, choice_temperature="cosine:2,0")
    assert weights == pytest.approx([1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5), 0], abs=1e-12)


@pytest.mark.parametrize(
    "value", [-1, math.nan, math.inf, "1.5", "linear:1", "linear:1,2,3", "linear:-1,2", "sine:1,2", "linear:a,b", ""]
)
def test_mistakes_are_explained(value: float | str) -> None:
    message = r"got .*, expected a finite number of 0 or more, 'constant:A', 'linear:A,B' or 'cosine:A,B'"
    with pytest.raises(ValueError, match=f"^temperature: {message}"):
        temperatures(value, 3)
    with pytest.raises(ValueError, match=f"^choice_temperature: {message}"):
        choice_weights(value, 3)
