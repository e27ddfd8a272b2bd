"""aMUSEd's transformer: full sizes, conversion and its errors, the model's contract, guidance.

Shapes: B batch, N tokens, K codes, H W grid.
"""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskgen.checkpoint import load_module, save_module
from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.published.amused.blocks import frequency_features
from maskgen.published.amused.sampler import amused_guided_logits
from maskgen.published.amused.transformer import PUBLISHED, UVit2D, UVit2DConfig, config_from, convert, micro_conditions
from tests.core.toys import shaken
from tests.parity.support import LAYOUTS

COUNTS = {"amused-256": 603_537_664, "amused-512": 608_257_792}
PEER_NAMES = {"amused-256": "amused_256_transformer", "amused-512": "amused_512_transformer"}

SMALL = UVit2DConfig(
    codebook_size=11,
    rows=14,
    mask_row=12,
    axes=(4, 6),
    embed_width=12,
    block_width=8,
    width=16,
    text_width=10,
    pooled_width=6,
    micro_width=4,
    blocks=2,
    block_heads=2,
    layers=2,
    heads=4,
    mlp_width=20,
)
SIZES = {"small": SMALL, "halved": dataclasses.replace(SMALL, resample=True)}


def official(name: str) -> str:
    """Our name of a weight -> the published one."""
    return (
        name.replace(".to_out.", ".to_out.0.").replace(".ff.proj.", ".ff.net.0.proj.").replace(".ff.out.", ".ff.net.2.")
    )


def published_state(config: UVit2DConfig) -> dict[str, Tensor]:
    """Weights as a file has them, without memory of their own."""
    with torch.device("meta"):
        model = UVit2D(config)
    return {official(name): torch.zeros(1).expand(tensor.shape) for name, tensor in model.state_dict().items()}


def model_of(config: UVit2DConfig) -> UVit2D:
    torch.manual_seed(0)
    model = shaken(UVit2D(config))
    assert isinstance(model, UVit2D)
    return model


def batch(count: int = 3, places: int = 24, text: int = 5, seed: int = 0) -> tuple[Tensor, Cond]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(12, (count, places, 1), generator=generator)
    cond = Cond(
        context=torch.randn(count, text, 10, generator=generator),
        pooled=torch.randn(count, 6, generator=generator),
        micro=micro_conditions(count, 64, 48),
    )
    return tokens, cond


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size(name: str) -> None:
    """Every name and shape of the published class, the exact count, and sizes that are read back from the shapes."""
    config = PUBLISHED[name]
    state = published_state(config)
    entry = json.loads(LAYOUTS.read_text(encoding="utf-8"))[PEER_NAMES[name]]
    ((span, _),) = entry["repeats"].items()
    first, last = map(int, span.split(".."))
    layers = range(first, last + 1)
    listed = {
        key.replace("{i}", str(i)): tuple(shape) for key, shape in entry["keys"].items() for i in layers
    }  # a key without {i} is the same for every i
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == listed
    assert (len(listed), entry["n_params"]) == (entry["n_keys"], COUNTS[name])
    assert config_from(state) == config
    converted = convert(state, config)
    assert sum(tensor.numel() for tensor in converted.values()) == COUNTS[name]
    with torch.device("meta"):
        model = UVit2D(config)
    model.load_state_dict(converted, assign=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize("size", SIZES)
def test_conversion_keeps_every_number(size: str) -> None:
    model = model_of(SIZES[size])
    state = {official(name): tensor for name, tensor in model.state_dict().items()}
    assert len([name for name in state if ".to_out.0." in name or ".ff.net." in name]) == 2 * 2 * 2 + 2 * 4
    config = config_from(state, heads=4, block_heads=2, micro_width=4, mask_row=12, axes=(4, 6))
    assert config == SIZES[size]
    other = UVit2D(config)
    other.load_state_dict(convert(state, config))
    assert torch.equal(other.eval()(*batch()), model(*batch()))


def test_sizes_that_shapes_do_not_tell_are_the_published_ones() -> None:
    config = config_from(published_state(dataclasses.replace(PUBLISHED["amused-512"], layers=1)))
    assert (config.axes, config.mask_row, config.heads, config.block_heads) == ((32, 32), 8255, 16, 12)


def test_all_that_is_wrong_is_named_at_once_by_published_names() -> None:
    state = published_state(SMALL)
    state.pop("transformer_layers.1.attn2.to_out.0.weight")
    state["transformer_layers.1.attn2.to_out.0.weights"] = torch.zeros(16, 16)
    state["transformer_layers.0.ff.net.0.proj.bias"] = torch.zeros(40)
    state["up_block.res_blocks.1.channelwise_norm.gamma"] = torch.zeros(32)
    wrong = (
        r"aMUSEd transformer: 4 weights do not fit: missing transformer_layers.1.attn2.to_out.0.weight \(16, 16\) "
        r"\(nearest: transformer_layers.1.attn2.to_out.0.weights\); unexpected transformer_layers.0.ff.net.0.proj.bias "
        r"\(40,\); unexpected .*; up_block.res_blocks.1.channelwise_norm.gamma has shape \(32,\), expected \(1, 1, 1, 32\)"
    )
    with pytest.raises(ValueError, match=wrong):
        convert(state, SMALL)


def test_a_layer_that_is_missing_in_the_middle_is_named() -> None:
    state = {
        name: tensor for name, tensor in published_state(SMALL).items() if "transformer_layers.0.attn1" not in name
    }
    config = config_from(state, heads=4, block_heads=2, micro_width=4)
    with pytest.raises(ValueError, match="4 weights do not fit: missing transformer_layers.0.attn1.to_k.weight"):
        convert(state, config)


def test_half_a_resampling_file_is_refused() -> None:
    state = published_state(SIZES["halved"])
    del state["up_block.upsample.conv.weight"]
    config = config_from(state, heads=4, block_heads=2, micro_width=4)
    with pytest.raises(ValueError, match="1 weights do not fit: missing up_block.upsample.conv.weight"):
        convert(state, config)


def test_weights_of_another_family_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not the weights of an aMUSEd transformer: 7 of 7 .*embed.embeddings.weight"):
        config_from({"tok_emb.weight": torch.zeros(3, 3)})
    state = published_state(SMALL)
    with pytest.raises(
        ValueError, match="takes 26 numbers, expected more than 5 x micro_width 256; give the micro_width"
    ):
        config_from(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_row": 10}, "got codebook_size 11, mask_row 10 and rows 14; expected"),
        ({"mask_row": 14}, "got codebook_size 11, mask_row 14 and rows 14; expected"),
        ({"heads": 3}, "width 16 must be a multiple of its heads, got 3"),
        ({"block_heads": 0}, "block_width 8 must be a multiple of its heads, got 0"),
        ({"micro_width": 5}, "micro_width: got 5, expected an even number"),
        ({"axes": (0, 4)}, "expected positive axes"),
        ({"attention": "magic"}, "attention back-end: got 'magic'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize("size", SIZES)
def test_contract(size: str, tmp_path: Path) -> None:
    model = model_of(SIZES[size])
    tokens, cond = batch()
    logits = model(tokens, cond)
    assert logits.shape == (3, 24, 1, 11)
    assert (model.vocab_size, model.num_codebooks, model.num_classes, model.null_class) == (11, 1, 0, False)
    save_module(model, tmp_path)
    again = load_module(tmp_path, MaskedTransformer)  # type: ignore[type-abstract]
    assert again.config == model.config
    assert torch.equal(again(tokens, cond), logits)
    for row in range(3):
        alone = model(tokens[row : row + 1], cond.map(lambda value, row=row: value[row : row + 1]))
        torch.testing.assert_close(alone[0], logits[row], atol=1e-5, rtol=1e-5)


def test_a_hidden_token_reads_the_mask_row_only() -> None:
    model = model_of(SMALL)
    cond = batch()[1]
    tokens = torch.full((3, 24, 1), 11)
    before = model(tokens, cond)
    with torch.no_grad():
        model.embed.embeddings.weight[11] += 1.0  # a spare row, although its number is that of a hidden token
        model.embed.embeddings.weight[13] += 1.0
    assert torch.equal(model(tokens, cond), before)
    with torch.no_grad():
        model.embed.embeddings.weight[12] += torch.arange(12.0)
    assert (model(tokens, cond) - before).abs().max() > 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_every_condition_matters_and_every_weight_is_used(size: str) -> None:
    model = model_of(SIZES[size]).train()
    tokens, cond = batch()
    before = model(tokens, cond)
    for name in ("context", "pooled", "micro"):
        other = dataclasses.replace(cond, **{name: getattr(cond, name) + 1.0})
        assert (model(tokens, other) - before).abs().max() > 1e-3, name
    before.square().sum().backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None or weight.grad.abs().max() == 0]
    assert idle == []


def test_any_grid_runs_and_its_shape_matters() -> None:
    model = model_of(SMALL)
    tokens, cond = batch()
    assert torch.equal(model(tokens, cond), model(tokens, cond, (4, 6)))
    assert not torch.allclose(model(tokens, cond), model(tokens, cond, (6, 4)))
    assert model(batch(places=15)[0], cond, (5, 3)).shape == (3, 15, 1, 11)


def test_equal_widths_have_no_mapper() -> None:
    config = dataclasses.replace(SMALL, block_width=16)
    model = model_of(config)
    assert not [name for name in model.state_dict() if "kv_mapper" in name]
    assert model(*batch()).shape == (3, 24, 1, 11)
    assert [name for name in model_of(SMALL).state_dict() if "kv_mapper" in name]


def test_eager_attention_equals_fused_attention() -> None:
    fused, eager = model_of(SMALL), model_of(dataclasses.replace(SMALL, attention="eager"))
    torch.testing.assert_close(fused(*batch()), eager(*batch()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "axes"),
    [((3, 23, 1), None), ((3, 24, 2), None), ((3, 24), None), ((3, 24, 1), (24,)), ((3, 24, 1), (5, 5))],
)
def test_tokens_that_do_not_fit_the_grid_are_refused(tokens: tuple[int, ...], axes: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match=r"tokens: got .* on a grid .*, expected \[B, H \* W, 1\]"):
        model_of(SMALL)(torch.zeros(tokens, dtype=torch.long), batch()[1], axes)


def test_an_odd_grid_cannot_be_halved() -> None:
    """The published class runs, pads to an even grid and gives logits of another size than the tokens."""
    tokens, cond = batch(places=15)
    with pytest.raises(ValueError, match=r"axes: got \(5, 3\), expected even numbers"):
        model_of(SIZES["halved"])(tokens, cond, (5, 3))


def test_conditions_that_are_missing_or_do_not_fit_are_all_named() -> None:
    model = model_of(SMALL)
    tokens, cond = batch()
    wrong = (
        r"cond.context: got None, expected \(3, 1, 10\); cond.pooled: got \(3, 7\), expected \(3, 6\); "
        r"cond.micro: got \(2, 5\), expected \(3, 5\). .*the empty prompt"
    )
    with pytest.raises(ValueError, match=wrong):
        model(tokens, Cond(pooled=torch.zeros(3, 7), micro=torch.zeros(2, 5)))
    with pytest.raises(ValueError, match=r"cond.context: got \(3, 0, 10\), expected \(3, 1, 10\)"):
        model(tokens, dataclasses.replace(cond, context=torch.zeros(3, 0, 10)))
    with pytest.raises(ValueError, match="context_mask: got one, but aMUSEd attends to the padding"):
        model(tokens, dataclasses.replace(cond, context_mask=torch.ones(3, 5, dtype=torch.bool)))


def test_micro_conditions() -> None:
    assert micro_conditions(2, 512, 256).tolist() == [[512, 256, 0, 0, 6]] * 2
    assert micro_conditions(1, 8, 9, crop=(3, 4), aesthetic_score=5.5).tolist() == [[8, 9, 3, 4, 5.5]]
    features = frequency_features(torch.tensor([[0.0, 2.0]]), 4)
    expected = [[[1, 1, 0, 0], [math.cos(2), math.cos(0.02), math.sin(2), math.sin(0.02)]]]
    torch.testing.assert_close(features, torch.tensor(expected))


def test_guidance_pushes_away_from_the_empty_prompt() -> None:
    model = model_of(SMALL)
    tokens, cond = batch()
    empty = batch(seed=1)[1]
    wanted, without = model(tokens, cond), model(tokens, empty)
    guided = amused_guided_logits(model, cond, empty, scale=3.0)(tokens, 0)
    torch.testing.assert_close(guided, without + 3 * (wanted - without), atol=1e-4, rtol=1e-4)
    assert torch.equal(amused_guided_logits(model, cond, empty, scale=1.0, axes=(4, 6))(tokens, 0), wanted)
    assert (guided - wanted).abs().max() > 0.1
    with pytest.raises(ValueError, match="guidance: got -1, expected 0 or more"):
        amused_guided_logits(model, cond, empty, scale=-1)
    with pytest.raises(ValueError, match="cond.pooled is present in 1 of 2 parts"):
        amused_guided_logits(model, cond, dataclasses.replace(empty, pooled=None))
