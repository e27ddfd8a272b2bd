"""Where image to image begins: how many steps, how much is hidden, and by whose noise."""

import math

import pytest
import torch

from maskgen.published.amused.editing import OFFICIAL, first_step, hidden_places, share_hidden
from maskgen.published.amused.sampler import AmusedSampling, sample_amused


@pytest.mark.parametrize(("steps", "strength", "first"), [(12, 0.5, 6), (10, 0.7, 3), (12, 1.0, 0), (3, 0.1, 2)])
def test_first_step(steps: int, strength: float, first: int) -> None:
    assert first_step(steps, strength) == first
    share = share_hidden("cosine", first, steps)
    assert share.item() == pytest.approx(math.cos(math.pi / 2 * first / steps))


def test_the_official_start_at_strength_1_hides_nothing() -> None:
    assert share_hidden("cosine", 0, 12) == 1
    assert share_hidden("cosine", 0, 12, official=True) <= 0
    assert share_hidden("cosine", 3, 12, official=True) == share_hidden("cosine", 3, 12)


def test_hidden_places_are_those_of_the_seed() -> None:
    share = share_hidden("linear", 6, 12)
    together = hidden_places(share, (3, 2000, 1), [4, 5, 4])
    assert together.float().mean((1, 2)).tolist() == pytest.approx([0.5] * 3, abs=0.05)
    assert torch.equal(together[0], together[2])
    assert torch.equal(together[1:2], hidden_places(share, (1, 2000, 1), [5]))
    assert hidden_places(share_hidden("cosine", 0, 3), (1, 50, 1), [1]).all()


def test_official_settings() -> None:
    """What they do to given tokens; all else is what the loop has by default."""
    plain = AmusedSampling()
    for task, sampling in OFFICIAL.items():
        own = AmusedSampling.of(sampling)
        assert (own.steps, own.temperature, own.rehides) == (plain.steps, plain.temperature, True)
        assert (own.schedule == "linear") == (own.starting_mask_ratio == "batch") == (task == "inpainting")
        assert sampling.guidance.scale + 1 == plain.guidance


def test_a_start_outside_the_steps_is_refused() -> None:
    tokens = torch.zeros(1, 4, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="start_step: got 12, expected 0 <= start_step < steps = 12"):
        sample_amused(lambda seen, step: torch.zeros(1, 4, 1, 3), tokens, tokens > 0, plain(), seeds=[0], start_step=12)


def plain() -> AmusedSampling:
    return AmusedSampling()
