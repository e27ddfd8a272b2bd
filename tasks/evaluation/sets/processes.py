"""The processes of ``accelerate launch`` that measure together: who reads what, and how the parts come together.

Parts go through files, because all processes share the output folder anyway: nothing depends on the back-end, and numbers
do not depend on how many processes there are.
"""

import datetime
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import InitProcessGroupKwargs
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from maskgen.checkpoint import atomic_file, read_json, write_json

Part = tuple[dict[str, Tensor], Any]
"""Tensors of one process, and what else it has to say (plain JSON)."""


class Processes:
    """This process among all.

    Args:
        state: see ``maskgen.tasks.evaluation.sets.processes.process_state``.
        folder: for the parts; emptied first, gone after ``close``.

    Attributes:
        rank: number of this process.
        count: how many there are.
        main: whether this is the first.
    """

    def __init__(self, state: PartialState, folder: Path) -> None:
        self.state, self._folder = state, folder
        self.rank, self.count = state.process_index, state.num_processes
        self.main = state.is_main_process
        if self.count > 1:
            if self.main:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            self.wait()

    def wait(self) -> None:
        """Until all have come here."""
        self.state.wait_for_everyone()

    def blocks(self, count: int, size: int) -> Iterator[range]:
        """This process's share of ``count`` items in blocks of ``size``; blocks do not depend on the number of processes."""
        starts = range(0, count, size)
        for start in starts[self.rank :: self.count]:
            yield range(start, min(start + size, count))

    def share(self, name: str, make: Callable[[], Any]) -> Any:
        """A value (plain JSON) that the first process finds out for all.

        Args:
            name: of the value, each used once.
            make: called by the first process.
        """
        if self.count == 1:
            return make()
        path = self._folder / f"{name}.json"
        if self.main:
            write_json(path, make())
        self.wait()
        return read_json(path)

    def gather(self, name: str, tensors: Mapping[str, Tensor], told: Any) -> list[Part]:
        """Parts of all processes in their order, for the first; none for the others.

        Args:
            name: of what is gathered, each used once.
            tensors: this process's part.
            told: plain JSON beside it.
        """
        if self.count == 1:
            return [(dict(tensors), told)]
        with atomic_file(self._part(name, self.rank)) as temporary:
            whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
            save_file(whole, temporary, metadata={"told": json.dumps(told)})
        self.wait()
        return [_read(self._part(name, rank)) for rank in range(self.count)] if self.main else []

    def close(self) -> None:
        """Take the parts away, when all are done with them."""
        if self.count > 1:
            self.wait()
            if self.main:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _part(self, name: str, rank: int) -> Path:
        return self._folder / f"{name}-{rank:05d}.safetensors"


def _read(path: Path) -> Part:
    with safe_open(path, framework="pt") as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
        return tensors, json.loads((handle.metadata() or {})["told"])


def process_state(device: str | None = None) -> PartialState:
    """Which process of ``accelerate launch`` this is; the only one without it."""
    # A process that is done waits for the slowest: not ten minutes, the default, but as long as a set may take.
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(days=7)).to_kwargs()
    on_cpu = device.startswith("cpu") if device else not torch.cuda.is_available()
    return PartialState(
        cpu=on_cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"), **patience
    )
