"""DAC and LAC against what the official code recorded, read through the files people have."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.tokenizers.published.audio.dac import DACTokenizer, dac_from_files
from maskgen.tokenizers.published.audio.lac import LACTokenizer, lac_from_file
from tests.parity.support import files, load, metadata

LATENTS = {"atol": 2e-5, "rtol": 0.0}
AUDIO = {"atol": 5e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def dac() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Official weights, recorded signals, and the official constructor's arguments."""
    (path,) = files("vampnet", "dac_tiny.safetensors")
    found = load(path)
    parts = [
        {name.removeprefix(start): value for name, value in found.items() if name.startswith(start)}
        for start in ("params.", "io.")
    ]
    assert sum(map(len, parts)) == len(found), "recorded tensors that no test looks at"
    return parts[0], parts[1], metadata(path)["kwargs"]


def saved(folder: Path, state: dict[str, Tensor], kwargs: dict[str, Any]) -> Path:
    """As audiotools saves it."""
    path = folder / "weights.pth"
    torch.save({"state_dict": state, "metadata": {"kwargs": kwargs}}, path)
    return path


@pytest.fixture(scope="module")
def dac_codec(
    dac: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> DACTokenizer:
    config, state = dac_from_files(saved(tmp_path_factory.mktemp("dac"), dac[0], dac[2]))
    codec = DACTokenizer(config)
    codec.load_state_dict(state)
    return codec.eval()


def official(tokens: Tensor) -> Tensor:
    """[B, T, K] as the official [B, K, T]."""
    return tokens.transpose(1, 2)


def test_dac_settings(
    dac: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]], dac_codec: DACTokenizer
) -> None:
    stated, config = dac[2], dac_codec.config
    assert dataclasses.asdict(config) == {
        "sample_rate": stated["sample_rate"],
        "encoder_dim": stated["encoder_dim"],
        "rates": tuple(stated["encoder_rates"]),
        "latent_dim": stated["latent_dim"],
        "decoder_dim": stated["decoder_dim"],
        "quantizers": stated["n_codebooks"],
        "codebooks": stated["n_codebooks"],
        "codebook_size": stated["codebook_size"],
        "codebook_dim": stated["codebook_dim"],
    }


def test_dac_encodes_and_decodes(
    dac: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]], dac_codec: DACTokenizer
) -> None:
    io = dac[1]
    assert set(io) == {"audio", "audio_padded", "codes", "latents", "z", "decoded"}
    assert torch.equal(dac_codec._to_hops(io["audio"]), io["audio_padded"])
    with torch.no_grad():
        found = dac_codec.analyse(io["audio"])
        sound = dac_codec.synthesise(found.z_q)
        again = dac_codec.decode(dac_codec.encode(io["audio"]), dac_codec.axes(io["audio"].shape))
    assert torch.equal(official(found.tokens), io["codes"])
    assert len(io["codes"].unique()) > dac[2]["codebook_size"] // 4, "too few codes to tell anything"
    torch.testing.assert_close(found.latents, io["latents"], **LATENTS)
    torch.testing.assert_close(found.z_q, io["z"], **LATENTS)
    torch.testing.assert_close(sound, io["decoded"], **AUDIO)
    torch.testing.assert_close(again, io["decoded"], **AUDIO)


def test_dac_with_fewer_codebooks_has_the_first_codes(
    dac: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]], tmp_path: Path
) -> None:
    fewer = dac[2]["n_codebooks"] // 2
    config, state = dac_from_files(saved(tmp_path, dac[0], dac[2]), codebooks=fewer)
    codec = DACTokenizer(config).eval()
    codec.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(official(codec.encode(dac[1]["audio"])), dac[1]["codes"][:, :fewer])
    assert len(codec.code_tables()) == fewer
    for level, table in enumerate(codec.code_tables()):
        assert torch.equal(table, dac[0][f"quantizer.quantizers.{level}.codebook.weight"])


@pytest.fixture(scope="module")
def lac_io() -> tuple[dict[str, Tensor], dict[str, Any]]:
    (path,) = files("vampnet", "interface.safetensors")
    return load(path), metadata(path)["codec"]


@pytest.fixture(scope="module")
def lac(lac_io: tuple[dict[str, Tensor], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> LACTokenizer:
    """The tiny LAC through a file as ``codec.pth``; the recorded settings lack the quantizers' sizes, as old files do."""
    (path,) = files("vampnet", "lac_params.safetensors")
    config, state = lac_from_file(saved(tmp_path_factory.mktemp("lac"), load(path), lac_io[1]))
    codec = LACTokenizer(config)
    codec.load_state_dict(state)
    return codec.eval()


def test_lac_settings(lac_io: tuple[dict[str, Tensor], dict[str, Any]], lac: LACTokenizer) -> None:
    io, stated = lac_io
    for key in ("sample_rate", "encoder_dim", "encoder_rates", "decoder_dim", "decoder_rates"):
        value = getattr(lac.config, key)
        assert (list(value) if isinstance(value, tuple) else value) == stated[key]
    assert lac.stride == (stated["hop_length"],)
    assert torch.equal(lac.code_tables(), io["codebooks"])


def test_lac_encodes_and_decodes(lac_io: tuple[dict[str, Tensor], dict[str, Any]], lac: LACTokenizer) -> None:
    io = lac_io[0]
    with torch.no_grad():
        found = lac.analyse(io["audio"])
        sound = lac.synthesise(found.z_q)
        again = lac.decode(found.tokens, lac.axes(io["audio"].shape))
    assert torch.equal(official(found.tokens), io["codec.codes"])
    torch.testing.assert_close(found.latents, io["codec.latents"], **LATENTS)
    torch.testing.assert_close(found.z_q, io["codec.z_encoder_q"], **LATENTS)
    torch.testing.assert_close(sound, io["codec.audio_out"], **AUDIO)
    torch.testing.assert_close(again, io["codec.audio_out"], **AUDIO)


def test_lac_quantizes_latents_again(lac_io: tuple[dict[str, Tensor], dict[str, Any]], lac: LACTokenizer) -> None:
    io = lac_io[0]
    with torch.no_grad():
        rows = lac.latents(official(io["codec.codes"]))
        z_q, codes = lac.from_latents(rows)
        once, first = lac.from_latents(io["codec.latents"])
    assert torch.equal(official(codes), io["codec.from_latents.codes"])
    torch.testing.assert_close(z_q, io["codec.from_latents.z_q"], **LATENTS)
    # Latents of the encoder lead to the same codes: level by level, since each was projected from what was left.
    assert torch.equal(official(first), io["codec.codes"])
    torch.testing.assert_close(once, z_q, **LATENTS)


def test_lac_decodes_masked_tokens_as_zeros(
    lac_io: tuple[dict[str, Tensor], dict[str, Any]], lac: LACTokenizer
) -> None:
    """The recorded sound is that of the masked grid the run ``vamp`` hands out, by way of ``from_latents``."""
    io = lac_io[0]
    masked = io["vamp.out1"][: len(io["decode_masked.audio"])]
    assert (masked == lac.vocab_size).any()
    tokens = official(masked.masked_fill(masked == lac.vocab_size, 0))
    with torch.no_grad():
        sound = lac.synthesise(lac.from_latents(lac.latents(tokens))[0])
        plain = lac.decode(tokens, (tokens.shape[1],))
    torch.testing.assert_close(sound, io["decode_masked.audio"], **AUDIO)
    torch.testing.assert_close(plain, io["decode_masked.audio"], **AUDIO)


def test_every_recorded_tensor_of_the_codec_is_compared(lac_io: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
    known = {"codes", "latents", "z_encoder_q", "from_latents.z_q", "from_latents.codes", "audio_out"}
    assert {name.removeprefix("codec.") for name in lac_io[0] if name.startswith("codec.")} == known
