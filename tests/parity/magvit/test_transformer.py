"""The transformer with MAGVIT's prefixes, vocabulary and segments against the official code.

Shapes: B batch, S sequence with the prefix, R table rows.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.published.magvit import PUBLISHED, MagvitTransformer, config_from, convert
from maskgen.sampling.commit import Prompt
from tests.parity.support import check_count, check_kinds, facts, files, load, metadata, own_set, recordings

LOGITS: dict[str, float] = {"atol": 5e-5, "rtol": 1e-4}  # README
FORWARDS = recordings("magvit", "transformer_*.safetensors")
TREES = facts("magvit", "full_shapes_transformer_*.json")


@pytest.fixture(autouse=True)
def full_precision() -> None:
    torch.set_float32_matmul_precision("highest")


def parameters(path: Path) -> dict[str, Tensor]:
    """Official weights; float16 in the file holds the exact float32 values."""
    return {name: value.float() for name, value in load(path).items() if name.startswith("params/")}


def special(settings: dict[str, Any]) -> int:
    """Rows of the table for prompts and the like: more than one where there are several tasks."""
    return int(settings["vocab_size"] - settings["codebook"] - settings["num_classes"] - 1)


MULTITASK = [path for path in FORWARDS if special(metadata(path)) > 1]


def grid(settings: dict[str, Any]) -> tuple[int, ...]:
    """Axes that give the recorded number of positions.

    The single-task file has the table of a single task (one special id) but two ids before the grid: read as one more token.
    """
    axes = tuple(settings["transformer"]["latent_shape"])
    return axes if special(settings) > 1 else (settings["total_seq_length"] - 1,)


def make(path: Path) -> tuple[BertTransformer, dict[str, Any]]:
    settings, params = metadata(path), parameters(path)
    sizes = settings["transformer"]
    config = config_from(params, vocab_size=settings["codebook"], axes=grid(settings))
    assert (config.width, config.mlp_width) == (sizes["hidden_size"], sizes["mlp_dim"])
    assert (config.layers, config.heads) == (sizes["num_layers"], sizes["num_heads"])
    assert config.num_classes == settings["num_classes"]
    model = (MagvitTransformer if sizes.get("use_condition_segment") else BertTransformer)(config)
    model.load_state_dict(convert(params, config))
    assert model.word_embedding.num_embeddings == settings["vocab_size"]
    assert model.position_embedding.num_embeddings == settings["total_seq_length"]
    return model.eval(), settings


def table_logits(model: BertTransformer, io: dict[str, Tensor]) -> Tensor:
    ids = io["io/input_ids"].long()
    rows = torch.where(ids < 0, ids + model.word_embedding.num_embeddings, ids)
    assert torch.equal(rows, io["io/input_ids_wrapped"].long())
    with torch.no_grad():
        if isinstance(model, MagvitTransformer):
            return model.segment_logits(rows, io["io/segment_ids"].long())
        return model.table_logits(rows)


def official_modules(model: BertTransformer) -> dict[str, nn.Module]:
    """Every module whose output is recorded, by its official name; what has none here is checked by ``embedded``."""
    named: dict[str, nn.Module] = {
        "BertEmbed_0": model.dropout,
        "BertEmbed_0/Dropout_0": model.dropout,
        "BertEmbed_0/embeddings_ln": model.embedding_norm,
        "BertMlmLayer_0/mlm_ln": model.head_norm,
        "BertMlmLayer_0/mlm_dense": model.head,
    }
    for index, block in enumerate(model.blocks):
        named[f"BertLayer_{index}"] = named[f"BertLayer_{index}/BertMlp_0"] = block.mlp_norm
        named[f"BertLayer_{index}/BertAttention_0"] = block.attention_norm
    return named


def embedded(model: BertTransformer, io: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {
        "BertEmbed_0/word_embeddings": model.word_embedding(io["io/input_ids_wrapped"].long()),
        "BertEmbed_0/position_embeddings": model.position_embedding.weight[None],
    }
    if isinstance(model, MagvitTransformer):
        found["BertEmbed_0/segment_embeddings"] = model.segment_embedding(io["io/segment_ids"].long())
    return found


def test_recordings_are_found() -> None:
    kinds = {path.stem.removeprefix("transformer_") for path in FORWARDS}
    check_kinds("magvit", kinds, {"multitask", "singletask", "segments", "eps"})
    check_count("magvit", TREES, 7)
    assert MULTITASK
    segmented = [path for path in FORWARDS if metadata(path)["transformer"].get("use_condition_segment")]
    segments = {value for path in segmented for value in load(path)["io/segment_ids"].unique().tolist()}
    assert segments == {0, 1} or not own_set("magvit")


@pytest.mark.parametrize("path", FORWARDS, ids=lambda path: path.stem)
def test_logits_over_the_whole_table(path: Path) -> None:
    model, _ = make(path)
    io = load(path)
    # Embeddings 500 times smaller show a wrong epsilon (1e-6 is off by 6e-3).
    torch.testing.assert_close(table_logits(model, io), io["io/logits"], **LOGITS)


@pytest.mark.parametrize("path", FORWARDS, ids=lambda path: path.stem)
def test_every_recorded_module(path: Path) -> None:
    model, _ = make(path)
    io = load(path)
    stored = {name.removeprefix("io/act/"): value for name, value in io.items() if name.startswith("io/act/")}
    modules, seen = official_modules(model), embedded(model, io)
    for name, module in modules.items():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.setdefault(name, out))
    seen["BertMlmLayer_0"] = seen["BertMlmLayer_0/mlm_bias"] = table_logits(model, io)
    assert set(stored) == set(seen)
    for name, expected in stored.items():
        torch.testing.assert_close(seen[name], expected, **LOGITS, msg=lambda text, name=name: f"{name}: {text}")


def as_batch(model: BertTransformer, io: dict[str, Tensor]) -> tuple[Tensor, Cond]:
    """The recorded ids as tokens and conditions; rows that are no prompt, class or code get ones that are."""
    ids, codes = io["io/input_ids"].long(), model.vocab_size
    labels = ids[:, 1] - codes
    labels = labels.masked_fill(labels == model.num_classes, NO_LABEL)
    tokens = ids[:, 2:, None]
    return torch.where(tokens == -1, codes, tokens), Cond(task=-3 - ids[:, 0], labels=labels)


@pytest.mark.parametrize("path", MULTITASK, ids=lambda path: path.stem)
def test_forward_makes_the_official_sequence(path: Path) -> None:
    """Tokens, a task and a label become the recorded ids, and the logits are the codebook's part of the recorded ones."""
    model, settings = make(path)
    io = load(path)
    tokens, cond = as_batch(model, io)
    assert torch.equal(model.table_ids(tokens, cond), io["io/input_ids_wrapped"].long())
    if isinstance(model, MagvitTransformer):
        # Recorded with segment 1 on some of the prefix, where COMMIT has none (mask_traces): so without its logits.
        assert io["io/segment_ids"][:, :2].any()
        return
    with torch.no_grad():
        logits = model(tokens, cond)
    torch.testing.assert_close(logits, io["io/logits"][:, 2:, None, : settings["codebook"]], **LOGITS)


def test_task_prompts_are_the_official_ids() -> None:
    (path,) = files("magvit", "mask_traces.safetensors")
    official = metadata(path)["tokens"]
    named = {
        **{"full_generation": Prompt.FULL_GENERATION, "frame_prediction": Prompt.FRAME_PREDICTION},
        **{"frame_interpolation": Prompt.FRAME_INTERPOLATION, "outpainting_c": Prompt.OUTPAINTING},
    }
    assert Prompt.INPAINTING == 4  # -7, which the released inpainting tasks do not use: they say -6
    named["inpainting_c"] = Prompt.OUTPAINTING
    check_kinds("magvit", named.keys() & official.keys(), named)
    for name in named.keys() & official.keys():
        assert official[name] == -3 - named[name]


def tree(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    stored = json.loads(path.read_text(encoding="utf-8"))
    return stored, {name: torch.empty(shape, device="meta") for name, shape in stored["shapes"].items()}


@pytest.mark.parametrize("path", TREES, ids=lambda path: path.stem)
def test_full_size_trees_convert(path: Path) -> None:
    stored, params = tree(path)
    sizes = stored["transformer"]
    prompts = 16 if stored["seq"] - math.prod(sizes["latent_shape"]) == 2 else 1
    codes = stored["vocab_size"] - stored["num_classes"] - 1 - prompts  # 4096 for H, else 1024
    config = config_from(params, vocab_size=codes)
    assert config.axes == tuple(sizes["latent_shape"])
    assert config.num_classes == stored["num_classes"]
    assert config.dropout == sizes["dropout_rate"] == sizes["attention_dropout_rate"]
    with torch.device("meta"):
        model = BertTransformer(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == stored["num_params"]
    assert model.word_embedding.num_embeddings == stored["vocab_size"]
    assert model.position_embedding.num_embeddings == stored["seq"]
    converted = convert(params, config)
    assert {name: value.shape for name, value in converted.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


def test_published_settings_are_those_of_the_trees() -> None:
    found = {}
    for path in TREES:
        _, data, *kind, size = path.stem.removeprefix("full_shapes_").split("_")
        if size != "H":  # cannot be built by the official code
            name = "-".join(["magvit", data, *(part for part in kind if part != "cg"), size.lower()])
            found[name] = config_from(tree(path)[1])
    assert found == PUBLISHED


def test_all_that_is_wrong_is_named_at_once() -> None:
    path = MULTITASK[0]
    params, codes = parameters(path), metadata(path)["codebook"]
    width, last = (metadata(path)["transformer"][name] for name in ("hidden_size", "num_layers"))
    bare = {name.removeprefix("params/"): value for name, value in params.items()}
    config = config_from(bare, vocab_size=codes, axes=grid(metadata(path)))
    assert all(torch.equal(value, convert(params, config)[name]) for name, value in convert(bare, config).items())
    bare.pop("BertEmbed_0/embeddings_ln/scale")
    bare["BertMlmLayer_0/extra"] = torch.zeros(1)
    bare[f"BertLayer_{last - 1}/BertMlp_0/layer_output/bias"] = torch.zeros(3)
    wrong = (
        rf"MAGVIT transformer: 3 weights do not fit: missing BertEmbed_0/embeddings_ln/scale \({width},\).*"
        r"unexpected BertMlmLayer_0/extra \(1,\); "
        rf"BertLayer_{last - 1}/BertMlp_0/layer_output/bias has shape \(3,\), expected \({width},\)"
    )
    with pytest.raises(ValueError, match=wrong):
        config_from(bare, vocab_size=codes)
    with pytest.raises(ValueError, match=wrong):
        convert(bare, config)


def test_a_table_or_grid_that_does_not_fit_is_refused() -> None:
    path = MULTITASK[0]
    params, settings = parameters(path), metadata(path)
    positions, rows = settings["total_seq_length"], settings["vocab_size"]
    with pytest.raises(
        ValueError, match=f"positions: got {positions}, expected 1 or 2 more than the 1024 tokens of the"
    ):
        config_from(params)
    with pytest.raises(
        ValueError, match=f"table: got {rows} rows, expected 1024 codes, 1 row for no class, 16 special"
    ):
        config_from(params, axes=grid(settings))
    config = config_from(params, vocab_size=settings["codebook"], axes=grid(settings))
    plain = BertConfig(  # neither prompts nor classes of this model
        vocab_size=config.vocab_size,
        width=config.width,
        heads=config.heads,
        layers=config.layers,
        mlp_width=config.mlp_width,
        axes=config.axes,
    )
    with pytest.raises(ValueError, match="weights do not fit"):
        convert(params, plain)
