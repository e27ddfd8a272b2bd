"""Reading Open-MAGVIT2's and IBQ's weights: names, both copies in one file, sizes, and what is refused.

Shapes: B batch, N positions, D width of a code, V codes.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.checkpoint import load_module, save_module
from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.magvit2.tokenizer import Magvit2Image, Magvit2ImageConfig, Magvit2Video, Magvit2VideoConfig
from maskgen.tokenizers.published.image import ibq, taming
from maskgen.tokenizers.published.image.ibq import IBQConfig, IBQTokenizer, IndexQuantizer
from maskgen.tokenizers.published.video import open_magvit2 as magvit2
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from maskgen.weights.files import read_weights
from tests.tokenizers import test_contract as contract

SMALL: dict[str, Any] = {"channels": 8, "multipliers": (1, 2, 1), "res_blocks": 2, "groups": 4, "token_bits": (3, 3)}
MODELS: dict[str, Callable[[], Magvit2Image | Magvit2Video]] = {
    "image": lambda: Magvit2Image(Magvit2ImageConfig(**SMALL)),
    "video": lambda: Magvit2Video(Magvit2VideoConfig(**SMALL, strides=((1, 2, 2), (2, 2, 2)))),
}


def small_ibq() -> IBQTokenizer:
    """Stride 4."""
    return IBQTokenizer(
        IBQConfig(
            channels=8,
            multipliers=(2, 1, 3),
            res_blocks=1,
            latent_channels=6,
            code_dim=5,
            codebook_size=24,
            attention_levels=(1, 2),
            groups=4,
        )
    )


@pytest.fixture(scope="module")
def tokenizer() -> IBQTokenizer:
    torch.manual_seed(3)
    return small_ibq().eval()


# Every check of the contract of images that takes a tokenizer, on IBQ.
CONTRACT = {
    name: check
    for name, check in vars(contract).items()
    if name.startswith("test_") and "tokenizer" in inspect.signature(check).parameters
}
globals().update(CONTRACT)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Magvit2Image | Magvit2Video:
    return MODELS[request.param]().eval()


def official(model: nn.Module) -> dict[str, Tensor]:
    """Its weights by the official names."""
    video = isinstance(model, Magvit2Video)
    return {magvit2.official_name(name, video=video): tensor for name, tensor in model.state_dict().items()}


def lightning(model: nn.Module) -> dict[str, Any]:
    """What the original saves: both copies, the discriminator and its average, and counters."""
    plain = official(model) | {"loss.discriminator.main.0.weight": torch.randn(4, 3, 4, 4)}
    averages = {"model_ema." + name.replace(".", ""): tensor + 1 for name, tensor in plain.items()}
    counters = {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(-1)}
    return {"state_dict": plain | averages | counters, "epoch": 3, "hyper_parameters": {}}


def test_names_of_video_convolutions() -> None:
    for ours, theirs in (
        ("encoder.conv_in.weight", "encoder.conv_in.conv_1.weight"),
        ("encoder.down.0.downsample.bias", "encoder.down.0.downsample.conv_1.bias"),
        ("encoder.down.1.block.0.nin_shortcut.weight", "encoder.down.1.block.0.nin_shortcut.conv_1.weight"),
        ("decoder.up.2.upsample.conv1.bias", "decoder.up.2.upsample.conv1.conv_1.bias"),
        ("decoder.up.2.block.3.norm1.weight", "decoder.up.2.block.3.norm1.weight"),
        ("decoder.adaptive.0.gamma.weight", "decoder.adaptive.0.gamma.weight"),
        ("decoder.norm_out.bias", "decoder.norm_out.bias"),
    ):
        assert magvit2.official_name(ours, video=True) == theirs
        assert magvit2.official_name(ours, video=False) == ours


def test_settings_and_weights_come_back_from_official_names(model: Magvit2Image | Magvit2Video) -> None:
    state, ours = official(model), model.state_dict()
    assert magvit2.config_from(state, groups=4) == model.config
    converted = magvit2.convert(state, model.config)
    assert converted.keys() == ours.keys()
    assert {tensor.data_ptr() for tensor in converted.values()} == {tensor.data_ptr() for tensor in ours.values()}
    assert magvit2.config_from(state, parts=1, groups=4).token_bits == (6,)
    assert magvit2.config_from(state, parts=3, groups=4).token_bits == (2, 2, 2)
    with pytest.raises(ValueError, match="parts: got 4 for ids of 6 bits, expected a divisor"):
        magvit2.config_from(state, parts=4, groups=4)


def test_odd_bits_are_spoken_in_one_piece() -> None:
    odd = Magvit2Image(Magvit2ImageConfig(**SMALL | {"token_bits": (5,)}))
    assert magvit2.config_from(official(odd), groups=4).token_bits == (5,)


def test_both_copies_of_a_file(model: Magvit2Image | Magvit2Video, tmp_path: Path) -> None:
    torch.save(lightning(model), tmp_path / "last.ckpt")
    ours = model.state_dict()
    for ema in (False, True):
        state = read_weights(tmp_path / "last.ckpt", ema=ema)
        converted = magvit2.convert(state, magvit2.config_from(state, groups=4))
        assert converted.keys() == ours.keys()
        assert all(torch.equal(converted[name], ours[name] + float(ema)) for name in ours)
    whole = lightning(model)["state_dict"]
    raw, averaged = magvit2.convert(whole, model.config), magvit2.convert(magvit2.averaged(whole), model.config)
    assert all(torch.equal(averaged[name], raw[name] + 1) for name in ours)


def test_averages_that_are_not_there() -> None:
    whole = lightning(MODELS["image"]())["state_dict"]
    del whole["model_ema.encoderconv_inweight"]
    with pytest.raises(ValueError, match=r"averaged weights: 1 of \d+ missing, such as encoder\.conv_in\.weight"):
        magvit2.averaged(whole)
    with pytest.raises(ValueError, match="averaged weights: 0 of 0 missing, such as all"):
        magvit2.averaged({})


def test_constants_of_the_quantizer_are_dropped() -> None:
    model = MODELS["image"]()
    state = official(model) | {"quantize.mask": torch.tensor([1, 2, 4]), "quantize.codebook": torch.zeros(64, 6)}
    assert magvit2.convert(state, model.config).keys() == model.state_dict().keys()


def test_everything_wrong_is_said_at_once_in_official_names() -> None:
    model = MODELS["video"]()
    state = official(model)
    state["decoder.wrong.weight"] = state.pop("decoder.conv_in.conv_1.weight")
    state["encoder.conv_out.conv_1.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match="Open-MAGVIT2 weights: 3 weights do not fit") as error:
        magvit2.convert(state, model.config)
    for text in (
        "missing decoder.conv_in.conv_1.weight",
        "unexpected decoder.wrong.weight",
        "encoder.conv_out.conv_1.bias has shape (3,), expected (6,)",
    ):
        assert text in str(error.value)


def test_weights_of_another_kind_are_refused() -> None:
    image, video = MODELS["image"](), MODELS["video"]()
    with pytest.raises(ValueError, match=r"missing encoder\.conv_in\.conv_1\.weight"):
        magvit2.convert(official(image), video.config)
    with pytest.raises(ValueError, match=r"no Open-MAGVIT2 weights: \d+ found, without .*adaptive"):
        magvit2.config_from(small_ibq().state_dict())
    narrow = official(image) | {"encoder.down.1.block.0.conv1.weight": torch.zeros(12, 8, 3, 3)}
    with pytest.raises(ValueError, match=r"level widths: got \[8, 12, 8\], expected multiples .* 8"):
        magvit2.config_from(narrow, groups=4)


def test_published_sizes() -> None:
    sizes = {name: (config.network.stride, config.bits) for name, config in magvit2.PUBLISHED.items()}
    assert sizes == {
        "imagenet_128_L": ((8, 8), 18),
        "imagenet_256_L": ((16, 16), 18),
        "pretrain256_262144": ((16, 16), 18),
        "pretrain256_16384": ((16, 16), 14),
        "video_128_262144": ((4, 8, 8), 18),
    }


def official_ibq(model: IBQTokenizer) -> dict[str, Tensor]:
    levels = len(model.encoder.down)
    return {ibq.NAMES.official(name, levels): tensor for name, tensor in model.state_dict().items()}


def test_ibq_comes_back_from_official_names(tokenizer: IBQTokenizer) -> None:
    state, ours = official_ibq(tokenizer), tokenizer.state_dict()
    assert "quantize.embedding.weight" in state
    assert "encoder.down.0.downsample.conv.weight" in state
    assert ibq.config_from(state, groups=4) == tokenizer.config
    extra = {"loss.discriminator.main.0.weight": torch.zeros(2), "model_ema.encoderconv_inweight": torch.zeros(2)}
    converted = ibq.convert(state | extra, tokenizer.config)
    assert all(torch.equal(converted[name], ours[name]) for name in ours)
    state["decoder.norm_out.wrong"] = state.pop("decoder.norm_out.weight")
    with pytest.raises(ValueError, match=r"IBQ weights: 2 weights do not fit: missing decoder\.norm_out\.weight"):
        ibq.convert(state, tokenizer.config)


def test_ibq_has_the_names_of_taming_and_other_ids(tokenizer: IBQTokenizer) -> None:
    state = official_ibq(tokenizer)
    other = taming.TamingVQGAN(taming.config_from(state, groups=4)).eval()
    other.load_state_dict(taming.convert(state, other.config))
    latents = torch.randn(1, 5, 8, 8)
    rows = latents.flatten(2).transpose(1, 2)
    products = (rows @ tokenizer.quantizer.codebook.t()).argmax(-1, keepdim=True)
    assert torch.equal(tokenizer.quantizer.encode(latents), products)
    assert not torch.equal(other.quantizer.encode(latents), products)


def test_ibq_saved_and_loaded(tokenizer: IBQTokenizer, tmp_path: Path) -> None:
    save_module(tokenizer, tmp_path)
    again = load_module(tmp_path, Tokenizer)
    assert type(again) is IBQTokenizer
    assert again.config == tokenizer.config


def test_ibq_looks_for_ids_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = IndexQuantizer(QuantizerConfig(codebook_size=16, dim=3))
    latents = torch.randn(2, 3, 7)
    whole = quantizer.encode(latents)
    monkeypatch.setattr(ibq, "_LOGITS", 16 * 4)
    assert torch.equal(quantizer.encode(latents), whole)
    assert torch.equal(quantizer(latents).codes, whole)


def test_ibq_moves_every_code_at_once() -> None:
    quantizer = IndexQuantizer(QuantizerConfig(codebook_size=16, dim=3, entropy_weight=0.05))
    latents = torch.randn(1, 3, 4).requires_grad_()
    out = quantizer(latents)
    assert set(out.terms) == {"quantize", "q_latent", "e_latent", "entropy"}
    torch.testing.assert_close(torch.stack([*out.terms.values()]).sum(), out.loss.detach())
    by_codebook, by_latent = torch.autograd.grad(out.latents.square().sum(), (quantizer.codebook, latents))
    assert (by_codebook.abs().sum(1) > 0).all()
    assert (by_latent.abs() > 0).all()
    plain = IndexQuantizer(QuantizerConfig(codebook_size=16, dim=3, entropy_weight=0.0))
    assert "entropy" not in plain(latents).terms
