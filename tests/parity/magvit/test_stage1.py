"""One step of stage 1 against the official MAGVIT step: every loss, the gradient of every weight, and what is kept after it.

The official step ran plain SGD with rate 1, so that the update is the gradient; weights of the perceptual term were 0.
"""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from maskgen.tokenizers.training.losses.image import LeCam
from maskgen.tokenizers.training.reconstruction import ReconstructionTraining, VideoReconstructionSettings
from maskgen.tokenizers.video.vq3d import VQ3D
from maskgen.training.optim.averaging import warm_average
from tests.parity.magvit.models import first, group, tokenizer
from tests.parity.magvit.weights import discriminator_config, discriminator_state_dict, tokenizer_state_dict
from tests.parity.support import load, metadata, recordings

SETS = recordings("magvit", "vqgan_train_step_*.safetensors")


def close(got: Tensor, expected: Tensor, what: str, **tolerance: float) -> None:
    limits = {"atol": 5e-6, "rtol": 1e-5, **tolerance}
    torch.testing.assert_close(got.detach().reshape(expected.shape), expected, **limits, msg=lambda t: f"{what}: {t}")


def make(path) -> ReconstructionTraining:
    """The objective with the recorded weights, settings and running means."""
    data, settings = load(path), metadata(path)
    model = tokenizer(group(data, "g_params/"), settings["vqvae"]).train()
    params = group(data, "d_params/")
    discriminator = discriminator_config(params, tuple(data["video"].shape[1:4]))
    assert discriminator.multipliers == tuple(settings["discriminator"]["channel_multipliers"])
    assert discriminator.channels == settings["discriminator"]["filters"]
    official = settings["vqgan"]
    assert official["model_type"] == "3D"
    made = ReconstructionTraining(
        model,
        VideoReconstructionSettings(
            perceptual=None,
            gan_weight=official["g_adversarial_loss_weight"],
            gan=official["loss_type"],
            r1_weight=official["grad_penalty_cost"] if official["gradient_penalty"] == "r1" else 0.0,
            lecam_weight=settings["lecam_weight"],
            lecam_decay=settings["polyak_decay"],
            discriminator=discriminator,
        ),
    )
    made.discriminator.load_state_dict(discriminator_state_dict(params, discriminator))
    if made.lecam is not None:
        start(made.lecam, settings)
    return made


def noted(settings: dict[str, Any], pattern: str) -> list[float]:
    """Numbers that the metadata's note names."""
    found = re.search(pattern, settings["note"])
    assert found, settings["note"]
    return [float(number) for number in found.groups()]


def start(lecam: LeCam, settings: dict[str, Any]) -> LeCam:
    """Running means as the recorded run had them before the step."""
    real, fake = noted(settings, r"lecam ema start (-?[\d.]+)/(-?[\d.]+)")
    lecam.ema_real.fill_(real)
    lecam.ema_fake.fill_(fake)
    return lecam


def official_names(module: nn.Module, params: dict[str, Tensor], config: Any) -> dict[str, str]:
    """Our name to the official one: the key map is fed arrays that hold their own number."""
    numbered = {name: torch.full(array.shape, float(index)) for index, (name, array) in enumerate(params.items())}
    convert = tokenizer_state_dict if isinstance(module, VQ3D) else discriminator_state_dict
    listed = list(params)
    return {key: listed[int(array.flatten()[0])] for key, array in convert(numbered, config).items()}


def official_layout(gradient: Tensor) -> Tensor:
    """Ours to channels last; codebooks and biases stay."""
    return gradient.permute(2, 3, 4, 1, 0) if gradient.ndim == 5 else gradient


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem.removeprefix("vqgan_train_step_"))
def test_losses(path) -> None:
    made, data, settings = make(path), load(path), metadata(path)
    networks, batch = made.networks(), {"video": first(data["video"])}
    loss, terms = made.loss("model", networks, batch, 0)
    judged, verdict = made.loss("discriminator", networks, batch, 0)
    none = torch.zeros(())
    penalty, lecam = verdict.get("r1", none), made.settings.lecam_weight * verdict.get("lecam", none)
    got = {
        "g_loss": loss,
        "reconstruction_loss": terms["pixel"],
        "quantizer_loss": terms["q_latent"] + terms["e_latent"] + terms["entropy"],
        "g_adversarial_loss": made.settings.gan_weight * terms["gan"],
        "d_loss": judged,
        "d_adversarial_loss": judged - penalty - lecam,
        "grad_penalty": penalty,
        "lecam_loss": lecam,
        "perceptual_loss": none,  # weight 0
        "logit_laplace_loss": none,  # another pixel term, off in every released config
    }
    metrics = group(data, "metric/")
    assert got.keys() == metrics.keys()
    for key, value in got.items():
        close(value, metrics[key], key)
    kept = made.lecam or start(LeCam(), settings)  # weight 0 leaves the means where they were
    close(torch.stack([kept.ema_real, kept.ema_fake]), data["lecam_ema_after"], "lecam", rtol=1e-6)


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem.removeprefix("vqgan_train_step_"))
def test_gradients_and_average(path) -> None:
    """The generator's tolerance is the README's: the entropy at temperature 0.01 amplifies rounding."""
    made, data, settings = make(path), load(path), metadata(path)
    networks, batch = made.networks(), {"video": first(data["video"])}
    for network in networks:
        made.loss(network, networks, batch, 0)[0].backward()
    for prefix, module in (("g", made.model), ("d", made.discriminator)):
        names = official_names(module, group(data, f"{prefix}_params/"), module.config)
        gradients = {names[key]: weight.grad for key, weight in module.named_parameters()}
        norms, whole = group(data, f"{prefix}_grad_norm/"), group(data, f"{prefix}_grad/")
        assert gradients.keys() == norms.keys()
        for name, norm in norms.items():
            close(gradients[name].norm(), norm, name, rtol=5e-4)
        for name, expected in whole.items():
            got = gradients[name].t() if name.startswith("Dense") else official_layout(gradients[name])
            close(got.contiguous(), expected, name, atol=5e-5 if prefix == "g" else 1e-5, rtol=1e-4)

    names = official_names(made.model, group(data, "g_params/"), made.model.config)
    averaged = AveragedModel(made.model, multi_avg_fn=warm_average(settings["polyak_decay"]))
    averaged.n_averaged.fill_(10**6)  # past the warm-up
    (factor,) = noted(settings, r"ema started at ([\d.]+)\*params")
    with torch.no_grad():
        for weight in averaged.module.parameters():
            weight.mul_(factor)
        for weight in made.model.parameters():
            weight.sub_(weight.grad)
    averaged.update_parameters(made.model)
    after = {names[key]: weight for key, weight in averaged.module.named_parameters()}
    for name, expected in group(data, "ema_after/").items():
        close(after[name], expected, name, atol=1e-6)
