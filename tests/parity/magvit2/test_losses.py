"""Open-MAGVIT2's stage-1 losses and discriminators against the official loss modules, step for step.

Shapes: B batch, T frames, H W pixels.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.tokenizers.quantizers.lookup_free import LFQOutput
from maskgen.tokenizers.training.discriminators.patch import (
    BlurPatchDiscriminator,
    PatchDiscriminator,
    PatchDiscriminatorConfig,
    build_discriminator,
)
from maskgen.tokenizers.training.losses.image import LeCam
from maskgen.tokenizers.training.losses.magvit2 import (
    Magvit2LossSettings,
    PatchGAN,
    discriminator_terms,
    entropy_weight,
    generator_terms,
)
from tests.parity.magvit2.recordings import names, recording, relative, state
from tests.parity.support import check_kinds

RUNS = names("loss_*.safetensors")
CLOSE: dict[str, float] = {"atol": 1e-5, "rtol": 0}
GAMES: dict[str, PatchGAN] = {"hinge": "hinge", "vanilla": "vanilla", "non_saturate": "non-saturating"}


def settings_of(told: dict[str, Any]) -> Magvit2LossSettings:
    """Our settings for the arguments of an official loss; every one is looked at."""
    config = dict(told)
    if config.pop("use_blur", False):
        assert config.pop("blur_resample")
        assert config.pop("blur_kernel_size") == 4
        width, layers = config.pop("disc_hidden_channels"), config.pop("disc_num_stages")
        discriminator = PatchDiscriminatorConfig(kind="blur", width=width, layers=layers)
    else:
        discriminator = PatchDiscriminatorConfig(width=config.pop("disc_ndf"), layers=config.pop("disc_num_layers"))
    assert config.pop("perceptual_weight") == 0
    settings = Magvit2LossSettings(
        perceptual=None,
        discriminator=discriminator,
        gan_start=config.pop("disc_start"),
        gan=GAMES[config.pop("disc_loss", "hinge")],
        gan_weight=config.pop("gen_loss_weight"),
        adaptive_weight=config.pop("disc_weight"),
        lecam_weight=config.pop("lecam_loss_weight"),
        entropy_weight=config.pop("codebook_weight"),
        commitment_weight=config.pop("commit_weight"),
        entropy_boost=config.pop("codebook_enlarge_ratio"),
        entropy_boost_steps=config.pop("codebook_enlarge_steps"),
    )
    assert not config, "settings this test does not know"
    return settings


def discriminator_of(io: dict[str, Tensor], told: dict[str, Any], settings: Magvit2LossSettings) -> nn.Module:
    """The discriminator with its weights, in training mode; a recorded counter of batches stands at the run's end."""
    assert settings.discriminator is not None
    discriminator = build_discriminator(settings.discriminator, dims=len(told["shape"]) - 2)  # type: ignore[arg-type]
    kinds = {"NLayerDiscriminator": PatchDiscriminator, "NLayerDiscriminator3D": PatchDiscriminator}
    assert type(discriminator) is kinds.get(told["discriminator"], BlurPatchDiscriminator)
    weights = state(io)
    for name in [name for name in weights if name.endswith(".kernel")]:
        low_pass = discriminator.get_submodule(name.removesuffix(".kernel"))
        assert torch.equal(low_pass.kernel, weights.pop(name))
    weights = {name: value * 0 if "num_batches" in name else value for name, value in weights.items()}
    discriminator.load_state_dict(weights)
    return discriminator.train()


def test_kinds_are_found() -> None:
    told = [recording(run)[1] for run in RUNS]
    check_kinds("magvit2", {len(each["shape"]) for each in told}, {4, 5})
    check_kinds("magvit2", {each["config"].get("disc_loss", "hinge") for each in told}, GAMES)
    check_kinds("magvit2", {each["config"]["gen_loss_weight"] is None for each in told}, {True, False})
    check_kinds("magvit2", {each["config"]["codebook_enlarge_ratio"] > 0 for each in told}, {True, False})


@pytest.mark.parametrize("run", RUNS)
def test_losses(run: str) -> None:
    io, told = recording(run)
    settings, lecam = settings_of(told["config"]), LeCam()
    discriminator = discriminator_of(io, told, settings)
    kernel, bias = state(io, "last_layer/")["weight"].requires_grad_(), state(io, "last_layer/")["bias"]
    conv = torch.nn.functional.conv2d if kernel.ndim == 4 else torch.nn.functional.conv3d
    for index, step in enumerate(told["global_steps"]):
        one = {key.removeprefix(f"step{index}/"): value for key, value in io.items() if key.startswith(f"step{index}/")}
        made = conv(one["features"], kernel, bias, padding=1)
        torch.testing.assert_close(made, one["recon"], **CLOSE)
        check_generator(settings, one, made, discriminator, kernel, step)
        real, fake = discriminator(one["inputs"]), discriminator(made.detach())
        torch.testing.assert_close(real, one["d/logits_real_map"], **CLOSE)
        torch.testing.assert_close(fake, one["d/logits_fake_map"], **CLOSE)
        loss, terms = discriminator_terms(settings, real, fake, step=step, lecam=lecam)
        torch.testing.assert_close(loss, one["d/total"], **CLOSE)
        begun = step >= settings.gan_start
        logged = {"gan": "non_saturated_d_loss"} | ({"real": "logits_real", "fake": "logits_fake"} if begun else {})
        for ours, official in logged.items():
            torch.testing.assert_close(terms[ours], one[f"d/{official}"], **CLOSE)
        torch.testing.assert_close(terms.get("lecam", torch.tensor(0.0)), one["d/lecam_loss"], **CLOSE)
        means = torch.stack((lecam.ema_real, lecam.ema_fake)).double()
        torch.testing.assert_close(means, one["lecam_ema"], atol=1e-7, rtol=0)
    gradients = torch.autograd.grad(loss, list(discriminator.parameters()))
    for (name, _), gradient in zip(discriminator.named_parameters(), gradients, strict=True):
        assert relative(gradient, one[f"d/grad/{name}"]) < 1e-5, name
    after = {key.removeprefix("buffers_after/"): value for key, value in io.items() if key.startswith("buffers_after/")}
    for name, value in after.items():  # every batch is seen three times, also before the game begins
        torch.testing.assert_close(discriminator.state_dict()[name], value, **CLOSE)
    assert bool(after) == (told["discriminator"] != "NLayerDiscriminatorv2")
    torch.testing.assert_close(discriminator.eval()(io["eval_x"]), io["eval_logits"], **CLOSE)


def check_generator(
    settings: Magvit2LossSettings,
    one: dict[str, Tensor],
    made: Tensor,
    discriminator: nn.Module,
    kernel: Tensor,
    step: int,
) -> None:
    """One pass of the tokenizer, its gradients included."""
    entropy, commitment = one["entropy_loss"].clone().requires_grad_(), one["commit"].clone().requires_grad_()
    sample, batch = one["g/per_sample_entropy"], one["g/codebook_entropy"]
    quantized = LFQOutput(made, torch.zeros(1, 1, 1, dtype=torch.long), sample, batch, entropy, commitment)
    loss, terms = generator_terms(
        settings, one["inputs"], made, quantized, step=step, discriminator=discriminator, last_layer=kernel
    )
    torch.testing.assert_close(loss, one["g/total"], **CLOSE)
    torch.testing.assert_close(loss, one["g/total_loss"], **CLOSE)
    by_pixel, by_entropy, by_commitment = torch.autograd.grad(loss, (made, entropy, commitment), retain_graph=True)
    assert relative(by_pixel, one["g/grad_recon"]) < 1e-5
    torch.testing.assert_close(by_entropy, one["g/grad_entropy"], **CLOSE)
    torch.testing.assert_close(torch.tensor(entropy_weight(settings, step)), one["g/grad_entropy"], **CLOSE)
    torch.testing.assert_close(by_commitment, one["g/grad_commit"], **CLOSE)
    begun = step >= settings.gan_start
    assert float(one["g/disc_factor"]) == begun == ("gan" in terms)
    logged = {"pixel": "reconstruct_loss", "commitment": "commit_loss", "sample_entropy": "per_sample_entropy"}
    logged |= {"batch_entropy": "codebook_entropy"}
    if begun:
        logged |= {"gan": "g_loss", "gan_weight": "d_weight", "entropy": "entropy_loss"}
    for ours, official in logged.items():
        torch.testing.assert_close(terms[ours], one[f"g/{official}"], **CLOSE)
