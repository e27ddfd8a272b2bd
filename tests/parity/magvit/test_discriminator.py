"""The discriminators and the losses around them against outputs of the official MAGVIT code.

The fixtures are channels last.
"""

import functools
import json
import re

import pytest
import torch
from torch import nn

from maskgen.tokenizers.quantizers.entropy import entropy_loss
from maskgen.tokenizers.training.discriminators.video import VideoDiscriminatorConfig, build_video_discriminator
from maskgen.tokenizers.training.losses import image as losses
from tests.parity.magvit.models import NORMS, first, last, recording
from tests.parity.magvit.weights import DISCRIMINATORS, discriminator_config, discriminator_state_dict
from tests.parity.support import check_count, check_kinds, facts, load, recordings

SETS = [path.stem for path in recordings("magvit", "disc*.safetensors")]
FULL = facts("magvit", "full_shapes_disc*.json")
LOSSES = recordings("magvit", "losses*.safetensors")
CLOSE: dict[str, float] = {"atol": 1e-5, "rtol": 1e-5}


@functools.cache
def make(name: str) -> nn.Module:
    """The model with the set's weights; whatever the metadata says is checked against what the weights say."""
    params, io, settings = recording(name)
    assert settings["extra"].keys() <= {"blur_resample"}
    blur_size = 4 if settings["extra"].get("blur_resample") else 0
    size = tuple(settings["shape"][1:4])
    config = discriminator_config(params, size, blur_size=blur_size)
    assert config == VideoDiscriminatorConfig(
        kind="frame" if io["real_logit"].ndim == 3 else "clip",  # [B, T, 1], or [B, 1]
        size=size,
        channels=settings["filters"],
        multipliers=tuple(settings["channel_multipliers"]),
        norm=NORMS[settings["norm_type"]],
        blur_size=blur_size,
    )
    model = build_video_discriminator(config)
    model.load_state_dict(discriminator_state_dict(params, config))
    return model


def test_all_kinds_are_there() -> None:
    configs = [make(name).config for name in SETS]
    check_kinds("magvit", {config.kind for config in configs}, {"clip", "frame"})
    check_kinds("magvit", {config.norm for config in configs}, {None, "group", "layer"})
    check_kinds("magvit", {config.blur_size for config in configs}, {0, 4})


@pytest.mark.parametrize("name", SETS)
def test_logits(name: str) -> None:
    model, (_, io, _) = make(name), recording(name)
    with torch.no_grad():
        for side in ("real", "fake"):
            torch.testing.assert_close(model(first(io[side])), io[f"{side}_logit"], **CLOSE)


@pytest.mark.parametrize("name", SETS)
def test_gradient_and_its_penalty(name: str) -> None:
    model, (_, io, _) = make(name), recording(name)
    real = first(io["real"]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(real).sum(), real)
    torch.testing.assert_close(last(gradient), io["real_input_grad"], **CLOSE)
    costs = [match for key in io if (match := re.fullmatch(r"r1_penalty_cost([\d.]+)", key))]
    assert costs
    for cost in costs:
        model.zero_grad()
        penalty = losses.r1_penalty(model, first(io["real"]), weight=float(cost[1]))
        torch.testing.assert_close(penalty.detach().reshape(1), io[cost[0]], atol=1e-5, rtol=5e-5)
        penalty.backward()  # it is part of a loss
        assert all(weight.grad is not None for key, weight in model.named_parameters() if key.endswith("weight"))


@pytest.mark.parametrize("name", SETS)
def test_adversarial_losses(name: str) -> None:
    _, io, _ = recording(name)
    real, fake = io["real_logit"], io["fake_logit"]
    kinds = {match[1] for key in io if (match := re.fullmatch(r"d_loss_(.+)", key))}
    check_kinds("magvit", kinds, {"hinge", "non-saturating"})
    for kind in kinds:
        torch.testing.assert_close(
            losses.discriminator_loss(real, fake, kind).reshape(1), io[f"d_loss_{kind}"], **CLOSE
        )
        torch.testing.assert_close(losses.generator_loss(fake, kind).reshape(1), io[f"g_loss_{kind}"], **CLOSE)
    averages = [match for key in io if (match := re.fullmatch(r"lecam_ema(-?[\d.]+)_(-?[\d.]+)", key))]
    assert averages
    for ema in averages:
        lecam = losses.LeCam()
        lecam.ema_real, lecam.ema_fake = torch.tensor(float(ema[1])), torch.tensor(float(ema[2]))
        # MAGVIT's penalty is on the means of the batch.
        torch.testing.assert_close(lecam(real.mean(), fake.mean()).reshape(1), io[ema[0]], **CLOSE)


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_full_size_parameters(path) -> None:
    official = json.loads(path.read_text())
    empty = {key: torch.empty(shape, device="meta") for key, shape in official["shapes"].items()}
    _, kind, data, letter = re.fullmatch(r"(disc)([23]d)_(\w+)_(\w)", official["name"]).groups()
    name = f"magvit-{data}-{'frames-' if kind == '2d' else ''}{letter.lower()}"
    published = DISCRIMINATORS[name]
    assert discriminator_config(empty, published.size) == published
    assert published.multipliers == tuple(official["discriminator"]["channel_multipliers"])
    with torch.device("meta"):
        model = build_video_discriminator(published)
    assert sum(weight.numel() for weight in model.parameters()) == official["num_params"]
    converted = discriminator_state_dict(empty, published)
    assert {key: array.shape for key, array in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize("path", LOSSES, ids=lambda path: path.stem)
def test_no_loss_is_forgotten(path) -> None:
    here = r"entropy_(softmax|argmax)_T[\d.]+|affinity|l[12]|[ab]|perplexity"
    elsewhere = r"(weighted_)?ce_.*"  # the loss of the tokens belongs to the core
    assert not [key for key in load(path) if not re.fullmatch(f"{here}|{elsewhere}", key)]


@pytest.mark.parametrize("path", LOSSES, ids=lambda path: path.stem)
def test_losses(path) -> None:
    data = load(path)
    torch.testing.assert_close(losses.l1_loss(data["a"], data["b"]).reshape(1), data["l1"], **CLOSE)
    torch.testing.assert_close(losses.l2_loss(data["a"], data["b"]).reshape(1), data["l2"], **CLOSE)
    forms = [match for key in data if (match := re.fullmatch(r"entropy_(softmax|argmax)_T([\d.]+)", key))]
    check_count("magvit", forms, 4)
    for match in forms:
        loss = entropy_loss(data["affinity"], match[1], float(match[2]))
        torch.testing.assert_close(loss.reshape(1), data[match[0]], **CLOSE)


@pytest.mark.parametrize("path", LOSSES, ids=lambda path: path.stem)
def test_perplexity(path) -> None:
    """The official perplexity is the exponential of the batch entropy that the entropy loss holds, at temperature 1."""
    data = load(path)
    logits = data["ce_logits"]
    rows = torch.distributions.Categorical(logits=logits).entropy().mean()
    batch = rows - entropy_loss(logits, "softmax", 1.0)
    torch.testing.assert_close(batch.exp().reshape(1), data["perplexity"], **CLOSE)
