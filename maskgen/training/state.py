"""Checkpoints of a running training: whole or absent, the last few and no more.

A checkpoint is a folder of safetensors files and one ``run.json``: weights, optimiser, averages, the guard, further buffers,
the step and the best score. Random numbers, learning rate and data order are functions of the step, so they need no file.
Where weights are sharded every process writes its own part.

Saving copies everything to main memory, which is all that training waits for; files are written by a thread meanwhile.
"""

import json
import math
import os
import re
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from maskgen.checkpoint import check_state
from maskgen.training.optim.averaging import local
from maskgen.training.shards import Rows, ShardReader, rows_header, rows_of

_Groups = dict[str, dict[str, Tensor]]

_PATIENCE = 600.0  # seconds that a checkpoint waits for the files of other processes


class TrainingState:
    """Saves and restores everything a run needs to go on exactly.

    Args:
        accelerator: what the modules and optimisers were prepared by.
        folder: where ``step-<n>`` folders are kept.
        keep_last: how many stay.
        modules: networks by name, as Accelerate wrapped them.
        optimizers: theirs.
        buffers: further modules by the name of their file: averages, guards, an objective's own state.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        keep_last: int,
        *,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, Any],
        buffers: Mapping[str, nn.Module],
    ) -> None:
        self.accelerator, self.folder, self.keep_last = accelerator, folder, keep_last
        self.modules = {name: accelerator.unwrap_model(module) for name, module in modules.items()}
        self.optimizers, self.buffers = optimizers, buffers
        self.best_score = math.inf
        self.written_by = accelerator.num_processes
        """How many processes wrote the checkpoint that was restored."""
        self.stalled = 0.0
        """Seconds that training has waited for checkpoints so far."""
        self._memory: dict[tuple[str, str], Tensor] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int) -> None:
        """Copy the state and begin to write ``step-<n>``; older ones are deleted when it is whole.

        Raises:
            OSError: the checkpoint before could not be written; earlier ones are untouched.
        """
        began = time.perf_counter()
        self.wait()
        final = self.folder / f"step-{step:08d}"
        if not final.exists():
            tensors, rows = self._copied()
            best = None if math.isinf(self.best_score) else self.best_score
            scaler = self.accelerator.scaler
            numbers = {"step": step, "best_score": best, "processes": self.accelerator.num_processes}
            if scaler is not None:
                numbers["scaler"] = scaler.state_dict()
            self._writing = self._writer.submit(self._write, final, tensors, rows, numbers)
        self.stalled += time.perf_counter() - began

    def check(self) -> None:
        """Raise what a write that has ended meanwhile failed with; see ``save``. Does not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Until the checkpoint being written is whole.

        Raises:
            OSError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Let a write end, whatever becomes of it: for a run that stops for another reason."""
        self._writer.shutdown(wait=True)

    def resume(self) -> int:
        """Restore the newest checkpoint; returns the number of steps done, 0 if there is none.

        Raises:
            ValueError: the checkpoint is damaged or of another model.
        """
        if self.accelerator.is_main_process:
            for leftover in self.folder.glob(".step-*"):  # of a run that was killed while it wrote
                shutil.rmtree(leftover, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        found = self._found()
        if not found:
            return 0
        try:
            return self._load(found[-1])
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"{found[-1]}: damaged, or of another model ({error}); delete it to go on from the one before"
            ) from error

    def _load(self, newest: Path) -> int:
        numbers = json.loads((newest / "run.json").read_text(encoding="utf-8"))
        with ShardReader.open(newest, "optimizer") as reader:
            self._make_room(reader.shapes())
        for file, tensors in self._groups().items():
            if not tensors:
                continue  # such a file was not written
            with ShardReader.open(newest, file) as reader:
                written = {name: torch.empty(shape, device="meta") for name, shape in reader.shapes().items()}
                kept = {_written_name(name, written): tensor for name, tensor in tensors.items()}
                check_state(written, {name: tuple(tensor.shape) for name, tensor in kept.items()}, file)
                for name, tensor in kept.items():
                    reader.read_into(name, tensor)
        if self.accelerator.scaler is not None and "scaler" in numbers:
            self.accelerator.scaler.load_state_dict(numbers["scaler"])
        self.best_score = math.inf if numbers["best_score"] is None else float(numbers["best_score"])
        self.written_by = int(numbers["processes"])
        return int(numbers["step"])

    def _make_room(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Zeros for the optimisers' states in a checkpoint: what an optimiser keeps of a weight is its own business."""
        for network, module in self.modules.items():
            state = self.optimizers[network].state
            for name, parameter in module.named_parameters():
                start = f"{network}/{name}/"
                kept = {key.removeprefix(start): shape for key, shape in shapes.items() if key.startswith(start)}
                if kept:
                    state[parameter] = {
                        key: torch.zeros_like(parameter)
                        if shape == tuple(parameter.shape)
                        else torch.zeros(shape, device=parameter.device)
                        for key, shape in kept.items()
                    }

    def _groups(self) -> _Groups:
        """All tensors by file and name, as they are."""
        groups: _Groups = {"model": {}, "optimizer": {}}
        for network, module in self.modules.items():
            groups["model"] |= {f"{network}/{name}": tensor for name, tensor in module.state_dict().items()}
            state = self.optimizers[network].state
            for name, parameter in module.named_parameters():
                kept = state.get(parameter, {})
                groups["optimizer"] |= {f"{network}/{name}/{key}": value for key, value in kept.items()}
        return groups | {file: dict(module.state_dict()) for file, module in self.buffers.items()}

    def _copied(self) -> tuple[_Groups, dict[str, dict[str, Rows]]]:
        """A copy in main memory of what this process shall write, and which rows the parts are."""
        copies: _Groups = {}
        rows: dict[str, dict[str, Rows]] = {}
        for file, tensors in self._groups().items():
            copies[file], rows[file] = {}, {}
            for name, tensor in tensors.items():
                part = rows_of(tensor)
                if part is not None:
                    rows[file][name] = part
                elif not self.accelerator.is_main_process:
                    continue
                source = local(tensor.detach())
                kept = self._memory.get((file, name))
                if kept is None or kept.shape != source.shape:
                    kept = self._memory[file, name] = torch.empty(source.shape, dtype=source.dtype)
                copies[file][name] = kept.copy_(source)
        return copies, rows

    def _write(self, final: Path, tensors: _Groups, rows: dict[str, dict[str, Rows]], numbers: dict[str, Any]) -> None:
        """In the writer's thread."""
        accelerator = self.accelerator
        temporary = final.parent / f".{final.name}"
        try:
            rank, world = accelerator.process_index, accelerator.num_processes
            spread = any(rows.values())
            if not accelerator.is_main_process and not spread:
                return
            temporary.mkdir(parents=True, exist_ok=True)
            for file, group in tensors.items():
                name = f"{file}-{rank:05d}-of-{world:05d}" if rows[file] else file
                if group:
                    _save(group, temporary / f"{name}.safetensors", rows_header(rows[file]))
            (temporary / f".written-{rank:05d}").touch()
            if not accelerator.is_main_process:
                return
            (temporary / "run.json").write_text(json.dumps(numbers), encoding="utf-8")
            _wait_for(temporary, world if spread else 1)
            os.replace(temporary, final)
        except (OSError, SafetensorError, RuntimeError) as error:  # each library has its own for a full disk
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(
                f"{final}: cannot be written ({error}); earlier checkpoints are whole: make room and run it again"
            ) from error
        for old in self._found()[: -self.keep_last]:
            shutil.rmtree(old, ignore_errors=True)

    def _found(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if re.fullmatch(r"step-\d{8}", path.name))


def _written_name(name: str, written: Mapping[str, Tensor]) -> str:
    """What a tensor is called in a checkpoint: the guard of earlier versions had another word."""
    former = name.replace("longest_streak", "most_in_a_row")
    return former if former in written else name


def _save(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    """Write a file to the disk itself: a machine that loses power must not leave a whole folder of empty files."""
    save_file(tensors, path, header)
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _wait_for(folder: Path, processes: int) -> None:
    """Until every process has written its part; then their marks go."""
    began = time.monotonic()
    while len(marks := list(folder.glob(".written-*"))) < processes:
        if time.monotonic() - began > _PATIENCE:
            raise OSError(f"only {len(marks)} of {processes} processes wrote their part")
        time.sleep(0.01)
    for mark in marks:
        mark.unlink()
