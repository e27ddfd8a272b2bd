"""The Halton-MaskGIT transformer: full sizes, weights that do not fit, and the model contract."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.checkpoint import load_module, save_module
from maskgen.conditioning import NO_LABEL, Cond
from maskgen.models.base import MaskedTransformer
from maskgen.published.halton import transformer as halton
from maskgen.published.halton.transformer import PUBLISHED, HaltonConfig, HaltonTransformer, config_from, convert
from tests.core.published.layouts import layout, parameters, weightless

COUNTS = {
    "halton_maskgit_256_tiny": 23_031_425,
    "halton_maskgit_256_small": 69_344_769,
    "halton_maskgit_256_base": 142_224_641,
    "halton_maskgit_384_small": 69_508_609,
    "halton_maskgit_384_base": 142_470_401,
    "halton_maskgit_384_large": 479_984_641,
}
# Heads of width 3 in a width of 13: queries are 12 wide.
SMALL = HaltonConfig(vocab_size=7, num_classes=3, axes=(2, 3), width=13, layers=2, heads=4, mlp_width=20, registers=2)


def make(**changes: Any) -> HaltonTransformer:
    """A small model with weights that are large enough to show."""
    torch.manual_seed(0)
    fields = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    model = HaltonTransformer(HaltonConfig(**(fields | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if parameter.ndim == 1 else 0.0))
    return model


def batch() -> tuple[Tensor, Cond]:
    tokens = torch.randint(8, (4, 6, 1), generator=torch.Generator().manual_seed(1))
    return tokens, Cond(labels=torch.tensor([0, 1, 2, NO_LABEL]))


def official(**changes: Any) -> dict[str, Tensor]:
    """A small official state dict, with the head written out."""
    state = {halton._official(name): tensor for name, tensor in make(**changes).state_dict().items()}
    return state | {"head.weight": state["tok_emb.weight"].clone()}


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = HaltonTransformer(PUBLISHED[name])
    assert parameters(model) == COUNTS[name]


@pytest.mark.parametrize("name", COUNTS)
def test_full_size_weights_convert(name: str) -> None:
    shapes, count = layout(name)
    assert count == COUNTS[name]
    state = weightless(shapes)
    tied = state["head.weight"].numel()
    assert sum(tensor.numel() for tensor in state.values()) - tied == count
    config = config_from(state)
    assert config == PUBLISHED[name]
    with torch.device("meta"):
        model = HaltonTransformer(config)
    model.load_state_dict(convert(state, config), assign=True)
    assert parameters(model) == count


def test_sizes_at_both_resolutions() -> None:
    """Every size at every resolution, released or not; the official feed-forward is 256 ceil(int(2 m / 3) / 256) wide."""
    assert len(PUBLISHED) == 8
    for name, config in PUBLISHED.items():
        assert config.axes == {"256": (16, 16), "384": (24, 24)}[name.split("_")[2]]
        assert config.mlp_width == 256 * -(-int(2 * 4 * config.width / 3) // 256)
    assert PUBLISHED["halton_maskgit_256_small"].inner_width == 510


def test_weights_come_back() -> None:
    for registers in (0, 2):
        state = official(registers=registers)
        config = config_from(state, heads=4, axes=(2, 3))
        assert config == make(registers=registers).config
        converted = convert(state, config)
        ours = make(registers=registers).state_dict()
        assert converted.keys() == ours.keys()
        assert all(torch.equal(converted[name], value) for name, value in ours.items())


def test_everything_wrong_is_named_at_once() -> None:
    state = official()
    config = config_from(state, heads=4, axes=(2, 3))
    state["transformer.layers.1.ff.w4.weight"] = state.pop("transformer.layers.1.ff.w3.weight")
    state["head.weight"] = torch.zeros(9, 13)
    state["extra"] = torch.zeros(2)
    with pytest.raises(ValueError, match="Halton-MaskGIT weights: 4 weights do not fit") as caught:
        convert(state, config)
    text = str(caught.value)
    near = "transformer.layers.1.ff.w4.weight"
    assert f"missing transformer.layers.1.ff.w3.weight (20, 13) (nearest: {near})" in text
    assert "unexpected extra (2,)" in text
    assert "head.weight has shape (9, 13), expected (8, 13)" in text


def test_a_head_of_its_own_is_refused() -> None:
    state = official()
    state["head.weight"] = state["head.weight"] + 1
    with pytest.raises(ValueError, match=r"head\.weight differs from tok_emb\.weight"):
        convert(state, config_from(state, heads=4, axes=(2, 3)))


def test_settings_that_do_not_fit_the_weights() -> None:
    state = official()
    with pytest.raises(ValueError, match="no Halton-MaskGIT transformer: missing .*tok_emb"):
        config_from({"a": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"positions: got 6, expected the product of axes \(2, 2\)"):
        config_from(state, heads=4)
    with pytest.raises(ValueError, match="width 13 is of no release"):
        config_from(state, axes=(2, 3))
    with pytest.raises(ValueError, match="got 5, that is queries of width 10, expected width 12"):
        config_from(state, axes=(2, 3), heads=5)


def test_impossible_sizes() -> None:
    with pytest.raises(ValueError, match="expected 1 to the width 13"):
        make(heads=14)
    with pytest.raises(ValueError, match="expected vocab_size of 2 or more"):
        make(vocab_size=1)
    with pytest.raises(ValueError, match="num_classes and registers of 0 or more"):
        make(registers=-1)


def test_contract() -> None:
    model = make()
    tokens, cond = batch()
    logits = model(tokens, cond, (2, 3))
    assert logits.shape == (4, 6, 1, 7)
    assert (model.vocab_size, model.num_codebooks, model.num_classes, model.null_class) == (7, 1, 3, True)
    assert torch.equal(model(tokens, Cond())[3], logits[3])
    others = model(tokens, Cond(labels=torch.tensor([1, 2, 0, 0])))
    assert (others - logits).abs().amax((1, 2, 3)).min() > 0.01


def test_the_mask_column_is_the_last_and_left_out() -> None:
    model, (tokens, cond) = make(), batch()
    full = model.table_logits(tokens[:, :, 0], cond)
    assert full.shape == (4, 6, 8)
    # Another number of columns may take another product kernel, hence not bit for bit on every CPU.
    torch.testing.assert_close(full[..., :7], model(tokens, cond)[:, :, 0], atol=1e-6, rtol=1e-6)


def test_registers_change_the_result_and_may_be_absent() -> None:
    with_registers, without = make(registers=2), make(registers=0)
    without.load_state_dict({k: v for k, v in with_registers.state_dict().items() if not k.startswith("reg_")})
    assert (with_registers(*batch()) - without(*batch())).abs().max() > 0.01


def test_attention_backends_agree() -> None:
    torch.testing.assert_close(make()(*batch()), make(attention="eager")(*batch()), atol=1e-5, rtol=1e-5)


def test_every_weight_is_trained() -> None:
    model = make().train()
    tokens = torch.arange(24).view(4, 6, 1) % 8
    model(tokens, batch()[1]).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-5, name


def test_saved_and_loaded(tmp_path: Path) -> None:
    save_module(make(), tmp_path)
    loaded = load_module(tmp_path, MaskedTransformer)  # type: ignore[type-abstract]
    assert loaded.config == SMALL
    assert torch.equal(loaded(*batch()), make()(*batch()))


def test_other_grids_are_refused() -> None:
    tokens, cond = batch()
    with pytest.raises(ValueError, match=r"expected \[B, 6, 1\]"):
        make()(tokens[:, :5], cond)
    with pytest.raises(ValueError, match=r"on a grid \(3, 2\)"):
        make()(tokens, cond, (3, 2))
