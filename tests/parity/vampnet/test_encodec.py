"""EnCodec against the official package's outputs, through both libraries.

Shapes: B batch, C channels, S samples, T frames, K codebooks.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.tokenizers.published.audio.encodec import EncodecBase, EncodecTokenizer, EncodecTokenizerConfig
from maskgen.tokenizers.published.audio.encodec_files import config_from, convert
from maskgen.tokenizers.published.audio.encodec_package import EncodecPackageTokenizer
from tests.parity.support import load, metadata, own_set, recordings

RECORDED = [
    (path, name)
    for path in recordings("vampnet", "encodec_*.safetensors")
    for name, told in metadata(path).items()
    if "hf_config" in told
]
CHUNKED = [(path, name) for path, name in RECORDED if metadata(path)[name]["hf_config"]["chunk_length_s"]]
WHOLE = [case for case in RECORDED if case not in CHUNKED]
LIBRARIES = [EncodecTokenizer, EncodecPackageTokenizer]
ATOL = 1e-5  # of audio, README of the recordings
each_library = pytest.mark.parametrize("library", LIBRARIES)


def label(value: object) -> str:
    return str(getattr(value, "stem", getattr(value, "__name__", value)))


def test_both_kinds_are_recorded() -> None:
    assert RECORDED
    assert (WHOLE and CHUNKED) or not own_set("vampnet")
    # The last frame is not whole, which is the harder case.
    lengths = [(recording(*case)[1]["audio"].shape[-1], recording(*case)[2].hop) for case in WHOLE]
    assert all(length % hop for length, hop in lengths) or not own_set("vampnet")


@cache
def recording(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], EncodecTokenizerConfig]:
    """Official weights, inputs and outputs, and the settings they were made with."""
    stored, told = load(path), metadata(path)[name]
    weights, io = (
        {key.removeprefix(start): tensor for key, tensor in stored.items() if key.startswith(start)}
        for start in (f"{name}.params.", f"{name}.io.")
    )
    sizes = told["hf_config"]
    config = EncodecTokenizerConfig(
        bandwidth=told["bandwidth"],
        bandwidths=sizes["target_bandwidths"],
        sample_rate=sizes["sampling_rate"],
        channels=sizes["audio_channels"],
        ratios=sizes["upsampling_ratios"],
        filters=sizes["num_filters"],
        dim=sizes["hidden_size"],
        codebook_size=sizes["codebook_size"],
        causal=sizes["use_causal_conv"],
        norm=sizes["norm_type"],
        normalize=sizes["normalize"],
    )
    return weights, io, config


@cache
def tokenizer(library: type[EncodecBase], path: Path, name: str) -> EncodecBase:
    weights, _, config = recording(path, name)
    built = library(config)
    built.load_state_dict(convert(weights, config))
    return built.eval()


@pytest.mark.parametrize(("path", "name"), RECORDED, ids=label)
def test_sizes_are_read_from_the_weights(path: Path, name: str) -> None:
    weights, _, config = recording(path, name)
    seen = config_from(weights)
    for size in ("channels", "ratios", "filters", "residual_layers", "lstm_layers", "dim", "codebook_size", "norm"):
        assert getattr(seen, size) == getattr(config, size), size
    assert seen.quantizers == config.quantizers


@each_library
@pytest.mark.parametrize(("path", "name"), WHOLE, ids=label)
def test_whole_sounds(path: Path, name: str, library: type[EncodecBase]) -> None:
    _, io, _ = recording(path, name)
    codec = tokenizer(library, path, name)
    with torch.no_grad():
        tokens, scale = codec.encode_scaled(io["audio"])
        decoded = codec.decode(tokens, codec.axes(io["audio"].shape), scale)
    assert scale is None
    assert torch.equal(tokens.transpose(1, 2), io["codes0"])
    assert decoded.shape == io["decoded"].shape
    torch.testing.assert_close(decoded, io["decoded"], atol=ATOL, rtol=0)


def cut(audio: Tensor, sizes: dict[str, Any]) -> tuple[list[Tensor], int]:
    """The original's chunks, and how far apart they start."""
    length = int(sizes["chunk_length_s"] * sizes["sampling_rate"])
    stride = max(1, int((1 - sizes["overlap"]) * length))
    return [audio[..., start : start + length] for start in range(0, audio.shape[-1], stride)], stride


def overlap_add(parts: list[Tensor], stride: int) -> Tensor:
    """The original's cross-fade: a triangle over each chunk, and the sum divided by the sum of the triangles."""
    total = stride * (len(parts) - 1) + parts[-1].shape[-1]
    length = parts[0].shape[-1]
    triangle = 0.5 - (torch.linspace(0, 1, length + 2)[1:-1] - 0.5).abs()
    out, weight = torch.zeros(*parts[0].shape[:-1], total), torch.zeros(total)
    for number, part in enumerate(parts):
        place = slice(number * stride, number * stride + part.shape[-1])
        out[..., place] += triangle[: part.shape[-1]] * part
        weight[place] += triangle[: part.shape[-1]]
    return out / weight


@each_library
@pytest.mark.parametrize(("path", "name"), CHUNKED, ids=label)
def test_chunk_by_chunk(path: Path, name: str, library: type[EncodecBase]) -> None:
    """Sounds of one chunk or less are what the original makes of them; cross-faded they are its whole output."""
    _, io, config = recording(path, name)
    codec = tokenizer(library, path, name)
    chunks, stride = cut(io["audio"], metadata(path)[name]["hf_config"])
    assert len(chunks) == sum(key.startswith("codes") for key in io) > 1
    parts = []
    for number, chunk in enumerate(chunks):
        with torch.no_grad():
            tokens, scale = codec.encode_scaled(chunk)
            assert scale is not None
            parts.append(codec.decode(tokens, codec.axes(chunk.shape), scale))
        assert torch.equal(tokens.transpose(1, 2), io[f"codes{number}"])
        torch.testing.assert_close(scale[:, None], io[f"scale{number}"], atol=1e-6, rtol=1e-6)
    decoded = overlap_add(parts, stride)
    assert decoded.shape == io["decoded"].shape
    torch.testing.assert_close(decoded, io["decoded"], atol=ATOL, rtol=0)
    # What differs for longer sounds: one grid and one factor, where chunks overlap and have a factor each.
    with torch.no_grad():
        tokens, scale = codec.encode_scaled(io["audio"])
    assert tokens.shape[1] == -(-io["audio"].shape[-1] // config.hop)
    assert tokens.shape[1] < sum(io[f"codes{number}"].shape[-1] for number in range(len(chunks)))
    assert not torch.equal(tokens[:, : io["codes0"].shape[-1]].transpose(1, 2), io["codes0"])
    assert scale is not None
    assert scale.shape == (len(io["audio"]),)


@pytest.mark.parametrize(("path", "name"), RECORDED, ids=label)
def test_the_model_inside_is_the_original(path: Path, name: str) -> None:
    """transformers' model under our names of the weights, chunks switched on as the original has them."""
    from transformers import EncodecConfig, EncodecModel

    weights, io, config = recording(path, name)
    told = metadata(path)[name]
    model = EncodecModel(EncodecConfig(**told["hf_config"])).eval()
    model.load_state_dict({key.removeprefix("codec."): value for key, value in convert(weights, config).items()})
    with torch.no_grad():
        found = model.encode(io["audio"], bandwidth=told["bandwidth"])
        decoded = model.decode(
            found.audio_codes, found.audio_scales, last_frame_pad_length=found.last_frame_pad_length
        ).audio_values
    for number, codes in enumerate(found.audio_codes):
        expected = io[f"codes{number}"]
        assert torch.equal(codes[..., : expected.shape[-1]], expected)
        if f"scale{number}" in io:
            torch.testing.assert_close(found.audio_scales[number], io[f"scale{number}"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(decoded, io["decoded"], atol=ATOL, rtol=0)


@pytest.mark.parametrize(("path", "name"), RECORDED, ids=label)
def test_both_libraries_agree(path: Path, name: str) -> None:
    _, io, _ = recording(path, name)
    one, other = (tokenizer(library, path, name) for library in LIBRARIES)
    with torch.no_grad():
        (tokens, scale), (same, same_scale) = one.encode_scaled(io["audio"]), other.encode_scaled(io["audio"])
        assert torch.equal(tokens, same)
        torch.testing.assert_close(scale, same_scale)
        axes = one.axes(io["audio"].shape)
        torch.testing.assert_close(
            one.decode(tokens, axes, scale), other.decode(tokens, axes, scale), atol=1e-6, rtol=0
        )
    assert torch.equal(one.code_tables(), other.code_tables())
    assert one.code_tables().shape == (one.num_codebooks, one.vocab_size, one.config.dim)
    assert torch.equal(one.code_tables()[0], recording(path, name)[0]["quantizer.vq.layers.0._codebook.embed"])
