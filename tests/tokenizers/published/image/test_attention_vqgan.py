"""The VQGANs with attention as tokenizers: the contract, full sizes, the reading of weights, and what each is known for.

Shapes: B batch, h w token grid, N = h * w, D width of a code, V codes, L levels.
"""

import inspect
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.checkpoint import load_module, save_module
from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.published.image import amused, llamagen, taming
from maskgen.tokenizers.published.image.amused import AmusedVQ, AmusedVQConfig
from maskgen.tokenizers.published.image.attention_vqgan import AttentionVQGAN
from maskgen.tokenizers.published.image.blocks import AttentionBlock, Downsample, NetworkConfig
from maskgen.tokenizers.published.image.llamagen import LlamaGenConfig, LlamaGenVQ
from maskgen.tokenizers.published.image.taming import TamingConfig, TamingVQGAN
from tests.parity.support import LAYOUTS
from tests.tokenizers import test_contract as contract

SMALL: dict[str, Any] = {"res_blocks": 1, "latent_channels": 6, "code_dim": 5, "codebook_size": 24, "groups": 4}
# Stride 4, and widths that change at every level.
CASES: dict[str, Callable[[], AttentionVQGAN]] = {
    "taming": lambda: TamingVQGAN(
        TamingConfig(channels=8, multipliers=(2, 1, 3), attention_levels=(1, 2), **SMALL | {"res_blocks": 2})
    ),
    "taming-no-level-attention": lambda: TamingVQGAN(
        TamingConfig(channels=8, multipliers=(1, 1, 2), attention_levels=(), **SMALL)
    ),
    "llamagen": lambda: LlamaGenVQ(LlamaGenConfig(channels=8, multipliers=(1, 2, 3), **SMALL)),
    "amused": lambda: AmusedVQ(AmusedVQConfig(widths=(8, 16, 12), **SMALL)),
    "amused-attention": lambda: AmusedVQ(AmusedVQConfig(widths=(8, 16, 12), middle_attention=True, **SMALL)),
}
MODULES: dict[type[AttentionVQGAN], ModuleType] = {TamingVQGAN: taming, LlamaGenVQ: llamagen, AmusedVQ: amused}


@pytest.fixture(params=CASES, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> AttentionVQGAN:
    torch.manual_seed(3)
    return CASES[request.param]().eval()


# Every check of the contract that takes a tokenizer, on the fixture of this file.
CONTRACT = {
    name: check
    for name, check in vars(contract).items()
    if name.startswith("test_") and "tokenizer" in inspect.signature(check).parameters
}
globals().update(CONTRACT)


def test_the_contract_was_taken_over() -> None:
    assert {"test_shapes_types_and_range", "test_encode_refuses", "test_config_survives_json"} <= set(CONTRACT)


def official(model: AttentionVQGAN) -> dict[str, Tensor]:
    """The model's weights under the family's names, and in its shapes."""
    names = MODULES[type(model)].NAMES
    state = {}
    for name, tensor in model.state_dict().items():
        projection = names.linear_attention and tensor.ndim == 4 and ".attn_1." in name
        state[names.official(name, len(model.encoder.down))] = tensor[:, :, 0, 0] if projection else tensor
    return state


def test_settings_and_weights_come_back_from_official_names(tokenizer: AttentionVQGAN) -> None:
    module, state = MODULES[type(tokenizer)], official(tokenizer)
    assert module.config_from(state, groups=4) == tokenizer.config
    converted = module.convert(state, tokenizer.config)
    ours = tokenizer.state_dict()
    assert converted.keys() == ours.keys()
    assert all(torch.equal(converted[name], ours[name]) for name in ours)
    # No copy is made on the way.
    assert {tensor.data_ptr() for tensor in converted.values()} == {tensor.data_ptr() for tensor in ours.values()}


def test_everything_wrong_is_said_at_once_in_official_names(tokenizer: AttentionVQGAN) -> None:
    module, state = MODULES[type(tokenizer)], official(tokenizer)
    norm = next(name for name in state if name.startswith("decoder") and name.endswith("norm_out.weight"))
    state["decoder.wrong_name"] = state.pop(norm)
    state["quant_conv.bias"] = torch.zeros(3)
    state["extra.weight"] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="4 weights do not fit") as error:
        module.convert(state, tokenizer.config)
    for text in (
        f"{module.NAMES.family} weights",
        f"missing {norm} ",
        "unexpected decoder.wrong_name",
        "unexpected extra.weight (2, 2)",
        "quant_conv.bias has shape (3,), expected (5,)",
    ):
        assert text in str(error.value)


def test_weights_of_another_family_are_refused(tokenizer: AttentionVQGAN) -> None:
    state = official(tokenizer)
    for kind, module in MODULES.items():
        if kind is not type(tokenizer):
            with pytest.raises(ValueError, match=r"these are no .* weights: \d+ found, without .*encoder"):
                module.config_from(state, groups=4)


def test_a_training_pass_is_the_decoded_image_with_gradients(tokenizer: AttentionVQGAN) -> None:
    images = contract.images(2, 16, 24)
    out = tokenizer(images)
    with torch.no_grad():
        tokens = tokenizer.encode(images)
        torch.testing.assert_close(out.reconstruction, tokenizer.decode(tokens, tokenizer.axes(images.shape)))
    assert torch.equal(out.quantized.codes, tokens)
    (gradient,) = torch.autograd.grad(out.reconstruction.sum() + out.quantized.loss, [tokenizer.encoder.conv_in.weight])
    assert gradient.abs().sum() > 0
    with pytest.raises(ValueError, match="expected multiples of 4; crop or pad"):
        tokenizer(contract.images(1, 15, 16))


def test_saved_and_loaded(tokenizer: AttentionVQGAN, tmp_path: Path) -> None:
    save_module(tokenizer, tmp_path)
    again = load_module(tmp_path, Tokenizer)
    assert type(again) is type(tokenizer)
    assert again.config == tokenizer.config
    images = contract.images(2, 16, 24)
    with torch.no_grad():
        assert torch.equal(again.encode(images), tokenizer.encode(images))


# Exact numbers of weights; the layout of all but VQ-8 stands in STATE_DICTS.json.
FULL: dict[str, tuple[ModuleType, type[AttentionVQGAN], int, str | None]] = {
    "vqgan-imagenet-f16-1024": (taming, TamingVQGAN, 72_141_699, "taming_vqgan_imagenet_f16_1024"),
    "vqgan-imagenet-f16-16384": (taming, TamingVQGAN, 76_073_859, "taming_vqgan_imagenet_f16_16384"),
    "llamagen-vq-ds16": (llamagen, LlamaGenVQ, 71_883_403, "llamagen_vq_ds16_c2i"),
    "llamagen-vq-ds8": (llamagen, LlamaGenVQ, 70_109_835, None),
    "amused-vqvae": (amused, AmusedVQ, 146_244_675, "amused_vqvae"),
}


def on_meta(kind: type[AttentionVQGAN], config: object) -> AttentionVQGAN:
    with torch.device("meta"):
        return kind(config)


def count(config: NetworkConfig) -> int:
    """Number of weights by arithmetic: an account of the layers that does not go through the modules."""

    def conv(a: int, b: int, side: int) -> int:
        return a * b * side * side + b

    def block(a: int, b: int) -> int:
        return 2 * a + conv(a, b, 3) + 2 * b + conv(b, b, 3) + (conv(a, b, 1) if a != b else 0)

    def attention(c: int) -> int:
        return 2 * c + 4 * conv(c, c, 1)

    low, high, latent, dim = config.widths[-1], config.widths[0], config.latent_channels, config.code_dim
    total = 2 * (2 * block(low, low) + config.middle_attention * attention(low))
    total += conv(3, config.stem, 3) + 2 * low + conv(low, latent, 3) + conv(latent, low, 3) + 2 * high
    total += conv(high, 3, 3) + conv(latent, dim, 1) + conv(dim, latent, 1) + config.codebook_size * dim
    for blocks, entries in (
        (config.res_blocks, (config.stem, *config.widths)),
        (config.res_blocks + 1, (low, *config.widths[::-1])),
    ):
        for a, b in itertools.pairwise(entries):
            total += block(a, b) + (blocks - 1) * block(b, b)
        total += sum(conv(width, width, 3) for width in entries[1:-1])  # a resampling after all levels but the last
        total += blocks * sum(attention(config.widths[level]) for level in config.attention_levels)
    return total


def test_every_published_model_is_counted() -> None:
    assert set(FULL) == {name for module in MODULES.values() for name in module.PUBLISHED}


@pytest.mark.parametrize("name", FULL)
def test_full_size(name: str) -> None:
    module, kind, number, _ = FULL[name]
    config = module.PUBLISHED[name]
    model = on_meta(kind, config)
    assert sum(weight.numel() for weight in model.parameters()) == number == count(config.network)
    state = official(model)
    assert module.config_from(state) == config
    assert {name: t.shape for name, t in module.convert(state, config).items()} == {
        name: t.shape for name, t in model.state_dict().items()
    }


@pytest.mark.parametrize("name", [name for name, row in FULL.items() if row[3]])
def test_full_size_layout(name: str) -> None:
    module, kind, number, key = FULL[name]
    told = json.loads(LAYOUTS.read_text(encoding="utf-8"))[key]
    assert told["repeats"] == {}  # every name is written out
    state = {name: torch.empty(shape, device="meta") for name, shape in told["keys"].items()}
    assert len(state) == told["n_keys"]
    assert told["n_params"] == number
    config = module.config_from(state)
    assert config == module.PUBLISHED[name]
    converted = module.convert(state, config)
    assert sum(tensor.numel() for tensor in converted.values()) == number
    left_out = {name for name in state if name.startswith(module.NAMES.ignored)}
    assert left_out == ({"quantize.codebook_used"} if module is llamagen else set())
    assert len(converted) == len(state) - len(left_out)
    model = on_meta(kind, config)
    assert {name: t.shape for name, t in converted.items()} == {name: t.shape for name, t in model.state_dict().items()}


def test_training_leftovers_are_dropped_and_others_are_not() -> None:
    torch.manual_seed(0)
    model = CASES["taming"]()
    state = official(model)
    lightning = state | {"loss.discriminator.main.0.weight": torch.zeros(1), "loss.logvar": torch.zeros(())}
    assert taming.config_from(lightning, groups=4) == model.config
    assert taming.convert(lightning, model.config).keys() == model.state_dict().keys()
    with pytest.raises(ValueError, match=r"1 weights do not fit: unexpected quantize.used \(24,\)"):  # a `remap` file
        taming.convert(state | {"quantize.used": torch.zeros(24)}, model.config)
    vq = CASES["llamagen"]()
    assert "quantizer.codebook" in llamagen.convert(
        official(vq) | {"quantize.codebook_used": torch.zeros(65536)}, vq.config
    )


def test_levels_are_counted_from_either_end() -> None:
    name = "decoder.up.0.block.1.conv1.weight"
    assert taming.NAMES.official(name, 5) == "decoder.up.0.block.1.conv1.weight"
    assert llamagen.NAMES.official(name, 5) == "decoder.conv_blocks.4.res.1.conv1.weight"
    assert amused.NAMES.official(name, 5) == "decoder.up_blocks.4.resnets.1.conv1.weight"


def test_zeros_are_added_at_the_bottom_and_on_the_right_only() -> None:
    down = Downsample(1)
    with torch.no_grad():
        down.conv.weight.zero_()[0, 0, 0, 0] = 1  # takes the first pixel of each window
        down.conv.bias.zero_()
        image = torch.rand(1, 1, 6, 8)
        assert torch.equal(down(image), image[:, :, ::2, ::2])
        down.conv.weight.zero_()[0, 0, 2, 2] = 1  # takes the last one, which hangs over at the end
        out = down(image)
        assert torch.equal(out[:, :, :-1, :-1], image[:, :, 2::2, 2::2])
        assert not out[:, :, -1].any()
        assert not out[:, :, :, -1].any()


def test_attention_is_the_formula() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(8, 4)
    x = torch.randn(2, 8, 3, 5)
    with torch.no_grad():
        y = block.norm(x)
        q, k, v = (to(y).flatten(2) for to in (block.q, block.k, block.v))
        weights = (q.transpose(1, 2) @ k / 8**0.5).softmax(-1)  # [B, query, key]
        expected = x + block.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))
        torch.testing.assert_close(block(x), expected, atol=1e-6, rtol=1e-5)


def test_sizes_that_the_network_would_crop_are_refused(tokenizer: AttentionVQGAN) -> None:
    """The official code drops the last rows and columns without a word; the picture comes back smaller."""
    with torch.no_grad():
        assert tokenizer.latents(torch.zeros(1, 3, 18, 23)).shape[2:] == (4, 5)
    for size in ((18, 24), (16, 23), (2, 2)):
        with pytest.raises(ValueError, match=f"got size {size[0]} x {size[1]}, expected multiples of 4; crop or pad"):
            tokenizer.encode(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(("name", "signed"), [("taming", True), ("llamagen", True), ("amused", False)])
def test_pixels_are_rescaled_where_the_family_wants_it(name: str, signed: bool) -> None:
    torch.manual_seed(0)
    model = CASES[name]().eval()
    images = contract.images(1, 16, 16)
    with torch.no_grad():
        own = images * 255 / 127.5 - 1 if signed else images
        assert torch.equal(model.encode(images), model.quantizer.encode(model.latents(own)))
        tokens = torch.arange(16).reshape(1, 16, 1)
        raw = model.pixels(model.quantizer.lookup(tokens, (4, 4)))
        torch.testing.assert_close(model.decode(tokens, (4, 4)), (raw + 1) / 2 if signed else raw)
        # Far weights leave the range: nothing is clamped.
        model.decoder.conv_out.bias.fill_(9)
        assert model.decode(tokens, (4, 4)).min() > 1


def test_llamagen_compares_and_returns_directions() -> None:
    torch.manual_seed(0)
    quantizer = CASES["llamagen"]().quantizer
    latents = torch.randn(2, 5, 3, 4)
    ids = quantizer.encode(latents)
    with torch.no_grad():
        vectors = quantizer.lookup(ids, (3, 4))
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2, 3, 4))
        quantizer.codebook.mul_(torch.rand(24, 1) * 5 + 0.1)  # the stored length of a row means nothing
    assert torch.equal(quantizer.encode(latents * 7), ids)
    torch.testing.assert_close(quantizer.lookup(ids, (3, 4)), vectors)
    cosine = torch.einsum("bdhw,vd->bhwv", latents, torch.nn.functional.normalize(quantizer.codebook, dim=-1))
    assert torch.equal(ids, cosine.argmax(-1).reshape(2, 12, 1))


def test_amused_refuses_the_precision_it_overflows_in() -> None:
    model = CASES["amused"]().eval().half()
    with pytest.raises(TypeError, match=r"got torch.float16, in which this model overflows; use .float\(\)"):
        model.encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(TypeError, match=r"got torch.float16"):
        model.decode(torch.zeros(1, 16, 1, dtype=torch.long), (4, 4))
    with torch.no_grad():
        assert model.bfloat16().encode(contract.images(1, 16, 16)).shape == (1, 16, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TamingConfig(multipliers=()), "widths: got no level"),
        (lambda: LlamaGenConfig(multipliers=()), "widths: got no level"),
        (lambda: AmusedVQConfig(widths=()), "widths: got no level"),
        (lambda: TamingConfig(channels=100), r"got \(100, 100, 100, 200, 200, 400\), expected positive multiples"),
        (lambda: AmusedVQConfig(widths=(128, 0)), "expected positive multiples of groups=32"),
        (lambda: TamingConfig(attention_levels=(5,)), r"attention_levels: got \(5,\), expected levels from 0 to 4"),
        (lambda: TamingConfig(res_blocks=0), "expected 1 or more of each"),
        (lambda: LlamaGenConfig(codebook_size=1), "codebook_size: got 1, expected 2 or more"),
        (lambda: LlamaGenConfig(groups=0), "expected 1 or more of each"),
    ],
)
def test_settings_that_make_no_network(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_uneven_widths_are_no_multiples() -> None:
    state = official(CASES["taming"]())
    state["encoder.conv_in.weight"] = torch.zeros(12, 3, 3, 3)
    with pytest.raises(ValueError, match=r"got \(16, 8, 24\), expected multiples of the first one's 12"):
        taming.config_from(state, groups=4)
    state["quantize.embedding.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"quantize.embedding.weight: got shape \(3,\), expected \[codes, width\]"):
        taming.config_from(state, groups=4)
