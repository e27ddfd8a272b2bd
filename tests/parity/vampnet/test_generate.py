"""VampNet's sampler against the official one, step by step, from recorded logits and recorded draws.

Shapes: B batch, C codebooks, T frames, S steps, P predicted codebooks (the last P of C), V codes; official cells are
[B, T P], time-major. Ours are [B, N, K] with N = T and K = C.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.published.vampnet.sampler import VampNetSampling, sample_vampnet, vampnet_counts
from maskgen.sampling.filters import TokenFilter, filtered_logits
from maskgen.sampling.loop import SampleStep
from tests.parity.support import load, metadata, own_set, recordings
from tests.selections import call

RUNS = recordings("vampnet", "generate_*.safetensors")
BATCHES = [path for path in RUNS if len(load(path)["final_tokens"]) > 1]
each_run = pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)


class Recorded:
    """One official run in our layout; also the noise of that run."""

    def __init__(self, path: Path) -> None:
        data, self.kwargs = load(path), metadata(path)["kwargs"]
        self.data = data
        self.steps = len(data["steps.logits"])
        self.final = data["final_tokens"].transpose(1, 2)
        self.rows, self.frames, self.codebooks = self.final.shape
        self.codes = data["steps.logits"].shape[2]
        self.given = self.codebooks - data["steps.sampled"].shape[2] // self.frames
        self.tokens_in = data["steps.tokens_in"].transpose(2, 3)
        self.hidden = self.tokens_in[0] == self.codes

    def grid(self, cells: Tensor, fill: float) -> Tensor:
        """Official cells [B, T P, ...] -> [B, T, C, ...], with ``fill`` at the codebooks that are given."""
        shape = (self.rows, self.frames, self.codebooks - self.given, *cells.shape[2:])
        whole = torch.full((self.rows, self.frames, self.codebooks, *cells.shape[2:]), fill, dtype=cells.dtype)
        whole[:, :, self.given :] = cells.reshape(shape)
        return whole

    def logits(self, tokens: Tensor, step: int) -> Tensor:
        assert torch.equal(tokens, self.tokens_in[step]), f"step {step}"
        return self.grid(self.data["steps.logits"][step].transpose(1, 2), 0.0)

    def sample(self, step: int, shape: Sequence[int]) -> Tensor:
        exponential = self.data["draws.exponential"][step].view(self.rows, -1, self.codes)
        return self.grid(-exponential.log(), 0.0)

    def choice(self, step: int, shape: Sequence[int]) -> Tensor:
        return self.grid(-torch.log(-torch.log(self.data["draws.uniform"][step])), 0.0)

    def decide(self, **changes: Any) -> tuple[Tensor, list[SampleStep]]:
        """Our sampler with the run's settings; official counts are over the batch, its typical filter does nothing."""
        seen: list[SampleStep] = []
        settings = {
            "steps": self.steps,
            "batch_counts": True,
            "noise": self,
            "callback": seen.append,
            **{
                key: value
                for key, value in self.kwargs.items()
                if key in ("temperature", "mask_temperature", "sample_cutoff")
            },
            **changes,
        }
        logits_fn = settings.pop("logits_fn", filtered_logits(self.logits, TokenFilter(top_p=self.kwargs.get("top_p"))))
        prompt = {"logits_fn": logits_fn, "tokens": self.tokens_in[0], "mask": self.hidden}
        return call(sample_vampnet, VampNetSampling, **prompt, **settings), seen


def test_the_recorded_arguments_are_all_known() -> None:
    known = {"_sampling_steps", "temperature", "mask_temperature", "sample_cutoff", "top_p", "typical_filtering"}
    assert set().union(*(metadata(path)["kwargs"] for path in RUNS)) <= known


def test_the_official_typical_filter_did_nothing() -> None:
    typical = [path for path in RUNS if metadata(path)["kwargs"].get("typical_filtering", True)]
    assert typical or not own_set("vampnet")
    assert not any(load(path)["steps.logits_changed_by_filter"].any() for path in typical)


@each_run
def test_every_step(path: Path) -> None:
    run = Recorded(path)
    final, seen = run.decide()
    before = run.hidden
    for step, done in enumerate(seen):
        sampled = run.grid(run.data["steps.sampled"][step], -1)
        assert torch.equal(done.tokens[before], sampled[before]), f"step {step}"
        assert torch.equal(done.tokens[~before], run.tokens_in[step][~before]), f"step {step}"
        prob = run.grid(run.data["steps.sampled_prob"][step], 1.0)
        torch.testing.assert_close(done.confidence[before], prob[before].log(), atol=5e-5, rtol=0)
        expected = run.grid(run.data["steps.new_mask"][step].bool(), False)
        assert torch.equal(done.mask, expected), f"step {step}"
        before = done.mask
    assert len(seen) == run.steps
    assert torch.equal(final, run.final)


@each_run
def test_counts(path: Path) -> None:
    run = Recorded(path)
    total = run.hidden.sum().expand(run.rows)
    for step in range(run.steps):
        unknown = (run.tokens_in[step] == run.codes).flatten(1).sum(1)
        expected = run.data["steps.num_to_mask"][step].flatten()
        assert torch.equal(vampnet_counts(total, unknown, step, run.steps), expected), f"step {step}"


@each_run
def test_the_weight_of_the_ranking_noise(path: Path) -> None:
    run = Recorded(path)
    weight = run.kwargs.get("mask_temperature", 10.5)
    ours = [weight * (1 - (step + 1) / run.steps) for step in range(run.steps)]
    expected = torch.tensor(ours)[:, None].expand(-1, run.rows)
    torch.testing.assert_close(run.data["steps.temp"], expected, atol=1e-5, rtol=0)


def test_batches_are_recorded() -> None:
    assert BATCHES or not own_set("vampnet")


@pytest.mark.parametrize("path", BATCHES, ids=lambda path: path.stem)
def test_rows_of_a_batch_plan_alone(path: Path) -> None:
    """The recorded batch loses one token a row and step for most of the run; counting rows alone gives each its cosine."""
    run = Recorded(path)
    official = run.data["steps.new_mask"].sum(2)
    assert (official[0] == run.hidden.flatten(1).sum(1) - 1).all()
    # Other tokens come back than recorded, so the recorded logits are played whatever the tokens.
    _, seen = run.decide(
        batch_counts=False, logits_fn=lambda tokens, step: run.grid(run.data["steps.logits"][step].transpose(1, 2), 0.0)
    )
    total = run.hidden.flatten(1).sum(1)
    unknown = total
    for step, done in enumerate(seen):
        unknown = vampnet_counts(total, unknown, step, run.steps)
        assert torch.equal(done.mask.flatten(1).sum(1), unknown), f"step {step}"
    assert (seen[0].mask.flatten(1).sum(1) < official[0]).any() or run.steps == 1
