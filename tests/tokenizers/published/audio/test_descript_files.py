"""Files of DAC and LAC in every layout people have them, at toy and at full size; and what is refused."""

import dataclasses
import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskgen.checkpoint import load_module, save_state
from maskgen.tokenizers.published.audio import dac, lac
from maskgen.tokenizers.published.audio.dac import DACTokenizer, dac_from_files
from maskgen.tokenizers.published.audio.descript_blocks import DescriptTokenizer
from maskgen.tokenizers.published.audio.descript_files import find_sizes, fold_weight_norm
from maskgen.tokenizers.published.audio.lac import lac_from_file
from tests.tokenizers.published.audio.descript_codecs import (
    official_dac,
    official_lac,
    small_dac,
    small_lac,
    with_weight_norm,
)


def test_full_size_dac_converts() -> None:
    config = dac.PUBLISHED["dac_44khz"]
    with torch.device("meta"):
        codec = DACTokenizer(config)
    state = codec.state_dict()
    assert sum(weight.numel() for weight in state.values()) == 76_620_777
    official = with_weight_norm(official_dac(config, state))
    assert sum(weight.numel() for weight in official.values()) == 76_651_890
    assert official["decoder.model.1.block.1.weight_g"].shape == (1536, 1, 1)
    converted = dac.convert(official, config)
    assert {name: weight.shape for name, weight in converted.items()} == {
        name: weight.shape for name, weight in state.items()
    }
    sizes = find_sizes(fold_weight_norm(official, "test"), {}, 44100, "test")
    assert (sizes.encoder_rates, sizes.decoder_rates) == ((2, 4, 8, 8), (8, 8, 4, 2))
    assert (sizes.latent_dim, sizes.encoder_dim, sizes.decoder_dim) == (1024, 64, 1536)
    assert (sizes.n_codebooks, sizes.codebook_size, sizes.codebook_dim) == (9, 1024, 8)


def same(codec: DescriptTokenizer, state: dict[str, Tensor], tolerance: float) -> None:
    expected = codec.state_dict()
    assert state.keys() == expected.keys()
    for name, weight in state.items():
        torch.testing.assert_close(weight, expected[name], atol=tolerance, rtol=tolerance)


def save_hf(codec: DACTokenizer, folder: Path, *, binary: bool, config: bool = True) -> None:
    folder.mkdir()
    if config:
        (folder / "config.json").write_text(json.dumps(codec.model.config.to_dict()))
    state = {name: weight.clone() for name, weight in codec.model.state_dict().items()}
    if binary:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("binary", [False, True])
def test_transformers_folder_and_file(tmp_path: Path, binary: bool) -> None:
    codec = small_dac(latent_dim=8)
    save_hf(codec, tmp_path / "hub", binary=binary)
    name = "pytorch_model.bin" if binary else "model.safetensors"
    for path in (tmp_path / "hub", tmp_path / "hub" / name):
        config, state = dac_from_files(path)
        assert config == codec.config
        same(codec, state, 0)
    config, state = dac_from_files(tmp_path / "hub", codebooks=2)
    assert config == dataclasses.replace(codec.config, codebooks=2)
    save_state(DACTokenizer, config, state, tmp_path / "ours")
    assert load_module(tmp_path / "ours", DACTokenizer).num_codebooks == 2
    with pytest.raises(ValueError, match="codebooks: got 4, expected 1 to 3"):
        dac_from_files(tmp_path / "hub", codebooks=4)


def test_what_transformers_itself_saves(tmp_path: Path) -> None:
    codec = small_dac()
    codec.model.save_pretrained(tmp_path / "hub")
    config, state = dac_from_files(tmp_path / "hub")
    assert config == codec.config
    same(codec, state, 0)


def test_bare_weights_need_the_sample_rate(tmp_path: Path) -> None:
    codec = small_dac()
    save_hf(codec, tmp_path / "hub", binary=False, config=False)
    with pytest.raises(ValueError, match=r"neither settings nor weights tell sample_rate; give sample_rate="):
        dac_from_files(tmp_path / "hub")
    config, state = dac_from_files(tmp_path / "hub", sample_rate=400)
    assert config == codec.config
    same(codec, state, 0)


@pytest.mark.parametrize("legacy", [False, True])
def test_official_dac_file(tmp_path: Path, legacy: bool) -> None:
    codec = small_dac()
    state = with_weight_norm(official_dac(codec.config, codec.state_dict()))
    kwargs = {"sample_rate": 400, "encoder_rates": [2, 4], "codebook_dim": [3, 3, 3], "quantizer_dropout": 0.5}
    content = {"state_dict": state, "metadata": {"kwargs": kwargs, "tag": "best"}}
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy)
    config, found = dac_from_files(tmp_path / "weights.pth")
    assert config == codec.config
    same(codec, found, 1e-6)


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_lac_file(tmp_path: Path, wrapper: str) -> None:
    codec = small_lac()
    state = {f"{wrapper}{name}": weight for name, weight in with_weight_norm(official_lac(codec)).items()}
    kwargs = {"sample_rate": 400, "decoder_rates": [2, 2, 2], "n_codebooks": 3, "unknown": "dropped"}
    torch.save({"state_dict": state, "metadata": {"kwargs": kwargs}}, tmp_path / "codec.pth")
    config, found = lac_from_file(str(tmp_path / "codec.pth"))
    assert config == codec.config
    same(codec, found, 1e-6)
    bare = tmp_path / "codec.safetensors"
    save_file(official_lac(codec), bare)
    with pytest.raises(ValueError, match="sample_rate"):
        lac_from_file(bare)
    config, found = lac_from_file(bare, sample_rate=400)
    assert config == codec.config
    same(codec, found, 0)


def test_newer_weight_norm_is_the_same() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.ConvTranspose1d(4, 2, 3))
    with torch.no_grad():
        layer.parametrizations.weight.original1.mul_(5)
    found = fold_weight_norm({f"a.{name}": value for name, value in layer.state_dict().items()}, "test")
    assert found.keys() == {"a.weight", "a.bias"}
    torch.testing.assert_close(found["a.weight"], layer.weight.detach())


def test_a_weight_of_no_direction_is_refused() -> None:
    state = with_weight_norm(official_lac(small_lac()))
    state["encoder.block.0.weight_v"] = torch.zeros_like(state["encoder.block.0.weight_v"])
    with pytest.raises(ValueError, match=r"encoder\.block\.0\.weight is not finite"):
        fold_weight_norm(state, "codec.pth")


def test_misfits_at_once_under_the_names_that_came_in() -> None:
    codec = small_dac()
    state = with_weight_norm(official_dac(codec.config, codec.state_dict()))
    state["decoder.model.1.block.2.block.0.alfa"] = state.pop("decoder.model.1.block.2.block.0.alpha")
    del state["encoder.block.4.weight_g"]
    state["quantizer.quantizers.0.codebook.weight"] = torch.zeros(8, 3)
    wrong = (
        r"DAC: 5 weights do not fit: missing decoder\.model\.1\.block\.2\.block\.0\.alpha \(1, 8, 1\) \(nearest: "
        r"decoder\.model\.1\.block\.2\.block\.0\.alfa\); missing encoder\.block\.4\.weight .*nearest: "
        r"encoder\.block\.4\.weight_v.*; unexpected .*; quantizer\.quantizers\.0\.codebook\.weight has shape \(8, 3\)"
    )
    with pytest.raises(ValueError, match=wrong):
        dac.convert(state, codec.config)
    hub = dict(codec.model.state_dict())
    del hub["decoder.block.0.conv_t1.bias"]
    with pytest.raises(ValueError, match=r"1 weights do not fit: missing decoder\.block\.0\.conv_t1\.bias \(8,\)"):
        dac.convert(hub, codec.config)
    other = official_lac(small_lac())
    other["decoder.model.1.block.2.mrf_blocks.0.block.0.layer.0.beta"] = other.pop(
        "decoder.model.1.block.2.mrf_blocks.0.block.0.layer.0.alpha"
    )
    with pytest.raises(ValueError, match=r"LAC: 2 weights .* missing decoder\.model\.1\.block\.2\.mrf_blocks.*alpha"):
        lac.convert(other, small_lac().config)


def test_the_families_are_told_apart(tmp_path: Path) -> None:
    codec = small_dac()
    save_file(official_lac(small_lac()), tmp_path / "lac.safetensors")
    save_file(official_dac(codec.config, codec.state_dict()), tmp_path / "dac.safetensors")
    save_file({"weight": torch.zeros(2, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="LAC weights.* lac_from_file"):
        dac_from_files(tmp_path / "lac.safetensors")
    with pytest.raises(ValueError, match="no LAC weights.* dac_from_files"):
        lac_from_file(tmp_path / "dac.safetensors")
    with pytest.raises(ValueError, match="neither settings nor weights tell sample_rate, encoder_dim"):
        dac_from_files(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no LAC weights"):
        lac_from_file(tmp_path / "other.safetensors")


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    codec = small_dac()
    state = official_dac(codec.config, codec.state_dict())
    for kwargs, message in (
        ({"decoder_rates": [2, 4]}, r"decoder rates \(2, 4\), expected \(4, 2\)"),
        ({"codebook_dim": [3, 3, 4]}, r"codes of widths \(3, 3, 4\)"),
        ({"encoder_dim": 8}, r"encoder\.block\.0\.weight has shape \(4, 1, 7\), expected \(8, 1, 7\)"),
        ({"encoder_rates": 2}, r"expected \(2,\)"),
    ):
        torch.save(
            {"state_dict": state, "metadata": {"kwargs": {"sample_rate": 400} | kwargs}}, tmp_path / "weights.pth"
        )
        with pytest.raises(ValueError, match=message):
            dac_from_files(tmp_path / "weights.pth")


def test_files_that_are_refused(tmp_path: Path) -> None:
    package = tmp_path / "codec.pth"
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("codec/LAC/LAC.pth", b"code")
        archive.writestr("codec/.data/extern_modules", "torch")
    for read in (dac_from_files, lac_from_file):
        with pytest.raises(ValueError, match=r"refused: a torch\.package archive.*package=False"):
            read(package)
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"expected model\.safetensors or pytorch_model\.bin"):
        dac_from_files(tmp_path)
    whole = tmp_path / "whole.pth"
    torch.save({"state_dict": official_lac(small_lac())}, whole)
    (tmp_path / "half.pth").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"half\.pth"):
        lac_from_file(tmp_path / "half.pth")
    torch.save({"state_dict": official_lac(small_lac()), "metadata": {"kwargs": nn.Linear(1, 1)}}, whole)
    with pytest.raises(ValueError, match="refused: reading it would run code"):
        lac_from_file(whole)


def test_a_real_torch_package_is_refused(tmp_path: Path) -> None:
    from torch.package import PackageExporter

    with PackageExporter(str(tmp_path / "codec.pth")) as exporter:
        exporter.save_pickle("LAC", "LAC.pth", {"state_dict": {"a": 1}})
    with pytest.raises(ValueError, match=r"refused: a torch\.package archive"):
        lac_from_file(tmp_path / "codec.pth")
