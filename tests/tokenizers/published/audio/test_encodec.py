"""EnCodec: the contract of audio tokenizers in both libraries, one weights file for both, and the readers.

Shapes: B batch, C channels, S samples, T frames, K codebooks.
"""

import dataclasses
import json
import math
import re
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from maskgen.checkpoint import load_module, save_module
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.published.audio.encodec import EncodecBase, EncodecTokenizer, EncodecTokenizerConfig
from maskgen.tokenizers.published.audio.encodec_files import (
    PUBLISHED,
    config_from,
    convert,
    encodec_from_files,
    transformers_names,
)
from maskgen.tokenizers.published.audio.encodec_package import EncodecPackageTokenizer

SMALL = {"filters": 4, "dim": 16, "ratios": (4, 2), "codebook_size": 16, "sample_rate": 800}
MONO = EncodecTokenizerConfig(bandwidth=1.6, bandwidths=(0.8, 1.6), **SMALL)
STEREO = dataclasses.replace(MONO, channels=2, causal=False, norm="time_group_norm", normalize=True)
PLAIN = dataclasses.replace(MONO, causal=False, conv_shortcut=False, residual_layers=2, lstm_layers=1)
CONFIGS = {"mono": MONO, "stereo": STEREO, "plain": PLAIN}
LIBRARIES = (EncodecTokenizer, EncodecPackageTokenizer)
EDGE = next(  # a bandwidth whose codebooks the libraries count differently
    bandwidth
    for bandwidth in (count * 57 * 4 / 1000 for count in range(1, 65))
    if 1000 * bandwidth // 228 != math.floor(bandwidth / (4.0 * 57 / 1000))
)
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))


def build(library: type[EncodecBase], config: EncodecTokenizerConfig, seed: int = 0) -> EncodecBase:
    """A codec whose codes vary: as libraries draw them, small networks answer every sound alike."""
    torch.manual_seed(seed)
    codec = library(config).eval()
    with torch.no_grad():
        for name, weight in codec.named_parameters():
            if name.endswith(("original0", "weight_g")):
                weight.mul_(2)
    return codec


@pytest.fixture(params=[(library, name) for library in LIBRARIES for name in CONFIGS], scope="module")
def codec(request: pytest.FixtureRequest) -> EncodecBase:
    library, name = request.param
    return build(library, CONFIGS[name])


def sound(codec: AudioTokenizer, batch: int, samples: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, codec.channels, samples, generator=torch.Generator().manual_seed(seed)) * 0.3


def test_published_sizes() -> None:
    """Parameters, hops and codebooks of section 7.3 of the specification; no memory is taken."""
    told = {
        "encodec_24khz": (14_851_810, 24_000, 1, 320, 75, 1024, {1.5: 2, 3.0: 4, 6.0: 8, 12.0: 16, 24.0: 32}),
        "encodec_48khz": (14_856_294, 48_000, 2, 320, 150, 1024, {3.0: 2, 6.0: 4, 12.0: 8, 24.0: 16}),
        "encodec_32khz": (56_884_674, 32_000, 1, 640, 50, 2048, {2.2: 4}),
    }
    assert set(PUBLISHED) == set(told)
    for name, (parameters, rate, channels, hop, frames, codes, codebooks) in told.items():
        for library in LIBRARIES:
            with torch.device("meta"):
                codec = library(PUBLISHED[name])
            assert sum(weight.numel() for weight in codec.parameters()) == parameters
            assert (codec.sample_rate, codec.channels, codec.stride) == (rate, channels, (hop,))
            assert (codec.frame_rate, codec.vocab_size) == (Fraction(frames), codes)
        config = PUBLISHED[name]
        for bandwidth, count in codebooks.items():
            chosen = dataclasses.replace(config, bandwidth=bandwidth)
            assert chosen.codebooks_at(bandwidth) == count
            assert chosen.quantizers == max(codebooks.values())
        assert tuple(codebooks) == config.bandwidths
    assert EncodecTokenizerConfig.encodec_24khz(24.0).codebooks_at(24.0) == 32


def test_shapes_and_types(codec: EncodecBase) -> None:
    for samples in (1, 7, 8, 9, 100):
        signal = sound(codec, 2, samples)
        axes = codec.axes(signal.shape)
        assert axes == (-(-samples // 8),)
        with torch.no_grad():
            tokens, scale = codec.encode_scaled(signal)
            decoded = codec.decode(tokens, axes, scale)
        assert tokens.shape == (2, axes[0], codec.num_codebooks)
        assert tokens.dtype == torch.long
        assert decoded.shape == (2, codec.channels, axes[0] * 8)
        assert decoded.dtype == torch.float32
        assert (scale is None) == (not codec.config.normalize)
        assert torch.equal(codec.encode(signal), tokens)
    assert codec.num_codebooks == 4
    assert min(len(column.unique()) for column in tokens.flatten(0, 1).unbind(1)) > 3


def test_items_do_not_see_each_other(codec: EncodecBase) -> None:
    signal = sound(codec, 3, 500, seed=1) * torch.tensor([0.1, 1.0, 3.0])[:, None, None]
    axes = codec.axes(signal.shape)
    with torch.no_grad():
        together, scales = codec.encode_scaled(signal)
        decoded = codec.decode(together, axes, scales)
        for i in range(3):
            alone, scale = codec.encode_scaled(signal[i : i + 1])
            assert torch.equal(alone[0], together[i])
            torch.testing.assert_close(codec.decode(alone, axes, scale)[0], decoded[i], atol=2e-6, rtol=1e-5)
            if scale is not None:
                assert scales is not None
                torch.testing.assert_close(scale, scales[i : i + 1])


def test_loudness_is_kept_aside() -> None:
    codec = build(EncodecTokenizer, STEREO)
    signal = sound(codec, 2, 400)
    with torch.no_grad():
        tokens, scale = codec.encode_scaled(signal)
        louder, more = codec.encode_scaled(signal * 4)
        assert scale is not None
        assert more is not None
        torch.testing.assert_close(scale, signal.mean(dim=1).pow(2).mean(dim=1).sqrt() + 1e-8)
        torch.testing.assert_close(more, scale * 4)
        assert torch.equal(tokens, louder)
        torch.testing.assert_close(codec.decode(tokens, (50,), more), codec.decode(tokens, (50,)) * more[:, None, None])
        silent, none = codec.encode_scaled(torch.zeros(1, 2, 400))
    assert none is not None
    assert (none > 0).all()
    assert silent.shape == (1, 50, 4)
    with pytest.raises(ValueError, match=r"scale: got shape \(1,\), expected \[2\], one factor an item"):
        codec.decode(tokens, (50,), scale[:1])


def test_fewer_codebooks_are_less_detail(codec: EncodecBase) -> None:
    """Decoding k codebooks is decoding all with the other tables at zero."""
    signal = sound(codec, 1, 200)
    with torch.no_grad():
        tokens = codec.encode(signal)
        coarse = codec.decode(tokens[..., :2], (25,))
        books = codec._books()
        kept = [book.get_buffer("embed").clone() for book in books]
        for book in books[2:]:
            book.get_buffer("embed").zero_()
        torch.testing.assert_close(codec.decode(tokens, (25,)), coarse)
        for book, table in zip(books, kept, strict=True):
            book.get_buffer("embed").copy_(table)
        assert not torch.equal(codec.decode(tokens, (25,)), coarse)


@each_config
def test_a_lower_bandwidth_is_the_first_codebooks(config: EncodecTokenizerConfig) -> None:
    for library in LIBRARIES:
        full, low = (build(library, dataclasses.replace(config, bandwidth=bandwidth)) for bandwidth in (1.6, 0.8))
        signal = sound(full, 2, 300)
        with torch.no_grad():
            tokens, few = full.encode(signal), low.encode(signal)
        assert torch.equal(tokens[..., :2], few)
        assert low.code_tables().shape == (2, 16, 16)
        assert torch.equal(low.code_tables(), full.code_tables()[:2])
        assert low.identity() != full.identity()


@settings(max_examples=15)
@given(st.integers(1, 400), st.integers(0, 9))
def test_any_length(samples: int, seed: int) -> None:
    for name in ("mono", "stereo"):
        signal = sound(ANY[name][0], 1, samples, seed)
        found = []
        for codec in ANY[name]:
            with torch.no_grad():
                tokens, scale = codec.encode_scaled(signal)
                assert codec.decode(tokens, codec.axes(signal.shape), scale).shape[-1] == -(-samples // 8) * 8
            found.append(tokens)
        assert torch.equal(*found)


def pair(config: EncodecTokenizerConfig) -> tuple[EncodecBase, EncodecBase]:
    """Both libraries with the same weights."""
    one, other = (build(library, config, seed) for seed, library in enumerate(LIBRARIES))
    other.load_state_dict(one.state_dict())
    return one, other


ANY = {name: pair(CONFIGS[name]) for name in ("mono", "stereo")}


@each_config
def test_one_weights_file_serves_both(config: EncodecTokenizerConfig, tmp_path: Path) -> None:
    package = build(EncodecPackageTokenizer, config, seed=5)
    save_module(package, tmp_path / "package")
    one = build(EncodecTokenizer, config)
    one.load_state_dict(package.state_dict())
    save_module(one, tmp_path / "transformers")
    kinds = [f"{folder}/model.safetensors" for folder in ("package", "transformers")]
    assert (tmp_path / kinds[0]).read_bytes() == (tmp_path / kinds[1]).read_bytes()
    signal = sound(one, 2, 333)
    with torch.no_grad():
        tokens, scale = one.encode_scaled(signal)
        expected = one.decode(tokens, (42,), scale)
        for folder in ("package", "transformers"):
            loaded = load_module(tmp_path / folder, AudioTokenizer)  # type: ignore[type-abstract]
            assert loaded.config == config
            again, factor = loaded.encode_scaled(signal)
            assert torch.equal(again, tokens)
            torch.testing.assert_close(loaded.decode(again, (42,), factor), expected, atol=1e-6, rtol=0)
            assert loaded.identity() == one.identity()


def test_another_bandwidth_of_a_saved_codec(tmp_path: Path) -> None:
    """The folder holds all tables, so the number of codebooks can be chosen when it is loaded."""
    save_module(build(EncodecTokenizer, dataclasses.replace(MONO, bandwidth=0.8)), tmp_path)
    loaded = load_module(tmp_path, EncodecTokenizer, lambda config: dataclasses.replace(config, bandwidth=1.6))
    assert loaded.num_codebooks == 4
    assert torch.equal(loaded.code_tables(), build(EncodecTokenizer, MONO).code_tables())


def test_the_package_loads_its_own_names_and_refuses_others() -> None:
    source, target = build(EncodecPackageTokenizer, MONO, 1), build(EncodecPackageTokenizer, MONO, 2)
    target.load_state_dict({f"codec.{name}": tensor for name, tensor in source.codec.state_dict().items()})
    assert torch.equal(target.code_tables(), source.code_tables())
    assert transformers_names(source.codec.state_dict()).keys() == source.state_dict().keys()
    state = source.state_dict()
    state["codec.nothing"] = state.pop("codec.encoder.layers.0.conv.bias")
    with pytest.raises(RuntimeError, match=r"Missing key.*model\.0\.conv\.conv\.bias(.|\n)*Unexpected key.*nothing"):
        target.load_state_dict(state)


def test_training_does_not_change_the_tables() -> None:
    codec = build(EncodecPackageTokenizer, MONO).train()
    before = codec.code_tables().clone()
    codec.encode(sound(codec, 2, 300))
    assert torch.equal(codec.code_tables(), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bandwidth": 5.0},
            r"bandwidth: got 5.0, but this codec has 1.5 \(2 codebooks\), 3 \(4 codebooks\), 6 \(8 codebooks\), ",
        ),
        ({"bandwidths": (6.0, 3.0)}, "bandwidths: got .*, expected ascending"),
        ({"bandwidths": (0.1,), "bandwidth": 0.1}, "less than one codebook"),
        (
            {"bandwidths": (EDGE,), "bandwidth": EDGE, "sample_rate": 57 * 320, "codebook_size": 16},
            r"kbps is \d+ or \d+ codebooks, as rounding goes",
        ),
        ({"channels": 3}, "channels: got 3, expected 1 or 2"),
        ({"ratios": ()}, "ratios: got"),
        ({"codebook_size": 1000}, "codebook_size: got 1000, expected a power of two"),
        ({"norm": "none"}, "norm: got 'none'"),
        ({"norm": "time_group_norm"}, "causal must be False"),
        ({"dim": 0}, "dim: got 0, expected 1 or more"),
    ],
)
def test_configs_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncodecTokenizerConfig(**changes)


@each_config
def test_configs_survive_json(config: EncodecTokenizerConfig) -> None:
    again = EncodecTokenizerConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config


def test_what_is_refused(codec: EncodecBase) -> None:
    with pytest.raises(TypeError, match="audio: got torch.int16"):
        codec.encode(torch.zeros(1, codec.channels, 80, dtype=torch.int16))
    with pytest.raises(ValueError, match=rf"expected \[B, {codec.channels}, S\]"):
        codec.encode(torch.zeros(1, 3, 80))
    with pytest.raises(ValueError, match=r"got ids from 0 to 16, expected 0 to 15; the mask id"):
        codec.decode(torch.full((1, 3, 4), 16).masked_fill(torch.eye(3, 4).bool(), 0), (3,))
    with pytest.raises(ValueError, match=r"with 1 to 4 codebooks"):
        codec.decode(torch.zeros(1, 3, 5, dtype=torch.long), (3,))
    with torch.no_grad():
        assert codec.encode(sound(codec, 1, 80).to(torch.bfloat16)).shape == (1, 10, 4)


def test_sounds_too_long_for_transformers() -> None:
    codec = build(EncodecTokenizer, MONO)
    with pytest.raises(ValueError, match=r"got 16777217 samples, expected at most 16777216; encode it in parts"):
        codec.encode(torch.zeros(1).expand(1, 1, 2**24 + 1))


@pytest.mark.parametrize(("module", "extra"), [("transformers", "text"), ("encodec", "audio")])
def test_a_missing_library_is_named(module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    library = EncodecTokenizer if module == "transformers" else EncodecPackageTokenizer
    with pytest.raises(ImportError, match=re.escape(f'pip install "maskgen[{extra}]"')):
        library(MONO)


class TestReaders:
    def official(self, config: EncodecTokenizerConfig) -> dict[str, Tensor]:
        return build(EncodecPackageTokenizer, config, 7).codec.state_dict()

    def hub(self, config: EncodecTokenizerConfig, folder: Path, *, old: bool = False) -> EncodecBase:
        """A folder as transformers writes it; ``old`` with the names from before torch moved weight norm."""
        codec = build(EncodecTokenizer, config, 8)
        codec.codec.save_pretrained(folder)
        if old:
            state = {
                name.replace("parametrizations.weight.original0", "weight_g").replace(
                    "parametrizations.weight.original1", "weight_v"
                ): tensor
                for name, tensor in codec.codec.state_dict().items()
            }
            (folder / "model.safetensors").unlink()
            torch.save(state, folder / "pytorch_model.bin")
        return codec

    @each_config
    def test_official_files(self, config: EncodecTokenizerConfig, tmp_path: Path) -> None:
        state = self.official(config)
        torch.save(state, tmp_path / "w.th")
        found, converted = encodec_from_files(tmp_path / "w.th")
        assert found.codebooks_at(found.bandwidth) == config.quantizers  # the file does not tell how many to use
        for size in ("channels", "ratios", "filters", "residual_layers", "lstm_layers", "dim", "conv_shortcut", "norm"):
            assert getattr(found, size) == getattr(config, size), size
        codec = EncodecTokenizer(config)
        codec.load_state_dict(converted)
        assert torch.equal(codec.code_tables()[1], state["quantizer.vq.layers.1._codebook.embed"])

    @each_config
    @pytest.mark.parametrize("old", [False, True])
    def test_folders_of_the_hub(self, config: EncodecTokenizerConfig, old: bool, tmp_path: Path) -> None:
        codec = self.hub(config, tmp_path, old=old)
        found, state = encodec_from_files(tmp_path)
        assert found == dataclasses.replace(config, bandwidth=0.8)  # of those it has, the lowest
        for name, tensor in codec.state_dict().items():
            assert torch.equal(state[name], tensor), name

    @pytest.mark.parametrize("quantizers", range(1, 33))
    def test_any_number_of_codebooks(self, quantizers: int) -> None:
        config = dataclasses.replace(MONO, bandwidth=(quantizers + 0.5) * 0.4, bandwidths=((quantizers + 0.5) * 0.4,))
        with torch.device("meta"):
            state = EncodecTokenizer(config).state_dict()
        found = config_from(state)
        assert found.quantizers == quantizers
        with torch.device("meta"):
            codec = EncodecTokenizer(found)
        assert codec.num_codebooks == len(codec._books()) == quantizers

    def test_published_weights_are_recognised(self) -> None:
        for config in PUBLISHED.values():
            for library in LIBRARIES:
                with torch.device("meta"):
                    assert config_from(library(config).state_dict()) == config

    def test_every_wrong_name_at_once(self, tmp_path: Path) -> None:
        state = self.official(MONO)
        state["encoder.model.0.conv.conv.bia"] = state.pop("encoder.model.0.conv.conv.bias")
        state["decoder.model.9.conv.conv.bias"] = torch.zeros(5)
        with pytest.raises(ValueError, match="3 weights do not fit") as error:
            convert(state, MONO)
        assert "missing codec.encoder.layers.0.conv.bias (4,)" in str(error.value)
        assert "unexpected codec.encoder.layers.0.conv.conv.bia (4,)" in str(error.value)
        assert "codec.decoder.layers.9.conv.bias has shape (5,), expected (1,)" in str(error.value)
        torch.save(state, tmp_path / "w.th")
        with pytest.raises(ValueError, match=r"w\.th: EnCodec: 3 weights"):
            encodec_from_files(tmp_path / "w.th")

    def test_files_of_other_things(self, tmp_path: Path) -> None:
        save_file({"fc.weight": torch.ones(1)}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=r"model\.safetensors: EnCodec: weights that show its sizes are missing"):
            encodec_from_files(tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text('{"model_type": "dac"}')
        with pytest.raises(ValueError, match="config.json is of 'dac', expected model_type 'encodec'"):
            encodec_from_files(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "encodec", "compress": 4}')
        with pytest.raises(ValueError, match="config.json has compress 4, expected 2"):
            encodec_from_files(tmp_path)
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match=r"holds neither model\.safetensors nor pytorch_model\.bin"):
            encodec_from_files(tmp_path / "empty")
        with pytest.raises(FileNotFoundError, match="no such file"):
            encodec_from_files(tmp_path / "nothing.th")
        twice = self.official(MONO)
        twice["encoder.layers.0.conv.bias"] = twice["encoder.model.0.conv.conv.bias"]
        with pytest.raises(ValueError, match="there twice, in two layouts"):
            convert(twice, MONO)
