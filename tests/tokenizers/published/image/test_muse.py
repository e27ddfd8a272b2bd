"""Lucidrains' tokenizer of Muse: settings, conversion and its errors, the contract.

Shapes: B batch, H W pixels, h w token grid.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskgen.checkpoint import load_module, save_module
from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.published.image.muse import MuseVQGAN, MuseVQGANConfig, config_from, convert

SMALL = MuseVQGANConfig(channels=8, multipliers=(1, 2), res_blocks=(0, 1), groups=4, first_kernel=3, codebook_size=32)
CASES = {
    "small": SMALL,
    "same-width": dataclasses.replace(SMALL, multipliers=(2, 1), codebook_size=256),  # 8 bits of width 8: no projection
    "more-blocks": dataclasses.replace(SMALL, multipliers=(1, 1, 2), res_blocks=(2, 0, 1)),
    "no-blocks": dataclasses.replace(SMALL, res_blocks=(0, 0)),
}


def model_of(config: MuseVQGANConfig) -> MuseVQGAN:
    torch.manual_seed(0)
    return MuseVQGAN(config).eval()


def published_state(model: MuseVQGAN) -> dict[str, Tensor]:
    """Names by hand: one list of layers at each end, the last convolution among those of the decoder."""
    last = len(model.decoder.layers)
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "quantizer":
            state[f"quantizer.{rest.removeprefix('inner.')}"] = tensor
        elif rest.startswith("conv_out."):
            state[f"enc_dec.decoders.{last}.{rest.removeprefix('conv_out.')}"] = tensor
        else:
            state[f"enc_dec.{part}s.{rest.removeprefix('layers.')}"] = tensor
    return state


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_conversion_keeps_every_number(name: str, tmp_path: Path) -> None:
    model = model_of(CASES[name])
    state = published_state(model)
    assert ("quantizer.project_in.weight" in state) == (name != "same-width")
    assert config_from(state, groups=4) == model.config
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    whole = {f"vae.{key}": tensor for key, tensor in state.items()} | {"transformer.pos_emb.weight": torch.ones(1)}
    whole |= {"vae.discr.layers.0.0.weight": torch.ones(1)}
    for found in (state, state | {"discr.layers.0.0.weight": torch.ones(1)}, whole):
        again = MuseVQGAN(config_from(found, groups=4)).eval()
        again.load_state_dict(convert(found, again.config))
        tokens = again.encode(images)
        assert torch.equal(tokens, model.encode(images))
        assert torch.equal(
            again.decode(tokens, again.axes(images.shape)), model.decode(tokens, again.axes(images.shape))
        )
    save_module(model, tmp_path)
    assert torch.equal(load_module(tmp_path, Tokenizer).encode(images), tokens)


@torch.no_grad()
def test_contract() -> None:
    model = model_of(SMALL)
    assert (model.stride, model.vocab_size, model.num_codebooks) == ((4, 4), 32, 1)
    images = torch.rand(2, 3, 16, 24)
    tokens = model.encode(images)
    assert tokens.shape == (2, 24, 1)
    assert model.decode(tokens, (4, 6)).shape == images.shape
    with pytest.raises(ValueError, match="images: got size 15 x 16, expected multiples of 4"):
        model.encode(torch.rand(1, 3, 15, 16))


@torch.no_grad()
def test_channel_0_is_the_most_significant_bit() -> None:
    model = model_of(CASES["same-width"])
    latents = -torch.ones(1, 8, 1, 2)
    latents[0, 0, 0, 0] = latents[0, 7, 0, 1] = 1.0
    assert model.quantizer.encode(latents).flatten().tolist() == [128, 1]


def test_it_can_be_trained_on() -> None:
    model = MuseVQGAN(SMALL)
    made = model(torch.rand(2, 3, 8, 8))
    (made.reconstruction.square().mean() + made.quantized.loss).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.last_layer is model.decoder.conv_out.weight


def test_full_size_follows_the_readme() -> None:
    """VQGanVAE(dim = 256, codebook_size = 65536): four levels, 16 bits; counted by hand."""
    with torch.device("meta"):
        model = MuseVQGAN(MuseVQGANConfig())
    widths, pairs = (256, 512, 1024, 2048), ((256, 256), (256, 512), (512, 1024), (1024, 2048))
    ways = sum(2 * 16 * a * b + a + b for a, b in pairs)
    deepest = widths[-1]
    plain = 2 * (9 * deepest**2 + 3 * deepest) + deepest**2 + deepest
    gated = 2 * (18 * deepest**2 + 4 * deepest) + deepest**2 + deepest
    ends, bits = 25 * 3 * 256 + 256 + 256 * 3 + 3, 2 * 16 * deepest + 16 + deepest
    assert sum(parameter.numel() for parameter in model.parameters()) == ways + plain + gated + ends + bits
    assert model.stride == (16, 16)


def test_what_does_not_fit_is_named() -> None:
    state = published_state(model_of(SMALL))
    with pytest.raises(
        ValueError, match=r"Muse tokenizer: 1 weights do not fit: missing enc_dec.decoders.3.bias \(3,\)"
    ):
        convert({name: tensor for name, tensor in state.items() if name != "enc_dec.decoders.3.bias"}, SMALL)
    codebook = {name: tensor for name, tensor in state.items() if not name.startswith("quantizer.")}
    with pytest.raises(ValueError, match="no weights of lucidrains' VQGanVAE with lookup-free bits"):
        config_from(codebook)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"res_blocks": (1,)}, r"res_blocks: got \(1,\) for multipliers \(1, 2\), expected 0 or more for each level"),
        ({"groups": 3}, "multipliers: got a width of 8, expected multiples of groups 3"),
        ({"first_kernel": 4}, "first_kernel: got 4, expected an odd number"),
        ({"codebook_size": 30}, "codebook_size: got 30, expected a power of two"),
        ({"channels": 0}, "channels: got 0"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)  # type: ignore[arg-type]
