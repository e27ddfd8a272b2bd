"""The video tokenizer against outputs of the official MAGVIT code.

Shapes: B batch, T frames, H W pixels, t h w token grid, D width of a code; the fixtures are channels last.
"""

import functools
import json
import re

import pytest
import torch
from torch import Tensor, nn

from maskgen.tokenizers.published.video.magvit import PUBLISHED, config_from, convert
from maskgen.tokenizers.video.frames import FrameVQ
from maskgen.tokenizers.video.vq3d import VQ3D
from tests.parity.magvit.models import first, last, read_config, recording, tokenizer, tokenizer_config
from tests.parity.magvit.weights import FRAME_TOKENIZERS, tokenizer_state_dict
from tests.parity.support import check_kinds, facts, files

SETS = sorted({path.name.split(".")[0] for path in files("magvit", "tok_*.safetensors")})
FULL = facts("magvit", "full_shapes_vq*.json")


def tolerance(name: str) -> dict[str, float]:
    """README: 5e-5, and 2e-4 for the set with a group that is close to constant."""
    return {"atol": 2e-4 if name == "tok_gn" else 5e-5, "rtol": 1e-4}


@functools.cache
def make(name: str) -> VQ3D:
    params, _, settings = recording(name)
    return tokenizer(params, settings["vqvae"])


def flat(ids: Tensor) -> Tensor:
    return ids.long().reshape(len(ids), -1, 1)


def test_all_kinds_are_there() -> None:
    """Each way to build the network is recorded; a set that goes missing must not pass in silence."""
    configs = [make(name).config for name in SETS]
    check_kinds("magvit", {config.norm for config in configs}, {"group", "layer"})
    check_kinds("magvit", {config.downsample for config in configs}, {"average", "conv"})
    check_kinds("magvit", {config.upsample for config in configs}, {"nearest", "deconv"})
    check_kinds("magvit", {config.activation for config in configs}, {"swish", "relu"})
    check_kinds("magvit", {config.padding for config in configs}, {"zeros", "reflect"})
    check_kinds("magvit", {config.normalize_latents for config in configs}, {False, True})
    check_kinds("magvit", {type(make(name)) for name in SETS}, {VQ3D, FrameVQ})
    check_kinds("magvit", {config.encoder_blocks == config.decoder_blocks for config in configs}, {False, True})


@pytest.mark.parametrize("name", SETS)
def test_encoder_and_ids(name: str) -> None:
    model, (_, io, _) = make(name), recording(name)
    video = first(io["video"])
    with torch.no_grad():
        latents = model._latents(video)
        tokens = model.encode(video)
    torch.testing.assert_close(last(latents), io["encoder_out"], **tolerance(name))
    assert torch.equal(tokens, flat(io["ids"]))
    axes = tuple(io["ids"].shape[1:])
    assert model.axes(video.shape) == axes
    assert model.latent_frames(video.shape[2]) == axes[0]
    assert model.decoded_frames(axes[0]) == io["recon_forward"].shape[1]


@pytest.mark.parametrize("name", SETS)
def test_decoder(name: str) -> None:
    """``decode`` looks raw codes up; the pass through the straight-through quantizer gives the same clip."""
    model, (_, io, _) = make(name), recording(name)
    with torch.no_grad():
        for ids, recon in (("ids", "recon_from_ids"), ("random_ids", "recon_from_random_ids")):
            video = model.decode(flat(io[ids]), io[ids].shape[1:])
            torch.testing.assert_close(last(video), io[recon], **tolerance(name))
        assert torch.equal(last(model.quantizer.lookup(flat(io["ids"]), io["ids"].shape[1:])), io["quantized"])
        torch.testing.assert_close(
            last(model(first(io["video"])).reconstruction), io["recon_forward"], **tolerance(name)
        )


@pytest.mark.parametrize("name", SETS)
def test_quantizer(name: str) -> None:
    model, (_, io, _) = make(name), recording(name)
    encoded = first(io["encoder_out"])
    rows = model.quantizer._rows(encoded)
    torch.testing.assert_close(rows, io["raw"].flatten(1, 3), atol=1e-6, rtol=1e-6)
    nearest = model.quantizer._distances(rows.flatten(0, 1)).sort(dim=-1)
    assert torch.equal(nearest.indices[:, 0], io["ids"].long().flatten())
    margin = (nearest.values[:, 1] - nearest.values[:, 0]).reshape(io["margin"].shape)
    torch.testing.assert_close(margin, io["margin"], atol=5e-5, rtol=1e-4)
    with torch.no_grad():
        out = model.quantizer(encoded)
    torch.testing.assert_close(last(out.latents), io["quantized"], atol=1e-6, rtol=1e-5)
    got = {f"train_{term}_loss": value for term, value in out.terms.items()} | {"train_quantizer_loss": out.loss}
    assert got.keys() == {key for key in io if key.startswith("train_")}
    for key, value in got.items():
        torch.testing.assert_close(
            value.reshape(1), io[key], atol=1e-5, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


def official_modules(model: VQ3D, norm: str) -> dict[str, nn.Module]:
    """Every module whose output the recordings describe, by its official name."""
    named: dict[str, nn.Module] = {}
    for part, net, resample in (
        ("encoder", model.encoder, [down for down in model.encoder.downs if hasattr(down, "conv")]),
        ("decoder", model.decoder, list(model.decoder.ups)),
    ):
        convs = [net.conv_in, *resample, net.conv_out]
        named |= {part: net, f"{part}/{norm}_0": net.norm_out}
        named |= {f"{part}/Conv_{index}": conv for index, conv in enumerate(convs)}
        for index, block in enumerate(net.blocks):
            inner = {"": block, f"/{norm}_0": block.norm1, "/Conv_0": block.conv1, f"/{norm}_1": block.norm2}
            inner |= {"/Conv_1": block.conv2, "/Conv_2": block.shortcut}
            named |= {f"{part}/ResBlock_{index}{leaf}": module for leaf, module in inner.items() if module is not None}
    return named


@pytest.mark.parametrize("name", [name for name in SETS if any("stat/" in key for key in recording(name)[1])])
def test_every_layer(name: str) -> None:
    """Mean, deviation, four values of the last place of the first clip, and shape of what each layer gives."""
    model, (_, io, _) = make(name), recording(name)
    modules = official_modules(model, "GroupNorm" if model.config.norm == "group" else "LayerNorm")
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, key=official: seen.__setitem__(key, last(out)))
        for official, module in modules.items()
    ]
    with torch.no_grad():
        model(first(io["video"]))
    for hook in hooks:
        hook.remove()
    stored = {key.removeprefix("stat/"): value for key, value in io.items() if key.startswith("stat/")}
    assert {re.sub(r"#\d+$", "", key) for key in stored} == set(modules)
    for key, expected in stored.items():
        out = seen[re.sub(r"#\d+$", "", key)]
        assert list(out.shape) == expected[-5:].tolist()
        got = torch.cat([out.mean()[None], out.std(correction=0)[None], out[0, -1, -1, -1, :4]])
        torch.testing.assert_close(got, expected[:-5], **tolerance(name), msg=lambda text, key=key: f"{key}: {text}")


def test_names_without_the_prefix_and_broken_weights() -> None:
    params, _, settings = recording(SETS[0])
    norm = "GroupNorm" if settings["vqvae"]["norm_type"] == "GN" else "LayerNorm"
    config = read_config(params, settings["vqvae"])
    ours = tokenizer_state_dict(params, config)
    again = tokenizer_state_dict({f"params/{key}": value for key, value in params.items()}, config)
    assert all(torch.equal(ours[key], again[key]) for key in ours)
    assert all(array.is_contiguous() for array in ours.values())
    broken = dict(params)
    del broken[f"decoder/{norm}_0/scale"]
    broken["encoder/Conv_9/what"] = torch.zeros(1)
    broken["decoder/Conv_0/bias"] = torch.zeros(1)
    wrong = (
        rf"3 weights do not fit: missing decoder/{norm}_0/scale \(\d+,\).*unexpected encoder/Conv_9/what \(1,\); "
        r"decoder/Conv_0/bias has shape \(1,\), expected \(\d+,\)"
    )
    with pytest.raises(ValueError, match=wrong):
        convert(broken, config)


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_full_size_parameters(path) -> None:
    """Every array of the official models has a place of its shape; their numbers of weights are the official ones."""
    official = json.loads(path.read_text())
    empty = {key: torch.empty(shape, device="meta") for key, shape in official["shapes"].items()}
    config = config_from(empty)
    assert config == tokenizer_config(official["vqvae"])
    two_dimensional = official["vqvae"]["architecture"] == "2dcnn"
    assert config in (FRAME_TOKENIZERS if two_dimensional else PUBLISHED).values()
    with torch.device("meta"):
        model = (FrameVQ if two_dimensional else VQ3D)(config)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts == official["num_params_by_top_module"]
    assert sum(counts.values()) == official["num_params"]
    converted = convert(empty, config)
    assert {key: array.shape for key, array in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert len(converted) == len(official["shapes"])
    if "input" in official:
        frames, height, width = official["input"][1:4]
        assert model.axes((1, 3, frames, height, width)) == (4, 16, 16)


def test_every_published_size_is_recorded() -> None:
    configs = [tokenizer_config(json.loads(path.read_text())["vqvae"]) for path in FULL]
    assert all(config in configs for config in (*PUBLISHED.values(), *FRAME_TOKENIZERS.values()))
