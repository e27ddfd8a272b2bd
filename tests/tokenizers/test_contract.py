"""One contract, every tokenizer: a new one is tested by being listed in CASES.

Shapes: B batch, N tokens, K codebooks, h w token grid.
"""

import json
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskgen.tokenizers.base import Tokenizer, check_contract
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig
from maskgen.tokenizers.quantizers.vector import QuantizerConfig


def small(quantizer: QuantizerConfig, **changes: object) -> VQGANConfig:
    """A VQGAN of a few thousand weights and stride 4."""
    base: dict[str, object] = {
        "channels": 8,
        "multipliers": (1, 2, 2),
        "res_blocks": 1,
        "groups": 4,
        "shortcut": "input",
    }
    return VQGANConfig(quantizer=quantizer, **(base | changes))


CASES: dict[str, Callable[[], Tokenizer]] = {
    "toy": lambda: ToyTokenizer(ToyTokenizerConfig(levels=5, patch=4)),
    "vqgan-vq": lambda: VQGAN(small(QuantizerConfig(codebook_size=24, dim=6))),
    "vqgan-official": lambda: VQGAN(
        small(QuantizerConfig(codebook_size=24, dim=6), shortcut="branch", downsample="conv")
    ),
    "vqgan-fsq": lambda: VQGAN(small(QuantizerConfig(kind="fsq", levels=(4, 3, 5), dim=6))),
    "vqgan-fsq-no-projection": lambda: VQGAN(small(QuantizerConfig(kind="fsq", levels=(4, 3, 5), dim=3))),
    "vqgan-lfq": lambda: VQGAN(small(QuantizerConfig(kind="lfq", codebook_size=32, dim=6))),
    "vqgan-rvq": lambda: VQGAN(small(QuantizerConfig(kind="rvq", codebook_size=16, dim=6, num_quantizers=3))),
}


@pytest.fixture(params=CASES, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    torch.manual_seed(3)
    return CASES[request.param]().eval()


def images(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_shapes_types_and_range(tokenizer: Tokenizer) -> None:
    signal = images(3, 16, 24)
    axes = tokenizer.axes(signal.shape)
    assert axes == tuple(size // step for size, step in zip((16, 24), tokenizer.stride, strict=True))
    with torch.no_grad():
        tokens = tokenizer.encode(signal)
        decoded = tokenizer.decode(tokens, axes)
    assert tokens.shape == (3, math.prod(axes), tokenizer.num_codebooks)
    assert tokens.dtype == torch.long
    assert tokens.min() >= 0
    assert tokens.max() < tokenizer.vocab_size
    assert decoded.shape == signal.shape
    assert decoded.dtype == torch.float32
    assert tokenizer.modality == "image"
    assert tokenizer.is_spatial is True
    check_contract(tokenizer)
    check_contract(type(tokenizer))


def test_items_do_not_see_each_other(tokenizer: Tokenizer) -> None:
    signal = images(3, 16, 16, seed=1)
    axes = tokenizer.axes(signal.shape)
    with torch.no_grad():
        together = tokenizer.encode(signal)
        decoded = tokenizer.decode(together, axes)
        for i in range(3):
            assert torch.equal(tokenizer.encode(signal[i : i + 1])[0], together[i])
            torch.testing.assert_close(tokenizer.decode(together[i : i + 1], axes)[0], decoded[i], atol=1e-5, rtol=1e-5)


def test_evaluation_is_deterministic_and_draws_nothing(tokenizer: Tokenizer) -> None:
    signal = images(2, 16, 16, seed=2)
    state = torch.get_rng_state()
    with torch.no_grad():
        first = tokenizer.encode(signal)
        again = tokenizer.encode(signal)
        decoded = tokenizer.decode(first, (4, 4))
        assert torch.equal(decoded, tokenizer.decode(again, (4, 4)))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())


def test_grid_is_in_raster_order(tokenizer: Tokenizer) -> None:
    """A change in one corner of the tokens stays in that corner of the image (or near it)."""
    tokens = torch.zeros(2, 64, tokenizer.num_codebooks, dtype=torch.long)
    tokens[1, 7] = tokenizer.vocab_size - 1  # row 0, last column of 8
    with torch.no_grad():
        decoded = tokenizer.decode(tokens, (8, 8))
    change = (decoded[1] - decoded[0]).abs().sum(dim=0)
    assert change[:4, -4:].mean() > change[-4:, :4].mean()


def test_config_survives_json(tokenizer: Tokenizer) -> None:
    config = tokenizer.config
    assert type(config)(**json.loads(json.dumps(asdict(config)))) == config
    again = type(tokenizer)(type(config)(**asdict(config))).eval()
    again.load_state_dict(tokenizer.state_dict())
    signal = images(1, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.encode(signal), tokenizer.encode(signal))
    with pytest.raises(FrozenInstanceError):
        config.patch = 1


def test_half_precision_images_are_taken(tokenizer: Tokenizer) -> None:
    with torch.no_grad():
        assert tokenizer.encode(images(1, 16, 16).to(torch.bfloat16)).shape == (1, 16, tokenizer.num_codebooks)


@pytest.mark.parametrize(
    ("signal", "error", "message"),
    [
        (torch.zeros(3, 16, 16), ValueError, r"got shape \(3, 16, 16\), expected \[B, 3, H, W\]"),
        (torch.zeros(1, 1, 16, 16), ValueError, r"got shape \(1, 1, 16, 16\), expected \[B, 3, H, W\]"),
        (torch.zeros(1, 16, 16, 3), ValueError, "then channels"),
        (torch.zeros(1, 3, 0, 16), ValueError, r"expected \[B, 3, H, W\]"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), TypeError, "got torch.uint8, expected floating point"),
    ],
)
def test_encode_refuses(tokenizer: Tokenizer, signal: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tokenizer.encode(signal)


def test_axes_refuses(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"got shape \(3, 16\), expected \[B, 3, H, W\]"):
        tokenizer.axes((3, 16))


def test_decode_refuses(tokenizer: Tokenizer) -> None:
    K, V = tokenizer.num_codebooks, tokenizer.vocab_size
    fine = torch.zeros(1, 4, K, dtype=torch.long)
    with pytest.raises(TypeError, match=r"got torch\.int32, expected torch\.int64"):
        tokenizer.decode(fine.int(), (2, 2))
    with pytest.raises(ValueError, match=rf"got shape \(1, 4, {K}\), expected \[B, 6, {K}\] for axes \(2, 3\)"):
        tokenizer.decode(fine, (2, 3))
    with pytest.raises(ValueError, match="expected 2 positive sizes"):
        tokenizer.decode(fine, (4,))
    with pytest.raises(ValueError, match=f"got ids from 0 to {V}, expected 0 to {V - 1}; the mask id"):
        tokenizer.decode(torch.cat([fine[:, :3], torch.full((1, 1, K), V)], dim=1), (2, 2))
    with pytest.raises(ValueError, match="got ids from -1"):
        tokenizer.decode(fine - 1, (2, 2))


def test_contract_has_nine_members_and_a_training() -> None:
    own = {name for name in vars(Tokenizer) if not name.startswith("_")} | set(Tokenizer.__annotations__)
    assert own == {
        *("encode", "decode", "axes", "vocab_size", "num_codebooks", "stride", "modality", "is_spatial", "config"),
        "training_loss",  # may be left out
    }


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_toy_is_lossless(data: st.DataObject) -> None:
    levels, patch = data.draw(st.integers(2, 17)), data.draw(st.integers(1, 4))
    axes = (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)))
    seed = data.draw(st.integers(0, 2**31))
    toy = ToyTokenizer(ToyTokenizerConfig(levels=levels, patch=patch))
    tokens = torch.randint(levels, (2, math.prod(axes), 1), generator=torch.Generator().manual_seed(seed))
    image = toy.decode(tokens, axes)
    assert toy.axes(image.shape) == axes
    assert image.min() >= 0
    assert image.max() <= 1
    assert torch.equal(toy.encode(image), tokens)
    assert torch.equal(toy.decode(toy.encode(image), axes), image)


def test_toy_refuses() -> None:
    with pytest.raises(ValueError, match="levels: got 1, expected 2 or more"):
        ToyTokenizerConfig(levels=1)
    with pytest.raises(ValueError, match="patch: got 0"):
        ToyTokenizerConfig(patch=0)
    with pytest.raises(ValueError, match="got size 5 x 4, expected multiples of 2; crop or pad"):
        ToyTokenizer(ToyTokenizerConfig()).encode(torch.zeros(1, 3, 5, 4))
