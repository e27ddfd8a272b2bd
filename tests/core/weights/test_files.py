"""Weights files of other groups: what is read, what is refused, and that nothing is copied or run."""

import argparse
import copy
import io
import os
import pickle
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from maskgen.weights.files import guess_container, read_weights
from maskgen.weights.flax_msgpack import flatten_tree, read_flax
from tests.flax_files import chunked, nested, write_flax

DTYPES = ["float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool", "complex64"]


def weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 5, generator=generator) for name in ("encoder.weight", "encoder.bias", "head.weight")}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def one_line(error: pytest.ExceptionInfo[BaseException], path: Path) -> None:
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


class TestFlax:
    def test_every_element_type(self, tmp_path: Path) -> None:
        arrays = {name: (torch.randn(2, 3, 4) * 3).to(getattr(torch, name)) for name in DTYPES}
        arrays |= {"empty": torch.empty(0, 3), "point": torch.tensor(2.5), "long": torch.arange(70_000)}
        write_flax(tmp_path / "w", arrays)
        same(read_weights(tmp_path / "w"), arrays)

    def test_scalars_numbers_and_words(self, tmp_path: Path) -> None:
        tree = {
            "a": (torch.tensor(1.5),),
            "step": 7,
            "rate": 0.5,
            "on": True,
            "none": None,
            "name": "x",
            "deep": {"b": 1},
        }
        write_flax(tmp_path / "w", tree)
        found = read_flax(tmp_path / "w")
        assert torch.equal(found.pop("a"), torch.tensor(1.5))
        assert found == {key: value for key, value in tree.items() if key != "a"}
        same(read_weights(tmp_path / "w"), {"a": torch.tensor(1.5)})

    def test_chunked_arrays(self, tmp_path: Path) -> None:
        array = torch.randn(4, 5, 3)
        write_flax(tmp_path / "w", {"params": {"big": chunked(array, 7), "small": array[0]}})
        same(read_weights(tmp_path / "w"), {"params/big": array, "params/small": array[0]})

    def test_only_the_parameters_are_taken(self, tmp_path: Path) -> None:
        state, averaged, other = weights(0), weights(1), weights(2)
        named = {f"params/{name}": tensor for name, tensor in state.items()}
        for tree in (
            {"params": state},
            {"step": 3, "params": state, "opt_state": {"0": {"mu": other}}, "batch_stats": other},
            {"step": 3, "optimizer": {"target": {"params": state}, "state": other}, "ema_params": averaged},
        ):
            write_flax(tmp_path / "w", tree)
            same(read_weights(tmp_path / "w"), named)
        same(read_weights(tmp_path / "w", ema=True), averaged)
        write_flax(tmp_path / "w", {"params": state})
        with pytest.raises(ValueError, match=r"holds no averaged weights \(ema\); its entries are params") as error:
            read_weights(tmp_path / "w", ema=True)
        one_line(error, tmp_path / "w")

    def test_tensors_are_views_of_a_private_map(self, tmp_path: Path) -> None:
        path = tmp_path / "w"
        write_flax(path, {"params": nested({f"layer_{i}/kernel": torch.randn(64, 64) for i in range(20)})})
        before = path.read_bytes()
        found = flatten_tree(read_flax(path))
        places = [tensor.data_ptr() for tensor in found.values()]
        assert max(places) - min(places) < len(before)
        first = found["params/layer_0/kernel"]
        first.zero_()
        assert path.read_bytes() == before
        del found  # the map lives as long as a view of it
        assert not first.any()

    def test_truncated_anywhere(self, tmp_path: Path) -> None:
        path = tmp_path / "w"
        write_flax(path, {"params": {"a": torch.randn(3, 2), "b": chunked(torch.randn(6), 4), "c": (torch.ones(()),)}})
        whole = path.read_bytes()
        for size in range(1, len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match=r"truncated|damaged") as error:
                read_weights(path)
            one_line(error, path)
        path.write_bytes(whole + b"\x00")
        with pytest.raises(ValueError, match="1 bytes follow the tree"):
            read_weights(path)

    @given(st.binary(min_size=1, max_size=60), st.sampled_from([0x81, 0x83, 0xDE, 0xDF]))
    def test_noise_is_never_more_than_a_value_error(self, noise: bytes, start: int) -> None:
        path = Path(os.environ["TMPDIR_FOR_NOISE"]) / "noise"
        path.write_bytes(bytes([start]) + noise)
        try:
            read_weights(path)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017

    @pytest.fixture(autouse=True)
    def place(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TMPDIR_FOR_NOISE", str(tmp_path_factory.mktemp("noise")))

    def test_what_flax_does_not_write(self, tmp_path: Path) -> None:
        path = tmp_path / "w"
        for content, message in (
            (b"\x81\xa1a\xc1", "byte 0xc1 at 3 starts no value"),
            (b"\x81\xa1a\xc7\x01\x09\x00", "extension type 9, expected 1 to 3"),
            (b"\x81\xa1a\xc7\x08\x01\x93\x91\x01\xa2ab\xc4\x00", "an array of ab, expected one of float16"),
            (b"\x81\xa1a\xc7\x0d\x01\x93\x91\x01\xa5uint8\xc4\x02zz", r"uint8 \(1,\) in 2 bytes, expected 1"),
            (b"\x81\xa1a" + b"\x91" * 200, "more than 100 levels"),
            (b"\x81\xa1a\x01", "holds no weights; its entries are a"),
            (b"\xdd\x00\x00\x00\x01\x01", "no flax msgpack, PyTorch or safetensors file"),
        ):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=message) as error:
                read_weights(path)
            one_line(error, path)


class TestTorch:
    def test_containers(self, tmp_path: Path) -> None:
        state, other = weights(0), weights(1)
        for number, content in enumerate(
            (
                state,
                {"state_dict": state, "epoch": 3, "optimizer_states": [{"state": {0: other}}]},
                {"model": state, "optimizer": {"state": {}}, "ema": other},
                {"model_state_dict": state, "iter": 1, "global_epoch": 2, "optimizer_state_dict": {"state": {}}},
                {"state_dict": {"model": state}},
                {f"module.{name}": tensor for name, tensor in state.items()},
                {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
                {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
                {name.replace("encoder.", "encoder._orig_mod."): tensor for name, tensor in state.items()},
                {"model": {"module." + name: nn.Parameter(tensor) for name, tensor in state.items()}},
            )
        ):
            path = tmp_path / f"{number}.anything"
            torch.save(content, path)
            assert guess_container(path) == "torch"
            same(read_weights(path), state)
            torch.save(content, path, _use_new_zipfile_serialization=False)
            assert guess_container(path) == "pickle"
            same(read_weights(path), state)

    def test_averaged_copies(self, tmp_path: Path) -> None:
        state, averaged = weights(0), weights(1)
        flat = {"model_ema." + name.replace(".", ""): tensor for name, tensor in averaged.items()}
        path = tmp_path / "w.pt"
        for content in (
            {"model": state, "ema": averaged},
            {"model": state, "ema": {"shadow": averaged, "decay": 0.9}},
            {"state_dict": {"model": state, "model_ema": averaged}},
            {"state_dict": {**state, **flat, "model_ema.decay": torch.tensor(0.9)}},
        ):
            torch.save(content, path)
            same(read_weights(path), state)
            same(read_weights(path, ema=True), averaged)
        torch.save({"model": state, "epoch": 1}, path)
        with pytest.raises(ValueError, match=r"holds no averaged weights \(ema\); its entries are model, epoch"):
            read_weights(path, ema=True)

    def test_the_file_is_mapped(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pt"
        torch.save({"model": {f"layer.{i}": torch.randn(500, 500) for i in range(8)}}, path)
        before = path.read_bytes()
        found = read_weights(path)
        places = [tensor.data_ptr() for tensor in found.values()]
        assert max(places) - min(places) < len(before)
        found["layer.0"].zero_()
        assert path.read_bytes() == before

    def test_records_of_training_scripts_are_passed_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Old Lightning files name callback classes, other ones keep their command line."""
        state, path = weights(), tmp_path / "last.ckpt"
        with lightning(monkeypatch) as callback:
            record = {"args": argparse.Namespace(lr=0.1), "callbacks": {callback: {"best": 1}, "made": callback(3)}}
            torch.save({"state_dict": state, **record}, path)
        assert "pytorch_lightning" not in sys.modules
        same(read_weights(path), state)
        assert "pytorch_lightning" not in sys.modules

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_is_refused_and_not_run(self, zipped: bool, tmp_path: Path) -> None:
        proof, path = tmp_path / "proof", tmp_path / "w.pt"
        for evil in (
            Evil(os.system, f"touch {proof}"),
            Evil(exec, f"open({str(proof)!r}, 'w')"),
            Evil(Path, str(proof)),
        ):
            torch.save({"state_dict": weights(), "extra": evil}, path, _use_new_zipfile_serialization=zipped)
            with pytest.raises(
                ValueError, match=r"refused: reading it would run code \(\S+\); only plain weights"
            ) as error:
                read_weights(path)
            one_line(error, path)
            assert not proof.exists()
        path.write_bytes(pickle.dumps({"a": Evil(os.system, f"touch {proof}")}, protocol=2))
        with pytest.raises(ValueError, match=r"refused|not written by torch\.save"):
            read_weights(path)
        assert not proof.exists()

    def test_a_whole_module_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pt"
        torch.save(nn.Linear(2, 2), path)
        with pytest.raises(ValueError, match=r"run code \(torch\.nn\.modules\.linear\.Linear\)"):
            read_weights(path)
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)
        with pytest.raises(ValueError, match="refused|not written by torch") as error:
            read_weights(path)
        one_line(error, path)

    def test_truncated(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pt"
        for zipped in (True, False):
            torch.save(weights(), path, _use_new_zipfile_serialization=zipped)
            whole = path.read_bytes()
            for size in (5, 100, len(whole) // 2, len(whole) - 1):
                path.write_bytes(whole[:size])
                with pytest.raises(ValueError, match="truncated, damaged or not written by torch.save") as error:
                    read_weights(path)
                one_line(error, path)

    def test_no_weights(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pt"
        torch.save({"epoch": 3, "args": {"lr": 1}}, path)
        with pytest.raises(ValueError, match="holds no weights; its entries are epoch, args"):
            read_weights(path)
        torch.save([torch.ones(2)], path)
        with pytest.raises(ValueError, match="holds a list, expected named weights"):
            read_weights(path)
        torch.save({"a.b": torch.ones(1), "a._orig_mod.b": torch.ones(1)}, path)
        with pytest.raises(ValueError, match="holds the same weights twice"):
            read_weights(path)


class Evil:
    """Unpickles into a call."""

    def __init__(self, function: Any, argument: str) -> None:
        self.call = (function, (argument,))

    def __reduce__(self) -> Any:
        return self.call


class lightning:  # noqa: N801 (used as a function)
    """A stand-in for an old Lightning, present only while the block runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.name = "pytorch_lightning.callbacks.model_checkpoint"

    def __enter__(self) -> type:
        callback = type("ModelCheckpoint", (), {"__init__": lambda self, value: setattr(self, "value", value)})
        callback.__module__ = self.name
        module = types.ModuleType(self.name)
        module.ModelCheckpoint = callback  # type: ignore[attr-defined]
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            self.monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        self.monkeypatch.setitem(sys.modules, self.name, module)
        return callback

    def __exit__(self, *error: object) -> None:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", self.name):
            self.monkeypatch.delitem(sys.modules, name)


class TestOthers:
    def test_safetensors(self, tmp_path: Path) -> None:
        state, path = weights(), tmp_path / "w.bin"
        save_file({f"module.{name}": tensor for name, tensor in state.items()}, path)
        assert guess_container(path) == "safetensors"
        same(read_weights(path), state)
        whole = path.read_bytes()
        for size in (9, 60, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match="truncated or not a safetensors file") as error:
                read_weights(path)
            one_line(error, path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "got an empty file, expected weights"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n",
                "a Git LFS pointer; fetch the file",
            ),
            (b"\n<!DOCTYPE html><html>Not found</html>", "a web page, perhaps the error page of a download"),
            (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "a web page"),
            (b"hello, world", "no flax msgpack, PyTorch or safetensors file"),
            (b"\x1f\x8b\x08gzip", "no flax msgpack, PyTorch or safetensors file"),
        ],
    )
    def test_what_is_no_weights_file(self, content: bytes, message: str, tmp_path: Path) -> None:
        path = tmp_path / "w.msgpack"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            read_weights(path)
        one_line(error, path)

    def test_a_zip_of_something_else(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pt"
        buffer = io.BytesIO()
        np.savez(buffer, a=np.ones(3))
        path.write_bytes(buffer.getvalue())
        with pytest.raises(ValueError, match="not written by torch.save"):
            read_weights(path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
        with pytest.raises(ValueError, match="not written by torch.save"):
            read_weights(path)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no such file, expected a weights file"):
            read_weights(tmp_path / "nothing")
        with pytest.raises(ValueError, match="got a folder, expected a weights file"):
            read_weights(str(tmp_path))

    def test_reading_leaves_no_trace_in_torch(self, tmp_path: Path) -> None:
        """Placeholders are allowed while their file is read, not afterwards."""
        path = tmp_path / "w.pt"
        torch.save({"model": weights(), "args": argparse.Namespace()}, path)
        before = copy.copy(torch.serialization.get_safe_globals())
        read_weights(path)
        assert torch.serialization.get_safe_globals() == before
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Tracing a module warns; everything else stays an error."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        yield
