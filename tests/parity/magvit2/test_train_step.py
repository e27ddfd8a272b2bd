"""Two official training steps of an Open-MAGVIT2 image tokenizer: losses, gradients, weights, averages.

Tolerances are those of the README: at a temperature of 0.01 the entropies multiply the rounding of latents by 400.
"""

from typing import Any

import torch
from torch import Tensor, nn

from maskgen.tokenizers.magvit2.tokenizer import Magvit2Image
from maskgen.tokenizers.training.discriminators.patch import PatchDiscriminatorConfig
from maskgen.tokenizers.training.losses.magvit2 import Magvit2LossSettings
from maskgen.tokenizers.training.magvit2 import Magvit2Training
from maskgen.training.optim.optimizers import OptimizerSettings, adamw
from tests.parity.magvit2.recordings import recording, state, tokenizer, unit

LOGGED = {
    "pixel": "reconstruct_loss",
    "sample_entropy": "per_sample_entropy",
    "batch_entropy": "codebook_entropy",
    "entropy": "entropy_loss",
    "commitment": "commit_loss",
    "gan": "g_loss",
    "gan_weight": "d_weight",
    "loss": "total_loss",
}
LOGGED_JUDGE = {
    "gan": "non_saturated_d_loss",
    "lecam": "lecam_loss",
    "real": "logits_real",
    "fake": "logits_fake",
    "loss": "disc_loss",
}
DISCRIMINATOR = "loss.discriminator."


def objective(io: dict[str, Tensor], told: dict[str, Any]) -> Magvit2Training:
    weights, loss = state(io), dict(told["loss"])
    assert loss.pop("perceptual_weight") == 0
    assert loss.pop("disc_loss") == "hinge"
    settings = Magvit2LossSettings(
        perceptual=None,
        discriminator=PatchDiscriminatorConfig(width=loss.pop("disc_ndf"), layers=loss.pop("disc_num_layers")),
        gan_start=loss.pop("disc_start"),
        gan_weight=loss.pop("gen_loss_weight"),
        adaptive_weight=loss.pop("disc_weight"),
        lecam_weight=loss.pop("lecam_loss_weight"),
        entropy_weight=loss.pop("codebook_weight"),
        commitment_weight=loss.pop("commit_weight"),
        entropy_boost=loss.pop("codebook_enlarge_ratio"),
        entropy_boost_steps=loss.pop("codebook_enlarge_steps"),
    )
    assert not loss, "settings this test does not know"
    model = tokenizer(weights, told)
    assert isinstance(model, Magvit2Image)
    made = Magvit2Training(model.train(), settings)
    assert made.discriminator is not None
    discriminator = {
        name.removeprefix(DISCRIMINATOR): value for name, value in weights.items() if name.startswith(DISCRIMINATOR)
    }
    # A recorded counter of batches stands at the run's end.
    made.discriminator.load_state_dict(
        {name: v * 0 if "num_batches" in name else v for name, v in discriminator.items()}
    )
    return made


def named(networks: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Trained weights by official name; those of images are ours."""
    return {
        (DISCRIMINATOR if network == "discriminator" else "") + name: weight
        for network, module in networks.items()
        for name, weight in module.named_parameters()
    }


def check_gradients(io: dict[str, Tensor], step: int, weights: dict[str, nn.Parameter]) -> None:
    gradients = {name: weight.grad for name, weight in weights.items()}
    for name, gradient in gradients.items():
        assert gradient is not None
        if step == 0:
            expected = io[f"step0/grad/{name}"]
            assert (gradient - expected).abs().max() < 3e-3 * expected.abs().max() + 1e-7, name
        if not name.startswith(DISCRIMINATOR):
            torch.testing.assert_close(gradient.norm(), io[f"step{step}/grad_norm/{name}"], rtol=5e-3, atol=1e-6)


def check_weights(io: dict[str, Tensor], weights: dict[str, nn.Parameter], after: dict[str, Tensor]) -> None:
    """After two steps of Adam, which are signs at first: where a gradient is rounding, so is the step."""
    astray = 0
    for name, weight in weights.items():
        error, gradient = (weight.detach() - after[name]).abs(), io[f"step0/grad/{name}"].abs()
        assert error.max() < 4e-3  # two steps of 1e-3 the other way
        off = error > 1e-3
        assert (gradient[off] < 3e-3 * gradient.max()).all(), name
        astray += int(off.sum())
    assert astray <= 3  # of 43754


def test_two_steps() -> None:
    io, told = recording("train_step_image")
    training = objective(io, told)
    networks = training.networks()
    # The original's Adam: no decay, no clipping; official 1e-4, recorded with 1e-3.
    assert told["optimizer"] == "Adam lr 1e-3 betas 0.5 0.9 for generator and discriminator"
    plain = OptimizerSettings(lr=1e-3, betas=(0.5, 0.9), weight_decay=0.0, grad_clip=0.0)
    optimizers = {name: adamw(module, plain) for name, module in networks.items()}
    weights = named(networks)
    averages = {name: weight.detach().clone() for name, weight in weights.items()}
    for step in range(told["steps"]):
        batch = {"images": unit(io[f"step{step}/image_bhwc"].permute(0, 3, 1, 2))}
        for network, logged in (("model", LOGGED), ("discriminator", LOGGED_JUDGE)):
            loss, terms = training.loss(network, networks, batch, step)
            for ours, official in logged.items():
                got = loss.detach() if ours == "loss" else terms[ours]
                torch.testing.assert_close(got, io[f"step{step}/log/{official}"], atol=1e-4, rtol=0)
            loss.backward()
            check_gradients(io, step, named({network: networks[network]}))
            optimizers[network].step()
            optimizers[network].zero_grad()
        for name, weight in weights.items():  # the original's average: a constant decay from the first step on
            averages[name].lerp_(weight.detach(), 1 - told["ema_decay"])
    after = state(io, "after2/")
    check_weights(io, weights, after)
    for name in weights:
        torch.testing.assert_close(averages[name], after["model_ema." + name.replace(".", "")], atol=1e-5, rtol=0)
    for name, buffer in networks["discriminator"].named_buffers():
        torch.testing.assert_close(buffer, after[DISCRIMINATOR + name], atol=1e-3, rtol=0)
    means = torch.stack((training.lecam.ema_real, training.lecam.ema_fake)).double()  # type: ignore[union-attr]
    torch.testing.assert_close(means, io["after2_lecam"], atol=1e-6, rtol=0)
    known = set(weights) | {"model_ema." + name.replace(".", "") for name in weights}
    known |= {DISCRIMINATOR + name for name, _ in networks["discriminator"].named_buffers()}
    assert after.keys() == known | {"model_ema.decay", "model_ema.num_updates"}
    assert float(after["model_ema.decay"]) == torch.tensor(told["ema_decay"])
