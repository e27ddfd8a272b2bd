"""Inflation: an image tokenizer as the start of a video tokenizer."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from maskgen.tokenizers.video.frames import FrameVQ
from maskgen.tokenizers.video.inflation import inflate, inflate_kernel, inflate_model
from maskgen.tokenizers.video.vq3d import VQ3D, VQ3DConfig

QUANTIZER = QuantizerConfig(codebook_size=32, dim=4)
IMAGES = VQGANConfig(
    channels=8, multipliers=(1, 2, 2), res_blocks=1, groups=4, shortcut="input", quantizer=QUANTIZER
)  # fmt: skip
VIDEO = VQ3DConfig(
    channels=8,
    multipliers=(1, 2, 2),
    temporal_downsample=(True, True),
    encoder_blocks=1,
    decoder_blocks=1,
    groups=4,
    quantizer=QUANTIZER,
)


def still(frames: int, height: int = 16, width: int = 12) -> Tensor:
    """A clip of equal frames, [2, 3, T, H, W]."""
    return torch.rand(2, 3, 1, height, width).repeat(1, 1, frames, 1, 1)


@pytest.mark.parametrize("frames", [1, 4, 6])
def test_a_still_clip_gives_the_images_codes_and_picture(frames: int) -> None:
    images, video = VQGAN(IMAGES).eval(), VQ3D(VIDEO).eval()
    assert inflate_model(video, images) == []
    clip = still(frames)
    with torch.no_grad():
        codes = images.encode(clip[:, :, 0])
        picture = images.decode(codes, (4, 3))
        tokens = video.encode(clip)
        decoded = video.decode(tokens, video.axes(clip.shape))
    assert len(codes.unique()) > 3
    for step in tokens.unflatten(1, (-1, 12)).unbind(1):
        assert torch.equal(step, codes)
    torch.testing.assert_close(decoded, picture.unsqueeze(2).expand_as(decoded), atol=1e-5, rtol=1e-5)


def test_average_inflation_agrees_away_from_the_ends() -> None:
    """Where the clip goes on as it stood, nothing changes; zeros before and behind it are something new."""
    flat = replace(VIDEO, temporal_downsample=(False, False), padding="edge", norm="layer")
    images, video = FrameVQ(flat).eval(), VQ3D(replace(VIDEO, padding="edge", norm="layer")).eval()
    assert inflate_model(video, images, "average") == []
    clip = still(4)
    with torch.no_grad():
        torch.testing.assert_close(video._latents(clip)[:, :, 0], images._latents(clip)[:, :, 0], atol=1e-5, rtol=1e-5)
    images = FrameVQ(replace(flat, padding="zeros")).eval()
    video = VQ3D(replace(flat, padding="zeros")).eval()
    assert inflate_model(video, images, "average") == []
    latents = torch.randn(1, 4, 1, 1, 1).repeat(1, 1, 24, 1, 1)
    with torch.no_grad():
        first, ours = images._signal(latents), video._signal(latents)
    torch.testing.assert_close(ours[:, :, 12], first[:, :, 12], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours[:, :, 0], first[:, :, 0], atol=1e-2)


def test_frame_tokenizer_to_video_tokenizer() -> None:
    """Its kernels have a time axis of length 1; transposed ones count from the end."""
    flat = replace(VIDEO, temporal_downsample=(False, False), upsample="deconv", downsample="conv", norm="layer")
    images, video = FrameVQ(flat), VQ3D(replace(flat, temporal_downsample=(True, False)))
    assert inflate_model(video, images) == []
    for name, kernel in video.state_dict().items():
        if kernel.ndim == 5 and kernel.shape[2] > 1:
            middle = kernel.shape[2] // 2
            place = kernel.shape[2] - 1 - middle if ".ups." in name else middle
            filled = [bool(part.any()) for part in kernel.unbind(2)]
            assert filled == [index == place for index in range(kernel.shape[2])], name
            assert torch.equal(kernel[:, :, place], images.state_dict()[name][:, :, 0])


def test_what_does_not_fit_stays() -> None:
    """MaskGIT's released shortcuts read a tensor of another width."""
    images = VQGAN(replace(IMAGES, shortcut="branch"))
    torch.manual_seed(1)
    video = VQ3D(VIDEO)
    before = {name: tensor.clone() for name, tensor in video.state_dict().items()}
    kept = inflate_model(video, images)
    assert kept == ["encoder.blocks.1.shortcut.weight", "decoder.blocks.3.shortcut.weight"]
    after = video.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert torch.equal(after["quantizer.codebook"], images.quantizer.codebook)
    assert not torch.equal(after["encoder.conv_in.weight"], before["encoder.conv_in.weight"])


def test_inflated_weights_are_copies() -> None:
    flat = {"a": torch.ones(2), "k": torch.ones(1, 1, 3, 3)}
    deep = {"a": torch.zeros(2), "k": torch.zeros(1, 1, 3, 3, 3), "b": torch.zeros(1)}
    got, kept = inflate(flat, deep)
    assert kept == ["b"]
    for name in got:
        got[name].add_(1)
    assert flat["a"].sum() == 2
    assert deep["b"].sum() == 0
    assert got["k"].sum() == 27 + 9


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"none of the 1 weights fits one of the 1; expected the same names"):
        inflate({"a": torch.zeros(2)}, {"b": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"kernel: got shape \(3,\), expected \[O, I, kh, kw\]"):
        inflate_kernel(torch.zeros(3), 3)
    with pytest.raises(ValueError, match="length: got 0"):
        inflate_kernel(torch.zeros(1, 1, 3, 3), 0)
    with pytest.raises(ValueError, match="mode: got 'middle', expected 'central' or 'average'"):
        inflate_kernel(torch.zeros(1, 1, 3, 3), 3, "middle")
