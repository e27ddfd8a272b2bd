"""Muon for the matrices of the blocks, AdamW for the rest: as each of torch's two alone, guarded, and exact to resume."""

from typing import Any

import pytest
import torch
from torch import nn

from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.training.optim.optimizers import GuardedMuon, OptimizerSettings, adamw

SETTINGS = OptimizerSettings(lr=0.01, muon_lr=0.04, betas=(0.9, 0.98), weight_decay=0.1)


def transformer() -> ModernTransformer:
    torch.manual_seed(0)
    config = ModernConfig(vocab_size=5, num_classes=0, axes=(4,), width=8, layers=2, heads=2)
    model = ModernTransformer(config)
    for part in model.parameters():
        nn.init.normal_(part, std=0.5)
    return model


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for part in model.parameters():
        part.grad = torch.randn(part.shape, generator=generator)


def run(model: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        gradients(model, step)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + step)
        optimizer.step()


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([part.detach().flatten() for part in model.parameters()])


def test_it_is_torchs_two_optimizers() -> None:
    model, plain = transformer(), transformer()
    optimizer = adamw(model, SETTINGS)
    assert isinstance(optimizer, GuardedMuon)
    run(model, optimizer, range(3))
    named = dict(plain.named_parameters())
    inner = [part for name, part in named.items() if name.startswith("blocks.") and part.ndim == 2]
    assert len(inner) == 2 * 5
    others = {name: part for name, part in named.items() if not any(part is one for one in inner)}
    lookups = {f"{name}.weight" for name, part in plain.named_modules() if isinstance(part, nn.Embedding)}
    tables = [part for name, part in others.items() if name in lookups or part.ndim < 2]
    heads = [part for part in others.values() if not any(part is one for one in tables)]
    adam = torch.optim.AdamW(
        [{"params": heads, "weight_decay": 0.1}, {"params": tables, "weight_decay": 0.0}], lr=0.01, betas=(0.9, 0.98)
    )
    muon = torch.optim.Muon(inner, lr=0.04, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        gradients(plain, step)
        for group in adam.param_groups:
            group["lr"] = 0.01 / (1 + step)
        muon.param_groups[0]["lr"] = 0.04 / (1 + step)
        adam.step()
        muon.step()
    torch.testing.assert_close(weights(model), weights(plain))


@pytest.mark.parametrize("by_scaler", [False, True])
def test_a_skipped_step_changes_nothing(by_scaler: bool) -> None:
    model = transformer()
    optimizer = adamw(model, SETTINGS)
    run(model, optimizer, range(2))
    before = weights(model)
    held = [value.clone() for state in optimizer.state.values() for value in state.values()]
    gradients(model, 7)
    for part in model.parameters():
        assert part.grad is not None
        part.grad.fill_(torch.nan)
    if by_scaler:
        optimizer.found_inf = torch.tensor(1.0)  # what a gradient scaler does
    else:
        optimizer.skip = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(weights(model), before)
    for now, old in zip((value for state in optimizer.state.values() for value in state.values()), held, strict=True):
        assert torch.equal(now, old)
    optimizer.skip = torch.tensor(0.0)
    if by_scaler:
        del optimizer.found_inf
    run(model, optimizer, range(2, 3))
    assert not torch.equal(weights(model), before)


def test_it_goes_on_exactly() -> None:
    whole, part = transformer(), transformer()
    run(whole, adamw(whole, SETTINGS), range(4))
    first = adamw(part, SETTINGS)
    run(part, first, range(2))
    second = adamw(part, SETTINGS)
    second.load_state_dict(first.state_dict())
    run(part, second, range(2, 4))
    assert torch.equal(weights(whole), weights(part))


def test_scaled_gradients_are_unscaled() -> None:
    models = transformer(), transformer()
    for scale, model in zip((1.0, 1024.0), models, strict=True):
        optimizer = adamw(model, SETTINGS)
        for step in range(2):
            gradients(model, step)
            for part in model.parameters():
                assert part.grad is not None
                part.grad *= scale
            optimizer.grad_scale = torch.tensor(scale)
            optimizer.found_inf = torch.tensor(0.0)
            optimizer.step()
    torch.testing.assert_close(weights(models[0]), weights(models[1]))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"muon_lr: got 0\.04, but a Linear has no blocks with matrices"):
        adamw(nn.Linear(2, 2), SETTINGS)
    with pytest.raises(ValueError, match="got muon_lr -1, expected at least 0"):
        OptimizerSettings(muon_lr=-1)
    with pytest.raises(ValueError, match="above 0 goes with decay 'cosine' or 'constant'"):
        OptimizerSettings(muon_lr=0.1, decay="noam")
