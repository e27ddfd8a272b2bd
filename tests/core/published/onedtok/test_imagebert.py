"""The generators of 1d-tokenizer: full sizes, weights that do not fit, and the model contract."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.checkpoint import load_module, save_module
from maskgen.conditioning import NO_LABEL, Cond
from maskgen.models.base import MaskedTransformer
from maskgen.published.onedtok import imagebert, uvitbert
from maskgen.published.onedtok.imagebert import ImageBert, ImageBertConfig
from maskgen.published.onedtok.uvitbert import UViTBert, UViTBertConfig
from tests.core.published.layouts import layout, parameters, weightless

SMALL: dict[str, Any] = {
    "vocab_size": 7,
    "num_classes": 3,
    "axes": (2, 3),
    "width": 16,
    "layers": 2,
    "heads": 2,
    "mlp_width": 24,
    "dropout": 0.0,
}
FAMILIES: dict[str, Callable[..., MaskedTransformer]] = {
    "imagebert": lambda **changes: ImageBert(ImageBertConfig(**(SMALL | changes))),
    "uvitbert": lambda **changes: UViTBert(UViTBertConfig(**(SMALL | changes))),
}
each_family = pytest.mark.parametrize("family", FAMILIES)
MASKGIT_SIZE = ImageBertConfig(vocab_size=1024, axes=(16, 16))


def make(family: str, **changes: Any) -> MaskedTransformer:
    """A small model with weights that are large enough to show."""
    torch.manual_seed(0)
    model = FAMILIES[family](**changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if parameter.ndim == 1 else 0.0))
    return model


def batch() -> tuple[Tensor, Cond]:
    tokens = torch.randint(8, (4, 6, 1), generator=torch.Generator().manual_seed(1))
    return tokens, Cond(labels=torch.tensor([0, 1, 2, NO_LABEL]))


# Full sizes


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (imagebert.PUBLISHED["generator_titok_l32_imagenet"], 177_202_432),
        (imagebert.PUBLISHED["generator_titok_b64_imagenet"], 177_227_008),
        (MASKGIT_SIZE, 172_652_800),
        (uvitbert.PUBLISHED["generator_titok_s128_imagenet"], 294_990_848),
    ],
)
def test_published_sizes(config: Any, count: int) -> None:
    with torch.device("meta"):
        model = ImageBert(config) if isinstance(config, ImageBertConfig) else UViTBert(config)
    assert parameters(model) == count


@pytest.mark.parametrize(
    ("name", "module", "config"),
    [
        *((name, imagebert, config) for name, config in imagebert.PUBLISHED.items()),
        *((name, uvitbert, config) for name, config in uvitbert.PUBLISHED.items()),
        ("imagebert_at_maskgit_size_hypothetical", imagebert, MASKGIT_SIZE),
    ],
)
def test_full_size_weights_convert(name: str, module: Any, config: Any) -> None:
    shapes, count = layout(name)
    state = weightless(shapes)
    assert sum(tensor.numel() for tensor in state.values()) == count
    assert module.config_from(state, axes=config.axes) == config
    converted = module.convert(state, config)
    with torch.device("meta"):
        model = ImageBert(config) if module is imagebert else UViTBert(config)
    model.load_state_dict(converted, assign=True)
    assert parameters(model) == count


# Weights that do not fit


def official(family: str) -> dict[str, Tensor]:
    """A small official state dict: our small model's weights under their names."""
    state = make(family).state_dict()
    if family == "uvitbert":
        return dict(state)
    return {theirs: state[ours] for ours, theirs in imagebert.official_names(SMALL["layers"]).items()}


MODULES: dict[str, Any] = {"imagebert": imagebert, "uvitbert": uvitbert}
LAYER = {"imagebert": "model.encoder.layer.1.intermediate.dense", "uvitbert": "out_blocks.0.mlp.fc1"}


@each_family
def test_weights_come_back(family: str) -> None:
    state, module = official(family), MODULES[family]
    config = module.config_from(state, heads=2, axes=(2, 3), dropout=0.0)
    assert config == make(family).config
    converted = module.convert(state, config)
    assert all(torch.equal(converted[name], value) for name, value in make(family).state_dict().items())
    assert all(any(value.data_ptr() == other.data_ptr() for other in state.values()) for value in converted.values())


@each_family
def test_everything_wrong_is_named_at_once(family: str) -> None:
    state, module = official(family), MODULES[family]
    config = module.config_from(state, heads=2, axes=(2, 3))
    state[LAYER[family] + ".wieght"] = state.pop(LAYER[family] + ".weight")
    state["extra"] = torch.zeros(2)
    state["lm_head.bias" if family == "uvitbert" else "model.lm_head.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match="weights do not fit") as caught:
        module.convert(state, config)
    text = str(caught.value)
    assert "4 weights" in text
    assert f"missing {LAYER[family]}.weight (24, 16) (nearest: {LAYER[family]}.wieght)" in text
    assert "unexpected extra (2,)" in text
    assert "lm_head.bias has shape (5,), expected (7,)" in text


def test_stored_positions_are_ignored() -> None:
    state = official("imagebert") | {"model.embeddings.position_ids": torch.arange(7)[None]}
    converted = imagebert.convert(state, imagebert.config_from(state, heads=2))
    assert converted.keys() == make("imagebert").state_dict().keys()


def test_foreign_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no ImageBert: missing .*model\.lm_head\.weight.*found 41 weights"):
        imagebert.config_from(official("uvitbert"))
    with pytest.raises(ValueError, match="no UViTBert: missing .*mid_block"):
        uvitbert.config_from(official("imagebert"))
    with pytest.raises(ValueError, match="no UViTBert"):
        uvitbert.config_from({})


@each_family
def test_settings_that_do_not_fit_the_weights(family: str) -> None:
    state, module = official(family), MODULES[family]
    with pytest.raises(ValueError, match="7 positions, expected 1 \\+ the product of axes \\(5,\\)"):
        module.config_from(state, axes=(5,))
    with pytest.raises(ValueError, match="width 16 must be a multiple of heads 3"):
        module.config_from(state, heads=3)
    head = "lm_head.weight" if family == "uvitbert" else "model.lm_head.weight"
    with pytest.raises(ValueError, match="table of 12 rows, expected 11 codes"):
        module.config_from(state | {head: torch.zeros(11, 16)})


def test_impossible_sizes() -> None:
    with pytest.raises(ValueError, match="expected an even number"):
        UViTBertConfig(layers=3)
    with pytest.raises(ValueError, match="expected vocab_size of 2 or more"):
        ImageBertConfig(vocab_size=1)
    with pytest.raises(ValueError, match="the others positive"):
        UViTBertConfig(axes=(0,))


# The model contract


@each_family
def test_contract(family: str) -> None:
    model = make(family)
    tokens, cond = batch()
    logits = model(tokens, cond, (2, 3))
    assert logits.shape == (4, 6, 1, 7)
    assert (model.vocab_size, model.num_codebooks, model.num_classes, model.null_class) == (7, 1, 3, True)
    assert torch.equal(model(tokens, Cond())[3], logits[3])
    others = model(tokens, Cond(labels=torch.tensor([1, 2, 0, 0])))
    assert (others - logits).abs().amax((1, 2, 3)).min() > 0.01
    hidden = model(torch.full_like(tokens, 7), cond)
    assert (hidden - logits).abs().max() > 0.01


@pytest.mark.parametrize(("family", "eps"), [("imagebert", 1e-12), ("uvitbert", 1e-5)])
def test_norms(family: str, eps: float) -> None:
    """Too small to see in the outputs of every norm, so it is read off."""
    found = [module.eps for module in make(family).modules() if isinstance(module, nn.LayerNorm)]
    assert len(found) >= 5
    assert set(found) == {eps}


@each_family
def test_attention_backends_agree(family: str) -> None:
    torch.testing.assert_close(make(family)(*batch()), make(family, attention="eager")(*batch()), atol=1e-5, rtol=1e-5)


@each_family
def test_every_weight_is_trained(family: str) -> None:
    model = make(family).train()
    tokens = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7]).view(4, 6, 1)
    model(tokens, batch()[1]).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("key.bias"):  # the softmax takes out what a bias on the keys adds
            assert parameter.grad.abs().max() > 1e-5, name


@each_family
def test_saved_and_loaded(family: str, tmp_path: Path) -> None:
    model = make(family)
    save_module(model, tmp_path)
    loaded = load_module(tmp_path, MaskedTransformer)  # type: ignore[type-abstract]
    assert loaded.config == model.config
    assert torch.equal(loaded(*batch()), model(*batch()))


@each_family
def test_other_grids_are_refused(family: str) -> None:
    tokens, cond = batch()
    with pytest.raises(ValueError, match=r"expected \[B, 6, 1\]"):
        make(family)(tokens[:, :5], cond)
    with pytest.raises(ValueError, match=r"on a grid \(3, 2\)"):
        make(family)(tokens, cond, (3, 2))
