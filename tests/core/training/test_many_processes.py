"""Training on many processes is training on one: the same curve, the same files, any number of them before and after."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.checkpoint import load_module
from maskgen.data import TensorSource
from maskgen.models.base import MaskedTransformer
from maskgen.objectives.commit import CommitModeling, CommitSettings
from maskgen.objectives.critic import CriticModeling, CriticSettings, SelfCriticModeling
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from maskgen.training.objective import Objective
from maskgen.training.run import Interrupted
from tests.core.objectives.clips import four_clips
from tests.core.toys import fit, shaken, transformer
from tests.core.training.many_processes import run_processes

CHANGES: dict[str, Any] = {"steps": 20, "batch_size": 8, "log_every": 1, "checkpoint_every": 10, "validate_every": 10}
SCHEDULE = {"lr": 3e-3, "warmup_steps": 5, "decay": "cosine", "weight_decay": 0.1}


def tokens() -> TensorSource:
    generator = torch.Generator().manual_seed(5)
    return TensorSource(
        tokens=torch.randint(11, (24, 12, 1), generator=generator), labels=torch.randint(4, (24,), generator=generator)
    )


def modeling(family: str, **changes: Any) -> MaskedModeling:
    """Weights moved away from their start, so that no gate hides what is behind it."""
    return MaskedModeling(shaken(transformer(family)).train(), MaskingSettings(**changes), held_out=tokens())


def train(family: str, out: Path, masking: dict[str, Any] | None = None, **changes: Any) -> None:
    fit(modeling(family, **(masking or {})), tokens(), out, optimizer=SCHEDULE, **{**CHANGES, **changes})


def numbers(out: Path, *names: str) -> list[list[float]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [[line[name] for line in lines if name in line] for name in names]


CURVES = ("step", "lr", "loss", "grad_norm", "validation/score")


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_one_curve_for_any_number_of_processes(family: str, tmp_path: Path) -> None:
    """20 steps with label dropout, random masks and clipping, DDP and FSDP2; the averages come out the same, too."""
    train(family, tmp_path / "one")
    expected = numbers(tmp_path / "one", *CURVES)
    assert len(expected[2]) == 20
    wanted = load_module(tmp_path / "one", MaskedTransformer).state_dict()
    cases = [(2, False), (4, False), (2, True), (4, True)] if family == "bert" else [(2, True), (4, False)]
    for world, fsdp in cases:
        out = tmp_path / f"{world}-{fsdp}"
        assert run_processes(world, train, family, out, fsdp=fsdp) == [0] * world
        for mine, theirs in zip(numbers(out, *CURVES), expected, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5), (world, fsdp)
        found = load_module(out, MaskedTransformer).state_dict()
        # Softmax does not see a key's bias: its gradient is rounding alone, which Adam makes as large as any other.
        same = {name: tensor for name, tensor in found.items() if not name.endswith("key.bias")}
        torch.testing.assert_close(same, {name: wanted[name] for name in same}, atol=2e-4, rtol=1e-3)


def test_a_ratio_of_sums_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    """``normalize: batch`` divides by the masked tokens of all processes."""
    masking = {"normalize": "batch", "draw": "bernoulli"}
    train("modern", tmp_path / "one", masking)
    assert run_processes(2, train, "modern", tmp_path / "two", masking) == [0, 0]
    one, two = (numbers(tmp_path / name, "loss")[0] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)


def other(kind: str, out: Path) -> None:
    """The other objectives: MAGVIT's, VampNet's mask ratios, both critics."""
    bert, source = shaken(transformer("bert")).train(), tokens()
    objective: Objective
    if kind == "commit":
        source = four_clips(6)
        sizes = {"axes": (3, 4), "num_classes": 2, "num_tasks": 5}
        model = shaken(transformer("bert", **sizes)).train()
        settings = CommitSettings(condition_dropout=0.3, block=(1, 2), ratios="row" if "row" in out.parts else "batch")
        objective = CommitModeling(model, settings, held_out=source)
    elif kind == "sobol":
        objective = MaskedModeling(bert, MaskingSettings(ratios="sobol"), held_out=source)
    elif kind == "critic":
        objective = CriticModeling(bert, shaken(transformer("bert")), CriticSettings(), held_out=source)
    else:
        objective = SelfCriticModeling(bert, MaskingSettings(), CriticSettings(), held_out=source)
    fit(objective, source, out, optimizer=SCHEDULE, **{**CHANGES, "steps": 6})


@pytest.mark.parametrize("kind", ["commit", "sobol", "critic", "self-critic"])
def test_the_other_objectives(kind: str, tmp_path: Path) -> None:
    folders = ["batch", "row"] if kind == "commit" else [""]
    for folder in folders:
        other(kind, tmp_path / folder / "one")
        assert run_processes(2, other, kind, tmp_path / folder / "two") == [0, 0]
        for mine, theirs in zip(
            numbers(tmp_path / folder / "two", *CURVES), numbers(tmp_path / folder / "one", *CURVES), strict=True
        ):
            assert mine == pytest.approx(theirs, rel=1e-5)


def accumulated(out: Path) -> None:
    train("bert", out, steps=4, accumulation=2)


def test_micro_batches_under_fsdp2(tmp_path: Path) -> None:
    accumulated(tmp_path / "one")
    assert run_processes(2, accumulated, tmp_path / "two", fsdp=True) == [0, 0]
    for mine, theirs in zip(numbers(tmp_path / "two", *CURVES), numbers(tmp_path / "one", *CURVES), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


class Interrupting(MaskedModeling):
    """Asks one process to stop in one step: the others must hear of it."""

    at = -1

    def loss(self, network: str, modules: Any, batch: Any, step: int) -> Any:
        if step == self.at and os.environ.get("RANK") == "1":
            signal.raise_signal(signal.SIGTERM)
        return super().loss(network, modules, batch, step)


def going_on(out: Path, stop_in: int) -> None:
    objective = Interrupting(shaken(transformer("bert")).train(), MaskingSettings(), held_out=tokens())
    objective.at = stop_in
    try:
        fit(objective, tokens(), out, optimizer=SCHEDULE, **{**CHANGES, "batch_size": 12, "checkpoint_every": 0})
    except Interrupted:
        raise SystemExit(75) from None


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """4 processes with FSDP2, then 3 of them with DDP, then 2 with FSDP2, then one: the curve is that of one."""
    train("bert", tmp_path / "whole", batch_size=12)
    out = tmp_path / "parts"
    stages = [(4, True, 5), (3, False, 10), (2, True, 15)]
    kept = []
    for world, fsdp, steps in stages:
        assert run_processes(world, going_on, out, steps, fsdp=fsdp, said=tmp_path / "said") == [75] * world
        kept.append(sorted(path.name for path in sorted((out / "checkpoints").iterdir())[-1].iterdir()))
    train("bert", out, batch_size=12)
    said = "".join(capsys.readouterr()) + (tmp_path / "said").read_text(encoding="utf-8")
    for mine, theirs in zip(numbers(out, *CURVES), numbers(tmp_path / "whole", *CURVES), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    # With FSDP2 every process writes its part, without pickles; what all of them share is written once.
    spread = [f"{name}-{rank:05d}-of-00004.safetensors" for name in ("ema", "model", "optimizer") for rank in range(4)]
    assert kept[0] == [*spread[:4], "guard.safetensors", *spread[4:], "run.json"]
    assert kept[1] == [f"{name}.safetensors" for name in ("ema", "guard", "model", "optimizer")] + ["run.json"]
    for step, before, now in ((7, 4, 3), (12, 3, 2), (17, 2, 1)):  # a request is heard one step later
        assert f"train: step {step} was saved by {before} process(es), now there are {now}: weights" in said
