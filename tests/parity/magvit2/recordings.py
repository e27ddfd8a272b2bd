"""The recordings of Open-MAGVIT2's official code, read by name, and our tokenizers with their weights.

Files without ``_g32`` in their name were made with 4 groups in every normalisation instead of 32, nothing else.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maskgen.tokenizers.magvit2.tokenizer import Magvit2Image, Magvit2ImageConfig, Magvit2Video, Magvit2VideoConfig
from maskgen.tokenizers.published.video import open_magvit2 as magvit2
from maskgen.tokenizers.quantizers.lookup_free import factor_ids, join_ids
from tests.parity.support import files, load, metadata

CLOSE: dict[str, float] = {"atol": 5e-5, "rtol": 0}  # README: latents, images, activations


@functools.cache
def recording(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of one recording, its parts put together, and its settings."""
    parts = [path for path in files("magvit2", f"{name}*.safetensors") if path.name.split(".")[0] == name]
    merged: dict[str, Tensor] = {}
    for path in parts:
        merged |= load(path)
    told = metadata(parts[0])
    assert len(parts) == told.get("num_shards", 1)
    return merged, told


def names(pattern: str, part: str = "") -> list[str]:
    """Names of all recordings whose files match, those in several files once; ``part`` is cut off their ends."""
    return sorted({path.name.split(".")[0].removesuffix(part) for path in files("magvit2", pattern)})


def reverse_bits(ids: Tensor, bits: int) -> Tensor:
    """Ids with their bits in the opposite order: those of vector-quantize-pytorch, whose first channel counts most."""
    return join_ids(factor_ids(ids, (1,) * bits)[::-1], (1,) * bits)


def state(tensors: Mapping[str, Tensor], prefix: str = "sd/") -> dict[str, Tensor]:
    """Official weights, which are stored as exact float16, in float32."""
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor.float() if tensor.is_floating_point() else tensor.clone() for name, tensor in found.items()}


def config_of(told: Mapping[str, Any]) -> Magvit2ImageConfig | Magvit2VideoConfig:
    """The config that a recording's settings name, with ids in one piece."""
    assert told["n_embed"] == 2 ** told["z_channels"]
    assert told["embed_dim"] == told["z_channels"]
    common: dict[str, Any] = {
        "channels": told["ch"],
        "multipliers": tuple(told["ch_mult"]),
        "res_blocks": told["num_res_blocks"],
        "token_bits": (told["z_channels"],),
        "groups": told["num_groups"],
    }
    if told["kind"] == "image":
        return Magvit2ImageConfig(**common)
    strides = tuple((1, 2, 2) if times == 1 else (2, 2, 2) for times in told["ch_mult"][:-1])
    return Magvit2VideoConfig(**common, strides=strides)


def tokenizer(official: Mapping[str, Tensor], told: Mapping[str, Any]) -> Magvit2Image | Magvit2Video:
    """Ours with official weights; the settings read from the weights are those told."""
    config = config_of(told)
    assert magvit2.config_from(official, parts=1, groups=told["num_groups"]) == config
    model = Magvit2Video(config) if isinstance(config, Magvit2VideoConfig) else Magvit2Image(config)
    model.load_state_dict(magvit2.convert(official, config))
    return model.eval()


def places(ids: Tensor) -> Tensor:
    """Ids on their grid as tokens [B, N, 1]."""
    return ids.flatten(1)[..., None]


def unit(pixels: Tensor) -> Tensor:
    """Pixels of the network's -1..1 in our [0, 1]."""
    return (pixels + 1) / 2


def relative(got: Tensor, expected: Tensor) -> float:
    """Largest difference, in parts of the largest expected number."""
    return float((got - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def activations(model: Magvit2Image | Magvit2Video, half: str, x: Tensor, names: set[str]) -> dict[str, Tensor]:
    """What named modules of the encoder ("enc") or decoder ("dec") give on the way."""
    network = model.encoder if half == "enc" else model.decoder
    modules = dict(network.named_modules())
    seen: dict[str, Tensor] = {}
    hooks = [
        modules[name].register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
        for name in names
    ]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
