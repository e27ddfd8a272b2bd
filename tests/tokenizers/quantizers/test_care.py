"""Codebooks are watched, unused codes move onto latents, an entropy term fades; resumed or on many processes alike."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.data import TensorSource
from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig
from maskgen.tokenizers.quantizers.care import CodebookCare, CodebookSettings
from maskgen.tokenizers.quantizers.usage import codebook_usage
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from maskgen.tokenizers.training.discriminators.image import DiscriminatorConfig
from maskgen.tokenizers.training.reconstruction import ReconstructionSettings, ReconstructionTraining
from tests.core.toys import fit
from tests.core.training.many_processes import run_processes


def photos(count: int = 8) -> TensorSource:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    return TensorSource(images=torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear"))


def tokenizer(**quantizer: Any) -> VQGAN:
    torch.manual_seed(0)
    config = QuantizerConfig(**{"codebook_size": 32, "dim": 8, **quantizer})
    plain: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "res_blocks": 1, "groups": 4, "shortcut": "input"}
    return VQGAN(VQGANConfig(quantizer=config, **plain))


def losses(**changes: Any) -> ReconstructionSettings:
    discriminator = DiscriminatorConfig(image_size=16, max_width=8)
    return ReconstructionSettings(**{"perceptual": None, "discriminator": discriminator, "gan_weight": 0.0, **changes})


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_usage_is_that_of_the_codes() -> None:
    codes = torch.randint(5, (3, 16, 1))
    model = tokenizer()
    found, expected = CodebookCare(model, CodebookSettings()).watch(codes), codebook_usage(codes, 32)
    assert float(found["codebook_usage"]) == pytest.approx(expected.share)
    assert float(found["codebook_perplexity"]) == pytest.approx(expected.perplexity, rel=1e-5)
    care = CodebookCare(tokenizer(kind="rvq", codebook_size=16, num_quantizers=3), CodebookSettings())
    codes = torch.randint(16, (3, 16, 3))
    assert float(care.watch(codes)["codebook_usage"]) == pytest.approx(codebook_usage(codes, 16).share)


def test_unused_codes_move_onto_latents_and_used_ones_stay() -> None:
    model, images = tokenizer(), photos().tensors["images"]
    care = CodebookCare(model, CodebookSettings(revive_every=2, revive_last=4))
    chances = torch.Generator().manual_seed(1)
    care.watch(model.encode(images))
    alive = care.used[0] > 0
    assert 0 < int(alive.sum()) < 32
    before = model.quantizer.codebook.detach().clone()
    care.begin(images, 1, chances)
    assert torch.equal(before, model.quantizer.codebook)  # not due
    care.begin(images, 2, chances)
    after = model.quantizer.codebook.detach().clone()
    assert torch.equal(before[alive], after[alive])
    latents = model.encoder(images).flatten(2).transpose(1, 2).flatten(0, 1)
    nearest = torch.cdist(after[~alive], latents).amin(1)
    assert nearest.max() < 2e-3  # distances from squares that cancel
    assert int((care.used > 0).sum()) == 0  # the count starts anew
    care.begin(images, 2, chances)  # the next micro-batch of the same step
    assert torch.equal(after, model.quantizer.codebook)
    care.begin(images, 6, chances)  # after the last look
    assert torch.equal(after, model.quantizer.codebook)


def test_revival_fills_a_collapsed_codebook(tmp_path: Path) -> None:
    usage = []
    for every in (0, 5):
        model = tokenizer(entropy_weight=0.0)
        with torch.no_grad():
            model.quantizer.codebook.add_(torch.linspace(0, 50, 32)[:, None])  # most codes are far from any latent
        objective = ReconstructionTraining(model, losses(revive_every=every, revive_last=20))
        fit(objective, photos(), tmp_path / str(every), steps=30, log_every=30, batch_size=8)
        usage.append(lines(tmp_path / str(every))[0]["codebook_usage"])
        with torch.no_grad():
            usage[-1] = codebook_usage(model.encode(photos().tensors["images"]), 32).share
    assert usage[0] < 0.2
    assert usage[1] > 0.4


def test_a_resumed_run_revives_the_same_codes(tmp_path: Path) -> None:
    class Crashing(ReconstructionTraining):
        crash = False

        def loss(self, network: str, modules: Any, batch: Any, step: int) -> Any:
            if self.crash and step == 9:
                raise ConnectionError
            return super().loss(network, modules, batch, step)

    changes: dict[str, Any] = {"steps": 12, "checkpoint_every": 4, "accumulation": 2, "batch_size": 4}
    results = []
    for name in ("whole", "parts"):
        objective = Crashing(tokenizer(), losses(revive_every=5, lecam_weight=0.1, gan_weight=0.1))
        if name == "parts":
            objective.crash = True
            with pytest.raises(ConnectionError):
                fit(objective, photos(), tmp_path / name, **changes)
            objective = Crashing(tokenizer(), losses(revive_every=5, lecam_weight=0.1, gan_weight=0.1))
        fit(objective, photos(), tmp_path / name, **changes)
        results.append(objective.model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    one = tokenizer()
    fit(ReconstructionTraining(one, losses(lecam_weight=0.1, gan_weight=0.1)), photos(), tmp_path / "none", **changes)
    assert not torch.equal(one.quantizer.codebook, results[0]["quantizer.codebook"])


def trained(out: Path) -> None:
    """All that looks at the whole batch: entropy, LeCam, an adaptive adversary, revival, usage."""
    torch.manual_seed(3)
    settings = losses(
        gan_weight=0.5, gan_adaptive=True, lecam_weight=0.1, entropy_boost=2.0, entropy_boost_steps=5, revive_every=3
    )
    # A rate at which rounding does not yet move a latent to another code.
    changes: dict[str, Any] = {"steps": 20, "batch_size": 8, "log_every": 1, "optimizer": {"lr": 3e-5}}
    fit(ReconstructionTraining(tokenizer(), settings), photos(16), out, **changes)


@pytest.mark.parametrize("world", [2, 4])
def test_many_processes_train_like_one(world: int, tmp_path: Path) -> None:
    trained(tmp_path / "one")
    assert run_processes(world, trained, tmp_path / "many") == [0] * world
    one, many = lines(tmp_path / "one"), lines(tmp_path / "many")
    assert len(one) == len(many) == 20
    for first, second in zip(one, many, strict=True):
        slow = ("tokens_per_second", "examples_per_second", "data_wait")
        expected = {name: value for name, value in first.items() if name not in slow}
        assert {"entropy", "gan_weight", "codebook_usage", "discriminator/lecam", "discriminator/r1"} <= expected.keys()
        assert {name: second[name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-6)
    # What is not a difference of close numbers agrees to rounding.
    assert [line["loss"] for line in many] == pytest.approx([line["loss"] for line in one], rel=1e-5)


@pytest.mark.parametrize(
    ("quantizer", "settings", "message"),
    [
        (
            {"kind": "lfq"},
            {"revive_every": 1},
            "revive_every: only quantizers of kind 'vq' or 'rvq' have codes that can die",
        ),
        ({"kind": "rvq"}, {"entropy_boost": 1.0}, "entropy_boost: the model's quantizer has no entropy term"),
        ({"entropy_weight": 0.0}, {"entropy_boost": 1.0}, "entropy_boost: the model's quantizer has no entropy term"),
    ],
)
def test_help_that_a_quantizer_cannot_have(quantizer: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodebookCare(tokenizer(**quantizer), CodebookSettings(**settings))


@pytest.mark.parametrize("name", ["entropy_boost", "revive_every", "revive_last"])
def test_settings_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: got -1, expected 0 or more"):
        CodebookSettings(**{name: -1})
    with pytest.raises(ValueError, match=f"{name}: got -1, expected 0 or more"):
        losses(**{name: -1})
    with pytest.raises(ValueError, match="entropy_boost_steps: got 0, expected 1 or more"):
        losses(entropy_boost_steps=0)
