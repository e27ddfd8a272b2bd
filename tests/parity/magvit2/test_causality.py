"""What depends on which frame in Open-MAGVIT2's video networks, against tables of the official code.

The convolutions are causal; the normalisations, adaptive ones included, look at all frames. "nonorm" tables are those of the
same network with every normalisation replaced by the identity.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from maskgen.tokenizers.magvit2.layers import AdaptiveGroupNorm
from maskgen.tokenizers.magvit2.tokenizer import Magvit2Video
from tests.parity.magvit2.recordings import CLOSE, names, recording, state, tokenizer

NAMES = names("video_*_causality*.safetensors", "_causality")


class Unchanged(nn.Module):
    """Takes a normalisation's place."""

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return x


def models(name: str) -> dict[str, Magvit2Video]:
    """The network, and the same without normalisations."""
    normal = tokenizer(state(recording(f"{name}_weights")[0]), recording(f"{name}_io")[1])
    assert isinstance(normal, Magvit2Video)
    bare = copy.deepcopy(normal)
    for module in list(bare.modules()):
        for child, layer in list(module.named_children()):
            if isinstance(layer, nn.GroupNorm | AdaptiveGroupNorm):
                setattr(module, child, Unchanged())
    return {"normal": normal, "nonorm": bare}


def moved(a: Tensor, b: Tensor) -> Tensor:
    """Largest difference of each frame."""
    return (a - b).abs().amax(dim=(0, 1, 3, 4))


def first_moved(changes: Tensor) -> int:
    return int((changes > 1e-6).float().argmax())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_encoder(name: str) -> None:
    io, told = recording(f"{name}_causality")
    clip, frame = io["enc/x"], int(io["enc/pert_frame"])
    assert clip.shape[2] == told["clip_frames"]
    for kind, model in models(name).items():
        before = model.latents(clip)
        after = model.latents(io["enc/pert_x"])
        torch.testing.assert_close(after, io[f"enc/{kind}/z_pert"], **CLOSE)
        torch.testing.assert_close(moved(before, after), io[f"enc/{kind}/frame{frame}"], atol=1e-4, rtol=0)
        if kind == "nonorm":
            torch.testing.assert_close(before, io["enc/nonorm/z_base"], **CLOSE)
        for k in range(told["clip_frames"]):
            # Which latents a frame can reach: those recorded as moved, and no others.
            other = clip.clone()
            other[:, :, k] += 0.5
            reached = moved(before, model.latents(other)) > 1e-6
            assert torch.equal(reached, io[f"enc/{kind}/frame{k}"] > 1e-6), (kind, k)
    tables = [io[f"enc/nonorm/frame{k}"] for k in range(told["clip_frames"])]
    assert [first_moved(table) for table in tables] == told["enc_first_changed_nonorm"]
    # With them every frame moves every latent.
    assert all(io[f"enc/normal/frame{k}"].min() > 1e-6 for k in range(told["clip_frames"]))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_decoder(name: str) -> None:
    io, told = recording(f"{name}_causality")
    found = models(name)
    codes = found["normal"].latents(io["enc/x"]).sign()
    for kind, model in found.items():
        base = model.pixels(codes)
        if kind == "nonorm":
            torch.testing.assert_close(base, io["dec/nonorm/recon_base"], **CLOSE)
        for k in range(codes.shape[2]):
            flipped = codes.clone()
            flipped[:, :, k] *= -1
            after = model.pixels(flipped)
            torch.testing.assert_close(moved(base, after), io[f"dec/{kind}/latent{k}"], atol=1e-4, rtol=0)
    torch.testing.assert_close(after, io["dec/nonorm/recon_pert"], **CLOSE)  # of the last latent
    tables = [io[f"dec/nonorm/latent{k}"] for k in range(codes.shape[2])]
    assert [first_moved(table) for table in tables] == told["dec_first_changed_nonorm"]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_first_frame_alone_and_in_its_clip(name: str) -> None:
    io, _ = recording(f"{name}_causality")
    found = models(name)
    assert torch.equal(io["first/x"], io["enc/x"][:, :, :1])
    for kind, prefix in (("normal", ""), ("nonorm", "nonorm_")):
        alone = found[kind].latents(io["first/x"])
        within = found[kind].latents(io["enc/x"])[:, :, :1]
        torch.testing.assert_close(alone, io[f"first/{prefix}z_alone"], **CLOSE)
        torch.testing.assert_close(within, io[f"first/{prefix}z_in_clip"], **CLOSE)
    torch.testing.assert_close(io["first/nonorm_z_alone"], io["first/nonorm_z_in_clip"], **CLOSE)
    assert (io["first/z_alone"] - io["first/z_in_clip"]).abs().max() > 0.01
