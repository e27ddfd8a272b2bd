"""One contract, every video tokenizer: a new one is tested by being listed in CASES.

Lengths and sizes come from the tokenizer itself, so that those which refuse some fit as well.

Shapes: B batch, T frames, t h w token grid, N = t * h * w, K codebooks.
"""

import json
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskgen.checkpoint import load_module, save_module
from maskgen.tokenizers.base import check_contract
from maskgen.tokenizers.magvit2.tokenizer import Magvit2Video, Magvit2VideoConfig
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from maskgen.tokenizers.video.base import VideoTokenizer
from maskgen.tokenizers.video.frames import FrameVQ
from maskgen.tokenizers.video.toy import ToyVideoTokenizer, ToyVideoTokenizerConfig
from maskgen.tokenizers.video.vq3d import VQ3D, VQ3DConfig


def small(quantizer: QuantizerConfig | None = None, **changes: object) -> VQ3DConfig:
    """A few thousand weights and stride 4 x 4 x 4."""
    base: dict[str, object] = {
        "channels": 8,
        "multipliers": (1, 2, 2),
        "temporal_downsample": (True, True),
        "encoder_blocks": 1,
        "decoder_blocks": 1,
        "groups": 4,
    }
    return VQ3DConfig(quantizer=quantizer or QuantizerConfig(codebook_size=24, dim=6), **(base | changes))


CASES: dict[str, Callable[[], VideoTokenizer]] = {
    "toy": lambda: ToyVideoTokenizer(ToyVideoTokenizerConfig(levels=5, patch=4)),
    "toy-first-alone": lambda: ToyVideoTokenizer(ToyVideoTokenizerConfig(frames=3, first_alone=True)),
    "vq3d": lambda: VQ3D(small()),
    "vq3d-half-time": lambda: VQ3D(small(temporal_downsample=(False, True), norm="layer", padding="reflect")),
    "vq3d-convolutions": lambda: VQ3D(small(downsample="conv", upsample="deconv", activation="relu")),
    "vq3d-directions": lambda: VQ3D(small(normalize_latents=True)),
    "vq3d-fsq": lambda: VQ3D(small(QuantizerConfig(kind="fsq", levels=(4, 3, 5), dim=6))),
    "vq3d-lfq": lambda: VQ3D(small(QuantizerConfig(kind="lfq", codebook_size=32, dim=6))),
    "vq3d-rvq": lambda: VQ3D(small(QuantizerConfig(kind="rvq", codebook_size=16, dim=6, num_quantizers=3))),
    "frames": lambda: FrameVQ(small(temporal_downsample=(False, False))),
    "magvit2": lambda: Magvit2Video(
        Magvit2VideoConfig(
            channels=8, multipliers=(1, 2, 2), res_blocks=1, groups=4, token_bits=(3, 3), strides=((2, 2, 2), (2, 2, 2))
        )
    ),
}


@pytest.fixture(params=CASES, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> VideoTokenizer:
    torch.manual_seed(3)
    return CASES[request.param]().eval()


def clip(tokenizer: VideoTokenizer, batch: int, axes: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Noise [B, 3, T, H, W] that fills the grid exactly."""
    t, h, w = axes
    _, height, width = tokenizer.stride
    shape = (batch, 3, tokenizer.decoded_frames(t), h * height, w * width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_shapes_types_and_range(tokenizer: VideoTokenizer) -> None:
    for axes in ((1, 2, 3), (2, 3, 2), (3, 1, 1)):
        signal = clip(tokenizer, 2, axes)
        assert tokenizer.axes(signal.shape) == axes
        with torch.no_grad():
            tokens = tokenizer.encode(signal)
            decoded = tokenizer.decode(tokens, axes)
        assert tokens.shape == (2, math.prod(axes), tokenizer.num_codebooks)
        assert tokens.dtype == torch.long
        assert tokens.min() >= 0
        assert tokens.max() < tokenizer.vocab_size
        assert decoded.shape == signal.shape
        assert decoded.dtype == torch.float32
        assert decoded.isfinite().all()
        assert decoded.is_contiguous()
    assert tokenizer.modality == "video"
    assert tokenizer.is_spatial is True
    check_contract(tokenizer)
    check_contract(type(tokenizer))
    assert len(tokenizer.stride) == 3


def taken_as(tokenizer: VideoTokenizer, frames: int) -> int | None:
    """Token frames of a clip of that length; None where it is refused."""
    try:
        return tokenizer.latent_frames(frames)
    except ValueError:
        return None


def test_lengths(tokenizer: VideoTokenizer) -> None:
    """Every length is taken or refused with the nearest ones; what was taken comes back at least as long."""
    for t in range(1, 6):
        frames = tokenizer.decoded_frames(t)
        assert tokenizer.latent_frames(frames) == t
        if t > 1:
            assert frames - tokenizer.decoded_frames(t - 1) == tokenizer.stride[0]
    _, height, width = tokenizer.stride
    for frames in range(1, tokenizer.decoded_frames(3) + 1):
        t = taken_as(tokenizer, frames)
        if t is None:
            near = [tokenizer.decoded_frames(t) for t in range(1, 4)]
            below, above = max(n for n in near if n < frames), min(n for n in near if n > frames)
            with pytest.raises(ValueError, match=rf"got .*\b{frames}\b.*\b{below}\b.*\b{above}\b"):
                tokenizer.encode(torch.zeros(1, 3, frames, height, width))
            continue
        assert tokenizer.decoded_frames(t) >= frames
        assert t == 1 or tokenizer.decoded_frames(t - 1) < frames
        signal = torch.zeros(1, 3, frames, height, width)
        assert tokenizer.axes(signal.shape) == (t, 1, 1)
        with torch.no_grad():
            tokens = tokenizer.encode(signal)
            assert tokenizer.decode(tokens, (t, 1, 1)).shape[2] == tokenizer.decoded_frames(t)
    for call in (tokenizer.latent_frames, tokenizer.decoded_frames):
        with pytest.raises(ValueError, match="frames: got 0, expected"):
            call(0)


def test_sizes_that_the_stride_does_not_divide(tokenizer: VideoTokenizer) -> None:
    """Taken and rounded up, or refused."""
    _, height, width = tokenizer.stride
    signal = torch.rand(1, 3, tokenizer.decoded_frames(1), height + 1, 3 * width - 1)
    try:
        axes = tokenizer.axes(signal.shape)
    except ValueError:
        with pytest.raises(ValueError, match="expected multiples of"):
            tokenizer.encode(signal)
        return
    assert axes == (1, 2, 3)
    with torch.no_grad():
        assert tokenizer.decode(tokenizer.encode(signal), axes).shape[3:] == (2 * height, 3 * width)


def test_items_do_not_see_each_other(tokenizer: VideoTokenizer) -> None:
    axes = (2, 2, 2)
    signal = clip(tokenizer, 3, axes, seed=1)
    with torch.no_grad():
        together = tokenizer.encode(signal)
        decoded = tokenizer.decode(together, axes)
        for i in range(3):
            assert torch.equal(tokenizer.encode(signal[i : i + 1])[0], together[i])
            torch.testing.assert_close(tokenizer.decode(together[i : i + 1], axes)[0], decoded[i], atol=1e-5, rtol=1e-5)


def test_evaluation_is_deterministic_and_draws_nothing(tokenizer: VideoTokenizer) -> None:
    axes = (2, 2, 2)
    signal = clip(tokenizer, 2, axes, seed=2)
    state = torch.get_rng_state()
    with torch.no_grad():
        first, again = tokenizer.encode(signal), tokenizer.encode(signal)
        assert torch.equal(tokenizer.decode(first, axes), tokenizer.decode(again, axes))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())


def test_grid_is_in_raster_order_with_time_outermost(tokenizer: VideoTokenizer) -> None:
    """A change at the end of time, in one corner, shows there most."""
    axes = (6, 3, 6)
    # Random tokens around it: a normalisation over equal ones would spread one change over everything.
    tokens = torch.randint(tokenizer.vocab_size, (1, math.prod(axes), tokenizer.num_codebooks)).repeat(2, 1, 1)
    last_frame_first_row_last_column = 5 * 18 + 5
    tokens[1, last_frame_first_row_last_column] = tokenizer.vocab_size - 1 - tokens[1, last_frame_first_row_last_column]
    with torch.no_grad():
        decoded = tokenizer.decode(tokens, axes)
    change = (decoded[1] - decoded[0]).abs().sum(dim=0)
    frames, height, width = tokenizer.stride
    assert change[-frames:, :height, -width:].mean() > 1.5 * change[:frames].mean()
    assert change[-frames:, :height, -width:].mean() > 1.5 * change[-frames:, -height:, :width].mean()


def test_config_survives_json_and_a_folder(tokenizer: VideoTokenizer, tmp_path: Path) -> None:
    config = tokenizer.config
    assert type(config)(**json.loads(json.dumps(asdict(config)))) == config
    save_module(tokenizer, tmp_path)
    again = load_module(tmp_path, VideoTokenizer)  # type: ignore[type-abstract]
    assert type(again) is type(tokenizer)
    assert again.config == config
    signal = clip(tokenizer, 1, (2, 2, 2))
    with torch.no_grad():
        assert torch.equal(again.encode(signal), tokenizer.encode(signal))
    with pytest.raises(FrozenInstanceError):
        setattr(config, fields(config)[0].name, 1)


def test_half_precision_clips_are_taken(tokenizer: VideoTokenizer) -> None:
    with torch.no_grad():
        tokens = tokenizer.encode(clip(tokenizer, 1, (1, 2, 2)).to(torch.bfloat16))
    assert tokens.shape == (1, 4, tokenizer.num_codebooks)


def test_encode_refuses(tokenizer: VideoTokenizer) -> None:
    frames = tokenizer.decoded_frames(1)
    for shape in ((3, frames, 16, 16), (1, 1, frames, 16, 16), (1, frames, 16, 16, 3), (1, 3, frames, 0, 16)):
        with pytest.raises(ValueError, match=r"got shape .*expected \[B, 3, T, H, W\]"):
            tokenizer.encode(torch.zeros(shape))
        with pytest.raises(ValueError, match=r"got shape .*expected \[B, 3, T, H, W\]"):
            tokenizer.axes(shape)
    with pytest.raises(TypeError, match=r"got torch.uint8, expected floating point values in \[0, 1\]"):
        tokenizer.encode(torch.zeros(1, 3, frames, 16, 16, dtype=torch.uint8))


def test_decode_refuses(tokenizer: VideoTokenizer) -> None:
    K, V = tokenizer.num_codebooks, tokenizer.vocab_size
    fine = torch.zeros(1, 8, K, dtype=torch.long)
    with pytest.raises(TypeError, match=r"got torch\.int32, expected torch\.int64"):
        tokenizer.decode(fine.int(), (2, 2, 2))
    with pytest.raises(ValueError, match=rf"got shape \(1, 8, {K}\), expected \[B, 12, {K}\] for axes \(2, 2, 3\)"):
        tokenizer.decode(fine, (2, 2, 3))
    for axes in ((8,), (2, 4), (0, 2, 2)):
        with pytest.raises(ValueError, match="expected 3 positive sizes"):
            tokenizer.decode(fine, axes)
    with pytest.raises(ValueError, match=f"got ids from 0 to {V}, expected 0 to {V - 1}; the mask id"):
        tokenizer.decode(torch.cat([fine[:, :7], torch.full((1, 1, K), V)], dim=1), (2, 2, 2))
    with pytest.raises(ValueError, match="got ids from -1"):
        tokenizer.decode(fine - 1, (2, 2, 2))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_toy_is_lossless(data: st.DataObject) -> None:
    levels, patch, frames = (data.draw(st.integers(low, high)) for low, high in ((2, 17), (1, 4), (1, 4)))
    axes = tuple(data.draw(st.integers(1, 4)) for _ in range(3))
    config = ToyVideoTokenizerConfig(levels=levels, patch=patch, frames=frames, first_alone=data.draw(st.booleans()))
    toy = ToyVideoTokenizer(config)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    tokens = torch.randint(levels, (2, math.prod(axes), 1), generator=generator)
    video = toy.decode(tokens, axes)
    assert toy.axes(video.shape) == axes
    assert video.min() >= 0
    assert video.max() <= 1
    assert torch.equal(toy.encode(video), tokens)
    # A border inside a box is filled up with itself.
    cut = video[:, :, :, : (axes[1] - 1) * patch + 1, : (axes[2] - 1) * patch + 1]
    cut = cut if config.first_alone else cut[:, :, : (axes[0] - 1) * frames + 1]
    assert torch.equal(toy.encode(cut), tokens)


def test_toy_refuses() -> None:
    with pytest.raises(ValueError, match="levels: got 1, expected 2 or more"):
        ToyVideoTokenizerConfig(levels=1)
    for name in ("patch", "frames"):
        with pytest.raises(ValueError, match=f"{name}: got 0, expected 1 or more"):
            ToyVideoTokenizerConfig(**{name: 0})
    toy = ToyVideoTokenizer(ToyVideoTokenizerConfig(frames=4, first_alone=True))
    with pytest.raises(ValueError, match=r"frames: got 7, expected 1 \+ 4n of them; the nearest are 5 and 9"):
        toy.encode(torch.zeros(1, 3, 7, 4, 4))


def test_toy_first_frame_is_on_its_own() -> None:
    toy = ToyVideoTokenizer(ToyVideoTokenizerConfig(levels=2, patch=1, frames=2, first_alone=True))
    video = torch.zeros(1, 3, 5, 1, 1)
    video[:, :, 0] = 1
    assert toy.encode(video).flatten().tolist() == [1, 0, 0]
    assert torch.equal(toy.decode(toy.encode(video), (3, 1, 1)), video)
