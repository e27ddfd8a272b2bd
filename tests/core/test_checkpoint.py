"""Modules on disk: round trips, whole files or none, and errors that say what is wrong with a folder."""

import errno
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from maskgen.checkpoint import (
    atomic_file,
    atomic_folder,
    build_config,
    file_digest,
    load_module,
    read_json,
    save_module,
    settings_from,
    write_json,
)
from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.models.modern import ModernConfig, ModernTransformer
from tests.core.toys import FAMILIES, shaken, transformer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_module(shaken(transformer("modern")), tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip(tmp_path: Path, family: str) -> None:
    model = shaken(transformer(family)).train()
    save_module(model, tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_module(tmp_path / "new" / "folder", MaskedTransformer)
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not loaded.training
    tokens, cond = torch.full((1, 12, 1), 11), Cond(labels=torch.tensor([2]))
    assert torch.equal(loaded(tokens, cond), model.eval()(tokens, cond))


def test_saving_again_replaces(saved: Path) -> None:
    save_module(transformer("bert"), saved)
    assert isinstance(load_module(saved, MaskedTransformer), BertTransformer)


def test_adjust_changes_the_config(saved: Path) -> None:
    def eager(config: ModernConfig) -> ModernConfig:
        return ModernConfig(**{**vars(config), "attention": "eager"})

    assert load_module(saved, ModernTransformer, eager).config.attention == "eager"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config.json: no such file"):
        load_module(tmp_path / "nowhere", nn.Module)


def test_missing_weights(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors: no such file"):
        load_module(saved, nn.Module)


@pytest.mark.parametrize("keep", [0, 5, 100, -3])
def test_truncated_weights(saved: Path, keep: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.safetensors: truncated or not a safetensors file"):
        load_module(saved, nn.Module)


@pytest.mark.parametrize("text", ["", "{", "\ufeff?", '{"class_path": '])
def test_a_config_that_is_not_json(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="config.json: not a JSON file"):
        load_module(saved, nn.Module)


@pytest.mark.parametrize("content", [[], {}, {"model_type": "bert"}, {"class_path": "x"}, "text", None])
def test_a_foreign_config(saved: Path, content: object) -> None:
    (saved / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"config.json: not written by maskgen \(expected the keys"):
        load_module(saved, nn.Module)


def test_another_kind_of_module(saved: Path) -> None:
    with pytest.raises(ValueError, match="holds a ModernTransformer, expected a BertTransformer"):
        load_module(saved, BertTransformer)


def test_an_unknown_key_is_named(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))["config"]
    edit(saved, config=config | {"colour": "red"})
    with pytest.raises(ValueError, match=r"(?s)config.json: .*colour"):
        load_module(saved, nn.Module)


@pytest.mark.parametrize("change", [{"width": "wide"}, {"attention": "flash"}, {"axes": 3}, {"layers": 1.5}])
def test_a_mistyped_value_is_named(saved: Path, change: dict[str, object]) -> None:
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))["config"]
    edit(saved, config=config | change)
    with pytest.raises(ValueError, match=rf"(?s)config.json: .*{next(iter(change))}"):
        load_module(saved, nn.Module)


def test_classes_from_outside_are_refused_and_not_imported(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit", encoding="utf-8")
    sys.path.insert(0, str(tmp_path))
    try:
        for path in ("evil_module.Model", "os_not_there.system", "Model", ""):
            edit(saved, class_path=path)
            with pytest.raises(ValueError, match="is not maskgen's; import its module before loading"):
                load_module(saved, nn.Module)
    finally:
        sys.path.remove(str(tmp_path))
    assert "evil_module" not in sys.modules


def test_the_nearest_class_is_named(saved: Path) -> None:
    edit(saved, class_path="maskgen.models.ModernTransformr")
    with pytest.raises(ValueError, match=r"unknown class .*; the nearest known are maskgen.models.ModernTransformer"):
        load_module(saved, MaskedTransformer)


@pytest.mark.parametrize("path", ["maskgen.models.modern.XyzXyz", "maskgen.nothing.Q"])
def test_an_unknown_class_of_ours(saved: Path, path: str) -> None:
    edit(saved, class_path=path)
    with pytest.raises(ValueError, match="unknown class .* was it written by a newer maskgen"):
        load_module(saved, nn.Module)


@pytest.mark.parametrize(
    "path", ["maskgen.models.modern.ModernConfig", "maskgen.noise.check_seeds", "subprocess.Popen"]
)
def test_something_that_is_no_module(saved: Path, path: str) -> None:
    edit(saved, class_path=path)
    with pytest.raises(ValueError, match=f"holds a {path.rpartition('.')[2]}, expected a Module"):
        load_module(saved, nn.Module)


@pytest.mark.parametrize("path", ["maskgen.models.base.MaskedTransformer", "torch.nn.Linear"])
def test_a_module_that_is_not_built_from_a_config(saved: Path, path: str) -> None:
    edit(saved, class_path=path)
    with pytest.raises(ValueError, match="is not built from a config; name one of its concrete classes"):
        load_module(saved, nn.Module)


def test_weights_that_do_not_fit_are_all_named(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    state["extra.weight"] = torch.zeros(2)
    state.pop("head.bias")
    state["final_modulation.bias"] = torch.zeros(3)
    save_file(state, saved / "model.safetensors")
    wrong = r"3 weights .*missing head.bias \(11,\); unexpected extra.weight .*; final_modulation.bias has shape \(3,\)"
    with pytest.raises(ValueError, match=wrong):
        load_module(saved, nn.Module)


def test_build_config_reads_plain_values() -> None:
    built = build_config(BertConfig, {"axes": [2, 5], "layers": 3, "width": 32, "heads": 4}, "here")
    assert built == BertConfig(axes=(2, 5), layers=3, width=32, heads=4)
    with pytest.raises(ValueError, match=r"(?s)here: .*layer_count"):
        build_config(BertConfig, {"layer_count": 3}, "here")


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_file_replaces_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.txt"
    for text in ("one", "two"):
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
            assert temporary != path
            assert temporary.suffix == path.suffix
    assert path.read_text(encoding="utf-8") == "two"
    assert listing(path.parent) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_atomic_file_leaves_the_old_file_when_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf-8")

    def write() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half of the n", encoding="utf-8")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write()
    assert path.read_text(encoding="utf-8") == "old"
    assert listing(tmp_path) == ["file.txt"]


def test_a_full_disk_while_saving_leaves_the_old_module(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (saved / "model.safetensors").read_bytes()

    def full(state: object, path: Path, metadata: object = None) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("maskgen.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_module(transformer("modern"), saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert listing(saved) == ["config.json", "model.safetensors"]


def test_atomic_folder_is_whole_or_absent(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_folder(tmp_path / "x" / "step") as temporary:
            (temporary / "part").write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert listing(tmp_path / "x") == []
    with atomic_folder(tmp_path / "x" / "step") as temporary:
        (temporary / "part").write_text("whole", encoding="utf-8")
        assert not (tmp_path / "x" / "step").exists()
    assert listing(tmp_path / "x") == ["step"]
    assert (tmp_path / "x" / "step" / "part").read_text(encoding="utf-8") == "whole"


def test_json_round_trip(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None], "b": "Zoë"}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    with pytest.raises(FileNotFoundError, match="y.json: no such file"):
        read_json(tmp_path / "y.json")
    (tmp_path / "y.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="y.json: not a JSON file"):
        read_json(tmp_path / "y.json")


def test_settings_from_others_of_the_same_names() -> None:
    wide = ModernConfig(vocab_size=7, width=48, heads=3, layers=2, axes=(2, 2))
    found = settings_from(wide, BertConfig, heads=4)
    assert (found.vocab_size, found.width, found.layers, found.axes, found.heads) == (7, 48, 2, (2, 2), 4)
    assert found.mlp_width == BertConfig().mlp_width  # which the other lacks


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert file_digest(tmp_path / "a") == "e3b0c44298fc1c14"  # of SHA-256
    assert file_digest(tmp_path / "b") == "none"
