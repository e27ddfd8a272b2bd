"""The PyTorch port of MaskGIT's tokenizer against its official outputs.

Shapes: B batch, h w token grid, V codes.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from maskgen.tokenizers.image.vqgan import VQGAN, Decoder, Encoder, VQGANConfig
from maskgen.tokenizers.published.image.maskgit_torch import Layout, config_from, convert, official_name
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from tests.parity.support import files, load, metadata, recordings

SETS = recordings("families", "maskgit_vqgan_torch*.io.safetensors")
IDS = [path.name.removesuffix(".io.safetensors") for path in SETS]
LAYOUT = Layout(level="block.", middle="", run_order=False)
IMAGES: dict[str, float] = {"atol": 1e-4, "rtol": 0}
CLOSE: dict[str, float] = {"atol": 5e-5, "rtol": 1e-5}


def weights(path: Path) -> dict[str, Tensor]:
    """All official weights that belong to an io file, in float32."""
    kind = path.name.removesuffix(".io.safetensors")
    found: dict[str, Tensor] = {}
    for part in files("families", f"{kind}.weights*.safetensors"):
        found |= {name: weight.float() for name, weight in load(part).items()}
    return found


@functools.cache
def make(path: Path) -> VQGAN:
    state = weights(path)
    config = config_from(state)
    model = VQGAN(config)
    model.load_state_dict(convert(state, config))
    return model.eval()


def settings(path: Path) -> dict[str, Any]:
    found = metadata(path)
    assert found["pixel_range"] == [0, 1]
    return found["config"]


def named_modules(encoder: Encoder, decoder: Decoder, config: VQGANConfig, layout: Layout) -> dict[str, nn.Module]:
    """Modules by official name; a level or middle is its last module, a level ending with the resampling if it has one."""
    named: dict[str, nn.Module] = {"encoder": encoder, "decoder": decoder}
    last = len(config.multipliers) - 1
    for part, net in (("encoder", encoder), ("decoder", decoder)):
        named |= {f"{part}.conv_in": net.conv_in, f"{part}.norm_out": net.norm_out}
        for index, block in enumerate(net.blocks):
            weight = official_name(f"{part}.blocks.{index}.conv1.weight", config, layout)
            name = weight.removesuffix(".conv1.weight")
            named[name] = named[name.rpartition(f".{layout.level}" if layout.level in name else ".")[0]] = block
    for level, down in enumerate(encoder.downs):
        named[f"encoder.down.{level}"] = down
        named[f"encoder.down.{level}.down_conv"] = down
    for run, up in enumerate(decoder.ups):
        named[f"decoder.up.{run if layout.run_order else last - run}"] = up
    return named


def check_blocks(io: dict[str, Tensor], modules: dict[str, nn.Module], run: Callable[[], object]) -> None:
    """Compare every recorded block output with what the module of that name gives while ``run`` runs."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, key=name: seen.__setitem__(key, out))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    blocks = {key.removeprefix("block/"): value for key, value in io.items() if key.startswith("block/")}
    assert blocks
    for name, expected in blocks.items():
        got = seen[name][: expected.shape[0], : expected.shape[1]]
        torch.testing.assert_close(got, expected, **IMAGES, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("path", SETS, ids=IDS)
def test_settings_are_read_from_the_weights(path: Path) -> None:
    stated = settings(path)
    assert config_from(weights(path)) == VQGANConfig(
        channels=stated["hidden_channels"],
        multipliers=tuple(stated["channel_mult"]),
        res_blocks=stated["num_res_blocks"],
        quantizer=QuantizerConfig(codebook_size=stated["num_embeddings"], dim=stated["embedding_dim"]),
    )


@pytest.mark.parametrize("path", SETS, ids=IDS)
def test_encode(path: Path) -> None:
    model, io = make(path), load(path)
    with torch.no_grad():
        tokens = model.encode(io["x"])
        axes = model.axes(io["x"].shape)
        rows = rearrange(model.encoder(io["x"]), "b d h w -> (b h w) d")
        distances = model.quantizer._distances(rows)
    assert axes == tuple(io["ids"].shape[1:])
    assert torch.equal(tokens.reshape(io["ids"].shape), io["ids"])
    assert torch.equal(tokens.squeeze(2), io["ids_flat"])
    torch.testing.assert_close(model.quantizer.lookup(tokens, axes), io["z_q"], atol=0, rtol=0)
    soft = (-distances).softmax(-1).unflatten(0, io["soft_code_t1"].shape[:2])  # at temperature 1
    torch.testing.assert_close(soft, io["soft_code_t1"], **CLOSE)
    near = distances.topk(2, largest=False).values.diff().flatten()
    torch.testing.assert_close(near, io["id_margin"].flatten(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("path", SETS, ids=IDS)
def test_decode(path: Path) -> None:
    """Ours is not clamped; the Pipeline clamps, and then it is the official image."""
    model, io = make(path), load(path)
    with torch.no_grad():
        for ids, image in (("ids", "recon"), ("ids2", "image2")):
            axes = tuple(io[ids].shape[1:])
            ours = model.decode(io[ids].flatten(1)[..., None], axes)
            torch.testing.assert_close(ours.clamp(0, 1), io[image], **IMAGES)
            if ids == "ids":
                torch.testing.assert_close(ours, io["recon_unclamped"], **IMAGES)


@pytest.mark.parametrize("path", SETS, ids=IDS)
def test_every_block(path: Path) -> None:
    model, io = make(path), load(path)
    modules = named_modules(model.encoder, model.decoder, model.config, LAYOUT)
    check_blocks(io, modules, lambda: model.decode(model.encode(io["x"]), model.axes(io["x"].shape)))


@pytest.mark.parametrize("path", SETS, ids=IDS)
def test_every_recorded_tensor_is_compared(path: Path) -> None:
    known = {"x", "ids", "ids_flat", "ids2", "z_q", "id_margin", "soft_code_t1", "recon", "recon_unclamped", "image2"}
    assert {key for key in load(path) if not key.startswith("block/")} == known
