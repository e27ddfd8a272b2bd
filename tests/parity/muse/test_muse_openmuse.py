"""open-muse's transformer, sampler, schedules and training masks against huggingface/open-muse.

Shapes: B batch, N tokens of a square grid, K codes, S steps.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.objectives.loss import masked_cross_entropy
from maskgen.objectives.masking import random_mask
from maskgen.published.amused.sampler import AmusedSampling, sample_amused, share_left
from maskgen.published.amused.transformer import UVit2D
from maskgen.published.openmuse import (
    PUBLISHED,
    config_from,
    convert,
    diffusers_names,
    openmuse_guided_logits,
    visible_weights,
)
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.loop import SampleStep
from maskgen.schedules import get_schedule
from tests.parity.support import facts, files, load, metadata, parity_folder, recordings

KINDS = [path.name.removesuffix(".io.safetensors") for path in recordings("muse", "openmuse_uvit*.io.safetensors")]
RUNS = [(kind, run) for kind in KINDS for run in metadata(files("muse", f"{kind}.io.safetensors")[0])["runs"]]
SCHEDULES = [
    (kind, key.removeprefix("schedule/"))
    for kind in KINDS
    for key in load(files("muse", f"{kind}.io.safetensors")[0])
    if key.startswith("schedule/") and key != "schedule/t"
]
TRAINING = [
    (path, run) for path in recordings("muse", "openmuse_training*.io.safetensors") for run in metadata(path)["runs"]
]
TREES = facts("muse", "full_shapes_openmuse_*.json")


def make(kind: str) -> tuple[UVit2D, dict[str, Tensor], dict[str, Any]]:
    (weights,) = files("muse", f"{kind}.weights.safetensors")
    (io,) = files("muse", f"{kind}.io.safetensors")
    state, settings = {name: tensor.float() for name, tensor in load(weights).items()}, metadata(io)
    told = settings["config"]
    config = config_from(
        state,
        heads=told["num_attention_heads"],
        block_heads=told["block_num_heads"],
        micro_width=told["micro_cond_encode_dim"],
        mask_row=settings["mask_id"],
        axes=(settings["grid"], settings["grid"]),
    )
    assert (config.width, config.layers, config.blocks) == (
        told["hidden_size"],
        told["num_hidden_layers"],
        told["num_res_blocks"],
    )
    assert (config.mlp_width, config.resample) == (told["intermediate_size"], told["force_down_up_sample"])
    model = UVit2D(config)
    model.load_state_dict(convert(state, config))
    return model.eval(), load(io), settings


def text_cond(io: dict[str, Tensor], run: str = "") -> Cond:
    """The recorded text, pushed away from the empty prompt or, in the run of that name, from another one.

    ``generate2`` was given one row of numbers, the first, and repeats it.
    """
    batch, kind = len(io["pooled"]), "negative" if run == "negative" else "empty"
    micro = io["micro_conds"][:1].expand(batch, -1) if run else io["micro_conds"]
    null = Cond(
        context=io[f"{kind}_embeds"].expand(batch, -1, -1) if run else None,
        pooled=io[f"{kind}_cond_embeds"].expand(batch, -1) if run else None,
    )
    return Cond(context=io["encoder_hidden_states"], pooled=io["pooled"], micro=micro, null=null)


class Recorded:
    """The noise that was drawn: Exp(1) for the ids, uniform for the ranking."""

    def __init__(self, exponential: Tensor, uniform: Tensor) -> None:
        self.exponential, self.uniform = exponential, uniform

    def sample(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return -self.exponential[step].log().view(shape)

    def choice(self, step: int, shape: tuple[int, ...]) -> Tensor:
        doubled = -self.uniform[step].clamp(min=1e-20).log()
        return -doubled.clamp(min=1e-20).log().view(shape)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_and_losses(kind: str) -> None:
    model, io, settings = make(kind)
    ids = io["ids"].masked_fill(io["ids"] == settings["mask_id"], model.vocab_size)[..., None]
    logits = model(ids, text_cond(io))
    torch.testing.assert_close(logits[:, :, 0], io["logits"], atol=5e-5, rtol=0)
    mask = io["labels"] != -100
    assert mask.any()
    targets = io["labels"].clamp(min=0)
    for key in ("loss_0.0", "loss_0.1"):
        smoothing = float(key.removeprefix("loss_"))
        loss = masked_cross_entropy(logits[:, :, 0], targets, mask, label_smoothing=smoothing, normalize="batch")
        torch.testing.assert_close(loss, io[key], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "run"), RUNS, ids=[f"{kind}-{run}" for kind, run in RUNS])
def test_sampler(kind: str, run: str) -> None:
    model, io, settings = make(kind)
    chosen = settings["runs"][run]
    steps, temperature, batch = chosen["timesteps"], chosen["temperature"], len(io["pooled"])
    guidance = Guidance(scale=chosen["guidance_scale"] - 1, ramp=chosen.get("guidance_schedule") or "constant")
    seen: list[Tensor] = []
    sampled: list[Tensor] = []
    logits_fn = openmuse_guided_logits(model, text_cond(io, run), guidance, steps=steps)

    def watched(tokens: Tensor, step: int) -> Tensor:
        seen.append(tokens)
        return logits_fn(tokens, step)

    def watch(step: SampleStep) -> None:
        sampled.append(step.tokens)

    places = settings["grid"] ** 2
    result = sample_amused(
        watched,
        torch.full((batch, places, 1), model.vocab_size),
        torch.ones(batch, places, 1, dtype=torch.bool),
        AmusedSampling(
            steps=steps,
            schedule=chosen.get("schedule", "cosine"),
            temperature=tuple(temperature) if isinstance(temperature, list) else temperature,
        ),
        noise=Recorded(io[f"{run}/exp_noise"], io[f"{run}/u_conf"]),
        callback=watch,
    )
    official = io[f"{run}/ids_in"].masked_fill(io[f"{run}/ids_in"] == settings["mask_id"], model.vocab_size)
    assert torch.equal(torch.stack(seen)[..., 0], official)
    # Official ids of known places are drawn too and thrown away.
    drawn = torch.where(official == model.vocab_size, io[f"{run}/sampled"], official)
    assert torch.equal(torch.stack(sampled)[..., 0], drawn)
    assert torch.equal(result[..., 0], io[f"{run}/ids_out"])


@pytest.mark.parametrize(("kind", "schedule"), SCHEDULES, ids=[schedule for _, schedule in SCHEDULES])
def test_schedules(kind: str, schedule: str) -> None:
    io = load(files("muse", f"{kind}.io.safetensors")[0])
    at, official = io["schedule/t"], io[f"schedule/{schedule}"]
    steps = len(at) - 1
    assert torch.equal(at, torch.arange(steps + 1) / steps)
    left = torch.stack([share_left(schedule, done, steps) for done in range(steps + 1)])
    # aMUSEd's linear schedule is not clamped: of importance to no count, as at least one token is masked.
    assert torch.equal(left.clamp(min=1e-6) if schedule == "linear" else left, official)
    ours = get_schedule(schedule)(at, torch.full_like(at, 256))  # of training, clamped to 1e-6 for every schedule
    torch.testing.assert_close(ours, official.clamp(min=1e-6), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("path", "run"), TRAINING, ids=[run for _, run in TRAINING])
def test_training_masks(path: Path, run: str) -> None:
    io, settings = load(path), metadata(path)
    chosen, tokens, ratio = settings["runs"][run], io["tokens"], io[f"{run}/u_time"]
    rows, places = tokens.shape
    mask = random_mask(
        (rows, places, 1),
        min_ratio=chosen["min_masking_rate"],
        draw="rounded",
        ratio=ratio,
        generator=torch.Generator().manual_seed(0),
    )
    shares = get_schedule("cosine")(ratio, torch.full_like(ratio, places)).clamp(min=chosen["min_masking_rate"])
    assert torch.equal(shares, io[f"{run}/mask_prob"])
    # Which places is the matter of a generator; how many, and what becomes of them, is the rule.
    official = io[f"{run}/u_perm"].argsort(-1) < mask.sum((1, 2))[:, None]
    assert torch.equal(tokens.masked_fill(official, settings["mask_id"]), io[f"{run}/input_ids"])
    if chosen.get("predict_all_tokens"):
        assert torch.equal(io[f"{run}/labels"], tokens)
        weights = torch.where(official, 1.0, visible_weights(shares)[:, None])
        torch.testing.assert_close(weights, io[f"{run}/loss_weight"], atol=1e-6, rtol=0)
    else:
        assert torch.equal(io[f"{run}/labels"], tokens.masked_fill(~official, -100))


@pytest.mark.parametrize("path", TREES, ids=lambda path: path.stem.removeprefix("full_shapes_"))
def test_full_size(path: Path) -> None:
    tree = json.loads(path.read_text(encoding="utf-8"))
    state = {name: torch.empty(shape, device="meta") for name, shape in tree["state_dict"].items()}
    told, config = tree["config"], config_from(state)
    assert (config.heads, config.block_heads) == (told["num_attention_heads"], told["block_num_heads"])
    assert config == PUBLISHED["-".join(path.stem.split("_")[2:4])]
    with torch.device("meta"):
        model = UVit2D(config)
    model.load_state_dict(convert(state, config), assign=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == tree["num_params"]


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_those_of_diffusers(kind: str) -> None:
    """The table in the recordings says what a few names become; none of the old ones is left."""
    (path,) = files("muse", f"{kind}.weights.safetensors")
    names = diffusers_names(load(path))
    assert "transformer_layers.0.ff.net.0.proj.weight" in names
    old = ("ffn.", "attention.", "adaLN", "channelwise.", "_layer_norm.norm", "down_blocks", "up_blocks", "sample.0")
    assert [name for name in names if any(part in name for part in old)] == []


def test_the_recordings_are_there() -> None:
    assert parity_folder("muse").is_dir()
    assert KINDS
    assert RUNS
    assert TRAINING
    assert TREES
