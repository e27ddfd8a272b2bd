"""Two official training steps of an Open-MAGVIT2 image tokenizer: losses, gradients, weights, averages.

Tolerances are those of the README: at a temperature of 0.01 the entropies multiply the rounding of latents by 400.
"""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.tokenizers.magvit2.tokenizer import Magvit2Image
from maskgen.tokenizers.training.magvit2 import Magvit2Training
from maskgen.training.optim.optimizers import OptimizerSettings, adamw
from tests.parity.magvit2.recordings import names, recording, state, tokenizer, unit
from tests.parity.magvit2.test_losses import settings_of
from tests.parity.support import own_set

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
    weights = state(io)
    model = tokenizer(weights, told)
    assert isinstance(model, Magvit2Image)
    made = Magvit2Training(model.train(), settings_of(told["loss"]))
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


def check_weights(
    io: dict[str, Tensor], weights: dict[str, nn.Parameter], after: dict[str, Tensor], moved: float, off: float
) -> None:
    """After steps of Adam, which are signs at first: where a gradient is rounding, so is the step.

    Args:
        moved: how far all steps together may move a weight.
        off: what counts as another way than the recorded one.
    """
    astray = 0
    for name, weight in weights.items():
        error, gradient = (weight.detach() - after[name]).abs(), io[f"step0/grad/{name}"].abs()
        assert error.max() < 2 * moved  # all steps the other way
        other = error > off
        assert (gradient[other] < 3e-3 * gradient.max()).all(), name
        astray += int(other.sum())
    total = sum(weight.numel() for weight in weights.values())
    assert astray <= (3 if own_set("magvit2") else total // 1000)


@pytest.mark.parametrize("name", names("train_step_*.safetensors"))
def test_steps(name: str) -> None:
    io, told = recording(name)
    training = objective(io, told)
    networks = training.networks()
    # The original's Adam: no decay, no clipping; official 1e-4, recorded with 1e-3.
    adam = re.fullmatch(r"Adam lr (\S+) betas (\S+) (\S+) for generator and discriminator", told["optimizer"])
    assert adam
    rate, *betas = map(float, adam.groups())
    plain = OptimizerSettings(lr=rate, betas=(betas[0], betas[1]), weight_decay=0.0, grad_clip=0.0)
    optimizers = {network: adamw(module, plain) for network, module in networks.items()}
    weights = named(networks)
    averages = {key: weight.detach().clone() for key, weight in weights.items()}
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
        for key, weight in weights.items():  # the original's average: a constant decay from the first step on
            averages[key].lerp_(weight.detach(), 1 - told["ema_decay"])
    done = told["steps"]
    after = state(io, f"after{done}/")
    check_weights(io, weights, after, moved=done * rate, off=rate)
    for key in weights:
        torch.testing.assert_close(averages[key], after["model_ema." + key.replace(".", "")], atol=1e-5, rtol=0)
    for key, buffer in networks["discriminator"].named_buffers():
        torch.testing.assert_close(buffer, after[DISCRIMINATOR + key], atol=1e-3, rtol=0)
    means = torch.stack((training.lecam.ema_real, training.lecam.ema_fake)).double()  # type: ignore[union-attr]
    torch.testing.assert_close(means, io[f"after{done}_lecam"], atol=1e-6, rtol=0)
    known = set(weights) | {"model_ema." + key.replace(".", "") for key in weights}
    known |= {DISCRIMINATOR + key for key, _ in networks["discriminator"].named_buffers()}
    assert after.keys() == known | {"model_ema.decay", "model_ema.num_updates"}
    assert float(after["model_ema.decay"]) == torch.tensor(told["ema_decay"])
