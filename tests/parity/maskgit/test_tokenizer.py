"""The image tokenizer against outputs of the official MaskGIT code.

Shapes: B batch, H W pixels, h w token grid, D width of a code; the fixtures are channels last.
"""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig
from maskgen.tokenizers.quantizers.vector import QuantizerConfig, build_quantizer
from tests.parity.maskgit.weights import recorded_params, tokenizer_config, tokenizer_state_dict
from tests.parity.support import check_kinds, facts, files, load, metadata, recordings

SETS = sorted(path.name.removesuffix("_io.safetensors") for path in recordings("maskgit", "vqgan*_io.safetensors"))
CLOSE: dict[str, float] = {"atol": 5e-5, "rtol": 1e-5}  # README: encoder and decoder


def params_of(name: str) -> dict[str, Tensor]:
    """All official weights of one set."""
    return recorded_params(name)[0]


def read(name: str, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    (path,) = files("maskgit", f"{name}_{kind}.safetensors")
    return load(path), metadata(path)


def close(got: Tensor, expected: Tensor) -> None:
    """Equal but for float32 noise, relative to the largest entry: sums of both signs cancel."""
    torch.testing.assert_close(got, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)


def first(x: Tensor) -> Tensor:
    """Channels last to channels first."""
    return x.permute(0, 3, 1, 2).contiguous()


def last(x: Tensor) -> Tensor:
    """Channels first to channels last."""
    return x.permute(0, 2, 3, 1)


@functools.cache
def make(name: str) -> VQGAN:
    """The model with the set's weights; whatever the metadata says is checked against what the weights say."""
    _, settings = read(name, "io")
    params = params_of(name)
    config = tokenizer_config(params, activation=settings["activation_fn"])
    assert config == VQGANConfig(
        channels=settings["filters"],
        multipliers=tuple(settings["channel_multipliers"]),
        res_blocks=settings["num_res_blocks"],
        quantizer=QuantizerConfig(codebook_size=settings["codebook_size"], dim=settings["embedding_dim"]),
        downsample="conv" if settings["conv_downsample"] else "average",
        activation=settings["activation_fn"],
    )
    assert settings["norm_type"] == "GN"
    with torch.device("meta"):  # drawing weights that are replaced at once takes longer than the tests
        model = VQGAN(config)
    model.load_state_dict(tokenizer_state_dict(params), assign=True)
    return model.eval()


def official_modules(model: VQGAN) -> dict[str, nn.Module]:
    """Every module whose output the fixtures store, by its official name."""
    named: dict[str, nn.Module] = {}
    for part, net, resample in (
        ("encoder", model.encoder, [d.conv for d in model.encoder.downs if hasattr(d, "conv")]),
        ("decoder", model.decoder, [u.conv for u in model.decoder.ups]),
    ):
        convs = [net.conv_in, *resample, net.conv_out]
        named[f"{part}_mid/{part}"] = net
        named[f"{part}_mid/{part}/GroupNorm_0"] = net.norm_out
        named |= {f"{part}_mid/{part}/Conv_{i}": conv for i, conv in enumerate(convs)}
        named |= {f"{part}_mid/{part}/ResBlock_{i}": block for i, block in enumerate(net.blocks)}
    return named


def test_there_are_sets() -> None:
    assert SETS
    assert any("_params" in path.name for path in files("maskgit", "vqgan*"))


@pytest.mark.parametrize("name", SETS)
def test_encoder_and_ids(name: str) -> None:
    model = make(name)
    io, _ = read(name, "io")
    checked = 0
    for prefix in ("", "odd/"):
        if prefix + "image" not in io:
            continue
        image = first(io[prefix + "image"])
        ids = io[prefix + "ids"].long()
        with torch.no_grad():
            torch.testing.assert_close(last(model.encoder(image)), io[prefix + "encoder_raw"], **CLOSE)
            tokens = model.encode(image)
        assert model.axes(image.shape) == tuple(ids.shape[1:])
        assert torch.equal(tokens, ids.reshape(len(ids), -1, 1))
        checked += 1
    assert checked


@pytest.mark.parametrize("name", SETS)
def test_decoder(name: str) -> None:
    model = make(name)
    io, _ = read(name, "io")
    pairs = [("ids", "reconstruction"), ("random_ids", "decoded_random_ids"), ("odd/ids", "odd/reconstruction")]
    pairs = [pair for pair in pairs if pair[0] in io]
    assert len(pairs) >= 2
    for ids_key, image_key in pairs:
        ids = io[ids_key].long()
        axes = tuple(ids.shape[1:])
        tokens = ids.reshape(len(ids), -1, 1)
        with torch.no_grad():
            torch.testing.assert_close(last(model.decode(tokens, axes)), io[image_key], **CLOSE)
        if ids_key == "ids":
            assert torch.equal(last(model.quantizer.lookup(tokens, axes)), io["quantized"])


@pytest.mark.parametrize("name", SETS)
def test_squared_distances(name: str) -> None:
    model = make(name)
    io, _ = read(name, "io")
    rows = io["encoder_raw"].flatten(end_dim=2)
    close(model.quantizer._distances(rows), io["sqdist_official"])


@pytest.mark.parametrize("name", SETS)
def test_every_layer(name: str) -> None:
    model = make(name)
    stored, _ = read(name, "intermediates")
    io, _ = read(name, "io")
    seen: dict[str, Tensor] = {}
    modules = official_modules(model)
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, key=official: seen.__setitem__(key, out))
        for official, module in modules.items()
    ]
    # The first picture's are stored, or more: as many as there are.
    (count,) = {len(output) for output in stored.values()}
    image = first(io["image"][:count])
    with torch.no_grad():
        model.decode(model.encode(image), model.axes(image.shape))
    for hook in hooks:
        hook.remove()
    assert set(stored) == set(modules)
    for key, expected in stored.items():
        torch.testing.assert_close(last(seen[key]), expected, **CLOSE, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", SETS)
def test_quantizer_losses(name: str) -> None:
    io, settings = read(name, "io")
    codebook = params_of(name)["params/quantizer/codebook"]
    # Variants are "softmax", "argmax" and "softmax_T5": form of the entropy, and its temperature where it is not 0.01.
    variants = sorted({key.split("/")[1] for key in io if key.startswith("train/")})
    check_kinds("maskgit", {variant.split("_T")[0] for variant in variants}, {"softmax", "argmax"})
    gradients = 0
    for variant in variants:
        form, _, temperature = variant.partition("_T")
        config = QuantizerConfig(
            codebook_size=settings["codebook_size"],
            dim=settings["embedding_dim"],
            entropy_loss=form,
            entropy_temperature=float(temperature or 0.01),
        )
        model = build_quantizer(config)
        model.load_state_dict({"codebook": codebook})
        raw = first(io["encoder_raw"]).requires_grad_(True)
        out = model(raw)
        group = {key.split("/")[2]: value for key, value in io.items() if key.startswith(f"train/{variant}/")}
        got = {f"{term}_loss": value for term, value in out.terms.items()} | {"quantizer_loss": out.loss.detach()}
        for key, expected in group.items():
            if not key.startswith("grad_"):
                torch.testing.assert_close(got[key].reshape(1), expected, atol=1e-5, rtol=1e-5)
        close(out.latents.detach(), first(io["quantized"]))
        if "grad_raw" in group:
            out.loss.backward()
            assert raw.grad is not None
            close(last(raw.grad), group["grad_raw"])
            close(model.codebook.grad, group["grad_codebook"])
            gradients += 1
    assert gradients == len({key.split("/")[1] for key in io if key.endswith("/grad_raw")}) > 0


def test_names_without_the_prefix_and_broken_weights() -> None:
    name = SETS[0]
    params = params_of(name)
    bare = {key.removeprefix("params/"): value for key, value in params.items()}
    assert tokenizer_config(bare) == tokenizer_config(params)
    ours, again = tokenizer_state_dict(params), tokenizer_state_dict(bare)
    assert all(torch.equal(ours[key], again[key]) for key in ours)
    broken = dict(bare)
    del broken["decoder/GroupNorm_0/scale"]
    broken["encoder/Conv_9/what"] = torch.zeros(1)
    broken["decoder/Conv_0/bias"] = torch.zeros(1)
    wrong = (
        r"3 weights do not fit: missing decoder/GroupNorm_0/scale \(\d+,\).*unexpected encoder/Conv_9/what \(1,\); "
        r"decoder/Conv_0/bias has shape \(1,\), expected \(\d+,\)"
    )
    with pytest.raises(ValueError, match=wrong):
        tokenizer_state_dict(broken, tokenizer_config(bare))


def test_full_size_parameters() -> None:
    """Every array of the released models has a place of its shape; their number of weights is the published one."""
    found: list[Path] = facts("maskgit", "full_shapes_imagenet*.json")
    for path in found:
        (official,) = (group for name, group in json.loads(path.read_text()).items() if "tokenizer" in name)
        empty = {key: torch.empty(value["shape"], device="meta") for key, value in official["params"].items()}
        config = tokenizer_config(empty)
        assert config == VQGANConfig()
        with torch.device("meta"):
            model = VQGAN(config)
        assert sum(weight.numel() for weight in model.parameters()) == official["param_count"]
        assert set(tokenizer_state_dict(empty)) == set(model.state_dict())
        assert len(model.state_dict()) == official["num_arrays"]
