"""Mask schedules, drawing and the task sequence against the official MAGVIT code."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from maskgen.noise import SeededNoise
from maskgen.objectives.multitask import task_counts
from maskgen.sampling.commit import sample_commit
from maskgen.sampling.filters import TokenFilter, top_p
from maskgen.schedules import get_schedule
from tests.parity.support import check_count, check_kinds, load, own_set, recordings

SCHEDULES, SAMPLING, MISC = (
    {key: value for path in recordings("magvit", f"{name}.safetensors") for key, value in load(path).items()}
    for name in ("schedule", "sampling", "misc")
)
FLOORS = [key for key in SCHEDULES if "num_masked_floor" in key]
VALUES = [key for key in SCHEDULES if key not in (*FLOORS, "ratio")]
DRAWS = sorted({key.split("/")[0] for key in SAMPLING if key.startswith("topk")})
SEQUENCES = sorted({key.split("/")[0] for key in MISC if key.startswith("task_seq")})


def test_recordings_are_found() -> None:
    names = {key.split("/")[1].split(":")[0] for key in VALUES}
    check_kinds("magvit", names, {"cosine", "uniform", "pow2", "pow2.5", "log", "exp", "poly"})
    check_count("magvit", FLOORS, 6)
    check_count("magvit", DRAWS, 6)
    check_count("magvit", SEQUENCES, 3)


@pytest.mark.parametrize("key", VALUES)
def test_schedule_values(key: str) -> None:
    total, name = key.split("/", 1)
    ratio = SCHEDULES["ratio"]
    gamma = get_schedule(name)(ratio, torch.full_like(ratio, int(total)))
    # Powers, log and exp depend on the library; cosine and uniform do not. Measured: 6e-8.
    exact = name in ("cosine", "uniform")
    torch.testing.assert_close(gamma, SCHEDULES[key], atol=0 if exact else 1e-7, rtol=0)


@pytest.mark.parametrize("key", FLOORS)
def test_counts_before_their_limits(key: str) -> None:
    """The float32 ratio (k + 1) / S decides a token at 2/3: N/2 - 1 there."""
    total, rest = key.split("/")
    name, steps = rest.removeprefix("num_masked_floor_").split("_steps")
    ratio = torch.arange(1, int(steps) + 1).float() / int(steps)
    counts = torch.floor(int(total) * get_schedule(name)(ratio, torch.full_like(ratio, int(total))))
    assert torch.equal(counts.long(), SCHEDULES[key].long())
    seen = []
    shape = (1, int(total), 1)
    sample_commit(
        lambda inputs, step: torch.zeros(*shape, 2),
        torch.zeros(shape, dtype=torch.long),
        torch.zeros(shape, dtype=torch.bool),
        mask_id=2,
        steps=int(steps),
        schedule=name,
        noise=Unlike(SeededNoise([1])),
        callback=lambda done: seen.append(int(done.mask.sum())),
    )
    # What the last step hides is not used; without noise all tokens tie there.
    assert seen[:-1] == SCHEDULES[key].tolist()[:-1]


@dataclass
class Unlike:
    """Ranking noise without ties: in 23 bits a thousand tokens now and then share a number, and ties hide more."""

    noise: SeededNoise

    def sample(self, step: int, shape: Sequence[int]) -> Tensor:
        return self.noise.sample(step, shape)

    def choice(self, step: int, shape: Sequence[int]) -> Tensor:
        order = self.noise.choice(step, shape).flatten(1).argsort(dim=1, stable=True)
        return order.float().view(tuple(shape))


@pytest.mark.parametrize("key", [key for key in SAMPLING if key.startswith("top_p_logits_")])
def test_top_p(key: str) -> None:
    """The official filter puts what is left out far down; here it is -inf."""
    expected = SAMPLING[key]
    left_out = expected < -1e6
    assert left_out.any() or not own_set("magvit")
    ours = top_p(SAMPLING["logits"], float(key.removeprefix("top_p_logits_")))
    assert torch.equal(ours, expected.masked_fill(left_out, -torch.inf))


@dataclass
class OneDraw:
    """Recorded noise of one draw over ``[B, N, 1, V]``; with top-k it belongs to the k best, in falling order."""

    gumbel: Tensor
    k: int

    def sample(self, step: int, shape: Sequence[int]) -> Tensor:
        if not self.k:
            return self.gumbel.unsqueeze(2).clone()
        best = SAMPLING["logits"].topk(self.k).indices
        return torch.zeros_like(SAMPLING["logits"]).scatter(-1, best, self.gumbel).unsqueeze(2)

    def choice(self, step: int, shape: Sequence[int]) -> Tensor:
        return torch.zeros(tuple(shape))


@pytest.mark.parametrize("name", DRAWS)
def test_drawn_ids(name: str) -> None:
    """One step of the loop, in which nothing is remasked, samples once."""
    k, temperature = (float(part[4:] if part.startswith("topk") else part[1:]) for part in name.split("_"))
    logits = SAMPLING["logits"].unsqueeze(2)
    sampled = sample_commit(
        lambda inputs, step: logits,
        torch.zeros(logits.shape[:-1], dtype=torch.long),
        torch.zeros(logits.shape[:-1], dtype=torch.bool),
        mask_id=logits.shape[-1],
        steps=1,
        temperature=temperature,
        keep=TokenFilter(top_k=int(k) or None),
        noise=OneDraw(SAMPLING[f"{name}/gumbel"], int(k)),
    )
    assert torch.equal(sampled.squeeze(2), SAMPLING[f"{name}/out"].long())


@pytest.mark.parametrize("name", SEQUENCES)
def test_task_counts(name: str) -> None:
    """How often each task stands in the official list."""
    weights, counts = MISC[f"{name}/weights"].tolist(), MISC[f"{name}/counts"].tolist()
    assert task_counts(weights) == counts


@pytest.mark.parametrize("name", ["poly:", "poly:1,a", "poly:1,,0", "poly"])
def test_polynomials_are_numbers(name: str) -> None:
    with pytest.raises(ValueError, match=f"schedule: got '{name}', expected .* 'poly:<coefficients>'"):
        get_schedule(name)
