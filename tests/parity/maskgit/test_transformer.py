"""The ``bert`` transformer and its loss against the official MaskGIT code.

Shapes: B batch, S sequence with the class prefix, R table rows.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.conditioning import Cond
from maskgen.models.bert import BertTransformer
from maskgen.objectives.loss import masked_cross_entropy
from tests.parity.maskgit.weights import recorded_params, transformer_config, transformer_state_dict
from tests.parity.support import check_count, facts, files, load, metadata

LOGITS: dict[str, float] = {"atol": 1e-4, "rtol": 1e-5}  # README; intermediates are no larger
GRADIENTS: dict[str, float] = {"atol": 5e-5, "rtol": 1e-5}

# "transformer_io" and "transformer_loss" belong to "transformer_params"; another set has another stem.
SETS = sorted({path.name.partition("_params")[0] for path in files("maskgit", "transformer*_params*.safetensors")})
TREES = [
    (path, name)
    for path in facts("maskgit", "full_shapes_*.json")
    for name in json.loads(path.read_text(encoding="utf-8"))
    if name.startswith("transformer")
]


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def read(name: str, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    (path,) = files("maskgit", f"{name}_{kind}.safetensors")
    return load(path), metadata(path)


def make(name: str) -> BertTransformer:
    """The model with the set's weights; what the weights say is checked against the metadata."""
    params, settings = recorded_params(name)
    config = transformer_config(params, vocab_size=settings["codebook_size"])
    assert config.num_classes == settings["num_class"]
    assert config.heads == settings["num_attention_heads"]
    assert config.width == settings["hidden_size"]
    assert config.layers == settings["num_hidden_layers"]
    assert config.mlp_width == settings["intermediate_size"]
    model = BertTransformer(config)
    model.load_state_dict(transformer_state_dict(params))
    assert model.position_embedding.num_embeddings == settings["max_position_embeddings"]
    assert model.word_embedding.num_embeddings == settings["vocab_size"]
    return model.eval()


def rows(model: BertTransformer, ids: Tensor, mask_id: int) -> Tensor:
    """Official ids to table rows: the mask id -1 reads the last row there."""
    return torch.where(ids == mask_id, model.mask_row, ids).long()


def official_modules(model: BertTransformer) -> dict[str, nn.Module]:
    """Every module whose output the fixtures may store, by its official name."""
    named: dict[str, nn.Module] = {
        "Embed_0": model.embedding_norm,
        "MlmLayer_0/mlm_dense": model.head,
        "MlmLayer_0/mlm_ln": model.head_norm,
    }
    for index, block in enumerate(model.blocks):
        layer = f"TransformerLayer_{index}"
        named[f"{layer}/Attention_0/self_attention"] = block.out
        named[f"{layer}/Attention_0"] = block.attention_norm
        named[f"{layer}/Mlp_0/intermediate_output"] = block.expand  # the dense layer alone, before GELU
        named[f"{layer}/Mlp_0"] = block.mlp_norm
    return named


def test_sets_are_found() -> None:
    assert SETS
    assert TREES


@pytest.mark.parametrize("name", SETS)
def test_table_logits(name: str) -> None:
    model = make(name)
    io, settings = read(name, "io")
    inputs = [key.removeprefix("input_ids_") for key in io if key.startswith("input_ids_")]
    check_count("maskgit", inputs, 2)
    for key in inputs:
        with torch.no_grad():
            logits = model.table_logits(rows(model, io[f"input_ids_{key}"], settings["mask_token_id"]))
        torch.testing.assert_close(logits, io[f"logits_{key}"], **LOGITS, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", SETS)
def test_forward_predicts_the_codebook_slice(name: str) -> None:
    model = make(name)
    io, settings = read(name, "io")
    codes, compared = settings["codebook_size"], []
    for key in (key for key in io if key.startswith("input_ids_")):
        ids = io[key].long()
        if ids.shape[1] != settings["max_position_embeddings"]:
            continue
        tokens = ids[:, 1:, None]
        tokens = torch.where(tokens == settings["mask_token_id"], model.vocab_size, tokens)
        with torch.no_grad():
            logits = model(tokens, Cond(labels=ids[:, 0] - codes))
        expected = io[key.replace("input_ids_", "logits_")][:, 1:, None, :codes]
        torch.testing.assert_close(logits, expected, **LOGITS)
        compared.append(key)
    check_count("maskgit", compared, 2)


@pytest.mark.parametrize("name", SETS)
def test_every_layer(name: str) -> None:
    model = make(name)
    io, settings = read(name, "io")
    modules, seen = official_modules(model), {}
    for official, module in modules.items():
        module.register_forward_hook(lambda _m, _i, out, key=official: seen.__setitem__(key, out))
    inputs = sorted({key.split("/")[0].removeprefix("mid_") for key in io if key.startswith("mid_")})
    assert inputs
    for name in inputs:
        stored = {
            key.removeprefix(f"mid_{name}/"): value for key, value in io.items() if key.startswith(f"mid_{name}/")
        }
        assert set(stored) == set(modules)
        with torch.no_grad():
            model.table_logits(rows(model, io[f"input_ids_{name}"], settings["mask_token_id"]))
        for key, expected in stored.items():
            torch.testing.assert_close(seen[key], expected, **LOGITS, msg=lambda text, key=key: f"{key}: {text}")


def official_loss(model: BertTransformer, stored: dict[str, Tensor], settings: dict[str, Any], name: str) -> Tensor:
    """One stored loss by its name, "<columns>_ls<smoothing>_<which positions>"."""
    columns, smoothing, which = name.split("_")
    weights = stored["weights_all" if which == "all" else f"weights_{which}_only"]
    assert set(weights.unique().tolist()) <= {0.0, 1.0}
    mask, labels = weights.bool(), stored["labels"].long()
    ids = rows(model, stored["input_ids"], settings["mask_token_id"])
    if columns == "codebookonly":
        logits = model.table_logits(ids, settings["codebook_size"])
        labels = labels.masked_fill(~mask, 0)  # a class id has no column; these positions weigh nothing
    else:
        assert columns == "fullvocab"
        logits = model.table_logits(ids)
    return masked_cross_entropy(logits, labels, mask, label_smoothing=float(smoothing.removeprefix("ls")))


@pytest.mark.parametrize("name", SETS)
def test_losses(name: str) -> None:
    model = make(name)
    stored, settings = read(name, "loss")
    names = [key.removeprefix("loss/") for key in stored if key.startswith("loss/")]
    plain = "sequence_cross_entropy_fullvocab"
    check_count("maskgit", set(names) - {plain}, 3)
    for key in set(names) - {plain}:
        with torch.no_grad():
            loss = official_loss(model, stored, settings, key)
        torch.testing.assert_close(loss.reshape(1), stored[f"loss/{key}"], atol=1e-5, rtol=1e-5, msg=key)
    if plain in names:
        ids, labels = rows(model, stored["input_ids"], settings["mask_token_id"]), stored["labels"].long()
        with torch.no_grad():
            loss = masked_cross_entropy(
                model.table_logits(ids), labels, torch.ones_like(labels, dtype=torch.bool), normalize="batch"
            )
        torch.testing.assert_close(loss.reshape(1), stored[f"loss/{plain}"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SETS)
def test_gradients_of_every_parameter(name: str) -> None:
    model = make(name)
    stored, settings = read(name, "loss")
    variants = sorted({key.split("/")[1] for key in stored if key.startswith("grad/")})
    assert variants
    for variant in variants:
        prefix = f"grad/{variant}/"
        expected = transformer_state_dict(
            {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
        )
        model.zero_grad()
        official_loss(model, stored, settings, variant).backward()
        parameters = dict(model.named_parameters())
        assert set(parameters) == set(expected)
        for key, parameter in parameters.items():
            torch.testing.assert_close(
                parameter.grad, expected[key], **GRADIENTS, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.parametrize(("path", "name"), TREES, ids=lambda value: getattr(value, "stem", value))
def test_full_size_trees_convert(path: Path, name: str) -> None:
    tree = json.loads(path.read_text(encoding="utf-8"))[name]
    sizes = tree["config"]
    params = {key: torch.empty(entry["shape"], device="meta") for key, entry in tree["params"].items()}
    config = transformer_config(params)
    assert config.width == sizes["hidden"]
    assert config.layers == sizes["layers"]
    assert config.heads == sizes["heads"]
    assert config.mlp_width == sizes["mlp"]
    with torch.device("meta"):
        model = BertTransformer(config)
    assert model.position_embedding.num_embeddings == sizes["seq_len"]
    assert model.word_embedding.num_embeddings == sizes["vocab_size"]
    state = transformer_state_dict(params)
    assert {key: tensor.shape for key, tensor in state.items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }
    assert sum(parameter.numel() for parameter in model.parameters()) == tree["param_count"]
    assert len(params) == tree["num_arrays"]


@pytest.mark.parametrize("name", SETS)
def test_all_that_is_wrong_is_named_at_once(name: str) -> None:
    params, _ = recorded_params(name)
    bare = {key.removeprefix("params/"): value for key, value in params.items()}
    converted = transformer_state_dict(bare)
    assert all(torch.equal(converted[key], value) for key, value in transformer_state_dict(params).items())
    bare.pop("Embed_0/embeddings_ln/scale")
    bare.pop("TransformerLayer_0/Attention_0/self_attention/key/bias")
    bare["MlmLayer_0/extra"] = torch.zeros(1)
    bare["TransformerLayer_0/Mlp_0/layer_output/bias"] = torch.zeros(3)
    wrong = (
        r"4 weights do not fit: missing Embed_0/embeddings_ln/scale \(\d+,\).*"
        r"missing TransformerLayer_0/Attention_0/self_attention/key/bias \(\d+, \d+\).*"
        r"unexpected MlmLayer_0/extra \(1,\); TransformerLayer_0/Mlp_0/layer_output/bias has shape \(3,\), expected"
    )
    with pytest.raises(ValueError, match=wrong):
        transformer_state_dict(bare)


@pytest.mark.parametrize("name", SETS)
def test_a_table_or_grid_that_does_not_fit_is_refused(name: str) -> None:
    params, settings = recorded_params(name)
    codes, tokens = settings["codebook_size"], settings["max_position_embeddings"] - 1
    assert transformer_config(params, vocab_size=codes, axes=(1, tokens)).axes == (1, tokens)
    with pytest.raises(ValueError, match="give the vocab_size and num_classes"):
        transformer_config(params, vocab_size=codes, num_classes=settings["num_class"] + 1)
    with pytest.raises(ValueError, match=f"got {settings['vocab_size']} rows, expected {settings['vocab_size']} codes"):
        transformer_config(params, vocab_size=settings["vocab_size"])
    with pytest.raises(ValueError, match="give the grid as axes"):
        transformer_config(params, vocab_size=codes, axes=(tokens + 1,))
