"""ImageBert and UViTBert of 1d-tokenizer against the official outputs, block by block and sampling step by step.

Shapes: B batch, N tokens, S steps, V codes.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.models.base import MaskedTransformer
from maskgen.published.onedtok import imagebert, uvitbert
from maskgen.published.onedtok.sampler import OneDTokSampling, onedtok_guided_logits, onedtok_weights, sample_onedtok
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.loop import SampleStep
from tests.parity.support import files, load, metadata, recordings

IMAGEBERT = recordings("families", "imagebert*.io.safetensors")
UVITBERT = recordings("families", "uvitbert*.io.safetensors")
FILES = IMAGEBERT + UVITBERT
RUNS = [(path, mode) for path in FILES for mode in metadata(path)["modes"]]
TABLES = [
    (path, key)
    for path in recordings("families", "schedules*.io.safetensors")
    for key in load(path)
    if key.startswith("onedtok_masked_in/")
]
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


@pytest.fixture(autouse=True)
def exact_products() -> None:
    torch.set_float32_matmul_precision("highest")


@cache
def weights(path: Path) -> dict[str, Tensor]:
    """The official state dict that belongs to an io file, in float32."""
    kind, state = path.name.removesuffix(".io.safetensors"), {}
    for part in files("families", f"{kind}.weights.*safetensors"):
        state |= load(part)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


@cache
def model(path: Path) -> MaskedTransformer:
    heads = metadata(path)["config"]["num_attention_heads"]
    built: MaskedTransformer
    if path in IMAGEBERT:
        bert = imagebert.config_from(weights(path), heads=heads)
        built = imagebert.ImageBert(bert)
        built.load_state_dict(imagebert.convert(weights(path), bert))
    else:
        uvit = uvitbert.config_from(weights(path), heads=heads)
        built = uvitbert.UViTBert(uvit)
        built.load_state_dict(uvitbert.convert(weights(path), uvit))
    return built.eval()


def our_name(official: str) -> str:
    """Our module for an official one; UViTBert's names are the official ones."""
    name = official.replace("model.embeddings", "embedding_norm")
    return re.sub(
        r"model\.encoder\.layer\.(\d+)(\.attention)?",
        lambda m: f"blocks.{m[1]}" + (".attention_norm" if m[2] else ""),
        name,
    )


@each_file
def test_the_config_is_read_from_the_shapes(path: Path) -> None:
    stated, config = metadata(path)["config"], model(path).config
    assert config.vocab_size == stated["codebook_size"] == stated["mask_id"]
    assert config.num_classes == stated["condition_num_classes"]
    assert config.vocab_size + 1 == stated["first_class_id"]
    assert config.vocab_size + 1 + config.num_classes == stated["null_id"] == stated["vocab"] - 1
    assert config.axes == (stated["image_seq_len"],)
    assert (config.width, config.mlp_width) == (stated["hidden_size"], stated["intermediate_size"])
    assert config.layers // 2 == stated["num_hidden_layers"] // 2


@each_file
def test_logits(path: Path) -> None:
    io = load(path)
    tokens = io["ids"][:, :, None]
    with torch.no_grad():
        conditional = model(path)(tokens, Cond(labels=io["cond"]))
        unconditional = model(path)(tokens, Cond(labels=torch.full_like(io["cond"], NO_LABEL)))
        without = model(path)(tokens, Cond())
    torch.testing.assert_close(conditional[:, :, 0], io["logits_cond"], atol=5e-5, rtol=0)
    torch.testing.assert_close(unconditional[:, :, 0], io["logits_uncond"], atol=5e-5, rtol=0)
    assert torch.equal(unconditional, without)


@each_file
def test_blocks(path: Path) -> None:
    io, seen = load(path), {}
    modules = dict(model(path).named_modules())
    names = [key.removeprefix("block/") for key in io if key.startswith("block/")]
    assert names

    def keep(name: str) -> Any:
        def hook(module: object, given: object, output: Tensor) -> None:
            seen[name] = output

        return hook

    handles = [modules[our_name(name)].register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        model(path)(io["ids"][:, :, None], Cond(labels=io["cond"]))
    for handle in handles:
        handle.remove()
    for name in names:
        expected = io[f"block/{name}"]
        got = seen[name][: expected.shape[0], : expected.shape[1]]
        torch.testing.assert_close(got, expected, atol=5e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


class RecordedNoise:
    """The trace's uniforms as Gumbel noise, by the official formula."""

    def __init__(self, io: dict[str, Tensor], mode: str) -> None:
        self.logits, self.conf = io[f"gen/{mode}/u_logits"], io[f"gen/{mode}/u_conf"]

    def sample(self, step: int, shape: Sequence[int]) -> Tensor:
        return self._gumbel(self.logits[step], shape)

    def choice(self, step: int, shape: Sequence[int]) -> Tensor:
        return self._gumbel(self.conf[step], shape)

    def _gumbel(self, uniform: Tensor, shape: Sequence[int]) -> Tensor:
        noise = -torch.log((-torch.log(uniform.clamp(min=1e-20))).clamp(min=1e-20))
        noise = noise.unsqueeze(2)
        assert noise.shape == tuple(shape)
        return noise


@pytest.mark.parametrize(("path", "mode"), RUNS, ids=lambda value: getattr(value, "name", value))
def test_sampling_trace(path: Path, mode: str) -> None:
    io, settings = load(path), metadata(path)["modes"][mode]
    steps = metadata(path)["steps"]
    expected = io[f"gen/{mode}/ids_in"]
    _, batch, positions = expected.shape
    rows = [0] * steps
    seen = []
    decay, scale = settings["guidance_decay"], settings["guidance_scale"]
    power = settings.get("guidance_scale_pow", 3.0)

    def counted(tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        rows[len(seen) - 1] += len(tokens)
        return model(path)(tokens, cond, axes)

    guided = onedtok_guided_logits(
        counted, Cond(labels=io["cond"]), Guidance(scale=scale, ramp=decay, power=power), steps=steps
    )

    def watched(tokens: Tensor, step: int) -> Tensor:
        seen.append(tokens[:, :, 0].clone())
        return guided(tokens, step)

    codes = metadata(path)["config"]["codebook_size"]
    hidden = torch.full((batch, positions, 1), codes)
    final = sample_onedtok(
        watched,
        hidden,
        torch.ones_like(hidden, dtype=torch.bool),
        OneDTokSampling(
            steps=steps,
            randomize_temperature=settings["randomize_temperature"],
            anneal=settings.get("softmax_temperature_annealing", False),
        ),
        noise=RecordedNoise(io, mode),
    )
    assert torch.equal(torch.stack(seen), expected)
    assert torch.equal(final[:, :, 0], io[f"gen/{mode}/ids_out"])
    # Passes of B rows. The official power-cosine runs both passes even where they cancel to the conditional one.
    wasted = sum(
        onedtok_weights(Guidance(scale=scale, ramp=decay, power=power), steps)[step] == 0 for step in range(steps)
    )
    assert wasted >= 1 or decay == "constant"
    if decay != "power-cosine":
        wasted = 0
    assert sum(rows) == batch * (int(io[f"gen/{mode}/n_forward"]) - wasted)


@pytest.mark.parametrize(("path", "key"), TABLES, ids=lambda value: getattr(value, "name", value))
def test_masked_counts(path: Path, key: str) -> None:
    """Tables of the masked tokens at the start of each step, through the sampler itself."""
    expected = load(path)[key].tolist()
    _, positions, steps = key.split("/")
    hidden = torch.full((2, int(positions), 1), 3)
    masked: list[list[int]] = []
    generator = torch.Generator().manual_seed(0)

    def logits(tokens: Tensor, step: int) -> Tensor:
        masked.append((tokens == 3).sum((1, 2)).tolist())
        return torch.randn(*tokens.shape, 3, generator=generator)

    done: list[SampleStep] = []
    final = sample_onedtok(
        logits,
        hidden,
        torch.ones_like(hidden, dtype=torch.bool),
        OneDTokSampling(steps=int(steps)),
        seeds=[1, 2],
        callback=done.append,
    )
    assert masked == [[count] * 2 for count in expected]
    assert len(done) == int(steps)
    assert not done[-1].mask.any()
    assert final.max() < 3
