"""DAC and LAC: the contract of an audio tokenizer, latents, settings."""

import copy
import dataclasses
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from maskgen.checkpoint import load_module, save_module
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.published.audio import dac
from maskgen.tokenizers.published.audio.dac import DACTokenizer
from maskgen.tokenizers.published.audio.descript_blocks import DescriptTokenizer, Residual, Snake
from maskgen.tokenizers.published.audio.lac import LACConfig, Mean
from tests.tokenizers.published.audio.descript_codecs import CASES, DAC_SMALL, lively


@pytest.fixture(params=CASES, scope="module")
def codec(request: pytest.FixtureRequest) -> DescriptTokenizer:
    torch.manual_seed(3)
    return lively(CASES[request.param]())


def sound(batch: int, samples: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, 1, samples, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def test_whole_hops_and_ids_in_range(codec: DescriptTokenizer) -> None:
    hop = codec.stride[0]
    for samples in (1, hop - 1, hop, 3 * hop + 1):
        signal = sound(2, samples)
        axes = codec.axes(signal.shape)
        assert axes == (-(-samples // hop),)
        tokens, scale = codec.encode_scaled(signal)
        assert scale is None
        assert tokens.shape == (2, *axes, codec.num_codebooks)
        assert tokens.dtype == torch.long
        assert tokens.min() >= 0
        assert tokens.max() < codec.vocab_size
        decoded = codec.decode(tokens, axes)
        assert decoded.shape == (2, 1, axes[0] * hop)
        assert torch.isfinite(decoded).all()
        assert decoded.abs().max() < 1


@torch.no_grad()
def test_codes_vary_and_depend_on_the_sound(codec: DescriptTokenizer) -> None:
    tokens = codec.encode(sound(2, 30 * codec.stride[0]))
    assert all(len(tokens[..., k].unique()) > 2 for k in range(codec.num_codebooks))
    assert not torch.equal(tokens[0], tokens[1])


@torch.no_grad()
def test_items_do_not_see_each_other(codec: DescriptTokenizer) -> None:
    signal = sound(3, 7 * codec.stride[0] + 2)
    together = codec.encode(signal)
    decoded = codec.decode(together, together.shape[1:2])
    for i in range(3):
        assert torch.equal(codec.encode(signal[i : i + 1])[0], together[i])
        alone = codec.decode(together[i : i + 1], together.shape[1:2])[0]
        torch.testing.assert_close(alone, decoded[i], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_padding_is_silence(codec: DescriptTokenizer) -> None:
    hop = codec.stride[0]
    signal = sound(1, 4 * hop + 1)
    padded = torch.cat([signal, torch.zeros(1, 1, hop - 1)], dim=-1)
    assert torch.equal(codec.encode(signal), codec.encode(padded))


@torch.no_grad()
def test_training_mode_draws_nothing_and_drops_nothing(codec: DescriptTokenizer) -> None:
    signal = sound(2, 40)
    expected = codec.encode(signal)
    state = torch.get_rng_state()
    codec.train()
    try:
        assert torch.equal(codec.encode(signal), expected)
    finally:
        codec.eval()
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_decoding_is_the_sum_of_the_levels(codec: DescriptTokenizer) -> None:
    """Tokens, their vectors, and ``z_q`` tell the same; k codebooks leave the others' share out."""
    found = codec.analyse(sound(2, 6 * codec.stride[0]))
    tokens = found.tokens
    torch.testing.assert_close(
        codec.synthesise(found.z_q), codec.decode(tokens, tokens.shape[1:2]), atol=1e-5, rtol=1e-5
    )
    tables, quantizers = codec.code_tables(), codec.parts().quantizers
    assert tables.shape == (codec.num_codebooks, codec.vocab_size, 3)
    for k in range(1, codec.num_codebooks + 1):
        rows = [tables[level][tokens[..., level]] for level in range(k)]
        assert torch.equal(codec.latents(tokens[..., :k]), torch.cat(rows, dim=-1).transpose(1, 2))
        z_q = sum(quantizers[level].out_proj(rows[level].transpose(1, 2)) for level in range(k))
        expected = codec.synthesise(z_q)
        torch.testing.assert_close(codec.decode(tokens[..., :k], tokens.shape[1:2]), expected, atol=1e-5, rtol=1e-5)
        again, codes = codec.from_latents(codec.latents(tokens[..., :k]))
        assert torch.equal(codes, tokens[..., :k])
        torch.testing.assert_close(again, z_q, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_code_of_the_nearest_direction_is_taken(codec: DescriptTokenizer) -> None:
    latents = codec.analyse(sound(2, 20 * codec.stride[0])).latents
    _, codes = codec.from_latents(latents)
    for level, part in enumerate(latents.split(3, dim=1)):
        cosine = torch.cosine_similarity(part.transpose(1, 2)[:, :, None], codec.code_tables()[level], dim=-1)
        chosen = cosine.gather(-1, codes[..., level, None])
        torch.testing.assert_close(chosen.squeeze(-1), cosine.amax(-1), atol=1e-6, rtol=0)


@torch.no_grad()
def test_time_runs_forward(codec: DescriptTokenizer) -> None:
    tokens = torch.zeros(2, 150, codec.num_codebooks, dtype=torch.long)
    tokens[1, -1] = codec.vocab_size - 1
    change = codec.decode(tokens, (150,)).diff(dim=0).abs()
    quarter = change.shape[-1] // 4
    assert change[..., -quarter:].max() > 0
    assert change[..., :quarter].max() == 0


def test_gradients_reach_encoder_and_decoder(codec: DescriptTokenizer) -> None:
    codec.synthesise(codec.analyse(sound(1, 40)).z_q).square().sum().backward()
    missing = [name for name, weight in codec.named_parameters() if weight.grad is None and "codebook" not in name]
    codec.zero_grad()
    unused = [name for name in missing if "quantizers.2" not in name or codec.num_codebooks > 2]
    assert unused == []


@given(samples=st.integers(1, 40), seed=st.integers(0, 5))
@settings(max_examples=8)
@torch.no_grad()
def test_any_length(codec: DescriptTokenizer, samples: int, seed: int) -> None:
    signal = sound(1, samples, seed)
    tokens = codec.encode(signal)
    assert tokens.shape[1:2] == codec.axes(signal.shape)
    assert codec.decode(tokens, codec.axes(signal.shape)).shape[-1] == tokens.shape[1] * codec.stride[0]


@torch.no_grad()
def test_silence_and_other_precisions(codec: DescriptTokenizer) -> None:
    silent = codec.encode(torch.zeros(1, 1, 40))
    assert torch.isfinite(codec.decode(silent, silent.shape[1:2])).all()
    signal = sound(1, 40)
    for dtype in (torch.float16, torch.float64):
        assert torch.equal(codec.encode(signal.to(dtype)), codec.encode(signal.to(dtype).float()))


@torch.no_grad()
def test_low_precision_weights(codec: DescriptTokenizer) -> None:
    low = copy.deepcopy(codec).bfloat16()
    tokens = low.encode(sound(1, 40))
    decoded = low.decode(tokens, tokens.shape[1:2])
    assert decoded.dtype == torch.bfloat16
    assert torch.isfinite(decoded).all()
    expected = codec.decode(tokens, tokens.shape[1:2])
    torch.testing.assert_close(decoded.float(), expected, atol=0.1, rtol=0)


def test_wrong_signals_are_refused(codec: DescriptTokenizer) -> None:
    with pytest.raises(ValueError, match=r"expected \[B, 1, S\]"):
        codec.encode(torch.zeros(1, 2, 40))
    with pytest.raises(ValueError, match=r"expected \[B, 1, S\]"):
        codec.axes((1, 40))
    with pytest.raises(TypeError, match="floating point"):
        codec.encode(torch.zeros(1, 1, 40, dtype=torch.int16))
    for value, sample in ((float("nan"), 17), (float("inf"), 0), (-float("inf"), 39), (1e300, 3)):
        signal = sound(1, 40).double()
        signal[0, 0, sample] = value
        with pytest.raises(ValueError, match="NaN, infinite or huge samples"):
            codec.encode(signal)


def test_wrong_tokens_and_latents_are_refused(codec: DescriptTokenizer) -> None:
    count, size = codec.num_codebooks, codec.vocab_size
    good = torch.zeros(1, 5, count, dtype=torch.long)
    for wrong in (good.new_zeros(1, 5, count + 1), good[..., :0], good[0]):
        with pytest.raises(ValueError, match="codebooks"):
            codec.decode(wrong, (5,))
        with pytest.raises(ValueError, match="codebooks"):
            codec.latents(wrong)
    with pytest.raises(ValueError, match=f"ids from 0 to {size}, expected 0 to {size - 1}"):
        codec.decode(good.index_fill(1, torch.tensor([2]), size), (5,))
    with pytest.raises(ValueError, match="for axes"):
        codec.decode(good, (6,))
    with pytest.raises(TypeError, match="ids"):
        codec.decode(good.int(), (5,))
    with pytest.raises(ValueError, match="scale"):
        codec.decode(good, (5,), torch.ones(1))
    for width in (0, 2, 3 * count + 3):
        with pytest.raises(ValueError, match=r"latents: .* expected \[B, k \* 3, T\]"):
            codec.from_latents(torch.zeros(1, width, 5))
    with pytest.raises(ValueError, match="NaN"):
        codec.from_latents(torch.full((1, 3, 5), torch.nan))
    with pytest.raises(ValueError, match="z_q"):
        codec.synthesise(torch.zeros(1, 3, 5))


@torch.no_grad()
def test_folder_and_json(codec: DescriptTokenizer, tmp_path: Path) -> None:
    config = codec.config
    assert type(config)(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    save_module(codec, tmp_path / "codec")
    again = load_module(tmp_path / "codec", AudioTokenizer)
    assert type(again) is type(codec)
    assert again.config == config
    assert again.identity() == codec.identity()
    assert torch.equal(again.encode(sound(1, 50)), codec.encode(sound(1, 50)))


def test_residual_snake_and_mean() -> None:
    x = sound(2, 6).expand(2, 3, 6)
    snake = Snake(3)
    snake.alpha.data = torch.tensor([0.5, 1.0, 4.0]).view(1, 3, 1)
    torch.testing.assert_close(snake(x), x + torch.sin(snake.alpha * x) ** 2 / snake.alpha)
    snake.alpha.data.zero_()
    assert torch.isfinite(snake(x)).all()
    torch.testing.assert_close(Residual(nn.Identity(), nn.Identity())(x), 2 * x)
    torch.testing.assert_close(Mean([nn.Identity(), Residual(nn.Identity())])(x), 1.5 * x)


# Settings


@pytest.mark.parametrize(
    ("name", "hop", "rate", "quantizers", "codes"),
    [
        ("dac_16khz", 320, Fraction(50), 12, 12),
        ("dac_24khz", 320, Fraction(75), 32, 32),
        ("dac_44khz", 512, Fraction(44100, 512), 9, 9),
        ("dac_44khz_16kbps", 512, Fraction(44100, 512), 18, 18),
    ],
)
def test_published(name: str, hop: int, rate: Fraction, quantizers: int, codes: int) -> None:
    with torch.device("meta"):
        codec = DACTokenizer(dac.PUBLISHED[name])
    assert codec.stride == (hop,)
    assert codec.frame_rate == rate
    assert codec.num_codebooks == codes
    assert codec.config.quantizers == quantizers
    assert codec.code_tables().shape == (codes, 1024, 8)
    assert codec.config.latent_dim == (128 if "16kbps" in name else 1024)
    assert codec.model.decoder.conv1.in_channels == codec.config.latent_dim


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 12}, "codebook_size: got 12, expected a power of two"),
        ({"codebooks": 4}, "codebooks: got 4, expected 1 to 3"),
        ({"codebooks": -1}, "codebooks: got -1, expected a positive"),
        ({"rates": ()}, "rates: got"),
        ({"rates": (1, 4)}, "rates: got"),
        ({"rates": (2, 2.5)}, "rates: got"),
        ({"decoder_dim": 3}, "decoder_dim: got 3, expected 4 or more"),
        ({"sample_rate": 0}, "sample_rate: got 0"),
        ({"latent_dim": -8}, "latent_dim: got -8"),
    ],
)
def test_wrong_dac_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DAC_SMALL, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_rates": (3, 8), "decoder_rates": (3, 8)}, "encoder_rates: got .* expected even"),
        ({"decoder_rates": (4, 4)}, "product 16, expected 512"),
        ({"decoder_dim": 32}, "decoder_dim: got 32, expected 64 or more"),
        ({"codebooks": 0}, "codebooks: got 0"),
        ({"encoder_dim": "64"}, "encoder_dim: got '64'"),
    ],
)
def test_wrong_lac_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LACConfig(**changes)


def test_missing_transformers_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "maskgen\[text\]"'):
        DACTokenizer(DAC_SMALL)
