"""aMUSEd's transformer and scheduler against the code in diffusers.

Shapes: B batch, H W grid, N = H x W, K codes.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.published.amused.sampler import AmusedSampling, amused_mask_counts, sample_amused
from maskgen.published.amused.transformer import UVit2D, UVit2DConfig, config_from, convert
from maskgen.sampling.loop import SampleStep
from tests.parity.support import files, load, metadata, recordings

TOLERANCE: dict[str, float] = {"atol": 1e-4, "rtol": 0.0}  # README; err_vs_float64 is at most 1e-5

KINDS = [path.name.removesuffix(".io.safetensors") for path in recordings("families", "uvit2d*.io.safetensors")]
SCHEDULER = [
    (path, run) for path in recordings("families", "amused_scheduler*.io.safetensors") for run in metadata(path)["runs"]
]
TABLES = [
    (path, key)
    for path in recordings("families", "schedules*.io.safetensors")
    for key in load(path)
    if key.startswith("amused_masked_in/")
]


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def weights(kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All parts of a weights file in float32 (float16 there is exact), and the settings."""
    paths = files("families", f"{kind}.weights*.safetensors")
    merged = {name: tensor.float() for path in paths for name, tensor in load(path).items()}
    return merged, metadata(paths[0])


def make(kind: str) -> tuple[UVit2D, dict[str, Tensor], dict[str, Any]]:
    state, settings = weights(kind)
    told = settings["config"]
    config = config_from(
        state,
        heads=told["num_attention_heads"],
        block_heads=told["block_num_heads"],
        micro_width=told["micro_cond_encode_dim"],
        mask_row=settings["mask_id"],
        axes=(told["sample_size"], told["sample_size"]),
    )
    assert config == UVit2DConfig(
        codebook_size=told["codebook_size"],
        rows=told["vocab_size"],
        mask_row=settings["mask_id"],
        axes=(told["sample_size"], told["sample_size"]),
        embed_width=told["in_channels"],
        block_width=told["block_out_channels"],
        width=told["hidden_size"],
        text_width=told["encoder_hidden_size"],
        pooled_width=told["cond_embed_dim"],
        micro_width=told["micro_cond_encode_dim"],
        blocks=told["num_res_blocks"],
        block_heads=told["block_num_heads"],
        layers=told["num_hidden_layers"],
        heads=told["num_attention_heads"],
        mlp_width=told["intermediate_size"],
        resample=told.get("downsample", False),
    )
    model = UVit2D(config)
    model.load_state_dict(convert(state, config))
    (path,) = files("families", f"{kind}.io.safetensors")
    return model.eval(), load(path), settings


def conditions(io: dict[str, Tensor]) -> Cond:
    return Cond(context=io["encoder_hidden_states"], pooled=io["pooled"], micro=io["micro_conds"])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_block_is_the_official_one(kind: str) -> None:
    model, io, _ = make(kind)
    wanted = {key.removeprefix("block/"): tensor for key, tensor in io.items() if key.startswith("block/")}
    got: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    for name in wanted:
        modules[name].register_forward_hook(lambda module, inputs, output, name=name: got.update({name: output}))
    logits = model.grid_logits(io["ids"], io["encoder_hidden_states"], io["pooled"], io["micro_conds"])
    torch.testing.assert_close(logits, io["logits"], **TOLERANCE)
    assert got.keys() == wanted.keys()
    for name, reference in wanted.items():
        assert got[name].ndim == reference.ndim, name
        part = got[name]
        if reference.shape != part.shape:  # large blocks are stored in part, see the README
            part = part[: reference.shape[0], : reference.shape[1]]
        torch.testing.assert_close(part, reference, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_our_contract_gives_the_official_logits(kind: str) -> None:
    model, io, settings = make(kind)
    ids, mask_row = io["ids"], settings["mask_id"]
    assert (ids == mask_row).any(), "the fixture masks tokens"
    tokens = ids.masked_fill(ids == mask_row, model.vocab_size).flatten(1)[..., None]
    logits = model(tokens, conditions(io), ids.shape[1:])
    torch.testing.assert_close(logits, io["logits"].flatten(2).transpose(1, 2)[:, :, None], **TOLERANCE)


class Recorded:
    """The official numbers: categories from argmax(p / e) with e exponential, ranks from uniforms."""

    def __init__(self, exponential: Tensor, uniform: Tensor) -> None:
        self.exponential, self.uniform = exponential, uniform

    def sample(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return -self.exponential[step].double().log().float().reshape(shape)

    def choice(self, step: int, shape: tuple[int, ...]) -> Tensor:
        inner = -self.uniform[step].clamp(min=1e-20).log()
        return -inner.clamp(min=1e-20).log().reshape(shape)


@pytest.mark.parametrize(("path", "run"), SCHEDULER, ids=[f"{path.stem}-{run}" for path, run in SCHEDULER])
def test_scheduler_traces(path: Path, run: str) -> None:
    """Every step sees the same tokens, samples the same, and the end is the same, id for id."""
    settings, io = metadata(path), load(path)
    mask_id, chosen = settings["mask_id"], settings["runs"][run]
    trace = {key: io[f"{run}/{key}"] for key in ("ids_in", "pred", "ids_out", "logits", "exp_noise", "u_conf")}
    steps = len(trace["ids_in"])
    vocabulary = trace["logits"].shape[2]
    temperature = chosen["temperature"]
    start = trace["ids_in"][0].flatten(1)[..., None]
    seen: list[Tensor] = []
    sampled: list[Tensor] = []

    def logits_fn(tokens: Tensor, step: int) -> Tensor:
        seen.append(tokens)
        return trace["logits"][step].flatten(2).transpose(1, 2)[:, :, None]

    def watch(step: SampleStep) -> None:
        sampled.append(step.tokens)

    result = sample_amused(
        logits_fn,
        start.masked_fill(start == mask_id, vocabulary),
        start == mask_id,
        AmusedSampling(
            steps=steps,
            schedule=chosen["schedule"],
            temperature=tuple(temperature) if isinstance(temperature, list) else temperature,
            starting_mask_ratio=chosen.get("starting_mask_ratio", 1.0),
        ),
        noise=Recorded(trace["exp_noise"], trace["u_conf"]),
        callback=watch,
    )
    assert len(seen) == steps == settings["steps"]
    for step in range(steps):
        official = trace["ids_in"][step].flatten(1)
        assert torch.equal(seen[step][..., 0], official.masked_fill(official == mask_id, vocabulary)), step
        assert torch.equal(sampled[step][..., 0], trace["pred"][step].flatten(1)), step
    assert torch.equal(result[..., 0], trace["ids_out"].flatten(1))


@pytest.mark.parametrize(("path", "key"), TABLES, ids=[key for _, key in TABLES])
def test_schedule_tables(path: Path, key: str) -> None:
    _, schedule, tokens, steps = key.split("/")
    masked, counts = torch.tensor([int(tokens)]), []
    for step in range(int(steps)):
        counts.append(masked.item())
        masked = amused_mask_counts(schedule, step, int(steps), int(tokens), masked)
    assert counts == load(path)[key].tolist()


def test_tables_were_made_in_float32() -> None:
    """cos(pi / 3) x 256 is 128; the published code floors a float32 just below it."""
    assert math.floor(math.cos(math.pi / 3) * 256 + 1e-9) == 128
    assert amused_mask_counts("cosine", 7, 12, 256, torch.tensor([256])).tolist() == [127]
