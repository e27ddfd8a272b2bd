"""VQGANs with attention (CompVis, LlamaGen, diffusers) against outputs of the official code.

Shapes: B batch, H W pixels, h w token grid, N = h * w, D width of a code.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.tokenizers.published.image import amused, llamagen, taming
from maskgen.tokenizers.published.image.attention_vqgan import AttentionVQGAN
from maskgen.tokenizers.quantizers.vector import QuantizerConfig, VectorQuantizer
from tests.parity.support import check_kinds, files, load, metadata, recordings

CLOSE: dict[str, float] = {"atol": 1e-4, "rtol": 0}  # README: images and latents
# Every recorded quantity; a set with another one fails rather than leaving it unread.
KEYS = {"x", "ids", "ids_flat", "ids_v1", "ids_if_not_normalised", "id_margin", "z_q", "z_st"}
KEYS |= {"recon", "recon_clipped", "ids2", "image2"}


@dataclass(frozen=True)
class Family:
    """How one family is read: its module, its class, its config from the recorded settings."""

    module: ModuleType
    kind: type[AttentionVQGAN]
    config: Callable[[Mapping[str, Any], int], Any]


def taming_config(settings: Mapping[str, Any], groups: int) -> taming.TamingConfig:
    dd = settings["ddconfig"]
    assert not dd["double_z"]
    sides = [dd["resolution"] // 2**level for level in range(len(dd["ch_mult"]))]
    return taming.TamingConfig(
        channels=dd["ch"],
        multipliers=tuple(dd["ch_mult"]),
        res_blocks=dd["num_res_blocks"],
        latent_channels=dd["z_channels"],
        code_dim=settings["embed_dim"],
        codebook_size=settings["n_embed"],
        attention_levels=tuple(level for level, side in enumerate(sides) if side in dd["attn_resolutions"]),
        groups=groups,
    )


def llamagen_config(settings: Mapping[str, Any], groups: int) -> llamagen.LlamaGenConfig:
    assert settings["codebook_l2_norm"]
    return llamagen.LlamaGenConfig(
        channels=settings["ch"],
        multipliers=tuple(settings["ch_mult"]),
        res_blocks=settings["num_res_blocks"],
        latent_channels=settings["z_channels"],
        code_dim=settings["codebook_embed_dim"],
        codebook_size=settings["codebook_size"],
        groups=groups,
    )


def amused_config(settings: Mapping[str, Any], groups: int) -> amused.AmusedVQConfig:
    return amused.AmusedVQConfig(
        widths=tuple(settings["block_out_channels"]),
        res_blocks=settings["layers_per_block"],
        latent_channels=settings["latent_channels"],
        code_dim=settings.get("vq_embed_dim") or settings["latent_channels"],
        codebook_size=settings["num_vq_embeddings"],
        middle_attention=settings["mid_block_add_attention"],
        groups=groups,
    )


FAMILIES = {
    "taming_vqgan": Family(taming, taming.TamingVQGAN, taming_config),
    "llamagen_vq": Family(llamagen, llamagen.LlamaGenVQ, llamagen_config),
    "diffusers_vqmodel": Family(amused, amused.AmusedVQ, amused_config),
}
SETS = [path for path in recordings("families", "*.io.safetensors") if path.name.startswith(tuple(FAMILIES))]
each_set = pytest.mark.parametrize("path", SETS, ids=lambda path: path.name.split(".")[0])


def prefix(path: Path) -> str:
    (found,) = (start for start in FAMILIES if path.name.startswith(start))
    return found


def family(path: Path) -> Family:
    return FAMILIES[prefix(path)]


def test_all_families_are_there() -> None:
    check_kinds("families", {prefix(path) for path in SETS}, FAMILIES)


def weights(path: Path) -> dict[str, Tensor]:
    """The official state dict that belongs to one io file, all parts merged, in float32."""
    stem = path.name.removesuffix(".io.safetensors")
    parts = files("families", f"{stem}.weights*.safetensors")
    assert metadata(parts[0])["parts"] == len(parts)
    merged: dict[str, Tensor] = {}
    for part in parts:
        merged |= load(part)
    return {name: tensor.float() for name, tensor in merged.items()}


@functools.cache
def make(path: Path) -> AttentionVQGAN:
    """The model with the set's weights; the settings read from the weights are those of the metadata."""
    told, state, of = metadata(path), weights(path), family(path)
    groups = told["norm_groups"] if "norm_groups" in told else told["config"]["norm_num_groups"]
    config = of.config(told["config"], groups)
    assert of.module.config_from(state, groups=groups) == config
    with torch.device("meta"):
        model = of.kind(config)
    model.load_state_dict(of.module.convert(state, config), assign=True)
    assert model.stride == (told["factor"],) * 2
    assert model.signed == (told["pixel_range"] == [-1, 1])
    return model.eval()


def places(latents: Tensor) -> Tensor:
    """[B, D, h, w] -> [B * h * w, D]."""
    return latents.permute(0, 2, 3, 1).flatten(end_dim=2)


def flat(ids: Tensor) -> Tensor:
    """[B, h, w] -> [B, N, 1]."""
    return ids.reshape(len(ids), -1, 1)


def unit(path: Path, images: Tensor) -> Tensor:
    """Images of the family's range in [0, 1]."""
    low, high = metadata(path)["pixel_range"]
    return (images - low) / (high - low)


@each_set
def test_every_key_is_known(path: Path) -> None:
    assert {key for key in load(path) if not key.startswith("block/")} <= KEYS


@each_set
@torch.no_grad()
def test_ids(path: Path) -> None:
    model, io = make(path), load(path)
    ids, grid = io["ids"], tuple(io["ids"].shape[1:])
    latents = model.latents(io["x"])
    tokens = model.quantizer.encode(latents)
    assert torch.equal(tokens, flat(ids))
    assert torch.equal(tokens.flatten(), io["ids_flat"])  # what the official encode returns
    if "ids_v1" in io:  # the older quantizer: the same ids as a column
        assert torch.equal(tokens.reshape(-1, 1), io["ids_v1"])
    rows = model.quantizer._rows(latents).flatten(end_dim=1)
    first, second = model.quantizer._distances(rows).topk(2, largest=False).values.unbind(-1)
    torch.testing.assert_close((second - first).reshape(ids.shape), io["id_margin"], **CLOSE)
    # Through the contract, which takes [0, 1]: rescaling there and back costs a rounding, so ties may fall differently.
    images = unit(path, io["x"])
    assert model.axes(images.shape) == grid
    clear = flat(io["id_margin"] > 1e-4)
    assert clear.float().mean() > 0.9
    assert torch.equal(model.encode(images)[clear], tokens[clear])


@each_set
@torch.no_grad()
def test_code_vectors(path: Path) -> None:
    model, io = make(path), load(path)
    vectors = model.quantizer.lookup(flat(io["ids"]), io["ids"].shape[1:])
    exact = not isinstance(model, llamagen.LlamaGenVQ)  # there each row is divided by its length
    torch.testing.assert_close(vectors, io["z_q"], atol=0 if exact else 1e-6, rtol=0)
    if "z_st" in io:
        torch.testing.assert_close(model.quantizer(model.latents(io["x"])).latents, io["z_st"], atol=1e-6, rtol=0)
    assert exact or "z_st" in io


@each_set
@torch.no_grad()
def test_images(path: Path) -> None:
    model, io = make(path), load(path)
    for ids, key in ((io["ids"], "recon"), (io["ids2"], "image2")):
        axes = tuple(ids.shape[1:])
        torch.testing.assert_close(model.pixels(model.quantizer.lookup(flat(ids), axes)), io[key], **CLOSE)
        torch.testing.assert_close(model.decode(flat(ids), axes), unit(path, io[key]), **CLOSE)
    if "recon_clipped" in io:
        ours = model.decode(flat(io["ids"]), io["ids"].shape[1:]).clamp(0, 1)
        torch.testing.assert_close(ours, io["recon_clipped"], **CLOSE)


@each_set
@torch.no_grad()
def test_every_block(path: Path) -> None:
    model, io, names = make(path), load(path), family(path).module.NAMES
    levels = len(model.encoder.down)
    modules = {names.official(name, levels): module for name, module in model.named_modules()}
    stored = {key.removeprefix("block/"): value for key, value in io.items() if key.startswith("block/")}
    assert stored
    seen: dict[str, Tensor] = {}
    hooks = [
        modules[name].register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
        for name in stored
    ]
    try:
        model.latents(io["x"])
        model.pixels(model.quantizer.lookup(flat(io["ids"]), io["ids"].shape[1:]))
    finally:
        for hook in hooks:
            hook.remove()
    for name, expected in stored.items():
        got = seen[name][: expected.shape[0], : expected.shape[1]]  # large ones are stored in part
        torch.testing.assert_close(got, expected, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("path", [path for path in SETS if family(path).module is llamagen], ids=lambda path: path.name)
@torch.no_grad()
def test_llamagen_without_its_normalisation_gives_other_ids(path: Path) -> None:
    model, io = make(path), load(path)
    size, dim = model.quantizer.codebook.shape
    plain = VectorQuantizer(QuantizerConfig(codebook_size=size, dim=dim))
    plain.load_state_dict(model.quantizer.state_dict())
    ids = plain.encode(model.latents(io["x"])).reshape(io["ids"].shape)
    assert torch.equal(ids, io["ids_if_not_normalised"])
    assert not torch.equal(ids, io["ids"])
