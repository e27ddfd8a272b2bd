"""Halton-MaskGIT against the official outputs: transformer, orders, step counts, and sampling step by step.

Shapes: B batch, N tokens, S steps, V codes.
"""

from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.published.halton.sampler import HaltonSampling, halton_decided, halton_order, sample_halton
from maskgen.published.halton.transformer import HaltonTransformer, config_from, convert
from maskgen.sampling.guidance import Guidance, guided_logits
from maskgen.sampling.loop import SampleStep
from tests.parity.support import files, load, metadata, recordings

FILES = recordings("families", "halton_transformer*.io.safetensors")
ORDERS = recordings("families", "halton_orders*.io.safetensors")
SAMPLERS = recordings("families", "halton_samplers*.io.safetensors")
SCHEDULES = recordings("families", "schedules*.io.safetensors")
RUNS = [(path, run) for path in SAMPLERS for run in metadata(path)["runs"]]
HALTON = [(path, run) for path, run in RUNS if "temp_pow" in metadata(path)["runs"][run]]
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def label(value: object) -> str:
    return str(getattr(value, "name", value))


@pytest.fixture(autouse=True)
def exact_products() -> None:
    torch.set_float32_matmul_precision("highest")


@cache
def model(kind: str) -> HaltonTransformer:
    state: dict[str, Tensor] = {}
    parts = files("families", f"{kind}.weights.*safetensors")
    for part in parts:
        state |= load(part)
    state = {name: tensor.float() for name, tensor in state.items()}
    config = config_from(state, heads=metadata(parts[0])["config"]["heads"])
    built = HaltonTransformer(config)
    built.load_state_dict(convert(state, config))
    return built.eval()


def of(path: Path) -> HaltonTransformer:
    return model(path.name.removesuffix(".io.safetensors"))


def test_the_sampler_has_runs() -> None:
    # The other runs are of the official baseline, the most confident positions first.
    assert HALTON


@each_file
def test_the_config_is_read_from_the_shapes(path: Path) -> None:
    stated, config = metadata(path), of(path).config
    sizes = stated["config"]
    assert config.axes == (sizes["input_size"],) * 2
    assert (config.vocab_size, config.num_classes) == (stated["mask_id"], stated["null_class"])
    assert (config.width, config.layers, config.heads) == (sizes["hidden"], sizes["depth"], sizes["heads"])
    assert (config.mlp_width, config.registers) == (stated["ff_width"], sizes["register"])
    assert (config.inner_width, config.inner_width // config.heads) == (stated["inner_width"], stated["head_dim"])


@each_file
def test_logits(path: Path) -> None:
    io = load(path)
    ids, labels = io["x"].flatten(1), io["y"]
    dropped = {
        "logits_cond": torch.zeros_like(labels, dtype=torch.bool),
        "logits_uncond": torch.ones_like(labels, dtype=torch.bool),
        "logits_mixed": io["drop_mixed"],
    }
    for name, drop in dropped.items():
        cond = Cond(labels=torch.where(drop, NO_LABEL, labels))
        with torch.no_grad():
            official = of(path).table_logits(ids, cond)
            ours = of(path)(ids[:, :, None], cond, of(path).config.axes)
        torch.testing.assert_close(official, io[name], atol=5e-5, rtol=0)
        torch.testing.assert_close(ours[:, :, 0], io[name][..., : of(path).vocab_size], atol=5e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(of(path).table_logits(ids, Cond()), io["logits_uncond"], atol=5e-5, rtol=0)


@each_file
def test_blocks(path: Path) -> None:
    io: dict[str, Tensor] = load(path)
    names = [key.removeprefix("block/") for key in io if key.startswith("block/")]
    assert names
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: object, given: object, output: Tensor) -> None:
            seen.setdefault(name, output)  # the norm of queries and keys runs twice; the queries are recorded

        return hook

    modules = dict(of(path).named_modules())
    last = len(of(path).layers) - 1
    ours = {name: f"layers.{last}" if name == "transformer" else name.removeprefix("transformer.") for name in names}
    handles = [modules[ours[name]].register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        of(path).table_logits(io["x"].flatten(1), Cond(labels=io["y"]))
    for handle in handles:
        handle.remove()
    for name in names:
        expected = io[f"block/{name}"]
        got = seen[name][: expected.shape[0], : expected.shape[1]]
        torch.testing.assert_close(got, expected, atol=5e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("path", ORDERS, ids=label)
def test_orders(path: Path) -> None:
    stored = load(path)
    sides = [int(key.removeprefix("order/")) for key in stored if key.startswith("order/")]
    assert sides
    assert {key.removeprefix("missing/") for key in stored if key.startswith("missing/")} <= set(map(str, sides))
    for side in sides:
        cells = stored[f"order/{side}"].long()
        official = cells[:, 0] * side + cells[:, 1]
        ours = halton_order((side, side))
        assert torch.equal(ours[: len(official)], official)
        assert torch.equal(ours.sort().values, torch.arange(side * side))
        # The official order stops after 10,000 points; the cells they leave out come last in ours.
        left = stored.get(f"missing/{side}", torch.zeros(0, 2)).long()
        assert set(ours[len(official) :].tolist()) == set((left[:, 0] * side + left[:, 1]).tolist())


def tables(name: str) -> list[tuple[list[str], Tensor]]:
    found = [
        (key.split("/")[1:], table)
        for path in SCHEDULES
        for key, table in load(path).items()
        if key.startswith(f"{name}/")
    ]
    assert found
    return found


def test_halton_counts() -> None:
    for (positions, steps), expected in tables("halton_new_per_step"):
        total = torch.tensor([int(positions)])
        known = [0, *(int(halton_decided(total, step, int(steps))) for step in range(int(steps)))]
        assert [b - a for a, b in pairwise(known)] == expected.tolist(), (positions, steps)


class RecordedNoise:
    """Exp(1) draws as Gumbel noise (argmax p / e = argmax log p - log e); as many columns as the logits have."""

    def __init__(self, io: dict[str, Tensor], run: str) -> None:
        self.exp, self.gumbel = io[f"{run}/exp_noise"], io.get(f"{run}/gumbel")

    def sample(self, step: int, shape: Sequence[int]) -> Tensor:
        noise = -torch.log(self.exp[step])[..., : shape[-1]].unsqueeze(2)
        assert noise.shape == tuple(shape)
        return noise

    def choice(self, step: int, shape: Sequence[int]) -> Tensor:
        assert self.gumbel is not None
        noise = self.gumbel[step].unsqueeze(2)
        assert noise.shape == tuple(shape)
        return noise


class Run:
    """One recorded sampling: settings, model, and what our sampler saw and did."""

    def __init__(self, path: Path, run: str) -> None:
        stored, self.meta = load(path), metadata(path)
        self.settings = self.meta["runs"][run]
        self.model = model(self.settings.get("model", self.meta["model"]))
        self.steps = self.settings["step"]
        self.code_in, self.pred = stored[f"{run}/code_in"].flatten(2), stored[f"{run}/pred"].flatten(2)
        self.mask_out = stored[f"{run}/mask_out"].flatten(2).bool()
        self.noise = RecordedNoise(stored, run)
        self.cond = Cond(labels=stored[f"{run}/labels"])
        self.hidden = torch.full_like(self.code_in[0], self.model.vocab_size)[:, :, None]
        self.everywhere = torch.ones_like(self.hidden, dtype=torch.bool)
        self.current: list[Tensor] = []
        self.done: list[SampleStep] = []

    def logits(self, *, columns: int, ramp: str) -> Any:
        """The guided logits with or without the mask's column; their arguments are kept."""
        network = partial(self.logits_of, columns=columns)
        guided = guided_logits(network, self.cond, Guidance(scale=self.settings["w"], ramp=ramp), steps=self.steps)  # type: ignore[arg-type]

        def watched(tokens: Tensor, step: int) -> Tensor:
            self.current.append(tokens[:, :, 0].clone())
            return guided(tokens, step)

        return watched

    def logits_of(self, tokens: Tensor, cond: Cond, axes: object = None, *, columns: int) -> Tensor:
        return self.model.table_logits(tokens[:, :, 0], cond, columns)[:, :, None]


@pytest.mark.parametrize(("path", "name"), HALTON, ids=label)
def test_halton_trace(path: Path, name: str) -> None:
    run = Run(path, name)
    codes = run.model.vocab_size
    settings = run.settings
    final = sample_halton(
        run.logits(columns=codes, ramp="constant"),
        run.hidden,
        run.everywhere,
        HaltonSampling(
            steps=run.steps,
            logit_scale=(settings["sm_temp_min"], settings["sm_temp_max"]),
            scale_power=settings["temp_pow"],
            warmup=settings.get("temp_warmup", 0),
        ),
        order=halton_order(run.model.config.axes),
        noise=run.noise,
        callback=run.done.append,
    )
    assert torch.equal(torch.stack(run.current), run.code_in)
    before = run.everywhere[:, :, 0]
    for step, done in enumerate(run.done):
        after = done.mask[:, :, 0]
        assert torch.equal(before & ~after, run.mask_out[step]), f"step {step}"
        assert torch.equal(done.tokens[:, :, 0][before], run.pred[step][before]), f"step {step}"
        before = after
    expected = torch.where(run.mask_out[-1], run.pred[-1], run.code_in[-1])
    assert torch.equal(final[:, :, 0], expected.clamp(max=codes - 1))
