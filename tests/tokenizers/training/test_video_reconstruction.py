"""Stage 1 for video: the tokenizer learns to reconstruct, alone or against a discriminator, and goes on where it stopped."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import maskgen.tokenizers.training.losses.perceptual
from maskgen.checkpoint import load_module
from maskgen.data import TensorSource, draw_numbers
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from maskgen.tokenizers.training.discriminators.video import VideoDiscriminatorConfig
from maskgen.tokenizers.training.losses.image import LeCam, r1_penalty
from maskgen.tokenizers.training.reconstruction import ReconstructionTraining, VideoReconstructionSettings
from maskgen.tokenizers.video.toy import ToyVideoTokenizer, ToyVideoTokenizerConfig
from maskgen.tokenizers.video.vq3d import VQ3D, VQ3DConfig
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.settings import TrainSettings
from maskgen.training.trainer import Trainer

PLAIN = VideoReconstructionSettings(perceptual=None, gan_weight=0.0)
DISCRIMINATOR = VideoDiscriminatorConfig(size=(4, 8, 8), channels=4, multipliers=(1, 2))


def clips(count: int = 4, frames: int = 4, height: int = 8, width: int = 8) -> TensorSource:
    """Smooth coloured clips."""
    coarse = torch.rand(count, 3, 2, 3, 3, generator=torch.Generator().manual_seed(7))
    return TensorSource(video=nn.functional.interpolate(coarse, size=(frames, height, width), mode="trilinear"))


def tokenizer(quantizer: QuantizerConfig | None = None, **changes: Any) -> VQ3D:
    """Stride 2 and a few thousand weights, the same at every call."""
    torch.manual_seed(0)
    plain = {"channels": 8, "multipliers": (1, 2), "temporal_downsample": (True,), "groups": 4}
    plain |= {"encoder_blocks": 1, "decoder_blocks": 1}
    return VQ3D(VQ3DConfig(quantizer=quantizer or QuantizerConfig(codebook_size=32, dim=8), **(plain | changes)))


def adversarial(**changes: Any) -> VideoReconstructionSettings:
    plain = {"perceptual": None, "discriminator": DISCRIMINATOR, "lecam_weight": 0.1, "gan_weight": 0.1}
    return VideoReconstructionSettings(**(plain | changes))


def fit(objective: ReconstructionTraining, out: Path, source: TensorSource | None = None, **changes: Any) -> Trainer:
    plain: dict[str, Any] = {"lr": 2e-3, "warmup_steps": 0, "decay": "constant", "weight_decay": 0.0}
    optimizer = OptimizerSettings(**{**plain, **changes.pop("optimizer", {})})
    never = {"validate_every": 0, "show_every": 0, "checkpoint_every": 0}
    steps = {"steps": 4, "batch_size": 4, "log_every": 1, "tracker": None}
    trainer = Trainer(
        objective, source or clips(), TrainSettings(optimizer=optimizer, **{**steps, **never, **changes}), out
    )
    trainer.fit()
    return trainer


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_two_clips_are_learned_by_heart(tmp_path: Path) -> None:
    source = clips(2)
    model = tokenizer(QuantizerConfig(codebook_size=64, dim=8, entropy_weight=0.02))
    objective = ReconstructionTraining(model, PLAIN, held_out=source)
    assert objective.validate(model, torch.device("cpu"))["psnr"] < 15
    trainer = fit(objective, tmp_path, source, steps=120, batch_size=2, log_every=120, optimizer={"lr": 5e-3})
    numbers = objective.validate(trainer.ema.module, torch.device("cpu"))
    assert numbers["psnr"] > 30
    video = source.tensors["video"]
    loaded = load_module(tmp_path, VQ3D)
    with torch.no_grad():
        rebuilt = loaded.decode(loaded.encode(video), loaded.axes(video.shape)).clamp(0, 1)
    assert float((rebuilt - video).square().mean()) == pytest.approx(numbers["score"], rel=1e-4)


@pytest.mark.parametrize("gan", ["non-saturating", "hinge"])
@pytest.mark.parametrize("kind", ["clip", "frame"])
def test_both_networks_learn(gan: Any, kind: Any, tmp_path: Path) -> None:
    discriminator = dataclasses.replace(DISCRIMINATOR, kind=kind)
    objective = ReconstructionTraining(tokenizer(), adversarial(gan=gan, discriminator=discriminator))
    assert objective.discriminator is not None
    before = [weights(objective.model), weights(objective.discriminator)]
    fit(objective, tmp_path, steps=2)
    after = [weights(objective.model), weights(objective.discriminator)]
    for old, new in zip(before, after, strict=True):
        assert [name for name in old if torch.equal(old[name], new[name])] == []
    named = {"loss", "pixel", "gan", "q_latent", "entropy", "discriminator/loss", "discriminator/real"}
    for line in log(tmp_path):
        assert named | {"discriminator/fake", "discriminator/r1", "discriminator/lecam"} <= line.keys()
        assert all(math.isfinite(value) for value in line.values())


def test_nobody_collects_the_other_networks_gradients() -> None:
    objective = ReconstructionTraining(tokenizer(), adversarial())
    networks = objective.networks()
    discriminator, batch = networks["discriminator"], dict(clips().tensors)
    loss, terms = objective.loss("model", networks, batch, 0)
    loss.backward()
    assert terms["gan"] > 0
    assert [name for name, weight in discriminator.named_parameters() if weight.grad is not None] == []
    assert all(weight.requires_grad for weight in discriminator.parameters())
    assert all(weight.grad is not None for weight in objective.model.parameters())
    objective.model.zero_grad()
    objective.loss("discriminator", networks, batch, 0)[0].backward()
    assert [name for name, weight in objective.model.named_parameters() if weight.grad is not None] == []
    assert [name for name, weight in discriminator.named_parameters() if weight.grad is None] == []


def test_the_game_begins_at_gan_start(tmp_path: Path) -> None:
    """Before, the discriminator must not move at all: weight decay would shrink it for thousands of steps."""
    for steps in (1, 2):
        torch.manual_seed(5)
        objective = ReconstructionTraining(tokenizer(), adversarial(gan_start=1))
        assert objective.discriminator is not None
        assert objective.lecam is objective.state()
        before = weights(objective.discriminator)
        fit(objective, tmp_path / str(steps), steps=steps, optimizer={"weight_decay": 0.1})
        assert equal(before, weights(objective.discriminator)) == (steps == 1)
        assert objective.lecam is not None
        assert (objective.lecam.ema_real != 0) == (steps == 2)
        assert ["gan" in line for line in log(tmp_path / str(steps))] == [False, True][:steps]


def test_a_resumed_game_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    results = []
    for parts in ((4,), (2, 4)):
        out = tmp_path / str(len(parts))
        for steps in parts:
            torch.manual_seed(5 + steps)  # other weights at first: all of them must come from the checkpoint
            objective = ReconstructionTraining(tokenizer(), adversarial(entropy_boost=2.0, entropy_boost_steps=3))
            if len(parts) == 1:
                torch.manual_seed(5 + 2)
                objective = ReconstructionTraining(tokenizer(), objective.settings)
            trainer = fit(objective, out, steps=steps)
        assert objective.discriminator is not None
        assert objective.lecam is not None
        results.append([weights(objective.model), weights(objective.discriminator), weights(objective.lecam)])
        results[-1].append(weights(trainer.ema))
    assert all(equal(a, b) for a, b in zip(*results, strict=True))


def test_gradient_penalty_and_lecam_on_batch_means() -> None:
    batch = dict(clips().tensors)
    objective = ReconstructionTraining(tokenizer(), adversarial(r1_weight=3.0, lecam_weight=0.5, lecam_decay=0.9))
    networks = objective.networks()
    assert objective.lecam is not None
    objective.lecam.ema_real.fill_(0.5)
    with torch.no_grad():
        objective.discriminator.dense2.weight.mul_(100)  # logits far apart: a mean of squares is another number
    objective.loss("model", networks, batch, 0)
    loss, terms = objective.loss("discriminator", networks, batch, 0)
    discriminator = networks["discriminator"]
    torch.testing.assert_close(terms["r1"], r1_penalty(discriminator, batch["video"], 3.0).detach())
    with torch.no_grad():
        real, fake = discriminator(batch["video"]), discriminator(objective._pair[1])
        game = nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean()
        lecam = real.mean().clamp(min=0) ** 2 + (0.5 - fake.mean()).clamp(min=0) ** 2
        each = LeCam()
        each.ema_real.fill_(0.5)
        assert not torch.isclose(lecam, each(real, fake), rtol=1e-2)
    torch.testing.assert_close(loss.detach(), game + terms["r1"] + 0.5 * lecam)
    torch.testing.assert_close(objective.lecam.ema_real, 0.45 + 0.1 * real.mean())
    plain = ReconstructionTraining(tokenizer(), adversarial(r1_weight=0.0, lecam_weight=0.0))
    plain.loss("model", plain.networks(), batch, 0)
    assert plain.loss("discriminator", plain.networks(), batch, 0)[1].keys() == {"real", "fake"}
    assert plain.state() is None


def test_the_perceptual_term_sees_every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for LPIPS, whose weights would have to be downloaded."""
    seen: list[torch.Size] = []

    class StandIn(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            seen.append(first.shape)
            return (first - second).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setattr(maskgen.tokenizers.training.losses.perceptual, "_load_lpips", lambda net, pretrained: StandIn())
    batch = dict(clips(2).tensors)
    settings = VideoReconstructionSettings(gan_weight=0.0, perceptual_weight=0.3)
    with_it = ReconstructionTraining(tokenizer(), settings)
    loss, terms = with_it.loss("model", with_it.networks(), batch, 0)
    without, plain = ReconstructionTraining(tokenizer(), PLAIN).loss("model", {"model": tokenizer()}, batch, 0)
    assert "perceptual" not in plain
    assert seen == [(8, 3, 8, 8)]
    torch.testing.assert_close(loss - without, 0.3 * terms["perceptual"])
    fake = tokenizer()(batch["video"]).reconstruction
    torch.testing.assert_close(terms["perceptual"], 2 * (fake - batch["video"]).abs().mean().detach())


def test_pixel_terms_compare_the_real_part_only() -> None:
    """A clip of 3 frames of 7 x 5 pixels comes back as 4 frames of 8 x 6."""
    batch = dict(clips(2, 3, 7, 5).tensors)
    out = tokenizer()(batch["video"])
    assert out.reconstruction.shape == (2, 3, 4, 8, 6)
    difference = out.reconstruction[:, :, :3, :7, :5] - batch["video"]
    for pixel, expected in (("l2", difference.square().mean()), ("l1", difference.abs().mean())):
        chosen = dataclasses.replace(PLAIN, pixel=pixel, pixel_weight=2.0)
        objective = ReconstructionTraining(tokenizer(), chosen)
        loss, terms = objective.loss("model", {"model": tokenizer()}, batch, 0)
        torch.testing.assert_close(terms["pixel"], expected.detach())
        torch.testing.assert_close(loss, 2 * expected + out.quantized.loss)
        assert 1 <= terms["codebook_perplexity"] <= 32
        assert 1 / 32 <= terms["codebook_usage"] <= 1
        assert objective.units(batch) == 2 * (2 * 4 * 3)


def test_the_entropy_term_starts_stronger() -> None:
    batch = dict(clips(2).tensors)
    plain, _ = ReconstructionTraining(tokenizer(), PLAIN).loss("model", {"model": tokenizer()}, batch, 0)
    boosted = dataclasses.replace(PLAIN, entropy_boost=3.0, entropy_boost_steps=4)
    objective = ReconstructionTraining(tokenizer(), boosted)
    entropy = tokenizer()(batch["video"]).quantized.terms["entropy"]
    for step, extra in ((0, 3.0), (1, 2.25), (4, 0.0), (9, 0.0)):
        loss, _ = objective.loss("model", objective.networks(), batch, step)
        torch.testing.assert_close(loss - plain, extra * entropy)
    assert objective.model.config == tokenizer().config
    for model in (
        tokenizer(QuantizerConfig(kind="fsq", levels=(3, 3), dim=4)),
        tokenizer(QuantizerConfig(entropy_weight=0.0)),
    ):
        with pytest.raises(ValueError, match="entropy_boost: the model's quantizer has no entropy term; set it to 0"):
            ReconstructionTraining(model, boosted)
    with pytest.raises(ValueError, match="ToyVideoTokenizer has no forward to train"):
        ReconstructionTraining(ToyVideoTokenizer(ToyVideoTokenizerConfig()), boosted)


def test_validation_numbers() -> None:
    source = clips(10)  # more than one part of 8
    model = tokenizer().eval()
    settings = dataclasses.replace(PLAIN, validation=9)
    numbers = ReconstructionTraining(model, settings, held_out=source).validate(model, torch.device("cpu"))
    video = source.tensors["video"][draw_numbers(10, 9)]  # nine of all ten, not the first
    with torch.no_grad():
        codes = model.encode(video)
        rebuilt = model.decode(codes, (2, 4, 4)).clamp(0, 1)
    errors = (rebuilt - video).square().mean((1, 3, 4))  # one number a frame
    assert numbers["score"] == pytest.approx(float(errors.mean()), rel=1e-5)
    assert numbers["psnr"] == pytest.approx(float((10 * torch.log10(1 / errors)).mean()), rel=1e-5)
    counts = torch.bincount(codes.flatten(), minlength=32)
    shares = counts[counts > 0] / counts.sum()
    assert numbers["codebook_usage"] == pytest.approx(len(shares) / 32)
    assert numbers["codebook_perplexity"] == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-5)
    assert ReconstructionTraining(model, PLAIN).validate(model, torch.device("cpu")) == {}


def test_pictures_while_training(tmp_path: Path) -> None:
    def show(model: nn.Module, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{step}.txt").write_text(type(model).__name__)

    fit(ReconstructionTraining(tokenizer(), PLAIN, show=show), tmp_path, steps=2, show_every=1)
    assert [path.read_text() for path in sorted((tmp_path / "samples").iterdir())] == ["VQ3D", "VQ3D"]
    ReconstructionTraining(tokenizer(), PLAIN).show(nn.Identity(), tmp_path / "none", 1)
    assert not (tmp_path / "none").exists()


def test_clips_of_another_size_than_the_discriminators(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"video: got shape \(4, 3, 4, 6, 8\), expected \[B, 3, 4, 8, 8\]"):
        fit(ReconstructionTraining(tokenizer(), adversarial()), tmp_path, clips(4, 4, 6, 8))


@pytest.mark.parametrize(
    "name",
    ["pixel_weight", "perceptual_weight", "gan_weight", "gan_start", "r1_weight", "lecam_weight", "entropy_boost"],
)
def test_settings_refuse_what_is_negative(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: got -1, expected 0 or more"):
        VideoReconstructionSettings(**{name: -1})


@pytest.mark.parametrize("name", ["entropy_boost_steps", "validation"])
def test_settings_refuse_zero(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: got 0, expected 1 or more"):
        VideoReconstructionSettings(**{name: 0})
