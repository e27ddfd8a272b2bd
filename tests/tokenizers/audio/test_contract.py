"""One contract, every audio tokenizer: a new one is tested by being listed in CASES.

Shapes: B batch, C channels, S samples, T frames, K codebooks, V codes, D width of a code.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, fields
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskgen.checkpoint import load_module, save_module
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.audio.codec import AudioCodec, AudioCodecConfig
from maskgen.tokenizers.audio.toy import ToyAudioTokenizer, ToyAudioTokenizerConfig
from maskgen.tokenizers.base import check_contract
from maskgen.tokenizers.published.audio.dac import DACTokenizer, DACTokenizerConfig
from maskgen.tokenizers.published.audio.encodec import EncodecTokenizer, EncodecTokenizerConfig
from maskgen.tokenizers.published.audio.encodec_package import EncodecPackageTokenizer
from maskgen.tokenizers.published.audio.lac import LACConfig, LACTokenizer

ENCODEC = EncodecTokenizerConfig(
    sample_rate=800, bandwidth=1.6, bandwidths=(0.8, 1.6), ratios=(4, 2), filters=4, dim=16, codebook_size=16
)
LOUD = dataclasses.replace(ENCODEC, channels=2, causal=False, norm="time_group_norm", normalize=True)
DESCRIPT = {"sample_rate": 800, "encoder_dim": 4, "decoder_dim": 16, "codebook_size": 16, "codebook_dim": 3}

CASES: dict[str, Callable[[], AudioTokenizer]] = {
    "toy": lambda: ToyAudioTokenizer(ToyAudioTokenizerConfig()),
    "toy-stereo": lambda: ToyAudioTokenizer(ToyAudioTokenizerConfig(channels=2, hop=3, codebooks=3, levels=5)),
    "codec": lambda: AudioCodec(
        AudioCodecConfig(
            sample_rate=800,
            hop=8,
            width=4,
            encoder_dilations=(1,),
            decoder_dilations=(1,),
            codebook_size=8,
            codebooks=2,
            dim=3,
        )
    ),
    "encodec": lambda: EncodecTokenizer(ENCODEC),
    "encodec-loudness": lambda: EncodecTokenizer(LOUD),
    "encodec-package": lambda: EncodecPackageTokenizer(ENCODEC),
    "encodec-package-loudness": lambda: EncodecPackageTokenizer(LOUD),
    "dac": lambda: DACTokenizer(DACTokenizerConfig(rates=(2, 4), quantizers=3, **DESCRIPT)),
    "dac-fewer": lambda: DACTokenizer(DACTokenizerConfig(rates=(2, 5), quantizers=3, codebooks=2, **DESCRIPT)),
    "lac": lambda: LACTokenizer(LACConfig(encoder_rates=(2, 4), decoder_rates=(2, 2, 2), codebooks=3, **DESCRIPT)),
}


@pytest.fixture(params=CASES, scope="module")
def codec(request: pytest.FixtureRequest) -> AudioTokenizer:
    torch.manual_seed(3)
    return CASES[request.param]().eval()


def sound(codec: AudioTokenizer, batch: int, samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, codec.channels, samples, generator=generator) * 1.6 - 0.8


def hops(codec: AudioTokenizer, count: int) -> int:
    return count * codec.stride[0]


def test_shapes_types_and_length(codec: AudioTokenizer) -> None:
    """Any number of samples is taken; what comes out, cropped, is as long as what went in."""
    hop = codec.stride[0]
    for samples in (1, hop - 1 or 1, hop, hop + 1, hops(codec, 7), hops(codec, 9) + hop // 2):
        signal = sound(codec, 2, samples)
        (frames,) = codec.axes(signal.shape)
        assert frames == -(-samples // hop)
        with torch.no_grad():
            tokens = codec.encode(signal)
            decoded = codec.decode(tokens, (frames,))
        assert tokens.shape == (2, frames, codec.num_codebooks)
        assert tokens.dtype == torch.long
        assert tokens.min() >= 0
        assert tokens.max() < codec.vocab_size
        assert decoded.shape == (2, codec.channels, frames * hop)
        assert decoded.dtype == torch.float32
        assert decoded.isfinite().all()
        assert decoded[..., :samples].shape == signal.shape
    assert codec.modality == "audio"
    assert codec.is_spatial is True
    check_contract(codec)
    check_contract(type(codec))
    assert len(codec.stride) == 1


def test_items_do_not_see_each_other(codec: AudioTokenizer) -> None:
    signal = sound(codec, 3, hops(codec, 6) + 1, seed=1)
    axes = codec.axes(signal.shape)
    with torch.no_grad():
        together, scale = codec.encode_scaled(signal)
        decoded = codec.decode(together, axes, scale)
        for i in range(3):
            alone, own = codec.encode_scaled(signal[i : i + 1])
            assert torch.equal(alone[0], together[i])
            assert (own is None) == (scale is None)
            again = codec.decode(together[i : i + 1], axes, own)
            torch.testing.assert_close(again[0], decoded[i], atol=1e-5, rtol=1e-5)


def test_evaluation_is_deterministic_and_draws_nothing(codec: AudioTokenizer) -> None:
    signal = sound(codec, 2, hops(codec, 5), seed=2)
    state = torch.get_rng_state()
    with torch.no_grad():
        tokens = codec.encode(signal)
        assert torch.equal(tokens, codec.encode(signal))
        assert torch.equal(codec.decode(tokens, (5,)), codec.decode(tokens, (5,)))
        assert torch.equal(tokens, codec.encode_scaled(signal)[0])
    assert torch.equal(state, torch.get_rng_state())


def test_the_first_codebooks_alone(codec: AudioTokenizer) -> None:
    tokens = torch.randint(codec.vocab_size, (2, 5, codec.num_codebooks), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        whole = codec.decode(tokens, (5,))
        for k in range(1, codec.num_codebooks + 1):
            part = codec.decode(tokens[..., :k], (5,))
            assert part.shape == whole.shape
            assert torch.equal(part, whole) == (k == codec.num_codebooks)


def test_frames_are_in_order_of_time(codec: AudioTokenizer) -> None:
    """A change of the last frames is heard at the end, not at the start."""
    tokens = torch.zeros(2, 40, codec.num_codebooks, dtype=torch.long)
    tokens[1, 34:] = codec.vocab_size - 1
    with torch.no_grad():
        decoded = codec.decode(tokens, (40,))
    change = (decoded[1] - decoded[0]).abs().sum(dim=0).reshape(40, -1).mean(1)
    assert change[34:].mean() > 2 * change[:10].mean()
    assert change[34:].mean() > 0


def test_code_tables_rate_and_identity(codec: AudioTokenizer) -> None:
    tables = codec.code_tables()
    assert tables.shape[:2] == (codec.num_codebooks, codec.vocab_size)
    assert tables.ndim == 3
    assert tables.isfinite().all()
    assert codec.frame_rate == Fraction(codec.sample_rate, codec.stride[0])
    assert codec.frames(1.0) == -(-codec.sample_rate // codec.stride[0])
    assert codec.identity() == codec.identity()
    assert re.fullmatch(rf"\w+-{codec.sample_rate}-{codec.stride[0]}-[0-9a-f]{{16}}", codec.identity())


def test_config_survives_json_and_a_folder(codec: AudioTokenizer, tmp_path: Path) -> None:
    config = codec.config
    assert type(config)(**json.loads(json.dumps(asdict(config)))) == config
    save_module(codec, tmp_path)
    again = load_module(tmp_path, AudioTokenizer)  # type: ignore[type-abstract]
    assert again.config == config
    assert again.identity() == codec.identity()
    signal = sound(codec, 1, hops(codec, 4))
    with torch.no_grad():
        assert torch.equal(again.encode(signal), codec.encode(signal))
    with pytest.raises(FrozenInstanceError):
        setattr(config, fields(config)[0].name, 1)


def test_encode_refuses(codec: AudioTokenizer) -> None:
    C = codec.channels
    for shape in ((C, 16), (1, C + 1, 16), (1, C, 0), (1, 16, C, 1), (16,)):
        with pytest.raises(ValueError, match=rf"audio: got shape .*expected \[B, {C}, S\]"):
            codec.encode(torch.zeros(shape))
        with pytest.raises(ValueError, match=rf"expected \[B, {C}, S\]"):
            codec.axes(shape)
    with pytest.raises(TypeError, match=r"audio: got torch.int16, expected floating point samples in \[-1, 1\]"):
        codec.encode(torch.zeros(1, C, 16, dtype=torch.int16))


def test_decode_refuses(codec: AudioTokenizer) -> None:
    V, K = codec.vocab_size, codec.num_codebooks
    fine = torch.zeros(1, 4, K, dtype=torch.long)
    with pytest.raises(TypeError, match=r"got torch.float32, expected torch.int64"):
        codec.decode(fine.float(), (4,))
    for tokens in (fine[0], torch.zeros(1, 4, K + 1, dtype=torch.long), fine[..., :0]):
        with pytest.raises(ValueError, match=rf"expected \[B, T, k\] with 1 to {K} codebooks"):
            codec.decode(tokens, (4,))
    with pytest.raises(ValueError, match="tokens: got shape"):
        codec.decode(fine, (5,))
    for axes in ((2, 2), (0,), ()):
        with pytest.raises(ValueError, match="axes: got"):
            codec.decode(fine, axes)
    with pytest.raises(ValueError, match=f"got ids from 0 to {V}, expected 0 to {V - 1}; the mask id"):
        codec.decode(torch.cat([fine[:, :3], torch.full((1, 1, K), V)], dim=1), (4,))
    with pytest.raises(ValueError, match="got ids from -1"):
        codec.decode(fine - 1, (4,))


def test_no_gradient_leaves_the_codes(codec: AudioTokenizer) -> None:
    tokens = codec.encode(sound(codec, 1, hops(codec, 3)))
    assert not tokens.requires_grad


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_toy_is_lossless(data: st.DataObject) -> None:
    levels, codebooks = data.draw(st.sampled_from([(2, 1), (2, 16), (16, 4), (40, 3), (256, 2), (65536, 1), (7, 5)]))
    hop, channels, frames = (data.draw(st.integers(1, high)) for high in (9, 2, 20))
    toy = ToyAudioTokenizer(ToyAudioTokenizerConfig(levels=levels, codebooks=codebooks, hop=hop, channels=channels))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    tokens = torch.randint(levels, (2, frames, codebooks), generator=generator)
    made = toy.decode(tokens, (frames,))
    assert made.abs().max() < 1
    assert torch.equal(toy.encode(made), tokens)
    assert torch.equal(toy.decode(toy.encode(made), (frames,)), made)


def test_toy_is_a_residual_quantizer() -> None:
    """Each further codebook makes the error V times smaller, and the sum of the code vectors is the amplitude."""
    toy = ToyAudioTokenizer(ToyAudioTokenizerConfig(levels=10, codebooks=3, hop=1))
    wave = torch.linspace(-0.999, 0.999, 1500)[None, None]
    tokens, scale = toy.encode_scaled(wave)
    assert scale is None
    for k, most in ((1, 0.1), (2, 0.01), (3, 0.001)):
        error = (toy.decode(tokens[..., :k], (1500,)) - wave).abs().max()
        assert most / 2 < error <= most * 1.001
    tables = toy.code_tables()
    amplitude = sum(tables[k, tokens[0, :, k], 0] for k in range(3))
    assert torch.equal(toy.decode(tokens, (1500,))[0, 0], amplitude)
    louder = toy.decode(tokens, (1500,), torch.tensor([2.0]))
    assert torch.equal(louder, 2 * toy.decode(tokens, (1500,)))


def test_toy_refuses() -> None:
    for name in ("sample_rate", "channels", "hop", "codebooks"):
        with pytest.raises(ValueError, match=f"{name}: got 0, expected 1 or more"):
            ToyAudioTokenizerConfig(**{name: 0})
    for sizes in ({"levels": 1}, {"levels": 257, "codebooks": 2}):
        with pytest.raises(ValueError, match="expected 2 or more levels and at most 65536"):
            ToyAudioTokenizerConfig(**sizes)
