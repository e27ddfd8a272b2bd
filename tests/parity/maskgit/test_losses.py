"""Stage-1 losses and the discriminator against outputs of the official MaskGIT code.

Shapes: B batch, C channels, H W image axes; the fixtures are channels last.
"""

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from maskgen.tokenizers.layers.conv2d import average_downsample, upsample
from maskgen.tokenizers.quantizers.entropy import entropy_loss
from maskgen.tokenizers.training.discriminators.image import (
    BlurPool,
    DiscriminatorConfig,
    DownBlock,
    StyleGANDiscriminator,
)
from maskgen.tokenizers.training.losses import image as losses
from tests.parity.maskgit.weights import discriminator_state_dict
from tests.parity.support import load, metadata, recordings

PARTS = recordings("maskgit", "losses_and_disc_parts*.safetensors")
FULL = recordings("maskgit", "discriminator_full*.safetensors")
CLOSE: dict[str, float] = {"atol": 1e-5, "rtol": 1e-5}


def first(x: Tensor) -> Tensor:
    """Channels last to channels first."""
    return x.permute(0, 3, 1, 2).contiguous()


def last(x: Tensor) -> Tensor:
    """Channels first to channels last."""
    return x.permute(0, 2, 3, 1)


def groups(data: dict[str, Tensor], pattern: str) -> list[re.Match[str]]:
    """Keys that match in full; none is an error."""
    found = [match for key in data if (match := re.fullmatch(pattern, key))]
    assert found, pattern
    return found


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_no_group_is_forgotten(path) -> None:
    known = r"(real|fake)_logit|(generator|discriminator)_loss|l[12]|[ab]|affinity|entropy_loss(_grad)?"
    known += r"|blur_(in|out_\d+)|[du]p?sample_out|disc_resblock_blur\d"
    elsewhere = r"smooth_.*"  # label smoothing belongs to the core's loss
    roots = {key.split("/")[0] for key in load(path)}
    assert not [root for root in roots if not re.fullmatch(f"{known}|{elsewhere}", root)]


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_gan_and_pixel_losses(path) -> None:
    data = load(path)
    for match in groups(data, r"(generator|discriminator)_loss/(.+)"):
        if match[1] == "generator":
            got = losses.generator_loss(data["fake_logit"], match[2])
        else:
            got = losses.discriminator_loss(data["real_logit"], data["fake_logit"], match[2])
        torch.testing.assert_close(got.reshape(1), data[match[0]], **CLOSE)
    torch.testing.assert_close(losses.l1_loss(data["a"], data["b"]).reshape(1), data["l1"], **CLOSE)
    torch.testing.assert_close(losses.l2_loss(data["a"], data["b"]).reshape(1), data["l2"], **CLOSE)


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_entropy_loss_and_gradient(path) -> None:
    data = load(path)
    for match in groups(data, r"entropy_loss/(softmax|argmax)/T([\d.]+)"):
        affinity = data["affinity"].clone().requires_grad_(True)
        loss = entropy_loss(affinity, match[1], float(match[2]))
        torch.testing.assert_close(loss.detach().reshape(1), data[match[0]], **CLOSE)
        loss.backward()
        expected = data[match[0].replace("entropy_loss/", "entropy_loss_grad/")]
        # Entries of both signs cancel in the sums behind them, so the noise is relative to the largest one.
        torch.testing.assert_close(affinity.grad, expected, atol=2e-5 * expected.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_resampling(path) -> None:
    data = load(path)
    x = first(data["blur_in"])
    for match in groups(data, r"blur_out_(\d+)"):
        torch.testing.assert_close(last(BlurPool(int(match[1]))(x)), data[match[0]], **CLOSE)
    torch.testing.assert_close(last(average_downsample(x)), data["dsample_out"], **CLOSE)
    torch.testing.assert_close(last(upsample(x)), data["upsample_out"], **CLOSE)


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_discriminator_block(path) -> None:
    data = load(path)
    names = {"conv1": "Conv_0", "shortcut": "Conv_1", "conv2": "Conv_2"}
    for match in groups(data, r"(disc_resblock_blur(\d))/x"):
        prefix = match[1]
        kernel = data[f"{prefix}/params/Conv_2/kernel"]
        block = DownBlock(kernel.shape[2], kernel.shape[3], blur_size=4 if match[2] == "1" else 0)
        block.load_state_dict(
            {
                f"{ours}.{leaf}": array.permute(3, 2, 0, 1) if array.ndim == 4 else array
                for ours, official in names.items()
                for leaf, theirs in (("weight", "kernel"), ("bias", "bias"))
                if (array := data.get(f"{prefix}/params/{official}/{theirs}")) is not None
            }
        )
        with torch.no_grad():
            torch.testing.assert_close(last(block(first(data[f"{prefix}/x"]))), data[f"{prefix}/y"], **CLOSE)


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_whole_discriminator(path) -> None:
    data, settings = load(path), metadata(path)
    # The rule in the metadata: one generator, names in sorted order, biases 0.1 n, kernels 1.4 n / sqrt(fan-in).
    random = np.random.RandomState(settings["rule_seed"])
    params: dict[str, Tensor] = {}
    for name in sorted(settings["shapes"]):
        shape = settings["shapes"][name]
        noise = random.standard_normal(shape).astype(np.float32)
        factor = np.float32(0.1) if name.endswith("bias") else np.float32(1.4 / np.sqrt(np.prod(shape[:-1])))
        params[name] = torch.from_numpy(noise * factor)
    for match in groups(data, r"param_check_first(\d+)/(.+)"):
        torch.testing.assert_close(params[match[2]].flatten()[: int(match[1])], data[match[0]], atol=1e-7, rtol=1e-6)

    config = DiscriminatorConfig(image_size=settings["image_size"])
    model = StyleGANDiscriminator(config)
    model.load_state_dict(discriminator_state_dict(params, config))
    image = first(data["image"]).requires_grad_(True)
    logits = model(image)
    torch.testing.assert_close(logits.detach(), data["logits"], atol=5e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(logits.sum(), image)
    torch.testing.assert_close(last(gradient), data["grad_wrt_image"], atol=5e-5, rtol=1e-4)
    for cost in groups(data, r"r1_penalty_cost([\d.]+)"):
        penalty = losses.r1_penalty(model, first(data["image"]), weight=float(cost[1]))
        torch.testing.assert_close(penalty.detach().reshape(1), data[cost[0]], atol=1e-5, rtol=1e-4)
