"""Open-MAGVIT2's networks against their official outputs: blocks, image tokenizers, video tokenizers.

Shapes: B batch, T frames, H W pixels, t h w token grid, d bits of an id.
"""

import functools
import re

import pytest
import torch
from torch import Tensor

from maskgen.tokenizers.magvit2.layers import (
    AdaptiveGroupNorm,
    CausalConv3d,
    Magvit2Network,
    SpaceToDepthUpsample,
    depth_to_space,
)
from maskgen.tokenizers.magvit2.tokenizer import Magvit2Image, Magvit2Video
from tests.parity.magvit2.recordings import (
    CLOSE,
    activations,
    names,
    places,
    recording,
    relative,
    state,
    tokenizer,
    unit,
)
from tests.parity.support import check_count, check_kinds

IMAGES = names("image_*.safetensors")
VIDEOS = names("video_*_io*.safetensors", "_io")
EXACT: dict[str, float] = {"atol": 1e-5, "rtol": 0}


@functools.cache
def image_model(name: str) -> Magvit2Image:
    io, told = recording(name)
    model = tokenizer(state(io), told)
    assert isinstance(model, Magvit2Image)
    return model


@functools.cache
def video_model(name: str) -> Magvit2Video:
    model = tokenizer(state(recording(f"{name}_weights")[0]), recording(f"{name}_io")[1])
    assert isinstance(model, Magvit2Video)
    return model


def check_activations(model: Magvit2Image | Magvit2Video, io: dict[str, Tensor], x: Tensor, codes: Tensor) -> None:
    """Every recorded output of a module, some of them of the first item alone."""
    for half, start in (("enc", x), ("dec", codes)):
        stored = {
            key.removeprefix(f"act/{half}/"): value for key, value in io.items() if key.startswith(f"act/{half}/")
        }
        check_count("magvit2", stored, 9)
        seen = activations(model, half, start, set(stored))
        for name, expected in stored.items():
            torch.testing.assert_close(
                seen[name][: len(expected)], expected, **CLOSE, msg=lambda text, n=name: n + text
            )


def small_network(groups: int = 1) -> Magvit2Network:
    return Magvit2Network(
        channels=groups, multipliers=(1, 1), res_blocks=1, bits=1, strides=((1, 2, 2),), groups=groups
    )


def frames_of(io: dict[str, Tensor], layer: str) -> list[str]:
    """The parts of the keys that name how many frames a layer was given."""
    return sorted({key.split("/")[1] for key in io if re.match(rf"{layer}/f\d+/", key)})


def test_causal_convolutions() -> None:
    io, told = recording("layers")
    layers = sorted(key for key in told if key.startswith("conv"))
    check_count("magvit2", layers, 4)
    for name in layers:
        sizes = told[name]
        stride = (1, 1, 1) if sizes["stride"] == 1 else tuple(sizes["stride"])
        conv = CausalConv3d(sizes["cin"], sizes["cout"], sizes["k"], stride=stride, bias=sizes["bias"])
        conv.load_state_dict(state(io, f"{name}/sd/conv_1."))
        runs = frames_of(io, name)
        check_kinds("magvit2", runs, {"f1", "f2", "f5"})
        for run in runs:
            torch.testing.assert_close(conv(io[f"{name}/{run}/x"]), io[f"{name}/{run}/y"], **EXACT)


def test_upsampling() -> None:
    io, told = recording("layers")
    layers = sorted(key for key in told if key.startswith("up"))
    check_kinds("magvit2", {tuple(told[name]["block_size"]) for name in layers}, {(1, 2, 2), (2, 2, 2)})
    for name in layers:
        layer = SpaceToDepthUpsample(told[name]["dim"], told[name]["block_size"], small_network())
        weights = state(io, f"{name}/sd/conv1.conv_1.")
        layer.load_state_dict({f"conv1.{key}": value for key, value in weights.items()})
        runs = frames_of(io, name)
        check_kinds("magvit2", runs, {"f1", "f2", "f3"})
        for run in runs:
            torch.testing.assert_close(layer(io[f"{name}/{run}/x"]), io[f"{name}/{run}/y"], **EXACT)


def test_depth_to_space() -> None:
    io, _ = recording("layers")
    assert torch.equal(depth_to_space(io["d2s2d/x"], (2, 2)), io["d2s2d/y"])
    blocks = [key.removeprefix("d2s3d/y_") for key in io if key.startswith("d2s3d/y_")]
    check_kinds("magvit2", blocks, {"122", "222"})
    for block in blocks:
        assert torch.equal(depth_to_space(io["d2s3d/x"], tuple(map(int, block))), io[f"d2s3d/y_{block}"])
    assert not torch.equal(torch.nn.functional.pixel_shuffle(io["d2s2d/x"], 2), io["d2s2d/y"])


def test_every_key_of_layers_is_read() -> None:
    known = r"(conv\d|up\d)/(sd/(conv1\.)?conv_1\.(weight|bias)|f\d+/[xy])|d2s2d/[xy]|d2s3d/(x|y_\d{3})"
    assert [key for key in recording("layers")[0] if not re.fullmatch(known, key)] == []


@pytest.mark.parametrize("case", sorted(recording("adaptive_groupnorm")[1]["cases"]))
def test_adaptive_group_norm(case: str) -> None:
    every, told = recording("adaptive_groupnorm")
    sizes = told["cases"][case]
    io = {key.removeprefix(f"{case}/"): value for key, value in every.items() if key.startswith(f"{case}/")}
    layer = AdaptiveGroupNorm(sizes["channels"], sizes["z_channels"], sizes["num_groups"])
    layer.load_state_dict(state(io))
    x, z = io["x"].clone().requires_grad_(), io["z"].clone().requires_grad_()
    y = layer(x, z)
    torch.testing.assert_close(y, io["y"], **EXACT)
    by_x, by_z = torch.autograd.grad((y * io["w"]).sum(), (x, z))
    assert relative(by_x, io["grad_x"]) < 1e-5
    assert relative(by_z, io["grad_z"]) < 1e-5
    with torch.no_grad():
        torch.testing.assert_close(layer(io["x"], io["z_const"]), io["y_const"], **EXACT)
        torch.testing.assert_close(layer(io["x_small"], io["z"]), io["y_small"], **EXACT)
    known = {"x", "z", "y", "w", "grad_x", "grad_z", "z_const", "y_const", "x_small", "y_small"}
    assert {key for key in io if not key.startswith("sd/")} == known


@pytest.mark.parametrize("name", IMAGES)
@torch.no_grad()
def test_images(name: str) -> None:
    (io, _), model = recording(name), image_model(name)
    axes = tuple(io["ids"].shape[1:])
    latents = model.latents(io["x"])
    torch.testing.assert_close(latents, io["z"], **CLOSE)
    ids = model.quantizer.encode(latents)
    assert torch.equal(ids, places(io["ids"]))
    assert torch.equal(model.quantizer.lookup(ids, axes), io["codes"])
    torch.testing.assert_close(model.pixels(io["codes"]), io["recon_from_ids"], **CLOSE)
    torch.testing.assert_close(model.pixels(model.quantizer(latents).latents), io["recon_forward"], **CLOSE)
    # Through the contract, which takes and gives [0, 1].
    images = unit(io["x"])
    assert model.axes(images.shape) == axes
    assert torch.equal(model.encode(images), places(io["ids"]))
    torch.testing.assert_close(model.decode(places(io["ids"]), axes), unit(io["recon_from_ids"]), **CLOSE)
    torch.testing.assert_close(model.decode(places(io["random_ids"]), axes), unit(io["recon_from_random_ids"]), **CLOSE)
    out = model(images)
    assert torch.equal(out.tokens, places(io["ids"]))
    torch.testing.assert_close(out.reconstruction, unit(io["recon_forward"]), **CLOSE)


@pytest.mark.parametrize("name", IMAGES)
@torch.no_grad()
def test_images_of_odd_sizes_and_of_small_values(name: str) -> None:
    (io, _), model = recording(name), image_model(name)
    torch.testing.assert_close(model.latents(io["tiny/x"]), io["tiny/z"], atol=1e-4, rtol=0)
    torch.testing.assert_close(model.latents(io["odd/x"]), io["odd/z"], **CLOSE)
    axes = tuple(io["odd/ids"].shape[1:])
    images = unit(io["odd/x"])
    assert model.axes(images.shape) == axes
    assert torch.equal(model.encode(images), places(io["odd/ids"]))
    torch.testing.assert_close(model.decode(places(io["odd/ids"]), axes), unit(io["odd/recon"]), **CLOSE)


@pytest.mark.parametrize("name", IMAGES)
def test_image_activations(name: str) -> None:
    (io, _), model = recording(name), image_model(name)
    # The recorded decoder pass started from the straight-through codes, +-1 up to rounding.
    check_activations(model, io, io["x"], io["codes"])
    known = {"x", "z", "ids", "codes", "recon_from_ids", "recon_forward", "random_ids", "recon_from_random_ids"}
    known |= {"odd/x", "odd/z", "odd/ids", "odd/recon", "tiny/x", "tiny/z"}
    assert {key for key in io if not key.startswith(("sd/", "act/"))} == known


@pytest.mark.parametrize("name", VIDEOS)
@torch.no_grad()
def test_videos(name: str) -> None:
    (io, told), model = recording(f"{name}_io"), video_model(name)
    for frames in told["frame_counts"]:
        one = {key.removeprefix(f"f{frames}/"): value for key, value in io.items() if key.startswith(f"f{frames}/")}
        axes = tuple(one["ids"].shape[1:])
        torch.testing.assert_close(model.latents(one["x"]), one["z"], **CLOSE)
        clip = unit(one["x"])
        assert model.axes(clip.shape) == axes
        tokens = model.encode(clip)
        assert torch.equal(tokens, places(one["ids"]))
        decoded = model.decode(tokens, axes)
        assert decoded.shape[2] == frames == model.decoded_frames(model.latent_frames(frames))
        torch.testing.assert_close(decoded, unit(one["recon_from_ids"]), **CLOSE)
        if "recon_forward" in one:
            torch.testing.assert_close(model(clip).reconstruction, unit(one["recon_forward"]), **CLOSE)
    axes = tuple(io["random_ids"].shape[1:])
    sampled = model.decode(places(io["random_ids"]), axes)
    torch.testing.assert_close(sampled, unit(io["recon_from_random_ids"]), **CLOSE)
    torch.testing.assert_close(model.latents(io["batch2/x"]), io["batch2/z"], **CLOSE)


@pytest.mark.parametrize("name", VIDEOS)
def test_video_activations(name: str) -> None:
    (io, told), model = recording(f"{name}_io"), video_model(name)
    recorded = sorted({int(key.split("/")[0].removeprefix("f")) for key in io if "/act/" in key})
    check_kinds("magvit2", recorded, {1, 5})
    for frames in recorded:
        one = {key.removeprefix(f"f{frames}/"): value for key, value in io.items() if key.startswith(f"f{frames}/")}
        codes = model.quantizer.lookup(places(one["ids"]), tuple(one["ids"].shape[1:]))
        check_activations(model, one, one["x"], codes)
    known = {"random_ids", "recon_from_random_ids", "batch2/x", "batch2/z"}
    parts = {"x", "z", "ids", "recon_from_ids", "recon_forward"}
    known |= {f"f{frames}/{part}" for frames in told["frame_counts"] for part in parts}
    assert {key for key in io if "/act/" not in key} <= known


@pytest.mark.parametrize("name", VIDEOS)
@torch.no_grad()
def test_frame_table(name: str) -> None:
    _, told = recording(f"{name}_io")
    model, steps = video_model(name), 2 ** sum(stride[0] == 2 for stride in video_model(name).config.strides)
    assert model.stride[0] == steps
    for text, (latent, decoded) in told["frame_table"].items():
        frames, side = int(text), 2 * model.stride[1]
        z = model.latents(torch.zeros(1, 3, frames, side, side))
        assert z.shape[2:] == (latent, 2, 2)
        assert model.pixels(z).shape[2:] == (decoded, side, side)
        if (frames - 1) % steps:  # the network shortens such clips, so ours refuses them
            with pytest.raises(ValueError, match=rf"frames: got {frames}, expected 1 \+ {steps}n"):
                model.latent_frames(frames)
        else:
            assert (model.latent_frames(frames), model.decoded_frames(latent)) == (latent, decoded)
