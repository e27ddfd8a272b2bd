"""Reading Open-MAGVIT2's checkpoints: full sizes, averaged weights, and the official inflation of an image model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.tokenizers.magvit2.inflation import inflate, inflated_config, inflated_state
from maskgen.tokenizers.magvit2.tokenizer import Magvit2Image, Magvit2Video, Magvit2VideoConfig
from maskgen.tokenizers.published.image import ibq
from maskgen.tokenizers.published.video import open_magvit2 as magvit2
from maskgen.tokenizers.training.discriminators.patch import build_discriminator
from maskgen.tokenizers.training.losses.magvit2 import PUBLISHED_LOSSES
from tests.parity.magvit2.recordings import CLOSE, config_of, names, recording, state
from tests.parity.support import facts

SHAPES = {path.stem.removeprefix("full_shapes_"): path for path in facts("magvit2", "full_shapes_*.json")}
INFLATIONS = names("inflation_*.safetensors")
# Which published models a file of shapes describes.
RELEASES = {
    "image_128_262144": ("imagenet_128_L",),
    "image_256_262144": ("imagenet_256_L", "pretrain256_262144"),
    "image_pretrain256_16384": ("pretrain256_16384",),
    "video_128_262144": ("video_128_262144",),
}


def read(path: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return told


def empty(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_every_file_of_shapes_is_known() -> None:
    assert SHAPES.keys() == RELEASES.keys() | {"ibq_256_16384"}
    assert (
        {name for names in RELEASES.values() for name in names} == magvit2.PUBLISHED.keys() == PUBLISHED_LOSSES.keys()
    )


@pytest.mark.parametrize("file", RELEASES)
def test_full_sizes(file: str) -> None:
    told = read(SHAPES[file])
    official = empty(told["state_dict"])
    for name in RELEASES[file]:
        config = magvit2.PUBLISHED[name]
        assert magvit2.config_from(official) == config
        whole = config_of(told["config"])  # ids in one piece
        assert (config.network, config.bits) == (whole.network, whole.bits)
        kind = Magvit2Video if isinstance(config, Magvit2VideoConfig) else Magvit2Image
        with torch.device("meta"):
            model = kind(config)  # type: ignore[arg-type]
        converted = magvit2.convert(official, config)
        assert {key: tensor.shape for key, tensor in converted.items()} == {
            key: tensor.shape for key, tensor in model.state_dict().items()
        }
        for half in ("encoder", "decoder"):
            count = sum(weight.numel() for weight in getattr(model, half).parameters())
            assert count == told[f"params_{half}"]
        settings = PUBLISHED_LOSSES[name].discriminator
        assert settings is not None
        with torch.device("meta"):
            discriminator = build_discriminator(settings, dims=3 if told["config"]["kind"] == "video" else 2)
        shapes = {f"loss.discriminator.{key}": list(value.shape) for key, value in discriminator.state_dict().items()}
        # Low-passes are constants: theirs are saved, ours are not.
        assert shapes == {key: shape for key, shape in told["discriminator"].items() if not key.endswith(".kernel")}


def test_full_size_of_ibq() -> None:
    told = read(SHAPES["ibq_256_16384"])
    official, config = empty(told["state_dict"]), ibq.PUBLISHED["imagenet256_16384"]
    assert ibq.config_from(official) == config
    converted = ibq.convert(official, config)
    stated = told["config"]
    assert (config.channels, list(config.multipliers), config.res_blocks) == (
        stated["ch"],
        stated["ch_mult"],
        stated["num_res_blocks"],
    )
    assert (config.latent_channels, config.code_dim, config.codebook_size) == (
        stated["z_channels"],
        stated["embed_dim"],
        stated["n_embed"],
    )
    sides = [stated["resolution"] // 2**level for level in range(len(stated["ch_mult"]))]
    assert config.attention_levels == tuple(
        level for level, side in enumerate(sides) if side in stated["attn_resolutions"]
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ibq.IBQTokenizer(config).state_dict().items()}
    assert {name: tensor.shape for name, tensor in converted.items()} == shapes
    assert sum(tensor.numel() for tensor in converted.values()) == sum(tensor.numel() for tensor in official.values())


def fill(kind: type[nn.Module], official: dict[str, Tensor], config: Any) -> Any:
    model = kind(config)
    model.load_state_dict(magvit2.convert(official, config))
    return model.eval()


@pytest.mark.parametrize("name", INFLATIONS)
@torch.no_grad()
def test_averaged_weights(name: str) -> None:
    io, told = recording(name)
    both = state(io, "image_sd/")
    assert any(key.startswith("model_ema.") for key in both)
    image = config_of(told["image"])
    averaged = fill(Magvit2Image, magvit2.averaged(both), image)
    latents = averaged.latents(io["x"])
    torch.testing.assert_close(latents, io["ema_z_image"], **CLOSE)
    torch.testing.assert_close(averaged.pixels(latents.sign()), io["ema_recon_image"], **CLOSE)
    raw = fill(Magvit2Image, both, image)
    torch.testing.assert_close(raw.latents(io["x"]), io["z_image"], **CLOSE)
    assert (io["z_image"] - io["ema_z_image"]).abs().max() > 0.01
    clip = io["x"][:, :, None]
    video = fill(Magvit2Video, magvit2.averaged(state(io, "video_sd/")), config_of(told["video"]))
    torch.testing.assert_close(video.latents(clip), io["ema_z_video"], **CLOSE)


@pytest.mark.parametrize("name", INFLATIONS)
@torch.no_grad()
def test_inflation(name: str) -> None:
    io, told = recording(name)
    config = config_of(told["image"])
    video_config = inflated_config(config)  # type: ignore[arg-type]
    assert video_config == config_of(told["video"])
    for choose in (dict, magvit2.averaged):  # averaged weights are inflated alike
        ours = inflated_state(magvit2.convert(choose(state(io, "image_sd/")), config), video_config)
        theirs = magvit2.convert(choose(state(io, "video_sd/")), video_config)
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    image = fill(Magvit2Image, state(io, "image_sd/"), config)
    video = inflate(image)
    clip = io["x"][:, :, None]
    latents = video.latents(clip)
    torch.testing.assert_close(latents, io["z_video"], **CLOSE)
    torch.testing.assert_close(latents.squeeze(2), image.latents(io["x"]), **CLOSE)
    torch.testing.assert_close(video.latents(io["x5"]), io["z5_video"], **CLOSE)
    frame = video.pixels(latents.sign())
    torch.testing.assert_close(frame, io["recon_video"], **CLOSE)
    torch.testing.assert_close(frame.squeeze(2), io["recon_image"], **CLOSE)


@pytest.mark.parametrize("name", INFLATIONS)
def test_every_key_of_the_inflation_is_read(name: str) -> None:
    known = {"x", "x5", "z_image", "z_video", "z5_video", "recon_image", "recon_video"}
    known |= {"ema_z_image", "ema_recon_image", "ema_z_video"}
    assert {key for key in recording(name)[0] if "_sd/" not in key} == known
