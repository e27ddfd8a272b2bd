"""The samplers that ours is compared with: right ids and right FLOPs at toy size; their speed is nobody's business here.

Shapes: B batch, N tokens, V codes.
"""

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

from parts.baselines.amused import MISSING, amused_model
from parts.baselines.autoregressive import Autoregressive, Decoding, flops_of, sample_autoregressive
from parts.baselines.naive import NoiseDraws, TorchDraws, sample_naive
from parts.contestants import CONTESTANTS, on_default_path
from parts.loads import LeftOutError, Load, Models
from parts.measuring import count_flops
from parts.meters import count_units, counted

from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.noise import SeededNoise
from maskgen.precision import fast_matmul
from maskgen.sampling.guidance import Guidance, guided_logits, model_logits
from maskgen.sampling.loop import sample
from maskgen.tokenizers.image.vqgan import VQGANConfig
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from tests.core.sampling.reference import reference_sample

CONFIG = BertConfig(
    vocab_size=11, num_classes=5, axes=(3, 4), width=16, layers=2, heads=2, mlp_width=40, null_class=True
)
DECODER = VQGANConfig(
    channels=4, multipliers=(1, 2), res_blocks=1, quantizer=QuantizerConfig(codebook_size=11, dim=3), groups=2
)
MODES = ("cache", "prefix", "whole")
HERE = [contestant for contestant in CONTESTANTS if "cpu" in contestant.devices and "diffusers" not in contestant.name]


def opinionated(model: nn.Module, factor: float = 12.0) -> Any:
    """The fresh weights, so much larger that logits decide ids and not the noise alone."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    return model.eval()


def load(**changes: Any) -> Load:
    return Load(**{"config": CONFIG, "batch": 3, "steps": 4, "decoder": DECODER, **changes})


def contestant(name: str) -> Any:
    (found,) = (entry for entry in CONTESTANTS if entry.name == name)
    return found


# The autoregressive sampler


@pytest.mark.parametrize("seed", range(4))
def test_autoregressive_modes_agree(seed: int) -> None:
    torch.manual_seed(seed)
    model, labels = opinionated(Autoregressive(CONFIG)), torch.tensor([4, 0, 2])
    ids = [sample_autoregressive(model, labels, seeds=[seed, 7, 8], mode=mode) for mode in MODES]
    assert ids[0].shape == (3, 12)
    assert torch.equal(ids[0], ids[1])
    assert torch.equal(ids[0], ids[2])
    others = sample_autoregressive(model, labels.roll(1), seeds=[seed, 7, 8], mode="cache")
    assert not torch.equal(ids[0], others)  # the model has a say


@torch.no_grad()
def test_autoregressive_modes_have_the_same_logits() -> None:
    model = opinionated(Autoregressive(CONFIG))
    rows = torch.randint(11, (2, 12))
    caches = Decoding(model, torch.tensor([0, 1]), SeededNoise([0, 1]), "cache").caches
    for at in range(12):
        whole = model(rows, at)
        torch.testing.assert_close(model.one(rows[:, at], at, caches), whole)
        torch.testing.assert_close(model(rows[:, : at + 1], at), whole)


@torch.no_grad()
def test_autoregressive_sees_only_what_stands_before() -> None:
    model, rows = opinionated(Autoregressive(CONFIG)), torch.randint(11, (1, 12))
    before, behind = rows.clone(), rows.clone()
    behind[:, 6:] = (behind[:, 6:] + 1) % 11
    before[:, 5] = (before[:, 5] + 1) % 11
    assert torch.equal(model(rows, 5), model(behind, 5))
    assert not torch.allclose(model(rows, 5), model(before, 5))


def test_autoregressive_draws_from_the_softmax() -> None:
    """One place, whose distribution is known: 4,000 draws, errors of five standard deviations."""
    config = BertConfig(vocab_size=4, num_classes=1, axes=(1,), width=8, layers=1, heads=1, mlp_width=8)
    model = opinionated(Autoregressive(config), 40.0)
    labels = torch.zeros(4000, dtype=torch.long)
    expected = model(torch.full((1, 1), 4), 0)[0].softmax(-1)
    assert expected.max() > 0.3
    ids = sample_autoregressive(model, labels, seeds=range(4000))
    shares = torch.bincount(ids[:, 0], minlength=4) / 4000
    assert torch.all((shares - expected).abs() < 5 * (expected * (1 - expected) / 4000).sqrt() + 1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_autoregressive_flops(mode: str) -> None:
    name = {"cache": "AR, KV cache", "prefix": "AR, prefix again", "whole": "AR, whole again"}[mode]
    meta = load(device="meta", batch=1)
    job = contestant(name).build(meta, Models(meta))
    whole = counted(lambda: job.run(range(job.units)))
    assert job.units == 12
    assert whole == flops_of(CONFIG, mode)  # type: ignore[arg-type]
    assert whole == count_units(job.run, job.units, quadratic=True)


def test_the_cache_saves_what_it_should() -> None:
    """At the official size a forward over all places costs 256 times one place, but for attention."""
    official = BertConfig()
    whole, prefix, cache = (flops_of(official, mode) for mode in ("whole", "prefix", "cache"))
    assert 250 < whole / cache < 262
    assert 0.48 < prefix / whole < 0.51


# The naive loop


@pytest.mark.parametrize(("axes", "steps"), [((3, 4), 1), ((3, 4), 5), ((3, 4), 30), ((1, 2), 3), ((5, 7), 8)])
def test_naive_ids_equal_the_samplers(axes: tuple[int, int], steps: int) -> None:
    torch.manual_seed(steps)
    asked = load(config=BertConfig(**{**CONFIG.__dict__, "axes": axes}))
    model, seeds = opinionated(BertTransformer(asked.config)), [3, 1, 4]
    found = sample_naive(model, asked.cond, NoiseDraws(SeededNoise(seeds)), batch=3, steps=steps)
    settings = {"steps": steps, "choice_temperature": 4.5}
    ours = sample(model_logits(model, asked.cond), asked.tokens, asked.mask, seeds=seeds, **settings)  # type: ignore[arg-type]
    assert torch.equal(found, ours[..., 0])
    with torch.no_grad():
        slow, _ = reference_sample(
            model_logits(model, asked.cond), asked.tokens, asked.mask, SeededNoise(seeds),
            schedule="cosine", select="confidence", temperature=1.0, start_step=0, **settings,
        )  # type: ignore[arg-type]  # fmt: skip
    assert found.tolist() == slow
    if asked.places > 2:
        other = sample_naive(model, asked.one_class, NoiseDraws(SeededNoise(seeds)), batch=3, steps=steps)
        assert not torch.equal(found, other)  # the model has a say


def test_naive_guidance_equals_ours() -> None:
    asked = load()
    model, seeds = opinionated(BertTransformer(CONFIG)), [3, 1, 4]
    found = sample_naive(model, asked.cond, NoiseDraws(SeededNoise(seeds)), batch=3, steps=4, scale=2.0)
    logits = guided_logits(model, asked.cond, Guidance(scale=2.0), steps=4)
    assert torch.equal(found, sample(logits, asked.tokens, asked.mask, steps=4, seeds=seeds)[..., 0])
    plain = sample_naive(model, asked.cond, NoiseDraws(SeededNoise(seeds)), batch=3, steps=4)
    assert not torch.equal(found, plain)


def test_naive_draws_are_draws() -> None:
    draws = TorchDraws(torch.Generator().manual_seed(0))
    probabilities = torch.tensor([0.5, 0.3, 0.2, 0.0]).expand(2, 4000, 4)
    for row in draws.ids(0, probabilities):
        shares = torch.bincount(row, minlength=4) / 4000
        assert torch.all((shares - probabilities[0, 0]).abs() < 0.04)
    gumbel = draws.gumbel(0, (100, 400))
    assert gumbel.mean() == pytest.approx(0.5772, abs=0.03)
    assert gumbel.std() == pytest.approx(1.2825, abs=0.03)


# Loops on our model


class Operators(TorchDispatchMode):
    """Names of the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_the_plain_loop_is_plain_whatever_is_switched_on() -> None:
    asked = load()
    models = Models(asked)
    tokens, logits = asked.tokens, model_logits(models.bert, asked.cond)
    with fast_matmul("cpu"):
        with Operators() as fast:
            expected = logits(tokens, 0)
        with Operators() as plain:
            found = on_default_path(logits)(tokens, 0)
    assert any("mkldnn" in name for name in fast.names)  # else this build has no fast path and there is nothing to tell
    assert not any("mkldnn" in name for name in plain.names)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("entry", HERE, ids=lambda entry: entry.name)
def test_every_contestant_runs(entry: Any, dtype: torch.dtype) -> None:
    asked = load(dtype=dtype)
    job = entry.build(asked, Models(asked))
    made = job.run(range(job.units))
    assert job.held > 0
    assert 1 <= job.least <= job.units
    if "pixels" in entry.name:
        assert made.shape == (3, 3, 6, 8)
    elif "bare" not in entry.name:
        assert made.shape[:2] == (3, 12)
        assert 0 <= made.min() <= made.max() < 11
    if job.divisible:
        job.run([0])


def closed_form(config: BertConfig, rows: int) -> int:
    """FLOPs of one forward of the bert family, head over the codes of all places."""
    places = torch.Size(config.axes).numel() + 1
    width, products = config.width, 4 * config.width**2 + 2 * config.width * config.mlp_width
    block = 2 * places * products + 4 * places**2 * width
    return rows * (config.layers * block + 2 * places * width * (width + config.vocab_size))


def partial_form(config: BertConfig, rows: int, asked: int) -> int:
    """The same where only some places are asked for: of the last block keys and values alone are of all places."""
    places = torch.Size(config.axes).numel() + 1
    width = config.width
    block = 2 * places * (4 * width**2 + 2 * width * config.mlp_width) + 4 * places**2 * width
    last = 4 * (places + asked) * width**2 + 4 * asked * width * config.mlp_width + 4 * asked * places * width
    return rows * ((config.layers - 1) * block + last + 2 * asked * width * (width + config.vocab_size))


HIDDEN = (11, 8, 4)  # of 12 tokens after 1, 2 and 3 of 4 steps
DECIDED = (3, 4, 4)  # in the steps 2, 3 and 4


@pytest.mark.parametrize(
    ("name", "first", "rows"),
    [
        ("maskgen", 3, 3), ("maskgen, torch.compile", 3, 3), ("maskgen, one class", 1, 3),
        ("maskgen, guided", 4, 6), ("maskgen, one class, guided", 2, 6), ("maskgen, one class, guided, halton", 2, 6),
    ],
)  # fmt: skip
def test_flops_of_our_loops(name: str, first: int, rows: int) -> None:
    """The first step runs each kind of row once, and asks for all places; the others for those still hidden."""
    meta = load(device="meta")
    job = contestant(name).build(meta, Models(meta))
    asked_for = DECIDED if "halton" in name else HIDDEN
    expected = closed_form(CONFIG, first) + sum(partial_form(CONFIG, rows, asked) for asked in asked_for)
    assert count_units(job.run, job.units) == expected
    if "compile" not in name:
        here = load(config=BertConfig(**{**CONFIG.__dict__, "attention": "eager"}))
        real = contestant(name).build(here, Models(here))
        torch.set_float32_matmul_precision("high")  # then there is no fast path, whose products are not counted
        assert counted(lambda: real.run(range(real.units))) == expected


@pytest.mark.parametrize(
    ("name", "forwards"),
    [
        ("bare forwards", 4), ("plain MKL loop", 4), ("naive loop", 4), ("bare forwards, guided", 8),
        ("naive loop, guided", 8),
    ],
)  # fmt: skip
def test_flops_of_loops(name: str, forwards: int) -> None:
    meta = load(device="meta")
    job = contestant(name).build(meta, Models(meta))
    assert job.units == 4
    assert count_units(job.run, job.units) == forwards * closed_form(CONFIG, rows=3)


def test_paths_that_share_have_the_ids_of_the_plain_loop() -> None:
    asked = load()
    models = Models(asked)
    opinionated(models.bert)
    for name, cond, scale in (
        ("maskgen, one class", asked.one_class, 0.0),
        ("maskgen, one class, guided", asked.one_class, asked.scale),
        ("maskgen, guided", asked.cond, asked.scale),
    ):
        found = contestant(name).build(asked, models).run(range(4))
        draws = NoiseDraws(SeededNoise(asked.seeds))
        expected = sample_naive(models.bert, cond, draws, batch=3, steps=4, scale=scale)
        assert torch.equal(found[..., 0], expected)


def test_the_official_forward_is_the_known_743_gflop() -> None:
    assert closed_form(BertConfig(), rows=8) / 1e9 == pytest.approx(743.1, abs=0.05)


def test_counting_without_computing_equals_counting_while_computing() -> None:
    asked = load()
    models = Models(asked)
    assert counted(lambda: models.eager(asked.tokens, asked.cond)) == closed_form(CONFIG, rows=3)
    assert count_flops(models.eager, asked.tokens, asked.cond) == closed_form(CONFIG, rows=3)
    meta = load(device="meta")
    pixels = contestant("maskgen, to pixels").build(meta, Models(meta))
    ids = torch.randint(11, (3, 12, 1))
    decoder = counted(lambda: models.tokenizer.decode(ids, (3, 4)))
    assert decoder > 0
    tokens_too = closed_form(CONFIG, 3) + sum(partial_form(CONFIG, 3, asked) for asked in HIDDEN)
    assert count_units(pixels.run, 1) == tokens_too + decoder


def test_a_compiler_that_fails_leaves_the_row_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **settings: Any) -> Any:
        def fails(*inputs: Any) -> Tensor:
            raise RuntimeError("no compiler")

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    asked = load()
    for name in ("maskgen, torch.compile", "maskgen, to pixels, torch.compile"):
        job = contestant(name).build(asked, Models(asked))
        with pytest.raises(LeftOutError, match=r"torch.compile does not work here.*RuntimeError"):
            job.warm()


# aMUSEd's loop


def test_without_diffusers_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LeftOutError, match="diffusers is not installed") as raised:
        contestant("aMUSEd loop (diffusers)").build(load(), Models(load()))
    assert str(raised.value) == MISSING
    assert "\n" not in MISSING


class FakeUVit(nn.Module):
    """What the loop needs of diffusers' ``UVit2DModel``: its keyword arguments, and logits ``[B, V, h, w]``."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings, self.seen = settings, []  # type: ignore[var-annotated]
        self.layer = nn.Linear(settings["hidden_size"], settings["codebook_size"])

    def forward(
        self, ids: Tensor, encoder_hidden_states: Tensor, pooled_text_emb: Tensor, micro_conds: Tensor
    ) -> Tensor:
        assert encoder_hidden_states.shape == (len(ids), 77, self.settings["encoder_hidden_size"])
        assert pooled_text_emb.shape == (len(ids), self.settings["cond_embed_dim"])
        assert micro_conds.shape == (len(ids), 5)
        self.seen.append(ids)
        return self.layer(torch.ones(*ids.shape, self.settings["hidden_size"], device=ids.device)).permute(0, 3, 1, 2)


class FakeScheduler:
    """What the loop needs of diffusers' ``AmusedScheduler``; its steps know one more row each."""

    def __init__(self, mask_token_id: int) -> None:
        self.mask_token_id = mask_token_id

    def set_timesteps(self, steps: int, temperature: tuple[int, int], device: str) -> None:
        assert temperature == (2, 0)
        self.timesteps = torch.arange(steps, device=device).flip(0)

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, generator: torch.Generator) -> Any:
        assert model_output.shape[0] == len(sample)
        hidden = torch.arange(sample.shape[1])[:, None] < timestep
        known = torch.where(sample == self.mask_token_id, model_output.argmax(1), sample)
        return types.SimpleNamespace(prev_sample=torch.where(hidden, self.mask_token_id, known))


def test_with_diffusers_its_loop_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("diffusers")
    fake.__spec__ = importlib.machinery.ModuleSpec("diffusers", None)
    fake.UVit2DModel, fake.AmusedScheduler = FakeUVit, FakeScheduler  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "diffusers", fake)
    asked = load()
    models = Models(asked)
    job = contestant("aMUSEd loop (diffusers)").build(asked, models)
    ids = job.run(range(4))
    assert ids.shape == (3, 3, 4)
    assert 0 <= ids.min() <= ids.max() < 11
    assert len(models.amused.seen) == 4
    assert torch.all(models.amused.seen[0] == 11)  # all hidden at first, and what a step decides comes back in the next
    assert not torch.any(models.amused.seen[3][:, 1:] == 11)
    settings = amused_model(BertConfig()).settings
    assert (settings["hidden_size"], settings["num_hidden_layers"], settings["num_attention_heads"]) == (768, 24, 16)
    assert (settings["intermediate_size"], settings["codebook_size"], settings["num_res_blocks"]) == (2048, 1024, 1)
    meta = load(device="meta")
    counting = contestant("aMUSEd loop (diffusers)").build(meta, Models(meta))
    assert count_units(counting.run, 4) == 4 * 3 * 12 * 2 * 16 * 11
