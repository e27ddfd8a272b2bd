"""Meissonic's transformer and scheduler against viiika/Meissonic.

Shapes: B batch, H W grid, N = H x W, K codes, S steps.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.published.amused.sampler import AmusedSampling, sample_amused
from maskgen.published.meissonic.blocks import rotation, time_features
from maskgen.published.meissonic.sampler import with_time
from maskgen.published.meissonic.transformer import (
    PUBLISHED,
    MeissonicConfig,
    MeissonicTransformer,
    config_from,
    convert,
)
from maskgen.sampling.loop import SampleStep
from maskgen.tasks.published.entries.families import looks_like
from tests.parity.families.test_amused import Recorded
from tests.parity.support import facts, files, load, metadata, recordings

TOLERANCE: dict[str, float] = {"atol": 5e-5, "rtol": 0.0}  # README; err_vs_float64 is at most 6e-6
PUBLISHED_PARAMETERS = 1_006_946_304

KINDS = [
    path.name.removesuffix(".io.safetensors") for path in recordings("muse", "meissonic_transformer*.io.safetensors")
]
LOGITS = [
    (kind, key)
    for kind in KINDS
    for key in load(files("muse", f"{kind}.io.safetensors")[0])
    if key.startswith("logits_")
]
SCHEDULER = [
    (path, run) for path in recordings("muse", "meissonic_scheduler*.io.safetensors") for run in metadata(path)["runs"]
]
TREES = facts("muse", "full_shapes_meissonic*.json")
# Positions and times are functions here, not modules.
FUNCTIONS = ("pos_embed:0", "pos_embed:1", "time_text_embed.time_proj")


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def make(kind: str) -> MeissonicTransformer:
    """The model with the recorded weights; the sizes read from them are those of the metadata."""
    (path,) = files("muse", f"{kind}.weights.safetensors")
    state, settings = {name: tensor.float() for name, tensor in load(path).items()}, metadata(path)
    told, fixed = settings["config"], settings["fixed"]
    assert (fixed["rope_theta"], fixed["time_factor"], fixed["norm_eps"]) == (10000, 1000, 1e-6)
    assert (fixed["time_encode_dim"], fixed["micro_cond_encode_dim"]) == (256, 256)
    assert looks_like(state) == "meissonic-transformer"
    config = config_from(state, rotary_widths=tuple(told["axes_dims_rope"]), mask_row=settings["mask_id"])
    assert config == expected(told, settings["mask_id"], config.axes)
    model = MeissonicTransformer(config)
    model.load_state_dict(convert(state, config))
    return model.eval()


def expected(told: dict[str, Any], mask_row: int, axes: tuple[int, int]) -> MeissonicConfig:
    """The sizes of a recorded configuration."""
    width = told["attention_head_dim"] * told["num_attention_heads"]
    assert told["pooled_projection_dim"] == width, "the published code runs with no other width"
    assert told["downsample"] == told["upsample"]
    return MeissonicConfig(
        codebook_size=told["codebook_size"],
        rows=told["vocab_size"],
        mask_row=mask_row,
        axes=axes,
        width=width,
        text_width=told["joint_attention_dim"],
        double_layers=told["num_layers"],
        single_layers=told["num_single_layers"],
        heads=told["num_attention_heads"],
        rotary_widths=tuple(told["axes_dims_rope"]),
        resample=told["downsample"],
    )


def recorded(kind: str) -> dict[str, Tensor]:
    (path,) = files("muse", f"{kind}.io.safetensors")
    return load(path)


def conditions(io: dict[str, Tensor], time: str) -> Cond:
    cond = Cond(context=io["encoder_hidden_states"], pooled=io["pooled"], micro=io["micro_conds"])
    return with_time(cond, io[f"timestep_{time}"])


def compare(name: str, got: Tensor, wanted: Tensor) -> None:
    if got.shape != wanted.shape:  # large blocks are stored in part, see the README
        assert got.ndim == wanted.ndim, name
        got = got[: wanted.shape[0], : wanted.shape[1]]
    torch.testing.assert_close(got, wanted, **TOLERANCE, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_block_is_the_official_one(kind: str) -> None:
    """The recording does not say at which of its times blocks were kept: it is one of them, for all blocks."""
    model, io = make(kind), recorded(kind)
    wanted = {key.removeprefix("block/"): tensor for key, tensor in io.items() if key.startswith("block/")}
    got: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor | tuple[Tensor, ...]) -> None:
        parts = {name: output} if isinstance(output, Tensor) else {f"{name}:{i}": x for i, x in enumerate(output)}
        got.update({key: tensor for key, tensor in parts.items() if key in wanted})

    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: keep(name, output))
    features = wanted["time_text_embed.time_proj"]
    (time,) = (
        key.removeprefix("timestep_")
        for key in io
        if key.startswith("timestep_") and torch.allclose(time_features(io[key]), features, atol=1e-6, rtol=0)
    )
    context, pooled, micro = io["encoder_hidden_states"], io["pooled"], io["micro_conds"]
    model.grid_logits(io["ids"], context, pooled, micro, io[f"timestep_{time}"])
    grid = torch.Size(side // (2 if model.config.resample else 1) for side in io["ids"].shape[1:])
    turn = rotation(context.shape[1], grid, model.config.rotary_widths)
    assert torch.equal(
        io["img_ids"], torch.cartesian_prod(torch.zeros(1), *(torch.arange(side * 1.0) for side in grid))
    )
    got |= {f"pos_embed:{i}": part.repeat_interleave(2, dim=1) for i, part in enumerate(turn)}
    got["time_text_embed.time_proj"] = time_features(io[f"timestep_{time}"])
    assert got.keys() == wanted.keys()
    for name, reference in wanted.items():
        compare(name, got[name], reference)
    for name in FUNCTIONS:
        # A frequency of one rounding more would be seen: phases reach 47,000.
        torch.testing.assert_close(got[name], wanted[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kind", "key"), LOGITS)
@torch.no_grad()
def test_our_contract_gives_the_official_logits(kind: str, key: str) -> None:
    """At the times of sampling, and at those of training, one for each row."""
    model, io = make(kind), recorded(kind)
    ids, mask_row = io["ids"], model.config.mask_row
    assert (ids == mask_row).any(), "the fixture masks tokens"
    tokens = ids.masked_fill(ids == mask_row, model.vocab_size).flatten(1)[..., None]
    logits = model(tokens, conditions(io, key.removeprefix("logits_")), ids.shape[1:])
    torch.testing.assert_close(logits, io[key].flatten(2).transpose(1, 2)[:, :, None], **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_bfloat16_keeps_the_official_phases(kind: str) -> None:
    """The features of every time of 64 steps are those of float32, rounded once: the published product is rounded before."""
    model, io = make(kind).to(torch.bfloat16), recorded(kind)
    seen: list[Tensor] = []
    model.time_text_embed.timestep_embedder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    tokens = io["ids"].masked_fill(io["ids"] == model.config.mask_row, model.vocab_size).flatten(1)[..., None]
    axes = io["ids"].shape[1:]
    for key in (key for key in io if key.startswith("logits_")):
        time = key.removeprefix("logits_")
        logits = model(tokens, conditions(io, time), axes)
        exact = time_features(io[f"timestep_{time}"]).expand(len(tokens), -1)
        assert torch.equal(seen[-1], exact.to(torch.bfloat16))
        reference = io[key].flatten(2).transpose(1, 2)[:, :, None]
        assert (logits - reference).abs().mean() < 0.05 * reference.abs().mean()


@pytest.mark.parametrize("path", TREES, ids=lambda path: path.stem)
def test_full_size_tree(path: Path) -> None:
    """Every published name and shape goes through the key map, and the count is exact; nothing is allocated."""
    told = json.loads(path.read_text(encoding="utf-8"))
    state = {name: torch.zeros(1).expand(shape) for name, shape in told["state_dict"].items()}
    config = config_from(state)
    assert config == expected(told["config"], 8255, (64, 64)) == PUBLISHED["meissonic-1024"]
    with torch.device("meta"):
        model = MeissonicTransformer(config)
    model.load_state_dict(convert(state, config), assign=True)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == told["num_params"] == PUBLISHED_PARAMETERS


@pytest.mark.parametrize(("path", "run"), SCHEDULER, ids=[f"{path.stem}-{run}" for path, run in SCHEDULER])
def test_the_scheduler_is_amuseds(path: Path, run: str) -> None:
    """Every step sees the same tokens, samples the same, and the end is the same, id for id."""
    settings, io = metadata(path), load(path)
    mask_id, chosen = settings["mask_id"], settings["runs"][run]
    trace = {key: io[f"{run}/{key}"] for key in ("ids_in", "pred", "ids_out", "logits", "exp_noise", "u_conf")}
    vocabulary, temperature = trace["logits"].shape[2], chosen["temperature"]
    start = trace["ids_in"][0].flatten(1)[..., None]
    seen: list[Tensor] = []
    sampled: list[Tensor] = []

    def logits_fn(tokens: Tensor, step: int) -> Tensor:
        seen.append(tokens[..., 0])
        return trace["logits"][step].flatten(2).transpose(1, 2)[:, :, None]

    def watch(step: SampleStep) -> None:
        sampled.append(step.tokens[..., 0])

    result = sample_amused(
        logits_fn,
        start.masked_fill(start == mask_id, vocabulary),
        start == mask_id,
        AmusedSampling(
            steps=settings["steps"],
            schedule=chosen["schedule"],
            temperature=tuple(temperature) if isinstance(temperature, list) else temperature,
            starting_mask_ratio=chosen.get("starting_mask_ratio", 1.0),
        ),
        noise=Recorded(trace["exp_noise"], trace["u_conf"]),
        callback=watch,
    )
    official = trace["ids_in"].flatten(2)
    assert torch.equal(torch.stack(seen), official.masked_fill(official == mask_id, vocabulary))
    assert torch.equal(torch.stack(sampled), trace["pred"].flatten(2))
    assert torch.equal(result[..., 0], trace["ids_out"].flatten(1))
