"""Stage 1: the tokenizer learns to reconstruct, alone and against a discriminator, and goes on where it stopped."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import maskgen.tokenizers.training.losses.perceptual
from maskgen.checkpoint import load_module
from maskgen.data import Batch, TensorSource
from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from maskgen.tokenizers.training.base import psnr
from maskgen.tokenizers.training.discriminators.image import DiscriminatorConfig
from maskgen.tokenizers.training.losses.image import LeCam, r1_penalty
from maskgen.tokenizers.training.reconstruction import ReconstructionSettings, ReconstructionTraining
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.settings import TrainSettings
from maskgen.training.trainer import Trainer

PLAIN = ReconstructionSettings(perceptual=None, gan_weight=0.0)
DISCRIMINATOR = DiscriminatorConfig(image_size=16, max_width=8)


class CrashError(Exception):
    """The machine went away."""


class CrashingTraining(ReconstructionTraining):
    """Raises when one network's turn comes at one step, like a process killed there."""

    crash_at: tuple[str, int] | None = None

    def loss(self, network: str, modules: Mapping[str, nn.Module], batch: Batch, step: int) -> Any:
        if (network, step) == self.crash_at:
            raise CrashError
        return super().loss(network, modules, batch, step)


def photos(count: int = 8, height: int = 16, width: int = 16) -> TensorSource:
    """Smooth coloured images."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    images = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return TensorSource(images=images)


def tokenizer(quantizer: QuantizerConfig | None = None, **changes: Any) -> VQGAN:
    """Stride 2 and a few thousand weights, the same at every call."""
    torch.manual_seed(0)
    plain = {"channels": 8, "multipliers": (1, 2), "res_blocks": 1, "groups": 4, "shortcut": "input"}
    return VQGAN(VQGANConfig(quantizer=quantizer or QuantizerConfig(codebook_size=32, dim=8), **(plain | changes)))


def adversarial(**changes: Any) -> ReconstructionSettings:
    plain = {"perceptual": None, "discriminator": DISCRIMINATOR, "lecam_weight": 0.1, "gan_weight": 0.1}
    return ReconstructionSettings(**(plain | changes))


def settings(**changes: Any) -> TrainSettings:
    optimizer = OptimizerSettings(
        **{"lr": 2e-3, "warmup_steps": 0, "decay": "constant", "weight_decay": 0.1, **changes.pop("optimizer", {})}
    )
    plain = {"steps": 4, "batch_size": 4, "log_every": 1, "tracker": None}
    never = {"validate_every": 0, "show_every": 0, "checkpoint_every": 0}
    return TrainSettings(optimizer=optimizer, **{**plain, **never, **changes})


def fit(objective: ReconstructionTraining, out: Path, source: TensorSource | None = None, **changes: Any) -> Trainer:
    trainer = Trainer(objective, source or photos(), settings(**changes), out)
    trainer.fit()
    return trainer


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_four_images_are_learned_by_heart(tmp_path: Path) -> None:
    source = photos(4)
    model = tokenizer(QuantizerConfig(codebook_size=64, dim=8, entropy_weight=0.02), channels=16)
    objective = ReconstructionTraining(model, PLAIN, held_out=source)
    assert objective.validate(model, torch.device("cpu"))["psnr"] < 15
    trainer = fit(objective, tmp_path, source, steps=250, log_every=250, optimizer={"weight_decay": 0.0, "lr": 3e-3})
    assert objective.validate(trainer.ema.module, torch.device("cpu"))["psnr"] > 30


@pytest.mark.parametrize("gan", ["non-saturating", "hinge"])
def test_both_networks_learn(gan: Any, tmp_path: Path) -> None:
    objective = ReconstructionTraining(tokenizer(), adversarial(gan=gan))
    assert objective.discriminator is not None
    before = [weights(objective.model), weights(objective.discriminator)]
    fit(objective, tmp_path)
    after = [weights(objective.model), weights(objective.discriminator)]
    for old, new in zip(before, after, strict=True):
        assert [name for name in old if torch.equal(old[name], new[name])] == []
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    named = {"loss", "pixel", "gan", "discriminator/loss", "discriminator/real", "discriminator/fake"}
    for line in lines:
        assert named | {"discriminator/r1", "discriminator/lecam"} <= line.keys()
        assert all(math.isfinite(value) for value in line.values())


def test_nobody_collects_the_other_networks_gradients() -> None:
    objective = ReconstructionTraining(tokenizer(), adversarial())
    networks = objective.networks()
    discriminator, batch = networks["discriminator"], photos(4).tensors
    loss, terms = objective.loss("model", networks, dict(batch), 0)
    loss.backward()
    assert terms["gan"] > 0
    assert [name for name, weight in discriminator.named_parameters() if weight.grad is not None] == []
    assert all(weight.requires_grad for weight in discriminator.parameters())
    assert all(weight.grad is not None for weight in objective.model.parameters())
    objective.model.zero_grad()
    loss, _ = objective.loss("discriminator", networks, dict(batch), 0)
    loss.backward()
    assert [name for name, weight in objective.model.named_parameters() if weight.grad is not None] == []
    assert [name for name, weight in discriminator.named_parameters() if weight.grad is None] == []


def test_the_adversarial_gradient_reaches_the_tokenizer() -> None:
    batch, gradients = dict(photos(4).tensors), []
    for weight in (1e-12, 10.0):
        torch.manual_seed(1)
        objective = ReconstructionTraining(tokenizer(), adversarial(gan_weight=weight))
        torch.manual_seed(1)
        objective.discriminator.load_state_dict({k: torch.rand_like(v) - 0.5 for k, v in _state(objective)})
        objective.loss("model", objective.networks(), batch, 0)[0].backward()
        gradients.append(objective.model.last_layer.grad)
    assert not torch.allclose(*gradients)


def _state(objective: ReconstructionTraining) -> list[tuple[str, Tensor]]:
    assert objective.discriminator is not None
    return list(objective.discriminator.state_dict().items())


def test_the_game_begins_at_gan_start(tmp_path: Path) -> None:
    """Before, the discriminator must not move at all: weight decay would shrink it for thousands of steps."""
    for steps in (2, 3):
        torch.manual_seed(5)
        objective = ReconstructionTraining(tokenizer(), adversarial(gan_start=2))
        assert objective.discriminator is not None
        before = weights(objective.discriminator)
        fit(objective, tmp_path / str(steps), steps=steps)
        assert equal(before, weights(objective.discriminator)) == (steps == 2)
        assert objective.lecam is not None
        assert (objective.lecam.ema_real != 0) == (steps == 3)
        assert ["gan" in line for line in log(tmp_path / str(steps))] == [False, False, True][:steps]


def test_a_resumed_game_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"steps": 5, "checkpoint_every": 2, "optimizer": {"decay": "cosine"}}
    results = []
    for crash_at in (None, ("model", 3), ("discriminator", 3)):
        out = tmp_path / str(crash_at)
        torch.manual_seed(5)
        objective = CrashingTraining(tokenizer(), adversarial(gan_start=1))
        if crash_at is not None:
            objective.crash_at = crash_at
            with pytest.raises(CrashError):
                fit(objective, out, **changes)
            torch.manual_seed(99)  # other weights at first: all of them must come from the checkpoint
            objective = CrashingTraining(tokenizer(), adversarial(gan_start=1))
        trainer = fit(objective, out, **changes)
        assert objective.discriminator is not None
        assert objective.lecam is not None
        results.append([weights(objective.model), weights(objective.discriminator), weights(objective.lecam)])
        results[-1].append(weights(trainer.ema))
        kept = load_file(out / "checkpoints" / "step-00000005" / "extra.safetensors")
        assert equal(kept, weights(objective.lecam))
        assert kept["ema_real"] != 0
    for resumed in results[1:]:
        assert all(equal(a, b) for a, b in zip(results[0], resumed, strict=True))


def test_gradient_penalty_and_lecam_are_what_they_say() -> None:
    batch = dict(photos(4).tensors)
    objective = ReconstructionTraining(tokenizer(), adversarial(r1_weight=3.0, lecam_weight=0.5))
    networks = objective.networks()
    objective.loss("model", networks, batch, 0)
    loss, terms = objective.loss("discriminator", networks, batch, 0)
    discriminator = networks["discriminator"]
    torch.testing.assert_close(terms["r1"], r1_penalty(discriminator, batch["images"], 3.0).detach())
    with torch.no_grad():
        real, fake = discriminator(batch["images"]), discriminator(objective._pair[1])
        game = nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean()
        lecam = LeCam()(real, fake)
    torch.testing.assert_close(loss.detach(), game + terms["r1"] + 0.5 * lecam)
    assert objective.lecam is not None
    torch.testing.assert_close(objective.lecam.ema_real, 0.001 * real.mean())
    plain = ReconstructionTraining(tokenizer(), adversarial(r1_weight=0.0, lecam_weight=0.0))
    plain.loss("model", plain.networks(), batch, 0)
    assert plain.loss("discriminator", plain.networks(), batch, 0)[1].keys() == {"real", "fake"}
    assert plain.state() is None


def test_the_perceptual_term(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for LPIPS, whose weights would have to be downloaded."""

    class StandIn(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return (first - second).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setattr(maskgen.tokenizers.training.losses.perceptual, "_load_lpips", lambda net, pretrained: StandIn())
    batch = dict(photos(4).tensors)
    with_it = ReconstructionTraining(tokenizer(), ReconstructionSettings(gan_weight=0.0, perceptual_weight=0.3))
    loss, terms = with_it.loss("model", with_it.networks(), batch, 0)
    without, plain = ReconstructionTraining(tokenizer(), PLAIN).loss("model", {"model": tokenizer()}, batch, 0)
    assert "perceptual" not in plain
    torch.testing.assert_close(loss - without, 0.3 * terms["perceptual"])
    fake = tokenizer()(batch["images"]).reconstruction
    torch.testing.assert_close(terms["perceptual"], 2 * (fake - batch["images"]).abs().mean().detach())


def test_pixel_terms() -> None:
    batch = dict(photos(4).tensors)
    out = tokenizer()(batch["images"])
    difference = out.reconstruction - batch["images"]
    for pixel, expected in (("l2", difference.square().mean()), ("l1", difference.abs().mean())):
        chosen = ReconstructionSettings(perceptual=None, gan_weight=0.0, pixel=pixel, pixel_weight=2.0)
        loss, terms = ReconstructionTraining(tokenizer(), chosen).loss("model", {"model": tokenizer()}, batch, 0)
        torch.testing.assert_close(terms["pixel"], expected.detach())
        torch.testing.assert_close(loss, 2 * expected + out.quantized.loss)
        assert 1 <= terms["codebook_perplexity"] <= 32
        assert 1 / 32 <= terms["codebook_usage"] <= 1


def test_validation_numbers() -> None:
    source = photos(70)  # more than one part of 32
    model = tokenizer().eval()
    numbers = ReconstructionTraining(model, PLAIN, held_out=source).validate(model, torch.device("cpu"))
    images = source.tensors["images"]
    with torch.no_grad():
        codes = model.encode(images)
        rebuilt = model.decode(codes, (8, 8)).clamp(0, 1)
    errors = (rebuilt - images).square().mean((1, 2, 3))
    assert numbers["score"] == pytest.approx(float(errors.mean()), rel=1e-5)
    assert numbers["psnr"] == pytest.approx(float((10 * torch.log10(1 / errors)).mean()), rel=1e-5)
    counts = torch.bincount(codes.flatten(), minlength=32)
    shares = counts[counts > 0] / counts.sum()
    assert numbers["codebook_usage"] == pytest.approx(len(shares) / 32)
    assert numbers["codebook_perplexity"] == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-5)
    assert ReconstructionTraining(model, PLAIN).validate(model, torch.device("cpu")) == {}
    assert psnr(torch.tensor([0.01, 0.0])).tolist() == pytest.approx([20, 120])


def test_pictures_while_training(tmp_path: Path) -> None:
    source = photos(4)

    def show(model: nn.Module, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        picture = model(source.tensors["images"][:1]).reconstruction[0].clamp(0, 1).mul(255).byte()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{step}.png")

    fit(ReconstructionTraining(tokenizer(), PLAIN, show=show), tmp_path, source, show_every=2)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["2.png", "4.png"]
    with Image.open(tmp_path / "samples" / "4.png") as picture:
        assert picture.size == (16, 16)
    ReconstructionTraining(tokenizer(), PLAIN).show(nn.Identity(), tmp_path / "none", 1)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "quantizer",
    [
        QuantizerConfig(kind="vq", codebook_size=32, dim=8),
        QuantizerConfig(kind="fsq", levels=(4, 3, 5), dim=6),
        QuantizerConfig(kind="lfq", codebook_size=32, dim=6),
        QuantizerConfig(kind="rvq", codebook_size=16, dim=6, num_quantizers=3),
    ],
    ids=["vq", "fsq", "lfq", "rvq"],
)
@pytest.mark.parametrize("size", [(16, 16), (13, 9)])
def test_every_quantizer_trains(quantizer: QuantizerConfig, size: tuple[int, int], tmp_path: Path) -> None:
    source = photos(8, *size)
    objective = ReconstructionTraining(tokenizer(quantizer), PLAIN, held_out=source)
    before, device = weights(objective.model), torch.device("cpu")
    at_first = objective.validate(objective.model.eval(), device)["score"]
    objective.model.train()
    cells = math.ceil(size[0] / 2) * math.ceil(size[1] / 2)
    assert objective.units(dict(source.tensors)) == 8 * cells * quantizer.num_quantizers
    trainer = fit(objective, tmp_path, source, steps=30, batch_size=8, log_every=30, optimizer={"lr": 3e-3})
    assert not equal(before, weights(objective.model))
    assert objective.validate(trainer.ema.module, device)["score"] < 0.5 * at_first
    images = source.tensors["images"]
    with torch.no_grad():
        loaded = load_module(tmp_path, VQGAN)
        assert torch.equal(loaded.encode(images), trainer.ema.module.encode(images))


def test_images_of_another_size_than_the_discriminators(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images: got shape \(4, 3, 12, 12\), expected \[B, 3, 16, 16\]"):
        fit(ReconstructionTraining(tokenizer(), adversarial()), tmp_path, photos(8, 12, 12))


@pytest.mark.parametrize(
    "name", ["pixel_weight", "perceptual_weight", "gan_weight", "gan_start", "r1_weight", "lecam_weight"]
)
def test_settings_refuse_what_is_negative(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: got -1, expected 0 or more"):
        ReconstructionSettings(**{name: -1})


def test_validation_sees_every_class() -> None:
    """Held-out data come by class; of more than a validation takes, it draws over all of them."""
    model, grey = tokenizer().eval(), torch.full((20, 3, 16, 16), 0.5)
    settings = dataclasses.replace(PLAIN, validation=10)
    late = [torch.zeros(20, 3, 16, 16), torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))]
    found = [
        ReconstructionTraining(model, settings, held_out=TensorSource(images=torch.cat((grey, one)))).validate(
            model, torch.device("cpu")
        )
        for one in late
    ]
    assert all(found[0][name] != found[1][name] for name in ("score", "psnr", "codebook_usage"))
