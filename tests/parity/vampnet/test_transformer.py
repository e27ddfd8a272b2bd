"""VampNet's transformers against the official forward pass, from the official files.

Shapes: B batch, T frames, K codebooks, V codes, D width, H heads. Official tokens are [B, K, T], logits [B, V, T P].
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.precision import fast_matmul
from maskgen.published.vampnet.blocks import VampNetConfig, relative_buckets
from maskgen.published.vampnet.transformer import VampNetTransformer, convert, read_vampnet, with_code_tables
from tests.parity.support import check_kinds, files, load, metadata, own_set

FORWARD = files("vampnet", "forward*.safetensors")[0]
WEIGHTS = {path.name.split("_")[0]: path for path in files("vampnet", "*_official_weights.pth")}
PARAMS = {path.name.split("_")[0]: path for path in files("vampnet", "*_params.safetensors") if "lac" not in path.name}
each_model = pytest.mark.parametrize("kind", WEIGHTS)
RECORDED = load(FORWARD)
CLOSE = {"atol": 5e-5, "rtol": 0.0}


@pytest.fixture(autouse=True)
def exact_products() -> None:
    torch.set_float32_matmul_precision("highest")


@cache
def model(kind: str) -> VampNetTransformer:
    config, state = read_vampnet(WEIGHTS[kind])
    built = VampNetTransformer(config)
    built.load_state_dict(with_code_tables(state, RECORDED["codebooks"], config))
    return built.eval()


def recorded(kind: str, name: str) -> Tensor:
    return RECORDED[f"{kind}.{name}"]


def frames_last(tokens: Tensor) -> Tensor:
    """Official [B, K, T] <-> ours [B, T, K]."""
    return tokens.transpose(1, 2).contiguous()


def official_logits(ours: Tensor) -> Tensor:
    """[B, T, P, V] as [B, V, T P], position t P + p."""
    return ours.flatten(1, 2).transpose(1, 2)


def test_both_models_are_there() -> None:
    assert set(WEIGHTS) == set(PARAMS)
    check_kinds("vampnet", WEIGHTS, {"coarse", "c2f"})


@each_model
def test_settings_come_from_the_file(kind: str) -> None:
    sizes, kwargs, config = metadata(FORWARD)["config"], metadata(PARAMS[kind])["kwargs"], model(kind).config
    assert (config.width, config.layers, config.heads) == (sizes["dim"], sizes["layers"], sizes["heads"])
    assert (config.vocab_size, config.code_width) == (sizes["vocab"], sizes["lat"])
    assert config.num_codebooks == kwargs["n_codebooks"] == recorded(kind, "codes").shape[1]
    assert config.conditioning_codebooks == kwargs["n_conditioning_codebooks"]
    assert config.dropout == kwargs["dropout"]


@each_model
def test_both_containers_hold_the_same_model(kind: str) -> None:
    config: VampNetConfig = model(kind).config
    ours = model(kind).state_dict()
    for name, tensor in convert(load(PARAMS[kind]), config).items():
        assert torch.equal(tensor, ours[name]), name


@each_model
def test_embedding(kind: str) -> None:
    tokens = frames_last(recorded(kind, "codes_masked"))
    with torch.no_grad():
        latents = model(kind).latents(tokens)
        embedded = model(kind).embed(latents)
    assert torch.equal(latents, frames_last(recorded(kind, "latents")))
    torch.testing.assert_close(embedded, frames_last(recorded(kind, "embedded")), **CLOSE)


@each_model
def test_codes_and_mask_give_the_masked_codes(kind: str) -> None:
    codes, mask = recorded(kind, "codes"), recorded(kind, "mask").bool()
    assert torch.equal(codes.masked_fill(mask, model(kind).vocab_size), recorded(kind, "codes_masked"))
    assert not mask[:, : model(kind).conditioning_codebooks].any()


@each_model
def test_logits_and_every_block(kind: str) -> None:
    tokens = frames_last(recorded(kind, "codes_masked"))
    seen: list[Tensor] = []
    handles = [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in model(kind).blocks]
    with torch.no_grad():
        logits = model(kind).predicted_logits(tokens)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(torch.stack(seen), recorded(kind, "activations"), **CLOSE)
    torch.testing.assert_close(official_logits(logits), recorded(kind, "logits"), **CLOSE)


@each_model
def test_contract_and_fast_products(kind: str) -> None:
    """``forward`` puts zeros where nothing is predicted; the fast CPU path gives the same numbers."""
    tokens, conditioning = frames_last(recorded(kind, "codes_masked")), model(kind).conditioning_codebooks
    with torch.inference_mode(), fast_matmul():
        logits = model(kind)(tokens, Cond(), (tokens.shape[1],))
    assert logits.shape == (*tokens.shape, model(kind).vocab_size)
    assert not logits[:, :, :conditioning].any()
    torch.testing.assert_close(official_logits(logits[:, :, conditioning:]), recorded(kind, "logits"), **CLOSE)


def test_more_frames_than_in_training() -> None:
    tokens = frames_last(RECORDED["long.codes_masked"])
    assert tokens.shape[1] == metadata(FORWARD)["config"]["long"]
    assert tokens.shape[1] > 128 or not own_set("vampnet")  # beyond the last bucket
    assert (tokens == model("coarse").vocab_size).any()
    with torch.no_grad():
        logits = model("coarse").predicted_logits(tokens)
    torch.testing.assert_close(official_logits(logits), RECORDED["long.logits"], **CLOSE)


def test_relative_positions() -> None:
    assert torch.equal(relative_buckets(RECORDED["relpos.positions"]), RECORDED["relpos.buckets"])
    expected = RECORDED["relpos.bias"].squeeze(1)
    with torch.no_grad():
        bias = model("coarse").position_bias(expected.shape[-1])
    assert torch.equal(bias[0], expected)


@each_model
def test_merged_low_rank_factors(kind: str) -> None:
    merged = [name for name in RECORDED if name.startswith(f"{kind}.merged.")]
    assert merged
    for name in merged:
        _, _, _, _, number, _, layer, _ = name.split(".")
        assert layer == "w_qs"
        ours = model(kind).state_dict()[f"blocks.{number}.query.weight"]
        torch.testing.assert_close(ours, RECORDED[name], atol=1e-6, rtol=0)
    _, plain = read_vampnet(WEIGHTS[kind], fold_lora=False)
    stored = load(PARAMS[kind])
    for number in range(len(model(kind).blocks)):
        name = f"blocks.{number}.query.weight"
        assert torch.equal(plain[name], stored[f"transformer.layers.{number}.self_attn.w_qs.weight"])
        assert not torch.allclose(plain[name], model(kind).state_dict()[name])


def test_order_of_the_flat_tokens() -> None:
    """Losses and sampling flatten time first, codebook fastest: ours, [B, T, K].flatten(1)."""
    flat = {name: tensor for name, tensor in RECORDED.items() if name.startswith("flatten.")}
    assert flat
    for name, expected in flat.items():
        kind, grid = name.removeprefix("flatten.").split("_")
        assert torch.equal(frames_last(recorded(kind, grid)).flatten(1), expected)


@each_model
def test_files_are_named_as_they_are(kind: str, tmp_path: Path) -> None:
    """The recorded file with the prefix of a compiled model reads as the same model."""
    content = torch.load(WEIGHTS[kind], weights_only=True)
    content["state_dict"] = {f"_orig_mod.{name}": value for name, value in content["state_dict"].items()}
    torch.save(content, tmp_path / "weights.pth")
    config, state = read_vampnet(tmp_path / "weights.pth")
    assert config == model(kind).config
    assert all(torch.equal(value, model(kind).state_dict()[name]) for name, value in state.items())
