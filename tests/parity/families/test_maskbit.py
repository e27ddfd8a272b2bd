"""MaskBit's tokenizers, generators and sampler against their official outputs.

Shapes: B batch, N tokens, K sub-tokens, V ids of a sub-token, h w token grid, S steps.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.published.maskbit import transformer as maskbit
from maskgen.published.maskbit.sampler import MaskBitSampling, maskbit_counts, maskbit_guided_logits, sample_maskbit
from maskgen.published.maskbit.transformer import MaskBitConfig, MaskBitTransformer
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.loop import SampleStep
from maskgen.tokenizers.published.image import maskbit as tokenizer_map
from maskgen.tokenizers.published.image.maskbit import MaskBitTokenizer, MaskBitTokenizerConfig
from maskgen.tokenizers.published.image.maskbit_codes import merge_ids, split_ids
from maskgen.tokenizers.published.image.maskgit_torch import Layout
from tests.parity.families.test_maskgit_torch import check_blocks, named_modules, weights
from tests.parity.support import check_kinds, files, load, metadata, recordings

RECORDED = recordings("families", "maskbit_*.io.safetensors")
TOKENIZERS = [path for path in RECORDED if "quantizer_type" in metadata(path)["config"]]
GENERATORS = [path for path in RECORDED if path not in TOKENIZERS]
NEW = Layout(level="res_blocks.", middle="res_blocks.", run_order=True)
IMAGES: dict[str, float] = {"atol": 1e-4, "rtol": 0}
LOGITS: dict[str, float] = {"atol": 5e-5, "rtol": 0}


def name(path: Path) -> str:
    return path.name.removesuffix(".io.safetensors")


@functools.cache
def tokenizer(path: Path, splits: int = 1) -> MaskBitTokenizer:
    state, stated = weights(path), metadata(path)["config"]
    l2 = stated.get("use_l2_normalisation", False)
    config = tokenizer_map.config_from(state, splits=splits, l2_normalised=l2)
    model = MaskBitTokenizer(config)
    model.load_state_dict(tokenizer_map.convert(state, config))
    return model.eval()


@functools.cache
def generator(path: Path) -> MaskBitTransformer:
    state = weights(path)
    config = maskbit.config_from(state, heads=metadata(path)["config"]["heads"])
    model = MaskBitTransformer(config)
    model.load_state_dict(maskbit.convert(state, config))
    return model.eval()


def test_kinds_are_found() -> None:
    of_tokenizers, of_generators = ([metadata(path)["config"] for path in kind] for kind in (TOKENIZERS, GENERATORS))
    check_kinds("families", {stated["quantizer_type"] for stated in of_tokenizers}, {"lookup-free", "lookup"})
    check_kinds("families", {stated["sample_with_conv"] for stated in of_tokenizers}, {False, True})
    check_kinds("families", {stated["use_prenorm"] for stated in of_generators}, {False, True})
    check_kinds("families", {generator(path).config.tokens for path in GENERATORS}, {"bits", "table"})


@pytest.mark.parametrize("path", TOKENIZERS, ids=name)
def test_tokenizer_settings(path: Path) -> None:
    found = metadata(path)
    stated = found["config"]
    assert found["pixel_range"] == [0, 1]
    free = stated["quantizer_type"] == "lookup-free"
    model = tokenizer(path)
    assert model.config == MaskBitTokenizerConfig(
        quantizer=stated["quantizer_type"],
        token_size=stated["token_size"],
        codebook_size=2 ** stated["token_size"] if free else stated["codebook_size"],
        l2_normalised=stated.get("use_l2_normalisation", False),
        channels=stated["hidden_channels"],
        multipliers=tuple(stated["channel_mult"]),
        res_blocks=stated["num_res_blocks"],
        downsample="conv" if stated["sample_with_conv"] else "average",
    )
    assert model.stride == (found["factor"],) * 2


@pytest.mark.parametrize("path", TOKENIZERS, ids=name)
def test_encode(path: Path) -> None:
    model, io = tokenizer(path), load(path)
    with torch.no_grad():
        latents = model.encoder(io["x"])
        tokens = model.encode(io["x"])
        out = model.quantizer(latents)
    axes = model.axes(io["x"].shape)
    assert axes == tuple(io["ids"].shape[1:])
    assert torch.equal(tokens.reshape(io["ids"].shape), io["ids"])
    codes = model.quantizer.lookup(tokens, axes).flatten(2).transpose(1, 2)
    torch.testing.assert_close(codes, io["z_q"], atol=1e-6, rtol=0)
    torch.testing.assert_close(out.latents, io["z_st"], **IMAGES)
    if model.config.quantizer == "lookup-free":
        margin = latents.abs().amin(1).flatten()
    else:
        rows = model.quantizer._rows(latents).flatten(end_dim=1)
        margin = model.quantizer._distances(rows).topk(2, largest=False).values.diff().flatten()
    torch.testing.assert_close(margin, io["id_margin"].flatten(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("path", TOKENIZERS, ids=name)
def test_decode(path: Path) -> None:
    model, io = tokenizer(path), load(path)
    axes = model.axes(io["image2"].shape)
    with torch.no_grad():
        recon = model.decode(io["ids"].flatten(1)[..., None], io["ids"].shape[1:])
        image = model.decode(io["ids2"][..., None], axes)
    torch.testing.assert_close(recon, io["recon"], **IMAGES)
    torch.testing.assert_close(image, io["image2"], **IMAGES)
    codes = model.quantizer.lookup(io["ids2"][..., None], axes).flatten(2).transpose(1, 2)
    torch.testing.assert_close(codes, io["z_q2"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("path", TOKENIZERS, ids=name)
def test_tokenizer_blocks(path: Path) -> None:
    model, io = tokenizer(path), load(path)
    modules = named_modules(model.encoder, model.decoder, model.config.network, NEW)
    check_blocks(io, modules, lambda: model.decode(model.encode(io["x"]), model.axes(io["x"].shape)))


@pytest.mark.parametrize("path", TOKENIZERS, ids=name)
def test_legacy_order_of_the_levels(path: Path) -> None:
    """The legacy class numbers decoder levels from full resolution; such a file gives the same model."""
    state, model = weights(path), tokenizer(path)
    last = len(model.config.multipliers) - 1
    legacy: dict[str, Tensor] = {}
    for key, weight in state.items():
        head, up, rest = key.partition("decoder.up.")
        level, _, leaf = rest.partition(".")
        legacy[f"decoder.up.{last - int(level)}.{leaf}" if up and not head else key] = weight
    assert set(legacy) != set(state)
    config = model.config
    assert tokenizer_map.config_from(legacy, l2_normalised=config.l2_normalised) == config
    ours, again = tokenizer_map.convert(state, config), tokenizer_map.convert(legacy, config)
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[key], again[key]) for key in ours)


@pytest.mark.parametrize("path", TOKENIZERS, ids=name)
def test_sub_tokens_decode_to_the_same_image(path: Path) -> None:
    whole, io = tokenizer(path), load(path)
    bits = whole.config.bits
    splits = next(k for k in range(2, bits + 1) if bits % k == 0)
    if 2**bits != whole.config.codebook_size:
        with pytest.raises(ValueError, match="expected a power of two"):
            tokenizer(path, splits)
        return
    model = tokenizer(path, splits)
    assert (model.num_codebooks, model.vocab_size) == (splits, 2 ** (bits // splits))
    with torch.no_grad():
        tokens = model.encode(io["x"])
        recon = model.decode(tokens, io["ids"].shape[1:])
    assert torch.equal(merge_ids(tokens, bits=bits), io["ids"].flatten(1))
    torch.testing.assert_close(recon, io["recon"], **IMAGES)


@pytest.mark.parametrize("path", TOKENIZERS, ids=name)
def test_every_recorded_tensor_of_the_tokenizers_is_compared(path: Path) -> None:
    known = {"x", "ids", "ids2", "z_q", "z_q2", "z_st", "id_margin", "recon", "image2"}
    assert {key for key in load(path) if not key.startswith("block/")} == known


@pytest.mark.parametrize("path", GENERATORS, ids=name)
def test_generator_settings(path: Path) -> None:
    found = metadata(path)
    stated = found["config"]
    bits, side = (stated["codebook_size"] - 1).bit_length(), stated["img_size"] // stated["input_stride"]
    assert generator(path).config == MaskBitConfig(
        tokens=generator(path).config.tokens,
        vocab_size=2 ** (bits // stated["codebook_splits"]),
        splits=stated["codebook_splits"],
        num_classes=stated["nclass"],
        axes=(side, side),
        width=stated["hidden_dim"],
        layers=stated["depth"],
        heads=stated["heads"],
        mlp_width=stated["mlp_dim"],
        prenorm=stated["use_prenorm"],
    )
    assert generator(path).vocab_size == found["mask_id"] == found["effective_codebook_size"]
    assert generator(path).num_classes == found["null_class"]


def labels(io: dict[str, Tensor], kind: str) -> Tensor:
    if kind == "cond":
        return io["y"].clone()
    return torch.where(io["drop_mixed"], NO_LABEL, io["y"]) if kind == "mixed" else torch.full_like(io["y"], NO_LABEL)


@pytest.mark.parametrize("kind", ["cond", "uncond", "mixed"])
@pytest.mark.parametrize("path", GENERATORS, ids=name)
def test_logits(path: Path, kind: str) -> None:
    model, io = generator(path), load(path)
    given = labels(io, kind)
    with torch.no_grad():
        logits = model(io["x"], Cond(labels=given))
        again = model(io["x"], Cond(labels=given), model.config.axes)
    assert torch.equal(given, labels(io, kind))  # the official forward writes the null class into it
    torch.testing.assert_close(logits, io[f"logits_{kind}"], **LOGITS)
    assert torch.equal(logits, again)


@pytest.mark.parametrize("path", GENERATORS, ids=name)
def test_labels_are_kept_where_the_official_forward_drops_them(path: Path) -> None:
    """Without a drop mask official ``forward`` makes every label the null class, also in the caller's tensor."""
    model, io = generator(path), load(path)
    null = torch.full_like(io["y"], metadata(path)["null_class"])
    assert torch.equal(io["labels_after_no_mask_call"], null)
    assert not torch.equal(io["y"], null)
    given = io["y"].clone()
    with torch.no_grad():
        logits = model(io["x"], Cond(labels=given))
        unconditional = model(io["x"], Cond())
    assert torch.equal(given, io["y"])
    torch.testing.assert_close(unconditional, io["logits_no_mask_argument"], **LOGITS)
    assert (logits - io["logits_no_mask_argument"]).abs().max() > 1e-2


@pytest.mark.parametrize("path", GENERATORS, ids=name)
def test_generator_blocks(path: Path) -> None:
    model, io = generator(path), load(path)
    modules = {key: module for key, module in model.named_modules() if key}
    check_blocks(io, modules, lambda: model(io["x"], Cond(labels=labels(io, "cond"))))


@pytest.mark.parametrize("path", GENERATORS, ids=name)
def test_split_and_merge(path: Path) -> None:
    """Official merging adds in float32; the fixture's ids are small enough to be exact there too."""
    model, io = generator(path), load(path)
    bits = model.config.bits * model.config.splits
    assert torch.equal(split_ids(io["tokens_full"], bits=bits, splits=model.config.splits), io["tokens_split"])
    merged = merge_ids(io["tokens_split"], bits=bits)
    assert torch.equal(merged, io["tokens_full"])
    assert io["tokens_combined"].dtype == torch.float32
    assert torch.equal(merged, io["tokens_combined"].long())


@dataclass
class RecordedNoise:
    """``argmax(probs / exp_noise)`` is the argmax of logits - log exp_noise: Exp(1) noise is Gumbel noise."""

    exponential: Tensor
    gumbel: Tensor
    asked: list[tuple[str, int]] = field(default_factory=list)

    def sample(self, step: int, shape: Sequence[int]) -> Tensor:
        self.asked.append(("sample", step))
        assert self.exponential[step].shape == tuple(shape)
        return -self.exponential[step].double().log().float()

    def choice(self, step: int, shape: Sequence[int]) -> Tensor:
        self.asked.append(("choice", step))
        assert self.gumbel[step].shape == tuple(shape)
        return self.gumbel[step].clone()


def modes(path: Path) -> dict[str, dict[str, Any]]:
    return metadata(path)["modes"]


RUNS = [pytest.param(path, mode, id=f"{name(path)}-{mode}") for path in GENERATORS for mode in modes(path)]


@pytest.mark.parametrize(("path", "mode"), RUNS)
def test_generate(path: Path, mode: str) -> None:
    model, io, chosen = generator(path), load(path), dict(modes(path)[mode])
    trace = {key.rpartition("/")[2]: value for key, value in io.items() if key.startswith(f"gen/{mode}/")}
    assert set(trace) == {"ids_in", "pred", "ids_out", "exp_noise", "gumbel"}
    steps = metadata(path)["steps"]
    assert len(trace["ids_in"]) == len(trace["pred"]) == steps
    guided = maskbit_guided_logits(
        model,
        Cond(labels=labels(io, "cond")),
        Guidance(
            scale=chosen.pop("guidance_scale"),
            ramp={"none": "constant"}.get(ramp := chosen.pop("guidance_annealing", "none"), ramp),
            power=chosen.pop("scale_pow", 4.0),
        ),
        steps=steps,
    )
    seen: list[Tensor] = []
    done: list[SampleStep] = []

    def watched(tokens: Tensor, step: int) -> Tensor:
        seen.append(tokens.clone())
        return guided(tokens, step)

    noise = RecordedNoise(trace["exp_noise"], trace["gumbel"])
    masked = torch.full_like(trace["ids_in"][0], model.vocab_size)
    final = sample_maskbit(
        watched,
        masked,
        torch.ones_like(masked, dtype=torch.bool),
        MaskBitSampling(
            steps=steps,
            choice_temperature=chosen.pop("randomize_temperature"),
            schedule=chosen.pop("mask_schedule_strategy"),
            annealed=chosen.pop("use_sampling_annealing", False),
            temperature=chosen.pop("softmax_temperature", 1.0),
        ),
        noise=noise,
        callback=done.append,
    )
    assert not chosen, "settings this test does not know"
    assert noise.asked == [(kind, step) for step in range(steps) for kind in ("sample", "choice")]
    for step in range(steps):
        assert torch.equal(seen[step], trace["ids_in"][step]), f"step {step}"
        assert torch.equal(done[step].tokens, trace["pred"][step]), f"step {step}"
    # The official loop masks at least one position after the last step too, and returns the pick from before that.
    assert done[-1].mask.flatten(1).any(1).all()
    assert torch.equal(merge_ids(final, bits=model.config.bits * model.config.splits), trace["ids_out"])


@pytest.mark.parametrize("path", GENERATORS, ids=name)
def test_every_recorded_tensor_of_the_generators_is_compared(path: Path) -> None:
    known = {"x", "y", "drop_mixed", "logits_cond", "logits_uncond", "logits_mixed", "logits_no_mask_argument"}
    known |= {"labels_after_no_mask_call", "tokens_full", "tokens_split", "tokens_combined"}
    known |= {
        f"gen/{mode}/{key}" for mode in modes(path) for key in ("ids_in", "pred", "ids_out", "exp_noise", "gumbel")
    }
    assert {key for key in load(path) if not key.startswith("block/")} == known


def test_mask_counts() -> None:
    paths = files("families", "schedules*.io.safetensors")
    tables = {key: value for path in paths for key, value in load(path).items() if key.startswith("maskbit_masked_in/")}
    check_kinds("families", {key.split("/")[1] for key in tables}, {"arccos", "cosine", "linear", "square", "root"})
    for key, expected in tables.items():
        _, schedule, positions, steps = key.split("/")
        total = torch.tensor([int(positions)])
        masked, counts = total, []
        for step in range(int(steps)):
            counts.append(int(masked))
            masked = maskbit_counts(schedule, step, int(steps), total, masked)
        assert counts == expected.tolist(), key
