"""MAGVIT-v2's tokenizers: the contract, lengths and sizes, blocks against loops, and inflation.

Shapes: B batch, T frames, H W pixels, t h w token grid, N = t * h * w, K parts of an id.
"""

import inspect
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.checkpoint import load_module, save_module
from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.magvit2.inflation import inflate, inflated_config, inflated_state
from maskgen.tokenizers.magvit2.layers import AdaptiveGroupNorm, CausalConv3d, Magvit2Network, depth_to_space
from maskgen.tokenizers.magvit2.tokenizer import Magvit2Image, Magvit2ImageConfig, Magvit2Video, Magvit2VideoConfig
from maskgen.tokenizers.quantizers.lookup_free import factor_ids, join_ids
from maskgen.tokenizers.video.base import VideoTokenizer
from tests.tokenizers import test_contract as contract

SMALL: dict[str, Any] = {"channels": 8, "res_blocks": 1, "groups": 4, "token_bits": (3, 3)}
CASES: dict[str, Callable[[], Magvit2Image]] = {  # stride 4
    "one-codebook": lambda: Magvit2Image(Magvit2ImageConfig(**SMALL | {"token_bits": (5,), "multipliers": (1, 1, 2)})),
    "two-parts": lambda: Magvit2Image(Magvit2ImageConfig(**SMALL, multipliers=(2, 1, 2))),
}


@pytest.fixture(params=CASES, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Magvit2Image:
    torch.manual_seed(3)
    return CASES[request.param]().eval()


# Every check of the contract of images that takes a tokenizer, on the fixture of this file. One is made anew below: it
# starts from equal tokens, of no variance, so that a single other one changes the scale of everything.
CONTRACT = {
    name: check
    for name, check in vars(contract).items()
    if name.startswith("test_") and "tokenizer" in inspect.signature(check).parameters
}
del CONTRACT["test_grid_is_in_raster_order"]
globals().update(CONTRACT)


def test_the_contract_was_taken_over() -> None:
    assert {"test_shapes_types_and_range", "test_encode_refuses", "test_config_survives_json"} <= set(CONTRACT)


def test_tokens_are_in_raster_order(tokenizer: Magvit2Image) -> None:
    tokens = torch.randint(tokenizer.vocab_size, (1, 64, tokenizer.num_codebooks)).repeat(2, 1, 1)
    tokens[1, 7] = tokenizer.vocab_size - 1 - tokens[1, 7]  # row 0, last column of 8
    with torch.no_grad():
        decoded = tokenizer.decode(tokens, (8, 8))
    change = (decoded[1] - decoded[0]).abs().sum(dim=0)
    assert change[:4, -4:].mean() > 5 * change[-4:, :4].mean()


def video(**changes: Any) -> Magvit2Video:
    """Stride (4, 4, 4), a few thousand weights, the same at every call."""
    torch.manual_seed(5)
    plain = SMALL | {"multipliers": (1, 2, 1), "strides": ((2, 2, 2), (2, 2, 2))}
    return Magvit2Video(Magvit2VideoConfig(**(plain | changes))).eval()


def clip(frames: int, height: int = 8, width: int = 12, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(frames))


@torch.no_grad()
def test_clips_of_one_and_four_n_frames() -> None:
    model = video()
    assert isinstance(model, VideoTokenizer)
    assert (model.modality, model.stride, model.vocab_size, model.num_codebooks) == ("video", (4, 4, 4), 8, 2)
    for frames, latent in ((1, 1), (5, 2), (9, 3), (17, 5)):
        signal = clip(frames, batch=2)
        axes = model.axes(signal.shape)
        assert axes == (latent, 2, 3)
        tokens = model.encode(signal)
        assert tokens.shape == (2, latent * 6, 2)
        assert tokens.dtype == torch.long
        decoded = model.decode(tokens, axes)
        assert decoded.shape == signal.shape
        assert model.decoded_frames(latent) == frames


@pytest.mark.parametrize(
    ("frames", "nearest"), [(2, "1 and 5"), (4, "1 and 5"), (6, "5 and 9"), (8, "5 and 9"), (0, "1 and 5")]
)
def test_other_lengths_are_refused(frames: int, nearest: str) -> None:
    model = video()
    with pytest.raises(
        ValueError, match=rf"frames: got {frames}, expected 1 \+ 4n of them; the nearest are {nearest}: cut"
    ):
        model.latent_frames(frames)
    if frames:
        for run in (model.encode, model):
            with pytest.raises(ValueError, match=f"frames: got {frames}"):
                run(clip(frames))


@torch.no_grad()
def test_a_stride_of_one_along_time_takes_every_length() -> None:
    model = video(strides=((1, 2, 2), (1, 2, 2)))
    for frames in (1, 2, 4):
        assert model.decode(model.encode(clip(frames)), (frames, 2, 3)).shape == (1, 3, frames, 8, 12)


@pytest.mark.parametrize(
    ("signal", "error", "message"),
    [
        (torch.zeros(3, 5, 8, 8), ValueError, r"video: got shape \(3, 5, 8, 8\), expected \[B, 3, T, H, W\]"),
        (torch.zeros(1, 1, 5, 8, 8), ValueError, "then channels, then frames"),
        (torch.zeros(1, 3, 5, 8, 8, dtype=torch.uint8), TypeError, "expected floating point values in"),
    ],
)
def test_video_refuses(signal: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        video().encode(signal)


@torch.no_grad()
def test_sizes_that_the_stride_does_not_divide_round_up() -> None:
    model, image = video(), CASES["two-parts"]().eval()
    signal = clip(5, 9, 13)
    assert model.axes(signal.shape) == (2, 3, 4)
    assert model.decode(model.encode(signal), (2, 3, 4)).shape == (1, 3, 5, 12, 16)
    assert image.decode(image.encode(signal[:, :, 0]), (3, 4)).shape == (1, 3, 12, 16)


@torch.no_grad()
def test_pixels_run_from_zero_to_one_outside() -> None:
    image = CASES["two-parts"]().eval()
    signal = torch.rand(1, 3, 8, 8)
    ids = image.quantizer.encode(image.latents(2 * signal - 1))
    tokens = image.encode(signal)
    assert torch.equal(join_ids(tokens.unbind(-1), (3, 3)), ids.squeeze(-1))
    codes = image.quantizer.lookup(ids, (2, 2))
    torch.testing.assert_close(image.decode(tokens, (2, 2)), (image.pixels(codes) + 1) / 2)


@torch.no_grad()
def test_parts_of_an_id_are_a_matter_of_speech() -> None:
    parts = video()
    whole = Magvit2Video(Magvit2VideoConfig(**asdict(parts.config) | {"token_bits": (6,)})).eval()
    whole.load_state_dict(parts.state_dict())
    signal = clip(5)
    assert whole.vocab_size == 64
    assert torch.equal(torch.stack(factor_ids(whole.encode(signal).squeeze(-1), (3, 3)), -1), parts.encode(signal))
    assert torch.equal(whole.decode(whole.encode(signal), (2, 2, 3)), parts.decode(parts.encode(signal), (2, 2, 3)))


@torch.no_grad()
def test_one_place_can_be_decoded() -> None:
    """There is no variance over one position; the original gives NaN."""
    image = CASES["two-parts"]().eval()
    assert image.decode(torch.zeros(1, 1, 2, dtype=torch.long), (1, 1)).isfinite().all()


def test_training_reaches_every_weight() -> None:
    for model, signal in ((video(), clip(5)), (CASES["two-parts"](), clip(1)[:, :, 0])):
        out = model.train()(signal)
        assert out.reconstruction.shape == signal.shape
        assert out.tokens.shape == (1, math.prod(model.axes(signal.shape)), 2)
        assert out.quantized.ids.shape[2] == 1
        (out.reconstruction.sum() + out.quantized.entropy + out.quantized.commitment).backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
        assert model.last_layer is model.decoder.conv_out.weight


@torch.no_grad()
def test_saved_and_loaded(tmp_path: Path) -> None:
    model = video(strides=((1, 2, 2), (2, 2, 2)))
    save_module(model, tmp_path)
    again = load_module(tmp_path, VideoTokenizer)  # type: ignore[type-abstract]
    assert type(again) is Magvit2Video
    assert again.config == model.config
    assert again.stride == (2, 4, 4)
    assert torch.equal(again.encode(clip(5)), model.encode(clip(5)))
    assert Magvit2VideoConfig(**json.loads(json.dumps(asdict(model.config)))) == model.config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"token_bits": (6, 12)},
            r"token_bits: got \(6, 12\), expected equal parts .* share one vocabulary.*factor_ids",
        ),
        ({"token_bits": ()}, r"token_bits: got \(\)"),
        ({"token_bits": (13, 13)}, "expected 1 to 24 bits"),
        ({"multipliers": (1,), "strides": ()}, "multipliers of two or more levels"),
        ({"channels": 0}, "expected 1 or more of each"),
        ({"groups": 16}, "expected multiples of groups=16; choose other channels or fewer groups"),
        ({"strides": ((2, 2, 2),)}, "expected 2 of them, one fewer than multipliers"),
        ({"strides": ((3, 2, 2), (1, 2, 2))}, "expected steps of 1 or 2"),
        ({"strides": ((2, 2), (2, 2))}, r"expected \(frames, rows, columns\) for each"),
        ({"temperature": 0.0}, "expected a positive temperature"),
    ],
)
def test_config_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        video(**changes)


@pytest.mark.parametrize("block", [(2, 2), (1, 2, 2), (2, 2, 2), (2, 1, 2)])
def test_depth_to_space_pixel_by_pixel(block: tuple[int, ...]) -> None:
    sizes = (2, 3, 2)[: len(block)]
    x = torch.randn(2, math.prod(block) * 3, *sizes)
    y = depth_to_space(x, block)
    assert y.shape == (2, 3, *(size * step for size, step in zip(sizes, block, strict=True)))
    for cell in torch.cartesian_prod(*[torch.arange(size) for size in y.shape[2:]]).tolist():
        inside, index = [p % step for p, step in zip(cell, block, strict=True)], 0
        for offset, step in zip(inside, block, strict=True):
            index = index * step + offset
        from_ = tuple(p // step for p, step in zip(cell, block, strict=True))
        assert torch.equal(
            y[(slice(None), slice(None), *cell)], x[(slice(None), slice(3 * index, 3 * index + 3), *from_)]
        )


def test_causal_convolution_sees_no_later_frame() -> None:
    conv = CausalConv3d(2, 3, 3)
    x = torch.randn(1, 2, 5, 4, 4)
    changed = x.clone()
    changed[:, :, 3] += 1
    moved = (conv(x) - conv(changed)).abs().amax(dim=(0, 1, 3, 4))
    assert (moved > 0).tolist() == [False, False, False, True, True]
    assert conv(x).shape == (1, 3, 5, 4, 4)
    assert CausalConv3d(2, 3, 3, stride=(2, 2, 2))(x).shape == (1, 3, 3, 2, 2)


def test_adaptive_norm_by_its_formula() -> None:
    norm = AdaptiveGroupNorm(4, 3, 2)
    x, codes = torch.randn(2, 4, 3, 5), torch.randn(2, 3, 2, 2)
    groups = x.reshape(2, 2, -1)
    plain = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    rows = codes.flatten(2)
    scale = norm.gamma((rows.var(-1, correction=1) + 1e-6).sqrt())
    bias = norm.beta(rows.mean(-1))
    expected = scale[:, :, None, None] * plain.reshape(x.shape) + bias[:, :, None, None]
    torch.testing.assert_close(norm(x, codes), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_inflated_tokenizer_treats_a_frame_as_an_image() -> None:
    torch.manual_seed(7)
    image = Magvit2Image(Magvit2ImageConfig(**SMALL, multipliers=(1, 2, 1))).eval()
    model = inflate(image)
    assert model.config.strides == ((1, 2, 2), (2, 2, 2))  # time is halved after levels whose multiplier is not 1
    assert not model.training
    pictures = torch.rand(2, 3, 8, 12)
    tokens = image.encode(pictures)
    assert torch.equal(model.encode(pictures[:, :, None]), tokens)
    frames = model.decode(tokens, (1, 2, 3))
    torch.testing.assert_close(frames.squeeze(2), image.decode(tokens, (2, 3)), atol=1e-5, rtol=0)
    steps = ((2, 2, 2), (2, 2, 2))
    assert torch.equal(inflate(image, steps).encode(pictures[:, :, None]), tokens)
    assert inflated_config(image.config, steps).strides == steps


def test_inflation_refuses() -> None:
    image = Magvit2ImageConfig(**SMALL, multipliers=(1, 2, 1))
    state = Magvit2Image(image).state_dict()
    with pytest.raises(ValueError, match=r"strides: got \(\(2, 1, 2\), \(2, 2, 2\)\), expected \(1, 2, 2\) or"):
        inflated_config(image, ((2, 1, 2), (2, 2, 2)))
    wide = Magvit2VideoConfig(**SMALL | {"channels": 16, "multipliers": (1, 2, 1), "strides": ((2, 2, 2),) * 2})
    with pytest.raises(ValueError, match=r"got shape .*, which cannot become .*channels, levels, blocks and bits"):
        inflated_state(state, wide)
    deep = Magvit2VideoConfig(**SMALL | {"res_blocks": 2, "multipliers": (1, 2, 1), "strides": ((2, 2, 2),) * 2})
    with pytest.raises(ValueError, match=r"decoder\.mid_block\.1\..* is in one network only"):
        inflated_state(state, deep)


def test_the_contract_of_all_tokenizers() -> None:
    assert issubclass(Magvit2Image, Tokenizer)
    network = Magvit2Network(
        channels=4, multipliers=(1, 1, 1), res_blocks=1, bits=2, strides=((1, 2, 2), (2, 2, 2)), groups=4
    )
    assert network.stride == (2, 4, 4)
    assert network.causal
