"""Gradient checkpointing and compilation of blocks change time and memory, not numbers."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from maskgen.conditioning import Cond
from maskgen.data import TensorSource
from maskgen.models.base import MaskedTransformer
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from maskgen.training.distributed.blocks import blocks_of, checkpoint_blocks, compile_blocks
from tests.core.toys import FAMILIES, Line, LineConfig, equal, fit, shaken, transformer, weights


def gradients(model: MaskedTransformer) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)  # of dropout
    tokens = torch.randint(11, (4, 12, 1), generator=torch.Generator().manual_seed(3))
    logits = model(tokens, Cond(labels=torch.arange(4)))
    logits.square().mean().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_gradients_are_the_same_bit_for_bit(family: str) -> None:
    """With dropout, which must draw the same numbers twice."""
    plain, checkpointed = (shaken(transformer(family, dropout=0.2)).train() for _ in range(2))
    names = list(checkpointed.state_dict())
    checkpoint_blocks(checkpointed)
    assert list(checkpointed.state_dict()) == names
    assert equal(gradients(plain), gradients(checkpointed))
    with torch.no_grad():  # no gradients, nothing to keep
        tokens = torch.zeros(1, 12, 1, dtype=torch.long)
        assert torch.equal(plain.eval()(tokens, Cond()), checkpointed.eval()(tokens, Cond()))


def test_checkpointing_runs_every_block_twice_and_keeps_less() -> None:
    model = shaken(transformer("bert", layers=3)).train()
    checkpoint_blocks(model)
    calls = []
    for block in blocks_of(model):
        block.expand.register_forward_hook(lambda *_: calls.append(1))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        loss = model(torch.zeros(4, 12, 1, dtype=torch.long), Cond()).square().mean()
    assert len(calls) == 3
    loss.backward()
    assert len(calls) == 6
    plain = shaken(transformer("bert", layers=3)).train()
    all_of_it: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: all_of_it.append(tensor.numel()) or tensor, lambda x: x
    ):
        plain(torch.zeros(4, 12, 1, dtype=torch.long), Cond())
    assert sum(kept) < 0.5 * sum(all_of_it)


compiled = pytest.param(
    {"compile": True}, marks=pytest.mark.filterwarnings("ignore")
)  # torch's compiler warns of itself


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("change", [{"gradient_checkpointing": True}, compiled, {"mixed_precision": "bf16"}])
def test_trained_with(change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option trains, saves what a plain run can load and go on with, and moves the curve by rounding alone."""
    # All of the compiler but its C++, which takes half a minute.
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    source = TensorSource(tokens=torch.randint(11, (16, 12, 1)), labels=torch.arange(16) % 4)
    runs = []
    for name, changes in (("plain", {}), ("changed", change)):
        objective = MaskedModeling(shaken(transformer("modern", layers=1)).train(), MaskingSettings(), held_out=source)
        runs.append(fit(objective, source, tmp_path / name, log_every=1, steps=4, **changes))
        AcceleratorState._reset_state(reset_partial_state=True)  # or the next run could not have another precision
    curves = [
        [
            line["loss"]
            for line in map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
            if "loss" in line
        ]
        for name in ("plain", "changed")
    ]
    assert curves[1] == pytest.approx(curves[0], rel=2e-2 if change.get("mixed_precision") else 1e-5)
    assert weights(runs[0]).keys() == weights(runs[1]).keys()
    if "gradient_checkpointing" in change:
        assert equal(weights(runs[0]), weights(runs[1]))
    objective = MaskedModeling(transformer("modern", layers=1), MaskingSettings())
    fit(objective, source, tmp_path / "changed", steps=5)  # a plain run goes on


def test_a_model_without_blocks() -> None:
    with pytest.raises(ValueError, match="gradient_checkpointing: Line has no list of blocks; set it to false"):
        checkpoint_blocks(Line(LineConfig()))
    with pytest.raises(ValueError, match="compile: Line has no list of blocks"):
        compile_blocks(Line(LineConfig()))
