"""The image tokenizer: sizes, training pass, shortcut, settings."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d

from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig
from maskgen.tokenizers.layers.conv2d import (
    AverageDownsample,
    ConvDownsample,
    ResBlock,
    Upsample,
    average_downsample,
    pad_same,
    same_padding,
)
from maskgen.tokenizers.quantizers.vector import QuantizerConfig

TINY = VQGANConfig(
    channels=8, multipliers=(1, 2), res_blocks=1, groups=4, quantizer=QuantizerConfig(codebook_size=16, dim=4)
)


def test_official_size() -> None:
    with torch.device("meta"):
        model = VQGAN(VQGANConfig())
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts == {"encoder": 23_775_104, "decoder": 30_478_339, "quantizer": 262_144}
    assert sum(counts.values()) == 54_515_587
    assert model.stride == (16, 16)
    assert model.axes((1, 3, 256, 512)) == (16, 32)


@pytest.mark.parametrize("downsample", ["average", "conv"])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (7, 8)])
def test_odd_sizes_round_up(downsample: str, size: tuple[int, int]) -> None:
    model = VQGAN(
        VQGANConfig(
            channels=4, multipliers=(1, 1, 1), res_blocks=1, groups=1, downsample=downsample,
            quantizer=QuantizerConfig(codebook_size=4, dim=2),
        )
    )  # fmt: skip
    image = torch.rand(1, 3, *size)
    axes = model.axes(image.shape)
    assert axes == tuple(math.ceil(math.ceil(side / 2) / 2) for side in size)
    with torch.no_grad():
        tokens = model.encode(image)
        assert tokens.shape == (1, math.prod(axes), 1)
        assert model.decode(tokens, axes).shape == (1, 3, 4 * axes[0], 4 * axes[1])


def test_training_pass_reaches_every_weight() -> None:
    torch.manual_seed(0)
    model = VQGAN(TINY)
    image = torch.rand(2, 3, 8, 8)
    out = model(image)
    assert out.reconstruction.shape == image.shape
    assert torch.equal(out.quantized.codes, model.encode(image))
    ((out.reconstruction - image).square().mean() + out.quantized.loss).backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert model.last_layer is model.decoder.conv_out.weight
    assert model.last_layer.grad.abs().sum() > 0
    copied = copy.deepcopy(model)  # what a moving average of the weights does
    assert torch.equal(copied(image).quantized.codes, out.quantized.codes)


def test_shortcut_reads_what_it_says() -> None:
    """With the second convolution at zero the ordinary block still passes its input on; the official one is dead."""
    torch.manual_seed(0)
    x = torch.randn(1, 4, 3, 3)
    results = {}
    for shortcut in ("input", "branch"):
        block = ResBlock(4, 8, groups=2, activation="swish", shortcut=shortcut)
        torch.nn.init.zeros_(block.conv2.weight)
        results[shortcut] = block(x)
        if shortcut == "input":
            torch.testing.assert_close(results["input"], conv2d(x, block.shortcut.weight))
    assert results["branch"].abs().max() == 0
    assert results["input"].abs().max() > 0
    same = ResBlock(4, 4, groups=2, activation="relu", shortcut="branch")
    assert same.shortcut is None


def test_input_shortcut_changes_the_model() -> None:
    image = torch.rand(1, 3, 8, 8)
    outputs = []
    for shortcut in ("input", "branch"):
        torch.manual_seed(0)
        model = VQGAN(
            VQGANConfig(channels=8, multipliers=(1, 2), groups=4, shortcut=shortcut, quantizer=TINY.quantizer)
        )
        outputs.append(model.encoder(image))
        widening = model.encoder.blocks[2].shortcut
        assert widening.weight.shape == ((16, 8, 1, 1) if shortcut == "input" else (16, 16, 1, 1))
    assert not torch.allclose(*outputs)


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4))
def test_same_padding_gives_the_rounded_up_size(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    assert 0 <= before <= after <= before + 1 or kernel <= stride
    # Larger windows need the padding, smaller ones may skip pixels; either way the size is ceil(size / stride).
    padded = size + before + after
    if padded >= kernel:
        assert (padded - kernel) // stride + 1 == -(-size // stride)
    assert pad_same(torch.zeros(1, 1, size, size), kernel, stride).shape[2:] == (padded, padded)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9))
def test_average_downsample_keeps_a_constant(height: int, width: int) -> None:
    x = torch.full((1, 2, height, width), 0.7)
    out = average_downsample(x)
    assert out.shape == (1, 2, -(-height // 2), -(-width // 2))
    torch.testing.assert_close(out, torch.full_like(out, 0.7))


def test_resampling_layers() -> None:
    x = torch.rand(1, 4, 5, 6)
    assert AverageDownsample()(x).shape == ConvDownsample(4)(x).shape == (1, 4, 3, 3)
    assert Upsample(4)(x).shape == (1, 4, 10, 12)


def test_half_precision_model() -> None:
    model = VQGAN(TINY).to(torch.bfloat16)
    with torch.no_grad():
        tokens = model.encode(torch.rand(1, 3, 8, 8))
        assert model.decode(tokens, (4, 4)).dtype == torch.bfloat16


def test_autocast_leaves_the_quantizer_in_float32() -> None:
    model = VQGAN(TINY)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = model(torch.rand(1, 3, 8, 8))
    assert out.quantized.loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"channels": 48}, r"got level widths \(48, 48, 96, 96, 192\), expected multiples of groups=32"),
        ({"channels": 0}, "channels: got 0, expected 1 or more"),
        ({"multipliers": ()}, r"multipliers: got \(\)"),
        ({"multipliers": (1, 0)}, "expected one positive number a level"),
        ({"downsample": "pool"}, "downsample: got 'pool', expected 'average' or 'conv'"),
        ({"activation": "gelu"}, "activation: got 'gelu'"),
        ({"shortcut": "none"}, "shortcut: got 'none', expected 'branch' or 'input'"),
    ],
)
def test_config_refuses(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQGANConfig(**settings_)
