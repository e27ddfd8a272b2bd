"""VampNet's transformer: full sizes, files that do not fit, and the model contract.

Shapes: B batch, T frames, K codebooks, V codes, L width of a code.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.package import PackageExporter

from maskgen.checkpoint import load_module, save_module
from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.published.vampnet.blocks import VampNetConfig, relative_buckets
from maskgen.published.vampnet.transformer import (
    PUBLISHED,
    VampNetTransformer,
    config_from,
    convert,
    official_shapes,
    read_vampnet,
    with_code_tables,
)
from maskgen.sampling.guidance import model_logits
from maskgen.sampling.loop import sample
from tests.core.published.layouts import parameters

SMALL = VampNetConfig(
    vocab_size=7, num_codebooks=3, conditioning_codebooks=1, code_width=4, axes=(173,), width=12, layers=2, heads=3
)
KWARGS = {
    **{"n_heads": 3, "n_layers": 2, "n_codebooks": 3, "n_conditioning_codebooks": 1, "embedding_dim": 12},
    **{"vocab_size": 7, "latent_dim": 4, "flash_attn": False, "r_cond_dim": 0, "noise_mode": "mask", "dropout": 0.1},
    **{"ctrl_dims": None, "cond_dim": 0, "cfg_dropout_prob": 0.2},
}
# Official parameters, the low-rank factors among them, weights that ``save`` writes (spec of the published files).
COUNTS = {"vampnet_coarse": (335_893_664, 2_867_200, 368), "vampnet_c2f": (277_753_072, 2_293_760, 296)}


def make(**changes: Any) -> VampNetTransformer:
    """A small model with weights that are large enough to show."""
    torch.manual_seed(0)
    model = VampNetTransformer(VampNetConfig(**(asdict(SMALL) | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if parameter.ndim == 1 else 0.0))
    return model


def official(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in official_shapes(SMALL).items()}


def factors(seed: int = 0) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in official(seed).items() if ".lora_" in name}


def write(path: Path, state: dict[str, Tensor], kwargs: object = KWARGS) -> Path:
    torch.save({"state_dict": state, "metadata": {"kwargs": kwargs}}, path)
    return path


def tokens_of(model: VampNetTransformer, batch: int = 3, frames: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(model.vocab_size + 1, (batch, frames, model.num_codebooks), generator=generator)


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name: str) -> None:
    """Official count, and what is left of it after folding: no factors, no length of the head's rows."""
    total, lora, entries = COUNTS[name]
    config = PUBLISHED[name]
    shapes = official_shapes(config)
    sizes = {key: torch.Size(shape).numel() for key, shape in shapes.items()}
    assert len(shapes) == entries
    assert sum(sizes.values()) == total
    assert sum(size for key, size in sizes.items() if ".lora_" in key) == lora
    with torch.device("meta"):
        model = VampNetTransformer(config)
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
        tables = torch.empty(14, 1024, 8)
    model.load_state_dict(with_code_tables(convert(state, config), tables, config), assign=True)
    assert parameters(model) == total - lora - config.predicted_codebooks * 1024
    assert model.code_tables.shape == (config.num_codebooks, 1024, 8)


def test_published_settings_are_read() -> None:
    coarse = {**KWARGS, "n_heads": 20, "n_layers": 20, "n_codebooks": 4, "n_conditioning_codebooks": 0}
    fine = {**KWARGS, "n_heads": 20, "n_layers": 16, "n_codebooks": 14, "n_conditioning_codebooks": 4}
    sizes = {"embedding_dim": 1280, "vocab_size": 1024, "latent_dim": 8}
    old = {name: value for name, value in (coarse | sizes).items() if name not in ("dropout", "ctrl_dims", "cond_dim")}
    assert config_from(old) == PUBLISHED["vampnet_coarse"]
    assert config_from(fine | sizes) == PUBLISHED["vampnet_c2f"]


@pytest.mark.parametrize(
    ("name", "value"), [("ctrl_dims", {"rms": 1}), ("flash_attn", True), ("r_cond_dim", 64), ("noise_mode", "random")]
)
def test_other_networks_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"got {name} .*, expected .* as in every published model"):
        config_from({**KWARGS, name: value})


def test_settings_must_be_whole() -> None:
    with pytest.raises(ValueError, match=r"missing \['n_heads', 'vocab_size'\]"):
        config_from({name: value for name, value in KWARGS.items() if name not in ("n_heads", "vocab_size")})
    with pytest.raises(ValueError, match="got {'layers': 2.5}, expected integers"):
        config_from({**KWARGS, "n_layers": 2.5})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "width 12 must be a multiple of heads 5"),
        ({"layers": 0}, "got .* layers 0, .*expected vocab_size of 2 or more and the others positive"),
        ({"conditioning_codebooks": 3}, "conditioning_codebooks: got 3 of 3 codebooks"),
        ({"axes": (4, 4)}, r"axes: got \(4, 4\), expected one number of frames"),
        ({"dropout": 1.0}, "dropout: got 1.0"),
    ],
)
def test_sizes_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VampNetConfig(**(asdict(SMALL) | changes))


def test_folding_is_the_formula() -> None:
    """A plain version of every step, on numbers that are all different."""
    state = official()
    found = convert(state, SMALL)
    for number in range(2):
        layer = f"transformer.layers.{number}"
        for theirs, ours in (("self_attn.w_qs", "query"), ("self_attn.fc", "out"), ("feed_forward.w_2", "contract")):
            a, b = state[f"{layer}.{theirs}.lora_A"], state[f"{layer}.{theirs}.lora_B"]
            expected = state[f"{layer}.{theirs}.weight"] + sum(torch.outer(b[:, i], a[i]) for i in range(8)) / 8
            torch.testing.assert_close(found[f"blocks.{number}.{ours}.weight"], expected)
        assert torch.equal(found[f"blocks.{number}.key.weight"], state[f"{layer}.self_attn.w_ks.weight"])
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(12, 14, 1))
    with torch.no_grad():
        layer.parametrizations.weight.original0.copy_(state["classifier.layers.0.weight_g"])
        layer.parametrizations.weight.original1.copy_(state["classifier.layers.0.weight_v"])
        layer.bias.copy_(state["classifier.layers.0.bias"])
        x = torch.randn(5, 12)
        channels = layer(x[:, :, None])[:, :, 0]  # channel = code x P + codebook
    ours = nn.functional.linear(x, found["head.weight"], found["head.bias"])
    torch.testing.assert_close(ours.view(5, 2, 7), channels.view(5, 7, 2).transpose(1, 2))


def test_weights_without_factors() -> None:
    """Exports that leave the factors out are whole too."""
    plain = {name: tensor for name, tensor in official().items() if ".lora_" not in name}
    unfolded = convert(official(), SMALL, fold_lora=False)
    assert all(torch.equal(tensor, unfolded[name]) for name, tensor in convert(plain, SMALL).items())


def test_half_precision_is_folded_in_float32() -> None:
    half = {name: tensor.half() for name, tensor in official().items()}
    whole = convert({name: tensor.float() for name, tensor in half.items()}, SMALL)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in convert(half, SMALL).items())


def test_everything_wrong_is_named_at_once() -> None:
    state = official()
    state["transformer.layers.1.norm_2.weight"] = state.pop("transformer.layers.1.norm_1.weight")
    state["embedding.special.MASK"] = torch.zeros(5, 4)
    with pytest.raises(ValueError, match="VampNet weights: 3 weights do not fit") as caught:
        convert(state, SMALL)
    text = str(caught.value)
    assert "missing transformer.layers.1.norm_1.weight (12,) (nearest: transformer.layers.1.norm_2.weight)" in text
    assert "unexpected transformer.layers.1.norm_2.weight (12,)" in text
    assert "embedding.special.MASK has shape (5, 4), expected (3, 4)" in text


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_a_file_is_read_whatever_wrapped_the_model(tmp_path: Path, prefix: str) -> None:
    path = write(tmp_path / "c2f.pth", {prefix + name: tensor for name, tensor in official().items()})
    config, state = read_vampnet(path)
    assert config == SMALL
    expected = convert(official(), SMALL)
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    assert VampNetTransformer(config).state_dict().keys() - state.keys() == {"code_tables"}


def test_a_fine_tune_replaces_the_factors(tmp_path: Path) -> None:
    base, tuned = official(0), factors(1)
    path = write(tmp_path / "base.pth", base)
    torch.save({f"_orig_mod.{name}": tensor for name, tensor in tuned.items()}, tmp_path / "lora.pth")
    _, state = read_vampnet(path, lora=tmp_path / "lora.pth")
    expected = convert(base | tuned, SMALL)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    assert not torch.equal(state["blocks.0.query.weight"], convert(base, SMALL)["blocks.0.query.weight"])


def test_low_rank_files_in_the_wrong_place(tmp_path: Path) -> None:
    base = write(tmp_path / "base.pth", official())
    lora = tmp_path / "lora.pth"
    torch.save(factors(), lora)
    with pytest.raises(ValueError, match=r"lora\.pth: holds LoRA factors only .* this file as lora"):
        read_vampnet(lora)
    with pytest.raises(ValueError, match=r"base\.pth: holds whole weights, expected LoRA factors only"):
        read_vampnet(base, lora=base)
    with pytest.raises(ValueError, match="lora: got a file of factors with fold_lora=False"):
        read_vampnet(base, lora=lora, fold_lora=False)
    few = {name: tensor for name, tensor in factors().items() if "layers.0." in name}
    torch.save(few, lora)
    with pytest.raises(ValueError, match=r"lora\.pth: 10 weights do not fit: missing transformer\.layers\.1"):
        read_vampnet(base, lora=lora)


def test_a_codec_is_recognised(tmp_path: Path) -> None:
    path = write(tmp_path / "codec.pth", {"encoder.block.0.weight": torch.zeros(2), "quantizer.x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"codec\.pth: looks like an audio codec; give it as the tokenizer"):
        read_vampnet(path)


# torch.package itself reads from a storage type that torch has deprecated.
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_package_of_code_is_refused(tmp_path: Path) -> None:
    with PackageExporter(str(tmp_path / "codec.pth")) as exporter:
        exporter.save_pickle("LAC", "LAC.pth", {"weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"codec\.pth: a torch\.package, whose pickled code is never run"):
        read_vampnet(tmp_path / "codec.pth")


@pytest.mark.parametrize(
    "content",
    [lambda state: state, lambda state: {"state_dict": state}, lambda state: {"state_dict": state, "metadata": {}}],
)
def test_weights_without_settings(tmp_path: Path, content: Callable[[dict[str, Tensor]], object]) -> None:
    torch.save(content(official()), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth: holds weights without the settings of the model"):
        read_vampnet(tmp_path / "weights.pth")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_vampnet(tmp_path / "nowhere.pth")


def test_code_tables_of_another_codec() -> None:
    state = convert(official(), SMALL)
    for shape in ((2, 7, 4), (3, 8, 4), (3, 7, 5), (7, 4)):
        with pytest.raises(
            ValueError, match="code tables: got .*, expected 3 or more codebooks of 7 codes, 4 wide"
        ) as e:
            with_code_tables(state, torch.zeros(shape), SMALL)
        assert "LAC" not in str(e.value)
    with pytest.raises(
        ValueError, match=r"expected 14 or more codebooks .*VampNet's codec\.pth, a LAC of 14 codebooks"
    ):
        with_code_tables(state, torch.zeros(9, 1024, 8), PUBLISHED["vampnet_c2f"])


def test_code_tables_are_the_first_ones_and_a_copy() -> None:
    tables = torch.randn(5, 7, 4)
    state = with_code_tables(convert(official(), SMALL), tables, SMALL)
    model = VampNetTransformer(SMALL)
    model.load_state_dict(state)
    assert torch.equal(model.code_tables, tables[:3])
    other = make()
    other.set_code_tables(tables)
    assert torch.equal(other.code_tables, tables[:3])
    tables.zero_()
    assert state["code_tables"].any()
    with pytest.raises(ValueError, match="code tables"):
        other.set_code_tables(torch.zeros(3, 7, 3))


def test_contract() -> None:
    model = make()
    assert isinstance(model, MaskedTransformer)
    assert (model.vocab_size, model.num_codebooks, model.conditioning_codebooks) == (7, 3, 1)
    assert (model.num_classes, model.null_class) == (0, False)
    tokens = tokens_of(model)
    with torch.no_grad():
        logits, predicted = model(tokens, Cond(), (10,)), model.predicted_logits(tokens)
    assert logits.shape == (3, 10, 3, 7)
    assert torch.equal(logits[:, :, 1:], predicted)
    assert not logits[:, :, :1].any()


@pytest.mark.parametrize("frames", [1, 2, 200])
def test_any_number_of_frames_and_items_do_not_see_each_other(frames: int) -> None:
    model = make()
    tokens = tokens_of(model, batch=4, frames=frames)
    with torch.no_grad():
        together = model(tokens, Cond())
        alone = torch.cat([model(row[None], Cond()) for row in tokens])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_what_is_hidden_is_not_read() -> None:
    """The table row behind a hidden token has no influence; the learned row has."""
    model = make()
    tokens = torch.full((1, 4, 3), 7)
    with torch.no_grad():
        before = model(tokens, Cond())
        model.code_tables.add_(1.0)
        assert torch.equal(model(tokens, Cond()), before)
        model.mask_rows.add_(1.0)
        assert not torch.allclose(model(tokens, Cond()), before)


def test_tokens_are_checked() -> None:
    model = make()
    for shape in ((1, 4, 2), (1, 0, 3), (4, 3)):
        with pytest.raises(ValueError, match=r"tokens: got .*, expected \[B, T, 3\] with at least one frame"):
            model(torch.zeros(shape, dtype=torch.long), Cond())
    with pytest.raises(ValueError, match=r"axes: got \(5,\), expected \(4,\), the frames of the tokens"):
        model(torch.zeros(1, 4, 3, dtype=torch.long), Cond(), (5,))


def test_a_saved_model_is_the_same(tmp_path: Path) -> None:
    model = make()
    save_module(model, tmp_path / "model")
    back = load_module(tmp_path / "model", VampNetTransformer)
    assert back.config == VampNetConfig(**json.loads(json.dumps(asdict(SMALL)))) == SMALL
    assert torch.equal(back.code_tables, model.code_tables)
    tokens = tokens_of(model)
    with torch.no_grad():
        assert torch.equal(back(tokens, Cond()), model(tokens, Cond()))


def test_dropout_is_for_training() -> None:
    model = make(dropout=0.5)
    tokens = tokens_of(model)
    with torch.no_grad():
        assert torch.equal(model(tokens, Cond()), model(tokens, Cond()))
        model.train()
        assert not torch.equal(model(tokens, Cond()), model(tokens, Cond()))


def test_every_parameter_is_trained_and_the_codec_is_not() -> None:
    model = make().train()
    model(tokens_of(model), Cond()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert not model.code_tables.requires_grad
    assert "code_tables" not in dict(model.named_parameters())


def test_half_precision() -> None:
    model = make()
    tokens = tokens_of(model)
    with torch.no_grad():
        expected = model(tokens, Cond())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(tokens, Cond())
    assert logits.dtype == torch.bfloat16
    assert float((logits - expected).abs().max() / expected.abs().max()) < 0.05


def test_the_sampler_keeps_conditioning_codebooks() -> None:
    model = make()
    tokens = tokens_of(model, batch=2).clamp(max=6)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, :, 0] = False
    logits = model_logits(model, Cond(), axes=(10,))
    found = sample(logits, tokens.masked_fill(mask, 7), mask, steps=4, seeds=[3, 4])
    assert torch.equal(found[:, :, 0], tokens[:, :, 0])
    assert int(found.max()) < 7
    alone = sample(logits, tokens[1:].masked_fill(mask[1:], 7), mask[1:], steps=4, seeds=[4])
    assert torch.equal(alone, found[1:])


@given(frames=st.integers(1, 40))
def test_the_bias_is_that_of_the_distance(frames: int) -> None:
    model = make()
    with torch.no_grad():
        bias = model.position_bias(frames)
        places = torch.arange(frames)
        expected = model.relative_bias(relative_buckets(places[None] - places[:, None]))  # key minus query
    assert torch.equal(bias, expected.permute(2, 0, 1)[None])


@given(distance=st.integers(1, 10_000))
def test_buckets(distance: int) -> None:
    """Sides mirror each other, farther is never a lower bucket, one distance is one bucket below 8, all are one from 128."""
    before, after = (int(bucket) for bucket in relative_buckets(torch.tensor([-distance, distance])))
    assert after == before + 16
    assert before <= int(relative_buckets(torch.tensor([-distance - 1]))) <= 15
    assert (before == distance) if distance < 8 else (8 <= before <= 15)
    if distance >= 128:
        assert before == 15
    assert int(relative_buckets(torch.tensor([0]))) == 0
