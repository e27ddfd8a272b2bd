"""MaskBit's generators and sampler beyond the recorded numbers: full sizes, misfits, and what ours does better.

Shapes: B batch, N tokens, K sub-tokens, V ids of a sub-token, D width.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.checkpoint import load_module, save_module
from maskgen.conditioning import NO_LABEL, Cond
from maskgen.published.maskbit.transformer import PUBLISHED, MaskBitConfig, MaskBitTransformer, config_from, convert

# By hand from the published settings (hidden 1024, 24 layers, 16 heads, mlp 4096, 256 tokens, 1000 classes, 2 splits):
# classes 1001 D, positions 257 D, first norm 2 D, 24 x (12 D^2 + 13 D), last layer D^2 + 3 D, input (bits + 1) D and
# prediction (D + 1) 2 x 2^(bits / 2). The paper rounds to 305 M.
WEIGHTS = {10: 304_728_128, 12: 304_795_776, 14: 304_929_024, 16: 305_193_472, 18: 305_720_320}

TINY = MaskBitConfig(
    vocab_size=8, splits=2, num_classes=5, axes=(2, 3), width=16, layers=2, heads=2, mlp_width=24, dropout=0.0
)
KINDS = {
    "bits": TINY,
    "table": dataclasses.replace(TINY, tokens="table"),
    "prenorm": dataclasses.replace(TINY, prenorm=True),
    "one-split": dataclasses.replace(TINY, splits=1),
}


def official_shapes(bits: int, D: int = 1024, layers: int = 24, mlp: int = 4096) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published LFQBert file, written out from the description of the family."""
    V = 2 ** (bits // 2)
    shapes: dict[str, tuple[int, ...]] = {
        "bits_to_indices": (bits // 2,),
        "class_emb.weight": (1001, D),
        "pos_emb": (1, 257, D),
        "input_proj.weight": (D, bits),
        "input_proj.bias": (D,),
        "prediction_layer.weight": (2 * V, D),
        "prediction_layer.bias": (2 * V,),
        "last_layer.0.weight": (D, D),
        "last_layer.0.bias": (D,),
    }
    norms = ["first_layer.0", "last_layer.2"]
    for index in range(layers):
        layer = f"transformer.layers.{index}"
        norms += [f"{layer}.0.norm", f"{layer}.1.norm"]
        shapes |= {
            f"{layer}.0.mha.in_proj_weight": (3 * D, D),
            f"{layer}.0.mha.in_proj_bias": (3 * D,),
            f"{layer}.0.mha.out_proj.weight": (D, D),
            f"{layer}.0.mha.out_proj.bias": (D,),
            f"{layer}.1.net.0.weight": (mlp, D),
            f"{layer}.1.net.0.bias": (mlp,),
            f"{layer}.1.net.2.weight": (D, mlp),
            f"{layer}.1.net.2.bias": (D,),
        }
    return shapes | {f"{norm}.{leaf}": (D,) for norm in norms for leaf in ("weight", "bias")}


def hollow(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights of these shapes that hold one number each."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def shaken(config: MaskBitConfig, seed: int = 0) -> MaskBitTransformer:
    torch.manual_seed(seed)
    model = MaskBitTransformer(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.5)
    return model


def tokens_of(config: MaskBitConfig, batch: int = 3) -> Tensor:
    shape = (batch, torch.Size(config.axes).numel(), config.splits)
    return torch.randint(config.vocab_size + 1, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", WEIGHTS)
def test_full_size(bits: int) -> None:
    config = PUBLISHED[f"maskbit_generator_{bits}bit"]
    with torch.device("meta"):
        model = MaskBitTransformer(config)
    assert sum(weight.numel() for weight in model.parameters()) == WEIGHTS[bits]
    state = hollow(official_shapes(bits))
    assert config_from(state) == config
    converted = convert(state, config)
    assert {name: weight.shape for name, weight in converted.items()} == {
        name: weight.shape for name, weight in model.state_dict().items()
    }
    assert sum(weight.numel() for weight in converted.values()) == WEIGHTS[bits]


def test_published_names() -> None:
    assert set(PUBLISHED) == {f"maskbit_generator_{bits}bit" for bits in WEIGHTS}


def test_older_files_and_files_without_the_constant() -> None:
    model = shaken(TINY)
    state = model.state_dict()
    assert config_from(state, heads=2, axes=(2, 3)) == dataclasses.replace(TINY, dropout=0.1)
    older = {name.replace("input_proj", "token_emb"): weight for name, weight in state.items()}
    older["bits_to_indices"] = torch.tensor([1, 2, 4], dtype=torch.int32)
    assert set(older) & {"token_emb.weight", "token_emb.bias"}
    assert config_from(older, heads=2, axes=(2, 3)) == config_from(state, heads=2, axes=(2, 3))
    converted = convert(older, TINY)
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)


def test_two_ways_to_split_are_told_apart_or_asked_for() -> None:
    """4 bits in and 8 logits out are 2 splits of 2 bits or 4 of 1."""
    config = dataclasses.replace(TINY, vocab_size=4)
    state = shaken(config).state_dict()
    with pytest.raises(ValueError, match=r"4 bits in and 8 logits out fit \[2, 4\] splits; give splits"):
        config_from(state, heads=2, axes=(2, 3))
    given = config_from(state, heads=2, axes=(2, 3), splits=2)
    assert given == config_from(state | {"bits_to_indices": torch.tensor([1, 2])}, heads=2, axes=(2, 3))
    assert (given.vocab_size, given.splits) == (4, 2)
    state["prediction_layer.weight"] = torch.zeros(9, 16)
    with pytest.raises(ValueError, match="4 bits in and 9 logits out fit no number of splits"):
        config_from(state, heads=2, axes=(2, 3))


def test_all_misfits_at_once_under_official_names() -> None:
    state = shaken(TINY).state_dict()
    state["transformer.layers.0.0.mha.in_proj_wait"] = state.pop("transformer.layers.0.0.mha.in_proj_weight")
    state["pos_emb"] = torch.zeros(1, 9, 16)
    state["head.weight"] = torch.zeros(2)
    with pytest.raises(ValueError) as caught:
        convert(state, TINY)
    text = str(caught.value)
    assert text.startswith("MaskBit generator: 4 weights do not fit: ")
    assert (
        "missing transformer.layers.0.0.mha.in_proj_weight (48, 16) (nearest: transformer.layers.0.0.mha.in_proj_wait)"
        in text
    )
    assert "unexpected head.weight (2,)" in text
    assert "pos_emb has shape (1, 9, 16), expected (1, 7, 16)" in text


def test_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no MaskBit generator weights: missing \['class_emb.weight', 'pos_emb'"):
        config_from({"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)})
    with pytest.raises(ValueError, match=r"got 7 positions, expected the product of axes \(2, 2\) and one; give axes"):
        config_from(shaken(TINY).state_dict(), heads=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": "words"}, "tokens: got 'words', expected 'bits' or 'table'"),
        ({"vocab_size": 12}, "vocab_size: got 12, expected a power of two"),
        ({"heads": 3}, "width 16 must be a multiple of heads 3"),
        ({"num_classes": 0}, "expected 1 or more of each"),
        ({"splits": 0}, "expected 1 or more of each"),
        ({"attention": "magic"}, "attention back-end: got 'magic'"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind: str, tmp_path: Path) -> None:
    config = KINDS[kind]
    model = shaken(config)
    tokens, cond = tokens_of(config), Cond(labels=torch.tensor([0, 4, NO_LABEL]))
    assert (model.vocab_size, model.num_codebooks, model.num_classes, model.null_class) == (8, config.splits, 5, True)
    with torch.no_grad():
        logits = model(tokens, cond)
        assert logits.shape == (3, 6, config.splits, 8)
        for i in range(3):
            assert cond.labels is not None
            alone = model(tokens[i : i + 1], Cond(labels=cond.labels[i : i + 1]))
            torch.testing.assert_close(alone[0], logits[i], atol=1e-4, rtol=1e-5)
        assert torch.equal(model(tokens, Cond()), model(tokens, cond.unconditional()))
        classes = [model(tokens, Cond(labels=torch.full((3,), label))) for label in (*range(5), NO_LABEL)]
        assert all((a - b).abs().max() > 1e-2 for i, a in enumerate(classes) for b in classes[:i])
        eager = MaskBitTransformer(dataclasses.replace(config, attention="eager")).eval()
        eager.load_state_dict(model.state_dict())
        torch.testing.assert_close(eager(tokens, cond), logits, atol=1e-4, rtol=1e-5)
        save_module(model, tmp_path)
        again = load_module(tmp_path, MaskBitTransformer)
        assert again.config == config
        assert torch.equal(again(tokens, cond), logits)


@pytest.mark.parametrize("kind", KINDS)
def test_every_sub_token_is_seen_and_hidden_is_its_own_id(kind: str) -> None:
    config = KINDS[kind]
    model, cond = shaken(config), Cond(labels=torch.tensor([2]))
    tokens = torch.full_like(tokens_of(config, 1), 3)
    with torch.no_grad():
        before = model(tokens, cond)
        for split in range(config.splits):
            seen = []
            for new in (2, config.vocab_size):
                changed = tokens.clone()
                changed[0, 4, split] = new
                seen.append(model(changed, cond))
                assert ((seen[-1] - before).abs().amax((0, 2, 3)) > 1e-4).all()
            assert (seen[0] - seen[1]).abs().max() > 1e-3


def test_bits_go_in_lowest_first_and_hidden_is_zero() -> None:
    model = shaken(TINY)
    tokens = torch.tensor([[[6, 8]] * 6])  # 6 = 110 in binary; 8 is hidden
    seen: list[Tensor] = []
    model.input_proj.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    with torch.no_grad():
        model(tokens, Cond())
    assert seen[0][0, 0].tolist() == [-1, 1, 1, 0, 0, 0]


def test_dropout_is_for_training_only() -> None:
    model = shaken(dataclasses.replace(TINY, dropout=0.5))
    tokens = tokens_of(TINY)
    assert torch.equal(model(tokens, Cond()), model(tokens, Cond()))
    assert not torch.equal(model.train()(tokens, Cond()), model(tokens, Cond()))


def test_forward_refuses_another_grid() -> None:
    model = shaken(TINY)
    with pytest.raises(ValueError, match=r"got \(3, 6, 1\) on a grid None, expected \[B, 6, 2\]"):
        model(tokens_of(TINY)[..., :1], Cond())
    with pytest.raises(ValueError, match=r"on a grid \(3, 2\), expected \[B, 6, 2\] on \(2, 3\)"):
        model(tokens_of(TINY), Cond(), (3, 2))
