"""The video tokenizer: its blocks against plain torch and numpy, sizes, training pass, settings."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from maskgen.tokenizers.layers.conv3d import (
    AverageDownsample3D,
    Conv3D,
    ConvDownsample3D,
    DeconvUpsample3D,
    GroupNorm3D,
    LayerNorm3D,
    ResBlock3D,
    Upsample3D,
    average_downsample3d,
    channels_last,
    lecun_normal,
    norm3d,
    pad_axis,
)
from maskgen.tokenizers.published.video.magvit import config_from, convert
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from maskgen.tokenizers.video.frames import FrameVQ
from maskgen.tokenizers.video.vq3d import VQ3D, NormalizedQuantizer, VQ3DConfig

TINY = VQ3DConfig(
    channels=8,
    multipliers=(1, 2),
    temporal_downsample=(True,),
    encoder_blocks=1,
    decoder_blocks=1,
    groups=4,
    quantizer=QuantizerConfig(codebook_size=16, dim=4),
)
MODES = ("zeros", "edge", "reflect", "reflect_odd", "symmetric", "symmetric_odd", "wrap")


@pytest.mark.parametrize("mode", MODES)
@given(st.integers(1, 6), st.integers(0, 3), st.integers(0, 3))
def test_padding_is_numpys(mode: str, size: int, before: int, after: int) -> None:
    x = torch.randn(2, size, 3)
    kind, _, odd = mode.partition("_")
    known = {"mode": "constant" if kind == "zeros" else kind} | ({"reflect_type": "odd"} if odd else {})
    expected = np.pad(x.numpy(), ((0, 0), (before, after), (0, 0)), **known)
    torch.testing.assert_close(pad_axis(x, 1, before, after, mode), torch.from_numpy(expected))


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_convolution_pads_before_it_convolves(mode: str) -> None:
    conv = Conv3D(2, 3, (3, 4), (1, 2), padding=mode)
    x = torch.randn(1, 2, 4, 5, 6)
    padded = x
    for axis, (before, after) in ((2, (1, 1)), (3, (1, 2)), (4, (1, 2))):
        padded = pad_axis(padded, axis, before, after, mode)
    torch.testing.assert_close(conv(x), F.conv3d(padded, conv.weight, conv.bias, (1, 2, 2)))
    assert conv(x).shape == (1, 3, 4, 3, 3)


@pytest.mark.parametrize(("time_stride", "flat"), [(1, False), (2, False), (1, True)])
@pytest.mark.parametrize("padding", ["zeros", "edge", "reflect"])
def test_upsampling_is_nearest_neighbour_and_a_convolution(time_stride: int, flat: bool, padding: str) -> None:
    """The merged kernel gives the numbers of the two steps, and the gradients."""
    block = Upsample3D(3, time_stride, flat=flat, padding=padding)
    nn.init.normal_(block.conv.bias)
    results = []
    for merged in (True, False):
        x = torch.randn(2, 3, 3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
        block.zero_grad()
        big = F.interpolate(x, scale_factor=(time_stride, 2, 2), mode="nearest")
        out = block(x) if merged else block.conv(big)
        (out * torch.linspace(0, 1, out.numel()).reshape(out.shape)).sum().backward()
        results.append((out, x.grad, block.conv.weight.grad.clone(), block.conv.bias.grad.clone()))
    assert results[0][0].shape == (2, 3, 3 * time_stride, 8, 10)
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("time_stride", [1, 2])
@pytest.mark.parametrize("size", [(4, 6, 8), (5, 7, 3)])
def test_average_downsampling_counts_real_cells_only(time_stride: int, size: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, *size)
    window = (time_stride, 2, 2)
    expected = F.avg_pool3d(x, window, window, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(average_downsample3d(x, time_stride), expected)
    torch.testing.assert_close(AverageDownsample3D(time_stride)(channels_last(x)), expected)
    single = x[..., :1, :1, :1]
    assert torch.equal(average_downsample3d(single, time_stride), single)


@pytest.mark.parametrize("flat", [False, True])
def test_strided_and_transposed_convolutions_keep_the_sizes(flat: bool) -> None:
    x = torch.randn(1, 4, 5, 6, 7)
    for time_stride in (1,) if flat else (1, 2):
        small = ConvDownsample3D(4, time_stride, flat=flat)(x)
        assert small.shape == (1, 4, math.ceil(5 / time_stride), 3, 4)
        assert DeconvUpsample3D(4, time_stride, flat=flat)(x).shape == (1, 4, 5 * time_stride, 12, 14)


def test_norms() -> None:
    x = channels_last(torch.randn(2, 6, 3, 4, 5))
    group, layer = norm3d("group", 6, 3), norm3d("layer", 6, 3)
    assert isinstance(group, GroupNorm3D)
    assert isinstance(layer, LayerNorm3D)
    torch.testing.assert_close(group(x), F.group_norm(x, 3, eps=1e-6))
    flat = x.unflatten(1, (3, 2))
    mean, var = flat.mean((2, 3, 4, 5), keepdim=True), flat.var((2, 3, 4, 5), correction=0, keepdim=True)
    torch.testing.assert_close(group(x), ((flat - mean) / (var + 1e-6).sqrt()).flatten(1, 2))
    mean, var = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    torch.testing.assert_close(layer(x), (x - mean) / (var + 1e-6).sqrt())
    for norm in (group, layer):
        assert norm(x).is_contiguous(memory_format=torch.channels_last_3d)


def test_the_shortcut_reads_the_raw_input() -> None:
    block = ResBlock3D(4, 8, norm="layer", groups=1, activation="swish")
    nn.init.zeros_(block.conv2.weight)
    x = 3 + torch.randn(1, 4, 2, 3, 3)
    torch.testing.assert_close(block(x), F.conv3d(x, block.shortcut.weight))
    same = ResBlock3D(4, 4, norm="group", groups=2, activation="relu", flat=True)
    assert same.shortcut is None
    assert same.conv1.weight.shape == (4, 4, 1, 3, 3)
    assert all("bias" not in name for name, _ in block.named_parameters() if "conv" in name)


def test_lecun_start() -> None:
    kernel, bias = torch.empty(64, 32, 3, 3, 3), torch.ones(64)
    lecun_normal(kernel, bias)
    assert kernel.var().item() == pytest.approx(1 / (32 * 27), rel=0.02)
    assert kernel.abs().max() <= 2 / 0.8796 * (32 * 27) ** -0.5 * 1.001
    assert not bias.any()


def test_training_pass_reaches_every_weight() -> None:
    for config in (TINY, VQ3DConfig(**(vars(TINY) | {"upsample": "deconv", "downsample": "conv", "norm": "layer"}))):
        model = VQ3D(config)
        video = torch.rand(2, 3, 4, 8, 8)
        out = model(video)
        assert out.reconstruction.shape == video.shape
        assert torch.equal(out.quantized.codes, model.encode(video))
        ((out.reconstruction - video).square().mean() + out.quantized.loss).backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
        assert model.last_layer is model.decoder.conv_out.weight
        assert model.last_layer.grad.abs().sum() > 0
        copied = copy.deepcopy(model)  # what a moving average of the weights does
        assert torch.equal(copied(video).quantized.codes, out.quantized.codes)


def test_stages_of_the_decoder() -> None:
    """Long clips are blended in what the last convolution reads."""
    model = VQ3D(TINY).eval()
    latents = torch.randn(1, 4, 2, 4, 4)
    features = model.decoder.features(latents)
    assert features.shape == (1, 8, 4, 8, 8)
    assert torch.equal(model.decoder.conv_out(features), model.decoder(latents))


def test_it_is_not_causal_and_frames_are_alone_where_they_should() -> None:
    for model, alone in (
        (VQ3D(TINY), False),
        (FrameVQ(VQ3DConfig(**(vars(TINY) | {"temporal_downsample": (False,)}))), True),
    ):
        video = torch.rand(1, 3, 8, 8, 8)
        other = video.clone()
        other[:, :, -1] = 0
        with torch.no_grad():
            change = (model._latents(video) - model._latents(other)).abs().amax((0, 1, 3, 4))
        assert (change[0] == 0) == alone
        assert change[-1] > 0


def test_normalized_quantizer() -> None:
    quantizer = NormalizedQuantizer(QuantizerConfig(codebook_size=8, dim=3))
    latents = torch.randn(2, 3, 2, 2, 2)
    codes = quantizer.encode(latents)
    cosine = F.cosine_similarity(latents.flatten(2).transpose(1, 2)[:, :, None], quantizer.codebook, dim=-1)
    assert torch.equal(codes[..., 0], cosine.argmax(-1))
    assert torch.equal(codes, quantizer.encode(5 * latents))
    vectors = quantizer.lookup(codes, (2, 2, 2))
    assert torch.equal(vectors.flatten(2).transpose(1, 2), quantizer.codebook[codes[..., 0]])


def test_half_precision_and_autocast() -> None:
    video = torch.rand(1, 3, 4, 8, 8)
    model = VQ3D(TINY).to(torch.bfloat16)
    with torch.no_grad():
        assert model.decode(model.encode(video), (2, 4, 4)).dtype == torch.bfloat16
    model = VQ3D(TINY)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(video)
        assert out.quantized.loss.dtype == torch.float32
        (out.reconstruction.float().square().mean() + out.quantized.loss).backward()
    assert all(weight.grad.dtype == torch.float32 for weight in model.parameters())


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"channels": 48}, r"got level widths \(48, 96, 96, 192\), expected multiples of groups=32"),
        ({"channels": 0}, "channels: got 0, expected 1 or more"),
        ({"encoder_blocks": 0}, "encoder_blocks: got 0"),
        ({"decoder_blocks": 0}, "decoder_blocks: got 0"),
        ({"multipliers": ()}, r"multipliers: got \(\)"),
        (
            {"multipliers": (1, 2)},
            r"temporal_downsample: got \(True, True, False\), expected 1 flags, one for each step",
        ),
        ({"downsample": "pool"}, "downsample: got 'pool', expected 'average' or 'conv'"),
        ({"upsample": "pixel"}, "upsample: got 'pixel', expected 'nearest' or 'deconv'"),
        ({"activation": "gelu"}, "activation: got 'gelu'"),
        ({"norm": "batch"}, "norm: got 'batch'"),
        ({"padding": "mirror"}, "padding: got 'mirror', expected .*'reflect_odd'"),
        (
            {"normalize_latents": True, "quantizer": QuantizerConfig(kind="lfq")},
            "normalize_latents: got a 'lfq' quantizer, expected 'vq'",
        ),
    ],
)
def test_config_refuses(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQ3DConfig(**settings_)


def test_layer_norm_needs_no_groups() -> None:
    assert VQ3DConfig(channels=5, norm="layer").widths == (5, 10, 10, 20)


def test_frames_refuse_to_halve_time() -> None:
    with pytest.raises(
        ValueError, match=r"temporal_downsample: got \(True,\), expected all False: frames are on their own"
    ):
        FrameVQ(TINY)


def test_key_map_errors() -> None:
    with pytest.raises(ValueError, match="these are no MAGVIT tokenizer weights: 0 levels, 0 encoder and 0 decoder"):
        config_from({"what": torch.zeros(1)})
    with pytest.raises(ValueError, match="config: got quantizer 'lfq', expected 'vq'"):
        convert({}, VQ3DConfig(quantizer=QuantizerConfig(kind="lfq")))
