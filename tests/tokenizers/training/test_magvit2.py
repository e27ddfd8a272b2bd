"""Stage 1 of MAGVIT-v2's tokenizers: one batch is learned by heart, both networks play, and settings are checked.

Shapes: B batch, T frames, H W pixels.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import maskgen.tokenizers.training.magvit2 as training_module
from maskgen.data import TensorSource
from maskgen.tokenizers.magvit2.tokenizer import Magvit2Image, Magvit2ImageConfig, Magvit2Video, Magvit2VideoConfig
from maskgen.tokenizers.quantizers.lookup_free import LFQOutput
from maskgen.tokenizers.training.discriminators.patch import (
    BlurPatchDiscriminator,
    PatchDiscriminator,
    PatchDiscriminatorConfig,
    build_discriminator,
)
from maskgen.tokenizers.training.losses.adaptive import adaptive_weight
from maskgen.tokenizers.training.losses.image import LeCam
from maskgen.tokenizers.training.losses.magvit2 import (
    Magvit2LossSettings,
    discriminator_terms,
    entropy_weight,
    generator_terms,
    patch_discriminator_loss,
    patch_generator_loss,
)
from maskgen.tokenizers.training.losses.perceptual import Perceptual
from maskgen.tokenizers.training.magvit2 import Magvit2Training
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.settings import TrainSettings
from maskgen.training.trainer import Trainer

DISCRIMINATOR = PatchDiscriminatorConfig(width=4, layers=2)
PLAIN = Magvit2LossSettings(perceptual=None, discriminator=None)
SMALL: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "res_blocks": 1, "groups": 4, "token_bits": (4, 4)}


def smooth(*shape: int) -> Tensor:
    """Coarse colours, blown up."""
    coarse = torch.rand(shape[0], 3, *[2] * (len(shape) - 1), generator=torch.Generator().manual_seed(7))
    mode = "bilinear" if len(shape) == 3 else "trilinear"
    return torch.nn.functional.interpolate(coarse, size=shape[1:], mode=mode, align_corners=False)


def images(count: int = 4) -> TensorSource:
    return TensorSource(images=smooth(count, 16, 16))


def clips(count: int = 2) -> TensorSource:
    return TensorSource(video=smooth(count, 3, 8, 8))


def image_model(**changes: Any) -> Magvit2Image:
    torch.manual_seed(0)
    return Magvit2Image(Magvit2ImageConfig(**SMALL | changes))


def video_model(**changes: Any) -> Magvit2Video:
    torch.manual_seed(0)
    return Magvit2Video(Magvit2VideoConfig(**SMALL | {"strides": ((2, 2, 2),)} | changes))


def adversarial(**changes: Any) -> Magvit2LossSettings:
    return Magvit2LossSettings(**{"perceptual": None, "discriminator": DISCRIMINATOR} | changes)


def fit(objective: Magvit2Training, source: TensorSource, out: Path, **changes: Any) -> Trainer:
    # The original's Adam has no decay and no clipping.
    optimizer = OptimizerSettings(
        lr=changes.pop("lr", 2e-3), betas=(0.5, 0.9), weight_decay=0.0, grad_clip=0.0, warmup_steps=0, decay="constant"
    )
    plain: dict[str, Any] = {"steps": 3, "batch_size": len(source), "log_every": 1, "tracker": None}
    never = {"validate_every": 0, "show_every": 0, "checkpoint_every": 0}
    trainer = Trainer(objective, source, TrainSettings(optimizer=optimizer, **plain | never | changes), out)
    trainer.fit()
    return trainer


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("modality", ["image", "video"])
def test_one_batch_is_learned_by_heart(modality: str, tmp_path: Path) -> None:
    source = images() if modality == "image" else clips()
    model = image_model() if modality == "image" else video_model()
    settings = Magvit2LossSettings(perceptual=None, discriminator=None, entropy_weight=0.01)
    objective = Magvit2Training(model, settings, held_out=source)
    assert objective.validate(model.eval(), torch.device("cpu"))["psnr"] < 15
    trainer = fit(objective, source, tmp_path, steps=100, log_every=100, lr=4e-3)
    found = objective.validate(trainer.ema.module, torch.device("cpu"))
    assert found["psnr"] > 25
    assert found["score"] == pytest.approx(10 ** (-found["psnr"] / 10), rel=0.3)
    assert 0 < found["codebook_usage"] <= 1


@pytest.mark.parametrize("modality", ["image", "video"])
@pytest.mark.parametrize("gan_weight", [0.1, None])
def test_both_networks_learn(modality: str, gan_weight: float | None, tmp_path: Path) -> None:
    source = images() if modality == "image" else clips()
    model = image_model() if modality == "image" else video_model()
    objective = Magvit2Training(model, adversarial(gan_weight=gan_weight))
    networks = objective.networks()
    before = {name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in networks.items()}
    fit(objective, source, tmp_path)
    for name, module in networks.items():
        still = [key for key, value in module.state_dict().items() if torch.equal(value, before[name][key])]
        assert still == []
    assert objective.lecam is not None
    assert objective.state() is objective.lecam
    assert float(objective.lecam.ema_real) != 0
    named = {"loss", "pixel", "gan", "gan_weight", "entropy", "sample_entropy", "batch_entropy", "commitment"}
    named |= {
        "discriminator/loss",
        "discriminator/gan",
        "discriminator/real",
        "discriminator/fake",
        "discriminator/lecam",
    }
    for line in log(tmp_path):
        assert named | {"codebook_usage", "codebook_perplexity"} <= line.keys()
        assert all(math.isfinite(value) for value in line.values())


def test_nobody_collects_the_other_networks_gradients() -> None:
    objective = Magvit2Training(image_model(), adversarial())
    networks, batch = objective.networks(), images().tensors
    loss, terms = objective.loss("model", networks, dict(batch), 0)
    loss.backward()
    discriminator = networks["discriminator"]
    assert terms["gan"] > 0
    assert [name for name, weight in discriminator.named_parameters() if weight.grad is not None] == []
    assert all(weight.requires_grad for weight in discriminator.parameters())
    assert all(weight.grad is not None for weight in objective.model.parameters())
    objective.model.zero_grad()
    objective.loss("discriminator", networks, dict(batch), 0)[0].backward()
    assert [name for name, weight in objective.model.named_parameters() if weight.grad is not None] == []
    assert all(weight.grad is not None for weight in discriminator.parameters())


def test_the_game_begins_late() -> None:
    objective = Magvit2Training(image_model(), adversarial(gan_start=5))
    networks, batch = objective.networks(), dict(images().tensors)
    _, terms = objective.loss("model", networks, batch, 4)
    assert "gan" not in terms
    loss, _ = objective.loss("discriminator", networks, batch, 4)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(float(weight.grad.abs().max()) == 0 for weight in networks["discriminator"].parameters())
    assert "gan" in objective.loss("model", networks, batch, 5)[1]
    assert float(objective.loss("discriminator", networks, batch, 5)[0].detach()) > 0


def test_running_means_before_the_game() -> None:
    """Those of images move, those of clips wait."""
    settings = adversarial(gan_start=5)
    for dims, moves in ((4, True), (5, False)):
        lecam = LeCam()
        logits = torch.ones(2, *[1] * (dims - 1))
        discriminator_terms(settings, logits, logits, step=0, lecam=lecam)
        assert (float(lecam.ema_real) != 0) is moves
        discriminator_terms(settings, logits, logits, step=5, lecam=lecam)
        assert float(lecam.ema_real) != 0


def test_without_a_discriminator() -> None:
    objective = Magvit2Training(image_model(), PLAIN)
    assert list(objective.networks()) == ["model"]
    assert objective.state() is None
    batch = dict(images().tensors)
    assert set(objective.loss("model", objective.networks(), batch, 0)[1]) == {
        *("pixel", "sample_entropy", "batch_entropy", "entropy", "commitment"),
        *("codebook_perplexity", "codebook_usage"),
    }
    assert objective.units(batch) == 4 * 8 * 8 * 2
    assert Magvit2Training(video_model(), PLAIN).units(dict(clips().tensors)) == 2 * 2 * 4 * 4 * 2
    assert objective.validate(objective.model, torch.device("cpu")) == {}


def test_mixed_precision() -> None:
    """Networks in bfloat16, entropies in float32."""
    objective = Magvit2Training(video_model(), adversarial(gan_weight=None))
    networks, batch = objective.networks(), dict(clips().tensors)
    for network in networks:
        with torch.autocast("cpu", torch.bfloat16):
            loss, terms = objective.loss(network, networks, batch, 0)
        assert loss.isfinite()
        loss.backward()
        if network == "model":
            assert terms["sample_entropy"].dtype == terms["batch_entropy"].dtype == torch.float32
        assert all(weight.grad.isfinite().all() for weight in networks[network].parameters())


def test_show_is_the_callers(tmp_path: Path) -> None:
    seen: list[int] = []
    objective = Magvit2Training(image_model(), PLAIN, show=lambda model, folder, step: seen.append(step))
    objective.show(objective.model, tmp_path, 7)
    Magvit2Training(image_model(), PLAIN).show(objective.model, tmp_path, 8)
    assert seen == [7]


def quantized(entropy: float = 0.0) -> LFQOutput:
    zero = torch.zeros(())
    return LFQOutput(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), zero, zero, torch.tensor(entropy), torch.tensor(2.0))


def test_the_terms_are_summed_as_weighted() -> None:
    settings = adversarial(entropy_weight=0.5, commitment_weight=0.25, gan_weight=0.3)
    signal, fake = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    loss, _ = generator_terms(
        settings,
        signal,
        fake,
        quantized(-3.0),
        step=0,
        discriminator=lambda x: torch.full((2, 1, 2, 2), 1.5),
        last_layer=fake,
    )
    assert float(loss) == pytest.approx(1 - 1.5 + 0.5 + 0.3 * math.log1p(math.exp(-1.5)))


def test_the_perceptual_term_looks_at_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Perceptual("vgg", pretrained=False)
    signal, fake = smooth(2, 3, 16, 16), 0.5 * smooth(2, 3, 16, 16)
    settings = Magvit2LossSettings(discriminator=None, perceptual_weight=2.0)
    loss, terms = generator_terms(
        settings, 2 * signal - 1, 2 * fake - 1, quantized(), step=0, discriminator=None, last_layer=fake, perceptual=net
    )
    frames = torch.stack([net(fake[:, :, t], signal[:, :, t]) for t in range(3)]).mean()
    torch.testing.assert_close(terms["perceptual"], frames, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss, terms["pixel"] + 2.0 * frames + 0.25 * 2.0, atol=1e-5, rtol=1e-4)
    asked: list[str] = []
    monkeypatch.setattr(training_module, "Perceptual", lambda name: asked.append(name) or net)
    objective = Magvit2Training(image_model(), Magvit2LossSettings(discriminator=None))
    _, terms = objective.loss("model", objective.networks(), dict(images(1).tensors), 0)
    assert asked == ["vgg"]
    assert "perceptual" in terms


def test_the_entropy_weight_falls() -> None:
    settings = Magvit2LossSettings(entropy_weight=0.1, entropy_boost=3.0, entropy_boost_steps=2000)
    expected = [0.4, 0.25, 0.1, 0.1]
    assert [entropy_weight(settings, step) for step in (0, 1000, 2000, 9000)] == pytest.approx(expected)
    assert entropy_weight(Magvit2LossSettings(), 0) == 0.1


def test_the_balance_at_the_last_layer() -> None:
    kernel = torch.tensor([3.0, 4.0], requires_grad=True)
    weight = adaptive_weight(2 * kernel.sum(), kernel.square().sum(), kernel)
    assert float(weight) == pytest.approx(2 * 2**0.5 / (10 + 1e-4))
    assert not weight.requires_grad
    assert float(adaptive_weight(1e9 * kernel.sum(), 0 * kernel.sum(), kernel)) == 1e4


def test_losses_of_patches() -> None:
    real, fake = torch.randn(3, 1, 4, 5), torch.randn(3, 1, 4, 5)
    softplus = nn.functional.softplus
    means = [logits.reshape(3, -1).mean(1) for logits in (real, fake)]
    torch.testing.assert_close(patch_generator_loss(fake), softplus(-means[1]).mean())
    for kind, expected in (
        ("hinge", 0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())),
        ("vanilla", 0.5 * (softplus(-real).mean() + softplus(fake).mean())),
        ("non-saturating", softplus(-means[0]).mean() + softplus(means[1]).mean()),
    ):
        torch.testing.assert_close(patch_discriminator_loss(real, fake, kind), expected)  # type: ignore[arg-type]


def test_discriminators() -> None:
    assert PatchDiscriminator(4, 3, dims=2)(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 2, 2)
    discriminator = PatchDiscriminator(4, 3, dims=3)
    assert discriminator(torch.zeros(2, 3, 9, 32, 32)).shape == (2, 1, 3, 4, 4)  # time is halved twice
    strides = [module.stride for module in discriminator.modules() if isinstance(module, nn.Conv3d)]
    assert strides == [(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1)]
    widths = [
        module.out_channels for module in PatchDiscriminator(2, 5, dims=2).modules() if isinstance(module, nn.Conv2d)
    ]
    assert widths == [2, 4, 8, 16, 16, 16, 1]
    blur = build_discriminator(PatchDiscriminatorConfig(kind="blur", width=32, layers=3), dims=2)
    assert isinstance(blur, BlurPatchDiscriminator)
    assert blur(torch.zeros(1, 3, 17, 16)).shape == (1, 1, 3, 2)
    assert [block[0].out_channels for block in blur.blocks] == [32, 64, 128]
    kernels = torch.cat(
        [module.weight.flatten() for module in discriminator.modules() if isinstance(module, nn.Conv3d)]
    )
    assert float(kernels.detach().std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Magvit2LossSettings(gan_start=-1), "gan_start: got -1, expected 0 or more"),
        (lambda: Magvit2LossSettings(gan_weight=-0.1), "gan_weight: got -0.1"),
        (lambda: Magvit2LossSettings(commitment_weight=-1.0), "commitment_weight: got -1.0"),
        (lambda: Magvit2LossSettings(entropy_boost_steps=0), "got 0 and 64, expected 1 or more"),
        (lambda: Magvit2LossSettings(gan="r1"), "gan: got 'r1', expected 'hinge', 'vanilla' or"),  # type: ignore[arg-type]
        (lambda: PatchDiscriminatorConfig(kind="style"), "kind: got 'style', expected 'patch' or"),  # type: ignore[arg-type]
        (lambda: PatchDiscriminatorConfig(layers=0), "width, layers: got 64 and 0"),
        (lambda: PatchDiscriminatorConfig(kind="blur", width=48), "width: got 48, expected a multiple of 32"),
        (
            lambda: Magvit2Training(video_model(), adversarial(discriminator=PatchDiscriminatorConfig(kind="blur"))),
            "kind: got 'blur' for video, expected 'patch'",
        ),
    ],
)
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
