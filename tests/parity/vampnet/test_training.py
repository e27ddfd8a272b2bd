"""VampNet's training step against the official one: mask, loss, gradients, learning rate, Sobol ratios.

Shapes: B batch, T frames, K codebooks, V codes, P predicted codebooks. Official tokens are [B, K, T].
"""

import re
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from maskgen.conditioning import Cond
from maskgen.objectives.loss import masked_cross_entropy
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from maskgen.objectives.masking import mask_independently, random_mask, sobol_ratios
from maskgen.published.vampnet.transformer import VampNetTransformer, config_from, convert, with_code_tables
from maskgen.schedules import get_schedule
from maskgen.training.optim.optimizers import OptimizerSettings, learning_rate
from tests.parity.support import check_count, check_kinds, files, load, metadata, own_set, recordings

RECORDED = {
    name: tensor for path in recordings("vampnet", "training*.safetensors") for name, tensor in load(path).items()
}
CODEBOOKS = load(files("vampnet", "forward*.safetensors")[0])["codebooks"]
RATES = [name for name in RECORDED if name.startswith("noam.lr_")]
SOBOL = [name for name in RECORDED if name.startswith("sobol.")]
PARAMS = {path.name.split("_")[0]: path for path in files("vampnet", "*_params.safetensors") if "lac" not in path.name}
SHORT_NAMES = {  # of the recorded gradients that are not named in full
    "classifier_g": "classifier.layers.0.weight_g",
    "relative_attention_bias": "transformer.layers.0.self_attn.relative_attention_bias.weight",
    "w_ks0": "transformer.layers.0.self_attn.w_ks.weight",
}
each_model = pytest.mark.parametrize("kind", PARAMS)


@pytest.fixture(autouse=True)
def exact_products() -> None:
    torch.set_float32_matmul_precision("highest")


def recorded(kind: str, name: str) -> Tensor:
    """One tensor; token grids [B, K, T] come as ours, [B, T, K]."""
    tensor = RECORDED[f"{kind}.{name}"]
    grids = ("codes", "codes_masked", "mask", "bernoulli_u")
    return tensor.transpose(1, 2).contiguous() if name in grids else tensor


class Step:
    """One training step through the official parameters, folded into our model on the way; dropout is off."""

    def __init__(self, kind: str) -> None:
        self.config = config_from(metadata(PARAMS[kind])["kwargs"])
        self.model = VampNetTransformer(self.config).eval()
        self.official = {name: tensor.requires_grad_() for name, tensor in load(PARAMS[kind]).items()}
        state = with_code_tables(convert(self.official, self.config), CODEBOOKS, self.config)
        tokens = recorded(kind, "codes_masked")
        self.logits = functional_call(self.model, state, (tokens, Cond()))[:, :, self.config.conditioning_codebooks :]
        visible = self.config.conditioning_codebooks
        self.mask = recorded(kind, "mask").bool()
        targets = recorded(kind, "codes")[:, :, visible:]
        self.loss = masked_cross_entropy(
            self.logits, targets, self.mask[:, :, visible:], label_smoothing=0.1, normalize="batch"
        )
        self.loss.backward()  # type: ignore[no-untyped-call]


@cache
def step(kind: str) -> Step:
    return Step(kind)


def test_both_models_are_there() -> None:
    check_kinds("vampnet", PARAMS, {"coarse", "c2f"})
    assert RATES
    assert SOBOL


@each_model
def test_mask(kind: str) -> None:
    """Masked where the recorded chance is below the schedule; conditioning codebooks never."""
    ratio, chances = recorded(kind, "r"), recorded(kind, "bernoulli_u")
    gamma = get_schedule("cosine")(ratio, ratio)
    mask = mask_independently(gamma, chances)
    mask[:, :, : step(kind).config.conditioning_codebooks] = False
    assert torch.equal(mask, recorded(kind, "mask").bool())
    masked = recorded(kind, "codes").masked_fill(mask, step(kind).config.vocab_size)
    assert torch.equal(masked, recorded(kind, "codes_masked"))


@each_model
def test_the_mask_of_training_is_that_rule(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``random_mask``, fed the recorded chances, masks what the original masked, in rows where that is anything."""
    visible = step(kind).config.conditioning_codebooks
    chances = recorded(kind, "bernoulli_u")
    monkeypatch.setattr(torch, "rand", lambda *_, **__: chances[:, :, visible:].flatten(1))
    mask = random_mask(chances.shape, draw="bernoulli", visible_codebooks=visible, ratio=recorded(kind, "r"))
    expected = recorded(kind, "mask").bool()
    rows = expected.flatten(1).any(1)
    assert rows.all() or not own_set("vampnet")
    assert torch.equal(mask[rows], expected[rows])


@each_model
def test_logits(kind: str) -> None:
    flat = step(kind).logits.flatten(1, 2).transpose(1, 2)
    torch.testing.assert_close(flat.detach(), recorded(kind, "logits"), atol=5e-5, rtol=0)


@each_model
def test_what_the_loss_looks_at(kind: str) -> None:
    """The official target is flat, time-major, and -100 where nothing is predicted."""
    visible = step(kind).config.conditioning_codebooks
    codes, mask = (part[:, :, visible:].flatten(1) for part in (recorded(kind, "codes"), step(kind).mask))
    assert torch.equal(codes.masked_fill(~mask, -100), recorded(kind, "target"))


@each_model
def test_loss(kind: str) -> None:
    assert step(kind).loss.item() == pytest.approx(float(recorded(kind, "loss")), abs=1e-5)


@each_model
def test_objective_gives_that_loss(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same number through the settings a user writes."""
    done, visible = step(kind), step(kind).config.conditioning_codebooks
    objective = MaskedModeling(
        done.model, MaskingSettings(draw="bernoulli", normalize="batch", visible_codebooks=visible)
    )
    monkeypatch.setattr("maskgen.objectives.masked.random_mask", lambda *_, **__: done.mask)
    state = with_code_tables(convert(done.official, done.config), CODEBOOKS, done.config)
    done.model.load_state_dict(state)
    batch = {"tokens": recorded(kind, "codes")}
    loss, _ = objective.loss("model", {"model": done.model}, batch, 0)
    assert loss.item() == pytest.approx(float(recorded(kind, "loss")), abs=1e-5)


@each_model
def test_gradients(kind: str) -> None:
    names = [name for name in RECORDED if name.startswith(f"{kind}.grad.")]
    check_count("vampnet", names, 4)
    for name in names:
        short = name.removeprefix(f"{kind}.grad.")
        found = step(kind).official[SHORT_NAMES.get(short, short)].grad
        assert found is not None
        expected = RECORDED[name]
        assert float((found - expected).norm() / expected.norm()) < 1e-4, name


@each_model
def test_gradient_norm(kind: str) -> None:
    """Over what the original trains: loralib freezes a weight when it puts factors beside it."""
    official = step(kind).official
    trained = {
        name: parameter
        for name, parameter in official.items()
        if not (name.endswith(".weight") and name.replace(".weight", ".lora_A") in official)
    }
    assert len(official) - len(trained) == 5 * step(kind).config.layers
    grads = [parameter.grad for parameter in trained.values() if parameter.grad is not None]
    assert len(grads) == len(trained)
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    assert float(norm) == pytest.approx(float(recorded(kind, "grad_norm")), rel=1e-4)


@pytest.mark.parametrize("name", RATES)
def test_learning_rate(name: str) -> None:
    width, factor, warmup = (int(part[1:]) for part in name.removeprefix("noam.lr_").split("_"))
    settings = OptimizerSettings(decay="noam", noam_factor=factor, noam_width=width, warmup_steps=warmup)
    for number, expected in zip(RECORDED["noam.steps"].tolist(), RECORDED[name].tolist(), strict=True):
        found = learning_rate(settings, number - 1, 1_000_000)  # the original counts steps from 1
        assert found == pytest.approx(expected, rel=1e-12), number


@pytest.mark.parametrize("name", SOBOL)
def test_sobol_ratios(name: str) -> None:
    expected = RECORDED[name]
    seed, count = (int(digits) for digits in re.findall(r"\d+", name))
    assert len(expected) == count
    assert torch.equal(sobol_ratios(seed, 0, count), expected)
    parts = [sobol_ratios(seed, first, 3) for first in range(0, count - 2, 3)]
    assert torch.equal(torch.cat(parts), expected[: count // 3 * 3])
