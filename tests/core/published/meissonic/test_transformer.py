"""Meissonic's transformer: full sizes, conversion and its errors, the model's contract, types.

Shapes: B batch, N tokens, K codes, H W grid.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskgen.checkpoint import load_module, save_module
from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.published.amused.transformer import micro_conditions
from maskgen.published.meissonic.blocks import rotation, time_features
from maskgen.published.meissonic.sampler import with_time
from maskgen.published.meissonic.transformer import (
    PUBLISHED,
    MeissonicConfig,
    MeissonicTransformer,
    config_from,
    convert,
)
from maskgen.tasks.published.entries.families import looks_like
from tests.core.toys import shaken

SMALL = MeissonicConfig(
    codebook_size=11,
    rows=14,
    mask_row=12,
    axes=(4, 6),
    width=16,
    text_width=10,
    double_layers=2,
    single_layers=2,
    heads=2,
    rotary_widths=(2, 2, 4),
    resample=False,
)
SIZES = {"small": SMALL, "halved": dataclasses.replace(SMALL, resample=True)}


def official(name: str) -> str:
    """Our name of a weight -> the published one."""
    return name.replace(".to_out.", ".to_out.0.").replace(".proj.", ".net.0.proj.").replace(".out.", ".net.2.")


def published_state(config: MeissonicConfig) -> dict[str, Tensor]:
    """Weights as a file has them, without memory of their own."""
    with torch.device("meta"):
        model = MeissonicTransformer(config)
    return {official(name): torch.zeros(1).expand(tensor.shape) for name, tensor in model.state_dict().items()}


def model_of(config: MeissonicConfig) -> MeissonicTransformer:
    torch.manual_seed(0)
    model = shaken(MeissonicTransformer(config))
    assert isinstance(model, MeissonicTransformer)
    return model


def batch(count: int = 3, places: int = 24, text: int = 5, seed: int = 0) -> tuple[Tensor, Cond]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(12, (count, places, 1), generator=generator)
    cond = Cond(
        context=torch.randn(count, text, 10, generator=generator),
        pooled=torch.randn(count, 16, generator=generator),
        micro=micro_conditions(count, 64, 48),
    )
    return tokens, with_time(cond, 7)


@pytest.mark.parametrize("size", SIZES)
def test_conversion_keeps_every_number(size: str) -> None:
    model = model_of(SIZES[size])
    state = {official(name): tensor for name, tensor in model.state_dict().items()}
    assert len([name for name in state if ".to_out.0." in name or ".net." in name]) == 2 * (2 + 8)
    config = config_from(state, rotary_widths=(2, 2, 4), mask_row=12, axes=(4, 6))
    assert config == SIZES[size]
    other = MeissonicTransformer(config)
    other.load_state_dict(convert(state, config))
    assert torch.equal(other.eval()(*batch()), model(*batch()))
    assert looks_like(state) == "meissonic-transformer"


def test_sizes_that_shapes_do_not_tell_are_the_published_ones() -> None:
    one = dataclasses.replace(PUBLISHED["meissonic-1024"], double_layers=1, single_layers=0)
    assert config_from(published_state(one)) == one
    plain = dataclasses.replace(one, resample=False, axes=(32, 32))
    assert config_from(published_state(plain)) == plain


def test_all_that_is_wrong_is_named_at_once_by_published_names() -> None:
    state = published_state(SMALL)
    state.pop("transformer_blocks.1.attn.to_out.0.weight")
    state["transformer_blocks.1.attn.to_out.0.weights"] = torch.zeros(16, 16)
    state["single_transformer_blocks.1.proj_out.weight"] = torch.zeros(16, 32)
    # A pooled text of another width than the blocks, which the published code cannot run.
    state["time_text_embed.text_embedder.linear_1.weight"] = torch.zeros(16, 12)
    wrong = (
        r"Meissonic transformer: 4 weights do not fit: missing transformer_blocks.1.attn.to_out.0.weight \(16, 16\) "
        r"\(nearest: transformer_blocks.1.attn.to_out.0.weights\); unexpected transformer_blocks.1.attn.*weights .*; "
        r"single_transformer_blocks.1.proj_out.weight has shape \(16, 32\), expected \(16, 80\); "
        r"time_text_embed.text_embedder.linear_1.weight has shape \(16, 12\), expected \(16, 16\)"
    )
    config = config_from(state, rotary_widths=(2, 2, 4))
    with pytest.raises(ValueError, match=wrong):
        convert(state, config)


def test_half_a_resampling_file_is_refused() -> None:
    state = published_state(SIZES["halved"])
    del state["up_block.upsample.conv.weight"]
    with pytest.raises(ValueError, match="1 weights do not fit: missing up_block.upsample.conv.weight"):
        convert(state, config_from(state, rotary_widths=(2, 2, 4)))


def test_weights_of_another_family_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"not the weights of a Meissonic transformer: 4 of 4 .*embed.embeddings.weight"
    ):
        config_from({"tok_emb.weight": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match=r"rotary_widths: got \(16, 56, 56\), expected three even numbers that make 8"):
        config_from(published_state(SMALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_row": 10}, "got codebook_size 11, mask_row 10 and rows 14; expected"),
        ({"mask_row": 14}, "got codebook_size 11, mask_row 14 and rows 14; expected"),
        ({"heads": 3}, "width 16 must be a multiple of its heads, got 3"),
        ({"rotary_widths": (2, 3, 3)}, r"rotary_widths: got \(2, 3, 3\), expected three even numbers that make 8"),
        ({"rotary_widths": (2, 2, 2)}, r"rotary_widths: got \(2, 2, 2\), expected three even numbers that make 8"),
        ({"axes": (0, 4)}, "expected positive axes"),
        ({"double_layers": 0}, "expected positive axes, 1 or more double"),
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
    assert (model.context_width, model.pooled_width) == (10, 16)
    save_module(model, tmp_path)
    again = load_module(tmp_path, MaskedTransformer)  # type: ignore[type-abstract]
    assert again.config == model.config
    assert torch.equal(again(tokens, cond), logits)
    for row in range(3):
        torch.testing.assert_close(model(tokens[[row]], cond.rows([row]))[0], logits[row], atol=1e-5, rtol=1e-5)


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
        model.embed.embeddings.weight[12] += torch.arange(16.0)
    assert (model(tokens, cond) - before).abs().max() > 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_every_condition_matters_and_every_weight_is_used(size: str) -> None:
    model = model_of(SIZES[size]).train()
    tokens, cond = batch()
    before = model(tokens, cond)
    for name in ("context", "pooled", "micro"):
        other = dataclasses.replace(cond, **{name: getattr(cond, name) + 1.0})
        assert (model(tokens, other) - before).abs().max() > 1e-3, name
    assert (model(tokens, with_time(cond, 8)) - before).abs().max() > 1e-3
    before.square().sum().backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None or weight.grad.abs().max() == 0]
    assert idle == []


def test_each_row_has_a_time_of_its_own() -> None:
    """Training draws one a row; sampling tells one for all."""
    model = model_of(SMALL)
    tokens, cond = batch()
    mixed = model(tokens, with_time(cond, torch.tensor([3.0, 575.9, 0.0])))
    for row, time in enumerate((3.0, 575.9, 0.0)):
        torch.testing.assert_close(mixed[row], model(tokens, with_time(cond, time))[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_any_grid_runs_and_its_shape_matters(size: str) -> None:
    """Positions are those of the grid that the blocks see; the published code has that at one height only."""
    model = model_of(SIZES[size])
    tokens, cond = batch()
    assert torch.equal(model(tokens, cond), model(tokens, cond, (4, 6)))
    assert not torch.allclose(model(tokens, cond), model(tokens, cond, (6, 4)))
    assert model(batch(places=16)[0], cond, (2, 8)).shape == (3, 16, 1, 11)


def test_rows_turn_one_part_of_a_head_and_columns_another() -> None:
    cos, sin = rotation(2, (2, 3), (2, 2, 4))
    assert (cos.dtype, cos.shape, sin.shape) == (torch.float32, (8, 4), (8, 4))
    assert torch.equal(cos[:3], torch.ones(3, 4)), "the text and the first place do not turn"
    row, column = torch.tensor([0, 0, 0, 1, 1, 1.0]), torch.tensor([0, 1, 2, 0, 1, 2.0])
    angles = torch.stack((0 * row, row, column, column / 100), dim=1)
    torch.testing.assert_close(sin[2:], angles.sin())
    torch.testing.assert_close(cos[2:], angles.cos())


def test_eager_attention_equals_fused_attention() -> None:
    fused, eager = model_of(SMALL), model_of(dataclasses.replace(SMALL, attention="eager"))
    torch.testing.assert_close(fused(*batch()), eager(*batch()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_do_not_round_the_time(dtype: torch.dtype) -> None:
    """1000 x 47 is 47104 in bfloat16 and 1000 x 66 is infinity in float16, where the published code then gives NaN."""
    model, exact = model_of(SMALL).to(dtype), model_of(SMALL)
    tokens, cond = batch()
    seen: list[Tensor] = []
    embedder = model.time_text_embed.timestep_embedder
    embedder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for time in (47, 66, 255):
        logits = model(tokens, with_time(cond, time))
        assert torch.equal(seen[-1], time_features(torch.full((3,), float(time))).to(dtype))
        assert logits.dtype == torch.float32
        reference = exact(tokens, with_time(cond, time))
        assert (logits - reference).abs().mean() < 0.05 * reference.abs().mean()
    rounded = torch.tensor(1000 * 47.0).to(torch.bfloat16).float() / 1000
    assert (exact(tokens, with_time(cond, rounded)) - exact(tokens, with_time(cond, 47))).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("tokens", "axes"),
    [((3, 23, 1), None), ((3, 24, 2), None), ((3, 24), None), ((3, 24, 1), (24,)), ((3, 24, 1), (5, 5))],
)
def test_tokens_that_do_not_fit_the_grid_are_refused(tokens: tuple[int, ...], axes: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match=r"tokens: got .* on a grid .*, expected \[B, H \* W, 1\]"):
        model_of(SMALL)(torch.zeros(tokens, dtype=torch.long), batch()[1], axes)


def test_an_odd_grid_cannot_be_halved() -> None:
    tokens, cond = batch(places=15)
    with pytest.raises(ValueError, match=r"axes: got \(5, 3\), expected even numbers"):
        model_of(SIZES["halved"])(tokens, cond, (5, 3))
    assert model_of(SMALL)(tokens, cond, (5, 3)).shape == (3, 15, 1, 11)


def test_conditions_that_are_missing_or_do_not_fit_are_all_named() -> None:
    model = model_of(SMALL)
    tokens, cond = batch()
    wrong = (
        r"cond.context: got None, expected \(3, 1, 10\); cond.pooled: got \(3, 7\), expected \(3, 16\); "
        r"cond.micro: got \(3, 5\), expected \(3, 6\). .*meissonic_logits and the sampler amused set it.*the empty prompt"
    )
    with pytest.raises(ValueError, match=wrong):
        model(tokens, Cond(pooled=torch.zeros(3, 7), micro=micro_conditions(3, 64, 48)))
    with pytest.raises(ValueError, match=r"cond.context: got \(3, 0, 10\), expected \(3, 1, 10\)"):
        model(tokens, dataclasses.replace(cond, context=torch.zeros(3, 0, 10)))
    with pytest.raises(ValueError, match="context_mask: got one, but Meissonic attends to the padding"):
        model(tokens, dataclasses.replace(cond, context_mask=torch.ones(3, 5, dtype=torch.bool)))
    with pytest.raises(ValueError, match="cond.labels: MeissonicTransformer does not use it"):
        model(tokens, dataclasses.replace(cond, labels=torch.zeros(3, dtype=torch.long)))
